"""What the benchmarks share: the embedded pair, contexts of random tokens, a stopwatch, and how results are shown."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from teachdiag.artefacts import BROUGHT, CONTEXTS
from teachdiag.diagnostics.contexts.contexts_table import ROLLOUT_CONTEXTS
from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.models.pair import Pair, load_pair, resolve_pair
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings
from teachdiag.settings.base import DType
from teachdiag.tables import shard_path, write_parquet

Row = tuple[str, str, str]
PROMPT = 110  # length of a typical gsm_symbolic chat prompt
REPEATS = 3
_ENOUGH = 20.0  # s, after which nothing is repeated: a slow machine has half an hour too
QUIET = Reporter(quiet=True)


def load_bench_pair(dtype: DType = "float32", *, master: bool = False) -> Pair:
    """The embedded pair of the demo, on the CPU."""
    return load_pair(resolve_pair(CaptureSettings(), QUIET), dtype, "cpu", master=master)


def random_contexts(count: int, positions: int, split: str, first: int = 0) -> list[Context]:
    """Contexts of random tokens, which cost what real ones do."""
    rng = np.random.default_rng(first)
    contexts = []
    for number in range(first, first + count):
        prompt = tuple(rng.integers(5, 40_000, PROMPT + int(rng.integers(-20, 20))).tolist())
        response = tuple(rng.integers(5, 40_000, positions).tolist())
        contexts.append(Context(number, f"bench/{number}", split, prompt, prompt, response))
    return contexts


def write_contexts(run: Path, contexts: Sequence[Context]) -> None:
    """Write the `contexts` table of a run, each rollout with its number as its seed."""
    rows = [
        {
            "context_id": c.context_id,
            "prompt_id": c.prompt_id,
            "split": c.split,
            "source_row": None,
            "prompt_token_ids": c.student_prompt,
            "teacher_prompt_token_ids": c.teacher_prompt,
            "response_token_ids": c.response,
            "finish_reason": "length",
            "sampling_seed": c.context_id,
        }
        | dict.fromkeys(BROUGHT)
        for c in contexts
    ]
    for index, start in enumerate(range(0, len(rows), ROLLOUT_CONTEXTS)):
        shard = CONTEXTS.build_rows(rows[start : start + ROLLOUT_CONTEXTS])
        write_parquet(shard, shard_path(run / "contexts", index))


@torch.no_grad()
def bare_pass(model: LanguageModel, batch: Batch) -> None:
    """One forward pass as transformers gives it, logits of every token and all."""
    model.model(input_ids=batch.input_ids("student", model.device), use_cache=False)


def best(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The shortest of a few durations, s; of what takes long, of fewer."""
    durations: list[float] = []
    while len(durations) < repeats and sum(durations) < _ENOUGH:
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)


def alone(*words: str) -> str:
    """What `bench.py` prints for these words in a process of its own, whose peak memory is nobody else's."""
    command = (sys.executable, str(Path(__file__).with_name("bench.py")), *words)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def show(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print one table: rows of three, or of four with what was recorded before."""
    table = Table(title=title)
    for heading in ("what", "measured", "ratio", "ratio before")[: len(rows[0])]:
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
