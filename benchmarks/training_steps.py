"""One step of distillation of a random pair, by our trainer or by TRL's own, without its rollouts."""

import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from random_pairs import Taken
from trl import DistillationTrainer
from workload import QUIET

from teachdiag.diagnostics.training import distillation
from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
from teachdiag.settings import TrainSettings
from teachdiag.sweeps import Cell

if TYPE_CHECKING:
    from gpu_rows import Bench

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


class _Theirs(_Clocked, DistillationTrainer):
    """TRL's trainer; prompts are token ids, which it would render."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **{name: value for name, value in kwargs.items() if name not in _OURS})

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[Any], None, dict[str, Any]]:
        return prompts, None, {}


def step_of(bench: "Bench", trainer: str) -> Taken:
    """Train a fresh student for a few steps on the workload's update batch; the shortest step, and peak memory.

    Args:
        bench: the pair.
        trainer: 'trl', or the selector of ours: 'full', or another at 5%.
    """
    load, on_gpu = bench.workload, bench.device.type == "cuda"
    settings = TrainSettings(
        selector="full" if trainer == "trl" else trainer,
        budget=SPARSE,
        steps=STEPS,
        batch=load.update,
        micro_batch=load.update,
        max_new_tokens=load.response,
        dtype=str(bench.dtype).removeprefix("torch."),
        device=bench.device.type,
    )
    rng, pair = np.random.default_rng(0), bench.pair(master=True)
    prompts = [rng.integers(pair.vocabulary - 1, size=load.prompt).tolist() for _ in range(load.update)]
    _Clocked.steps.clear()
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
