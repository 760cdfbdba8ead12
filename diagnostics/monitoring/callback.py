"""The monitor in a transformers or TRL trainer: a `TrainerCallback`."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from teachdiag.diagnostics.models.sources import end_ids
from teachdiag.diagnostics.models.vocabulary import Known, known_ids
from teachdiag.diagnostics.monitoring.in_training import ModelInTraining

if TYPE_CHECKING:
    from teachdiag.diagnostics.monitoring.monitor import Monitor

_WEIGHTS = 2**22  # of all weights, that many are compared before and after a step


class MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Lets a monitor look before the first step and after every so many; `Monitor.attach` makes one.

    The first process looks; the others wait for it at the next exchange. Numbers go to the trainer's own loggers by
    `transformers.Trainer.log`, past what a subclass's `log` does with its own.
    """

    def __init__(self, monitor: "Monitor", trainer: Trainer) -> None:
        """Remember a trainer's batches, for which its `_prepare_inputs` is watched, if it has a teacher."""
        self.monitor, self.trainer = monitor, trainer
        self._before: list[Tensor] = []
        self._norm: float | None = None
        self._batch: dict[str, Any] | None = None
        self.teacher = getattr(trainer, "teacher_model", None)
        if self.teacher is not None:
            trainer._prepare_inputs = self._remembering(trainer._prepare_inputs)
        if not monitor.end_ids and self._tokenizer is not None:
            monitor.end_ids = tuple(sorted(end_ids(trainer.model.generation_config, self._tokenizer)))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Look at the student before its first step."""
        self._look(state, control, model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Keep some weights, if the step is one to look at."""
        if _watches(state) and self.monitor.due(state.global_step + 1):
            self._before = [part.clone() for part in _parts(model)]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Measure how far the step went."""
        if self._before:
            self._norm = _distance(self._before, _parts(model), _count(model))
            self._before = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ANN401
        """Look, if the step is one to look at."""
        self._look(state, control, model)
        self._norm = None

    def _look(self, state: Any, control: Any, model: Any) -> None:  # noqa: ANN401
        if not (_watches(state) and self.monitor.due(state.global_step)):
            return
        student = ModelInTraining(model, self._known(model), self._half())
        told: dict[str, float] = {}
        if self.monitor.canary is not None:
            told |= self.monitor.observe_canary(state.global_step, student, update_norm=self._norm)
        if self.teacher is not None and self._batch is not None:
            teacher = ModelInTraining(self.trainer.accelerator.unwrap_model(self.teacher), student.known, student.half)
            told |= self.monitor.observe_trainer_batch(state.global_step, student, teacher, self._batch)
        due = control.should_log  # which logging takes for done
        Trainer.log(self.trainer, told)
        control.should_log = due

    def _remembering(self, prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def prepared(inputs: Any) -> Any:  # noqa: ANN401
            batch = prepare(inputs)
            if self.trainer.model.training and isinstance(batch, dict):
                self._batch = batch
            return batch

        return prepared

    def _known(self, model: Any) -> Known:  # noqa: ANN401
        if self.monitor.canary is not None:
            return self.monitor.canary.known
        return known_ids(self._tokenizer, model.get_output_embeddings().weight.shape[0])

    @property
    def _tokenizer(self) -> Any:  # noqa: ANN401
        return getattr(self.trainer.processing_class, "tokenizer", self.trainer.processing_class)

    def _half(self) -> torch.dtype | None:
        args = self.trainer.args
        return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _watches(state: Any) -> bool:  # noqa: ANN401
    return bool(state.is_world_process_zero)


def _parts(model: Any) -> Iterable[Tensor]:  # noqa: ANN401
    """An evenly spaced part of every trainable weight, views; all of it where there are few."""
    stride = max(1, _count(model) // _WEIGHTS)
    return [p.detach().view(-1)[::stride] for p in model.parameters() if p.requires_grad]


def _count(model: Any) -> int:  # noqa: ANN401
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _distance(before: Iterable[Tensor], now: Iterable[Tensor], count: int) -> float:
    """Length of a step from a part of the weights: sqrt(count * mean squared change)."""
    changes = [(new.float() - old.float()).square() for old, new in zip(before, now, strict=True)]
    compared = sum(change.numel() for change in changes)
    return math.sqrt(count * sum(float(change.sum()) for change in changes) / compared)
