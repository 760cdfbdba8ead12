"""What capture's exact scoring costs beyond the models' own forward passes, and what memory it takes.

Both are measured on the loop that capture runs: shards of contexts, batches of similar length, tiles, Parquet files.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from workload import Row, alone, bare_pass, best, load_bench_pair, random_contexts, write_contexts

from teachdiag.diagnostics.calibrate import score_anew
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import batched, in_shards
from teachdiag.peak_memory import peak_memory as peak_of_process
from teachdiag.settings import CaptureSettings
from teachdiag.settings.base import DType

POSITIONS = 192  # response positions a context
SETTINGS = CaptureSettings(positions=POSITIONS)
CONTEXT_COUNTS = (8, 24)


def time_rows(dtype: DType) -> list[Row]:
    """Scoring against the two bare forward passes (`model(input_ids)`, logits and all) over the same batches."""
    pair = load_bench_pair(dtype)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        write_contexts(run, random_contexts(CONTEXT_COUNTS[0], POSITIONS, "bank"))
        shards = in_shards(read_contexts(run, Positions(POSITIONS, "first")), SETTINGS.shard_contexts)
        batches = [batch for shard in shards for batch in batched(shard, SETTINGS.batch_tokens)]
        models = (pair.student, pair.teacher)
        bare = best(lambda: [bare_pass(model, batch) for batch in batches for model in models])
        scored = best(lambda: score_anew(run, replace(SETTINGS, dtype=dtype), pair))
    return [
        (f"two bare {dtype} forward passes, {POSITIONS} positions a context", f"{bare:.2f} s", "1"),
        (f"exact scoring of the same batches, {dtype}", f"{scored:.2f} s", f"{scored / bare:.3f}"),
    ]


def memory_rows() -> list[Row]:
    """Peak resident memory of whole processes that score few and many contexts."""
    few, many = (measured_peak(n) for n in CONTEXT_COUNTS)
    return [
        (f"peak memory, {CONTEXT_COUNTS[0]} contexts", f"{few / 1024:.0f} MiB", "1"),
        (f"peak memory, {CONTEXT_COUNTS[1]} contexts", f"{many / 1024:.0f} MiB", f"{many / few:.3f}"),
    ]


def measured_peak(contexts: int) -> int:
    """Peak resident memory, in KiB, of a process that scores that many contexts."""
    return int(alone("peak", str(contexts)))


def peak_memory(contexts: int) -> int:
    """Score that many contexts and return this process's peak resident memory, in KiB."""
    with tempfile.TemporaryDirectory() as folder:
        write_contexts(Path(folder), random_contexts(contexts, POSITIONS, "bank"))
        score_anew(Path(folder), SETTINGS, load_bench_pair())
    return peak_of_process() // 1024
