"""What selection costs a training step, and what a sparse mask saves, against full OPD on the same rollouts."""

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from workload import QUIET, Row

from teachdiag.diagnostics.contexts.templates import encode_prompts
from teachdiag.diagnostics.models.pair import load_pair, resolve_pair
from teachdiag.diagnostics.training import distillation
from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
from teachdiag.manifests import read_manifest
from teachdiag.prompts import load_prompts
from teachdiag.settings import TrainSettings
from teachdiag.sweeps import Cell

STEPS, SPARSE = 3, 0.05
_SETTINGS = TrainSettings(steps=STEPS, batch=4, micro_batch=4, max_new_tokens=64, train_prompts=16)


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


ROLLOUTS, SCORING, SELECTING, WHOLE = "_generate_single_turn", "_statistics", "_weighed", "training_step"
for _name in (ROLLOUTS, SCORING, SELECTING, WHOLE):
    setattr(Timed, _name, _clocked(_name))


def training_rows() -> list[Row]:
    """Full OPD, then TA-OPD at a sparse budget, with selection's parts apart."""
    seconds("full", 1.0)  # warms up
    full, sparse = seconds("full", 1.0), seconds("learnable", SPARSE)
    step, thin = (own[WHOLE] - own[ROLLOUTS] - own[SCORING] - own[SELECTING] for own in (full, sparse))
    whole = full[WHOLE] - full[SCORING]
    return [
        _row("one step of full OPD, rollouts included, without scoring", whole, whole),
        _row("the scoring pass of both models, for selection and log", sparse[SCORING], whole),
        _row("the selection itself: normalise, rank, draw ties, log", sparse[SELECTING], whole),
        _row("loss and gradient of full OPD", step, step),
        _row(f"loss and gradient on {SPARSE:.0%} of the positions", thin, step),
    ]


def _row(what: str, took: float, beside: float) -> Row:
    return what, f"{took / STEPS:.3f} s", f"{took / beside:.3f}"


def seconds(selector: str, budget: float, batch: int = _SETTINGS.batch) -> dict[str, float]:
    """Train a fresh student for a few steps of so many sequences; seconds by part, of all steps together."""
    settings = replace(_SETTINGS, selector=selector, budget=budget, batch=batch)
    prompts = load_prompts(read_manifest(settings.prompts))
    _, drawn = prompts.draw(settings.eval_prompts, settings.train_prompts, 0)
    named = [(prompt.prompt_id, prompts.manifest.student_messages(prompt)) for prompt in drawn]
    pair = load_pair(resolve_pair(settings, QUIET), "float32", "cpu", master=True)
    Timed.seconds.clear()
    cell = Cell(selector, settings)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(distillation, "SelectiveDistillationTrainer", Timed),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        asked = encode_prompts(pair.student.tokenizer, named, {})
        distillation.distil(pair, asked, cell, Path(folder) / "s", Path(folder) / "c", QUIET)
    return dict(Timed.seconds)
