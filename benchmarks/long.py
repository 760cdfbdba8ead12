"""What long contexts cost: tokens a second and peak memory of scoring and of a step's gradient, by length.

Each row is a process of its own on the embedded pair's architecture. One row of each length scores two contexts instead
of one: memory follows the longest context, and not their number.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from workload import QUIET, Row, alone, load_bench_pair

from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.updates import gradient, step_objective
from teachdiag.diagnostics.scoring.positions_table import by_models, score_shard
from teachdiag.peak_memory import peak_memory
from teachdiag.settings import CaptureSettings, ProbeSettings

LENGTHS, LONGER, LONGEST = (512, 2048), 4096, 16384  # tokens of a response, all of them scored
_PROMPT = 64
_SCORING, _TWO = "scoring", "scoring, two contexts"
_GRADIENT, _RECOMPUTED = "gradient of the loss", "the same with --recompute"
_EVERY = (_SCORING, _TWO, _GRADIENT, _RECOMPUTED)


def long_rows() -> list[Row]:
    """Seconds and memory at lengths that take a few minutes together."""
    return _rows([(length, work) for length in LENGTHS for work in _EVERY])


def longest_rows() -> list[Row]:
    """The same at lengths of minutes a row; the whole graph of the longest would not be held."""
    longest = [(LONGEST, work) for work in (_SCORING, _RECOMPUTED)]
    return _rows([(LONGER, work) for work in _EVERY] + longest)


def _rows(measured: list[tuple[int, str]]) -> list[Row]:
    """Ratios are to the peak memory of the first row."""
    rows: list[Row] = []
    first = 0
    for length, work in measured:
        seconds, peak = _alone(length, work)
        first = first or peak
        tokens = (2 if work == _TWO else 1) * (length + _PROMPT) / seconds
        rows.append((f"{length} tokens, {work}", f"{tokens:.0f} tok/s, {peak / 1024:.0f} MiB", f"{peak / first:.2f}"))
    return rows


def _alone(length: int, work: str) -> tuple[float, int]:
    """Seconds, and peak resident memory in KiB, of a process that does this once."""
    seconds, peak = alone("long-context", str(length), work).split()
    return float(seconds), int(peak)


def long_context(length: int, work: str) -> tuple[float, int]:
    """Do one piece of work on contexts of a length; return the seconds and this process's peak memory in KiB."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 40_000, (2, _PROMPT + length))
    prompts, responses = ([tuple(row.tolist()) for row in part] for part in (ids[:, :_PROMPT], ids[:, _PROMPT:]))
    drawn = zip(prompts, responses, strict=True)
    contexts = [Context(i, str(i), "update", prompt, prompt, response) for i, (prompt, response) in enumerate(drawn)]
    scoring = work in (_SCORING, _TWO)
    pair = load_bench_pair(master=not scoring)
    if scoring:
        capture = CaptureSettings(positions=length)
        start = time.perf_counter()
        score_shard(contexts[: 2 if work == _TWO else 1], capture, by_models(pair, capture))
        seconds = time.perf_counter() - start
    else:
        seconds = _gradient_seconds(pair, contexts[:1], ProbeSettings(recompute=work == _RECOMPUTED))
    return seconds, peak_memory() // 1024


def _gradient_seconds(pair: Pair, contexts: list[Context], settings: ProbeSettings) -> float:
    with tempfile.TemporaryDirectory() as folder:
        states = Path(folder) / "teacher.npy"
        teacher = compute_teacher_states(pair.teacher, [contexts], settings.batch_tokens, states, QUIET)
        start = time.perf_counter()
        gradient(pair.student, step_objective(contexts, teacher, settings), settings, QUIET)
        return time.perf_counter() - start
