"""What selection costs a training step, and what a sparse mask saves, against full OPD on the same rollouts."""

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from training_steps import SPARSE, step_of
from workload import QUIET, Row, alone

from teachdiag.diagnostics.contexts.templates import encode_prompts
from teachdiag.diagnostics.models.pair import Pair, load_pair, resolve_pair
from teachdiag.diagnostics.training import distillation
from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
from teachdiag.manifests import read_manifest
from teachdiag.peak_memory import peak_memory
from teachdiag.prompts import load_prompts
from teachdiag.settings import TrainSettings
from teachdiag.sweeps import Cell

STEPS = 2
_SETTINGS = TrainSettings(steps=STEPS, batch=4, micro_batch=4, max_new_tokens=64, train_prompts=16, device="cpu")


class Timed(SelectiveDistillationTrainer):
    """Keeps the seconds of each part of a step, by the method that does it."""

    seconds: ClassVar[dict[str, float]] = {}


def _clocked(name: str) -> Callable[..., Any]:
    """A method of the trainer that adds up how long it takes."""
    method: Callable[..., Any] = getattr(SelectiveDistillationTrainer, name)

    def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (whatever the method takes)
        start = time.perf_counter()
        found = method(*args, **kwargs)
        Timed.seconds[name] = Timed.seconds.get(name, 0.0) + time.perf_counter() - start
        return found

    return timed


ROLLOUTS, WHOLE = "_generate_single_turn", "training_step"
TEACHER, SCORING, SELECTING = "_taught", "_statistics", "_weighed"
for _name in (ROLLOUTS, WHOLE, TEACHER, SCORING, SELECTING):
    setattr(Timed, _name, _clocked(_name))


def training_rows() -> list[Row]:
    """Full OPD, then TA-OPD at a sparse budget, with its parts apart; and this beside TRL's own step."""
    seconds("full", 1.0)  # warms up
    full, sparse = seconds("full", 1.0), seconds("learnable", SPARSE)
    apart = (ROLLOUTS, TEACHER, SCORING, SELECTING)
    step, thin = (took[WHOLE] - sum(took[part] for part in apart) for took in (full, sparse))
    whole = full[WHOLE]
    return [
        _row("one step of full OPD, rollouts included", whole, whole),
        _row("the teacher's one pass, for scoring and loss", sparse[TEACHER], whole),
        _row("the student's one pass, for scoring and loss, and the statistics", sparse[SCORING], whole),
        _row("the selection itself: normalise, rank, draw ties, log", sparse[SELECTING], whole),
        _row("loss and gradient of full OPD", step, step),
        _row(f"the same on {SPARSE:.0%} of the positions", thin, step),
        *_beside_trl(),
    ]


def _beside_trl() -> list[Row]:
    """A step at a sparse budget beside TRL's own, the same rollouts left out, each in a process of its own."""
    (theirs, held), (ours, ours_held) = (map(float, alone("step", name).split()) for name in ("trl", "learnable"))
    what = f"a step of ours on {SPARSE:.0%} of the positions, selection and all"
    return [
        ("a step of TRL's DistillationTrainer, without rollouts", f"{theirs:.3f} s", "1"),
        (what, f"{ours:.3f} s", f"{ours / theirs:.3f}"),
        ("  peak memory of a process with TRL's", f"{held / 1024:.0f} MiB", "1"),
        ("  peak memory of one with ours", f"{ours_held / 1024:.0f} MiB", f"{ours_held / held:.3f}"),
    ]


def step_alone(trainer: str) -> tuple[float, int]:
    """Seconds of a step on the embedded pair, 'trl' or a selector, and this process's peak resident memory, KiB."""
    taken = step_of(*_loaded(_SETTINGS), trainer, _SETTINGS)
    return taken.seconds, peak_memory() // 1024


def _row(what: str, took: float, beside: float) -> Row:
    return what, f"{took / STEPS:.3f} s", f"{took / beside:.3f}"


def seconds(selector: str, budget: float, batch: int = _SETTINGS.batch) -> dict[str, float]:
    """Train a fresh student for a few steps of so many sequences; seconds by part, of all steps together."""
    settings = replace(_SETTINGS, selector=selector, budget=budget, batch=batch)
    pair, asked = _loaded(settings)
    Timed.seconds.clear()
    cell = Cell(selector, settings)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(distillation, "SelectiveDistillationTrainer", Timed),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        distillation.distil(pair, asked, cell, Path(folder) / "s", Path(folder) / "c", QUIET)
    return dict(Timed.seconds)


def _loaded(settings: TrainSettings) -> tuple[Pair, list[tuple[int, ...]]]:
    """The embedded pair, and the prompts to train on."""
    prompts = load_prompts(read_manifest(settings.prompts))
    _, drawn = prompts.draw(settings.eval_prompts, settings.train_prompts, 0)
    named = [(prompt.prompt_id, prompts.manifest.student_messages(prompt)) for prompt in drawn]
    pair = load_pair(resolve_pair(settings, QUIET), "float32", "cpu", master=True)
    return pair, encode_prompts(pair.student.tokenizer, named, {})
