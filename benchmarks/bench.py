"""`make bench`: what exact scoring costs beyond the models' own forward passes, and what memory it takes.

Prints ratios from one run and asserts nothing. Run one part alone with `python benchmarks/bench.py time|memory`.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from teachdiag.diagnostics.alignment import Batch, Context, batched
from teachdiag.diagnostics.capture import Pair, load_pair, resolve_pair
from teachdiag.diagnostics.scoring import score
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

POSITIONS, PROMPT = 192, 110  # response positions a context, and the length of a typical gsm_symbolic chat prompt
SETTINGS = CaptureSettings(positions=POSITIONS)
REPEATS = 3


def main() -> None:
    """Print every ratio, or run one measurement in this process."""
    if sys.argv[1:2] == ["memory-of"]:
        print(peak_memory(int(sys.argv[2])))
        return
    table = Table(
        title=f"Scoring the embedded pair, {POSITIONS} positions a context, {torch.get_num_threads()} threads"
    )
    for heading in ("what", "measured", "ratio"):
        table.add_column(heading)
    for row in [*time_rows(), *memory_rows()]:
        table.add_row(*row)
    Console().print(table)


@dataclass(frozen=True)
class Timing:
    """Best of several passes over the same batches, in seconds."""

    bare: float
    scored: float


def time_rows() -> list[tuple[str, str, str]]:
    """Scoring against the two bare forward passes (`model(input_ids)`, logits and all) over the same batches."""
    pair = _pair()
    batches = batched(_contexts(16), SETTINGS.batch_tokens)
    timing = Timing(
        bare=_best(lambda: [_bare(pair, b) for b in batches]),
        scored=_best(lambda: [score(pair.student, pair.teacher, b, SETTINGS.tile_positions) for b in batches]),
    )
    return [
        ("two bare forward passes", f"{timing.bare:.2f} s", "1"),
        ("exact scoring, same batches", f"{timing.scored:.2f} s", f"{timing.scored / timing.bare:.3f}"),
    ]


def memory_rows() -> list[tuple[str, str, str]]:
    """Peak resident memory of whole processes that score 16 and 64 contexts."""
    few, many = (
        int(subprocess.run([sys.executable, __file__, "memory-of", n], check=True, capture_output=True).stdout)
        for n in ("16", "64")
    )
    return [
        ("peak memory, 16 contexts", f"{few / 1024:.0f} MiB", "1"),
        ("peak memory, 64 contexts", f"{many / 1024:.0f} MiB", f"{many / few:.3f}"),
    ]


def peak_memory(contexts: int) -> int:
    """Score that many contexts and return this process's peak resident memory, in KiB."""
    pair = _pair()
    for batch in batched(_contexts(contexts), SETTINGS.batch_tokens):
        score(pair.student, pair.teacher, batch, SETTINGS.tile_positions)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _pair() -> Pair:
    quiet = Reporter(quiet=True)
    return load_pair(resolve_pair(SETTINGS, quiet), SETTINGS.dtype, "cpu", quiet)


def _contexts(count: int) -> list[Context]:
    rng = np.random.default_rng(0)
    contexts = []
    for number in range(count):
        prompt = tuple(rng.integers(5, 40_000, PROMPT + int(rng.integers(-20, 20))).tolist())
        response = tuple(rng.integers(5, 40_000, POSITIONS).tolist())
        contexts.append(Context(number, f"bench/{number}", "bank", prompt, prompt, response))
    return contexts


@torch.no_grad()
def _bare(pair: Pair, batch: Batch) -> None:
    pair.student.model(input_ids=batch.input_ids("student", pair.student.device), use_cache=False)
    pair.teacher.model(input_ids=batch.input_ids("teacher", pair.teacher.device), use_cache=False)


def _best(work: Callable[[], object]) -> float:
    durations = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)


if __name__ == "__main__":
    main()
