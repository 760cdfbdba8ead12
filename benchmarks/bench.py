"""`make bench`: what capture's exact scoring costs beyond the models' own forward passes, and what memory it takes.

Both are measured on the loop that capture runs: shards of contexts, batches of similar length, tiles, Parquet files.
Prints ratios from one run and asserts nothing.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from teachdiag.artefacts import CONTEXTS
from teachdiag.diagnostics.alignment import Batch, batched, in_shards
from teachdiag.diagnostics.capture import ROLLOUT_CONTEXTS, Pair, load_pair, read_contexts, resolve_pair, score_contexts
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings
from teachdiag.tables import shard_path, write_parquet

POSITIONS, PROMPT = 192, 110  # response positions a context, and the length of a typical gsm_symbolic chat prompt
SETTINGS = CaptureSettings(positions=POSITIONS)
CONTEXT_COUNTS = (16, 64)
REPEATS = 3
QUIET = Reporter(quiet=True)


def main() -> None:
    """Print every ratio, or take one memory reading in a process of its own."""
    if sys.argv[1:2] == ["peak"]:
        print(peak_memory(int(sys.argv[2])))
        return
    table = Table(title=f"Scoring, embedded pair, {POSITIONS} positions a context, {torch.get_num_threads()} threads")
    for heading in ("what", "measured", "ratio"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in [*time_rows(), *memory_rows()]:
        table.add_row(*row)
    Console().print(table)


def time_rows() -> list[tuple[str, str, str]]:
    """Scoring against the two bare forward passes (`model(input_ids)`, logits and all) over the same batches."""
    pair = _pair()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        _write_contexts(run, CONTEXT_COUNTS[0])
        shards = in_shards(read_contexts(run, POSITIONS), SETTINGS.shard_contexts)
        batches = [batch for shard in shards for batch in batched(shard, SETTINGS.batch_tokens)]
        bare = _best(lambda: [_bare(pair, batch) for batch in batches])
        scored = _best(lambda: _score_anew(run, pair))
    return [
        ("two bare forward passes", f"{bare:.2f} s", "1"),
        ("exact scoring of the same batches", f"{scored:.2f} s", f"{scored / bare:.3f}"),
    ]


def memory_rows() -> list[tuple[str, str, str]]:
    """Peak resident memory of whole processes that score few and many contexts."""
    command = (sys.executable, __file__, "peak")
    few, many = (
        int(subprocess.run([*command, str(n)], check=True, capture_output=True, text=True).stdout)
        for n in CONTEXT_COUNTS
    )
    return [
        (f"peak memory, {CONTEXT_COUNTS[0]} contexts", f"{few / 1024:.0f} MiB", "1"),
        (f"peak memory, {CONTEXT_COUNTS[1]} contexts", f"{many / 1024:.0f} MiB", f"{many / few:.3f}"),
    ]


def peak_memory(contexts: int) -> int:
    """Score that many contexts and return this process's peak resident memory, in KiB."""
    with tempfile.TemporaryDirectory() as folder:
        _write_contexts(Path(folder), contexts)
        score_contexts(Path(folder), SETTINGS, _pair(), QUIET)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _pair() -> Pair:
    return load_pair(resolve_pair(SETTINGS, QUIET), SETTINGS.dtype, "cpu", QUIET)


def _write_contexts(run: Path, count: int) -> None:
    """Random tokens: they cost what real ones do."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        prompt = rng.integers(5, 40_000, PROMPT + int(rng.integers(-20, 20))).tolist()
        rows.append(
            {
                "context_id": number,
                "prompt_id": f"bench/{number}",
                "split": "bank",
                "source_row": None,
                "prompt_token_ids": prompt,
                "teacher_prompt_token_ids": prompt,
                "response_token_ids": rng.integers(5, 40_000, POSITIONS).tolist(),
                "finish_reason": "length",
                "sampling_seed": None,
            }
        )
    for index, start in enumerate(range(0, count, ROLLOUT_CONTEXTS)):
        shard = CONTEXTS.build_rows(rows[start : start + ROLLOUT_CONTEXTS])
        write_parquet(shard, shard_path(run / "contexts", index))


@torch.no_grad()
def _bare(pair: Pair, batch: Batch) -> None:
    pair.student.model(input_ids=batch.input_ids("student", pair.student.device), use_cache=False)
    pair.teacher.model(input_ids=batch.input_ids("teacher", pair.teacher.device), use_cache=False)


def _score_anew(run: Path, pair: Pair) -> None:
    for shard in (run / "positions").glob("*.parquet"):
        os.unlink(shard)
    score_contexts(run, SETTINGS, pair, QUIET)


def _best(work: Callable[[], object]) -> float:
    durations = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)


if __name__ == "__main__":
    main()
