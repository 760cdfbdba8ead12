"""One step of distillation, by our trainer or by TRL's own on the same rollouts, which are left out of its time."""

import gc
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from random_pairs import Taken
from trl import DistillationTrainer
from workload import QUIET

from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.models.vocabulary import known_ids
from teachdiag.diagnostics.training import distillation
from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
from teachdiag.settings import TrainSettings
from teachdiag.sweeps import Cell

STEPS, SPARSE = 2, 0.05
_OURS = ("selection", "loss", "jsd_beta", "loss_mean", "tile_positions", "rollout_seed", "reporter")


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class _Clocked:
    """Keeps the seconds of every step, rollouts left out, and writes no student."""

    steps: ClassVar[list[float]] = []
    sampling = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (whatever the method takes)
        self.sampling, start = 0.0, _now()
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.steps.append(_now() - start - self.sampling)
        return loss

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        start = _now()
        sampled = super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        self.sampling += _now() - start
        return sampled

    def save_model(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Write nothing."""


class _Ours(_Clocked, SelectiveDistillationTrainer):
    pass


class _Sampled(DistillationTrainer):
    """TRL's trainer on our rollouts; prompts are token ids, which it would render."""

    _generate_single_turn = SelectiveDistillationTrainer._generate_single_turn

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **{name: value for name, value in kwargs.items() if name not in _OURS})
        self.rollout_seed = kwargs["rollout_seed"]
        self._known = known_ids(self._tokenizer, self.model.config.get_text_config().vocab_size)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[Any], None, dict[str, Any]]:
        return prompts, None, {}


class _Theirs(_Clocked, _Sampled):
    pass


def step_of(pair: Pair, prompts: Sequence[Sequence[int]], trainer: str, settings: TrainSettings) -> Taken:
    """Train a student for a few steps; the shortest of them, without its rollouts, and peak memory on a GPU.

    Args:
        pair: student with float32 weights, and teacher.
        prompts: token ids.
        trainer: 'trl', or the selector of ours: 'full', or another at 5%.
        settings: batch, lengths, type and device; both take the mean reverse KL.
    """
    on_gpu = torch.cuda.is_available() and settings.device != "cpu"
    settings = replace(
        settings, selector="full" if trainer == "trl" else trainer, budget=SPARSE, steps=STEPS, loss="reverse_kl"
    )
    _Clocked.steps.clear()
    gc.collect()  # an earlier trainer, which would count among the peak
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(distillation, "SelectiveDistillationTrainer", _Theirs if trainer == "trl" else _Ours),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        distillation.distil(pair, prompts, Cell(trainer, settings), Path(folder) / "s", Path(folder) / "c", QUIET)
    return Taken(min(_Clocked.steps), torch.cuda.max_memory_allocated() if on_gpu else None)
