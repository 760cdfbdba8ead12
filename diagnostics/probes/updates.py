"""Updates of the student: the loss that a step descends, its gradient, and the step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from teachdiag.diagnostics.models.alignment import Batch, Context, batched
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.probes.teacher_states import TeacherStates
from teachdiag.diagnostics.probes.theta0 import Direction, Theta0
from teachdiag.diagnostics.processes.collectives import in_step, sum_gradients, summed
from teachdiag.diagnostics.processes.group import share_of
from teachdiag.diagnostics.processes.parameters import local, whole
from teachdiag.diagnostics.scoring.position_loss import PositionLoss, position_loss
from teachdiag.diagnostics.scoring.tiles import tiles
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import ProbeSettings

_BLOCK = 2**22  # numbers of a parameter that AdamW moves at a time


@dataclass(frozen=True)
class Step:
    """What one update did.

    Attributes:
        loss: mean loss over the update's positions at theta0, nats; of several steps, the first's, like the next two.
        gradient_norm: before clipping.
        positions: positions in the update batch.
        update_norm: Euclidean norm of theta1 - theta0, all steps together.
        share: of the step at the nominal learning rate, of which this is a part.
    """

    loss: float
    gradient_norm: float
    positions: int
    update_norm: float
    share: float = 1.0


@dataclass(frozen=True)
class Objective:
    """A mean loss over positions: what a step descends (paper Eq. 7), or what a gradient is taken of.

    Attributes:
        contexts: where the positions are.
        teacher: the teacher's states at them.
        loss: the loss of one position.
        kept: response positions that count, ascending, for every context_id; None keeps all of them.
        factors: what the loss of every position of the response is multiplied by, by context_id; None is 1.
    """

    contexts: Sequence[Context]
    teacher: TeacherStates
    loss: PositionLoss
    kept: Mapping[int, np.ndarray] | None = None
    factors: Mapping[int, np.ndarray] | None = None

    @property
    def positions(self) -> int:
        """Positions that the mean is over."""
        if self.kept is None:
            return sum(c.rows for c in self.contexts)
        return sum(len(self.kept[c.context_id]) for c in self.contexts)

    def batches(self, batch_tokens: int) -> list[Batch]:
        """Batches of the contexts, each with the positions that count; those without any are left out."""
        if self.kept is None:
            return batched(self.contexts, batch_tokens)
        wanted = [c.keeping(self.kept[c.context_id]) for c in self.contexts]
        return batched([c for c in wanted if c.rows], batch_tokens)

    def weights(self, batch: Batch) -> np.ndarray:
        """What the loss of every row of one of the `batches` is multiplied by, float32."""
        if self.factors is None:
            return np.ones(batch.rows, np.float32)
        factors = np.concatenate([self.factors[c.context_id][c.positions] for c in batch.contexts])
        return np.asarray(factors, np.float32)


def optimize(
    student: LanguageModel, objectives: Iterable[Objective], settings: ProbeSettings, theta0: Theta0, reporter: Reporter
) -> Step:
    """Take one optimizer step from theta0 on each objective in turn, with one optimizer state.

    Args:
        student: float32 master weights at theta0; afterwards at theta1.
        objectives: one a step; each is asked for when the step before it has been taken.
        settings: optimizer and sizes of batches and tiles.
        theta0: where the steps start.
        reporter: progress.

    Raises:
        SettingsError: gradient or step is not finite.
    """
    optimizer = None
    if settings.steps > 1 or theta0.mapped:
        theta0.leave()
    if settings.steps > 1:  # it keeps its state from one to the next
        optimizer = _optimizer([p for _, p in student.parameters()], settings)
    taken = [_optimizer_step(student, optimizer, objective, settings, theta0, reporter) for objective in objectives]
    assert len(taken) == settings.steps, "an objective a step"
    loss, gradient_norm, positions = taken[0]
    step = Step(loss, gradient_norm, positions, theta0.distance())
    if not math.isfinite(sum(norm for _, norm, _ in taken) + step.update_norm):
        raise SettingsError(
            f"the step is not finite (gradient norm {gradient_norm:.3g}, update norm {step.update_norm:.3g}): choose a "
            f"smaller --learning-rate than {settings.step_size:g}, or capture with --dtype float32"
        )
    return step


def _optimizer(weights: list[Tensor], settings: ProbeSettings) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.SGD
    # One tensor at a time: on CUDA, all together would take another copy of the model's size or two.
    return kind(weights, lr=settings.step_size, weight_decay=settings.weight_decay, foreach=False)


def _optimizer_step(
    student: LanguageModel,
    optimizer: torch.optim.Optimizer | None,
    objective: Objective,
    settings: ProbeSettings,
    theta0: Theta0,
    reporter: Reporter,
) -> tuple[float, float, int]:
    loss = accumulate_gradient(student, objective, settings, reporter)
    parameters = [p for _, p in student.parameters()]
    norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm or float("inf"))))
    if optimizer is None:
        _step_once(theta0, settings)
    else:
        optimizer.step()
        student.head.follow()
        optimizer.zero_grad(set_to_none=True)
    return loss, norm, objective.positions


def _step_once(theta0: Theta0, settings: ProbeSettings) -> None:
    """Take an optimizer's first step on every parameter in turn, and free its gradient.

    The numbers are those of one optimizer of all parameters, bit for bit; only, no state is kept. AdamW, which needs
    four more tensors of what it moves, is given a block at a time.
    """
    for parameter in theta0.leaving():
        if parameter.grad is None:
            continue
        size = _BLOCK if settings.optimizer == "adamw" else parameter.numel()
        for weights, along in zip(_blocks(parameter.data, size), _blocks(parameter.grad, size), strict=True):
            weights.grad = along
            _optimizer([weights], settings).step()
        parameter.grad = None


def _blocks(tensor: Tensor, size: int) -> tuple[Tensor, ...]:
    """Rows of this process's part of a tensor, about `size` numbers at a time, as views."""
    part = local(tensor)
    part = part if part.dim() else part[None]
    return torch.split(part, max(1, size * len(part) // max(1, part.numel())))


def step_objective(
    contexts: Sequence[Context],
    teacher: TeacherStates,
    settings: ProbeSettings,
    kept: Mapping[int, np.ndarray] | None = None,
) -> Objective:
    """Return the mean of the probe's OPD loss over some positions."""
    return Objective(contexts, teacher, position_loss(settings.loss, settings.as_dict()), kept)


def accumulate_gradient(
    student: LanguageModel, objective: Objective, settings: ProbeSettings, reporter: Reporter
) -> float:
    """Put the gradient of an objective into every parameter's `.grad`, which was empty; return its value, in nats.

    The backward pass is cut at the hidden states that feed the LM head: each tile of logits sends its gradient there
    and is freed before the next is made, so that memory grows with neither the update batch nor the vocabulary. The
    sum of the losses is propagated and the gradient divided at the end: in half precision, terms of a mean over many
    positions would vanish. Several processes share the batches, and add up what each found.
    """
    batches = objective.batches(settings.batch_tokens)
    local = share_of(batches)
    loss_sum = 0.0
    bar = reporter.bar("Gradient", total=sum(len(b.contexts) for b in local))
    layers = student.recomputing() if settings.recompute else nullcontext()
    with layers, in_step(lambda: _pass_idly(student, batches[-1]), student.sharded) as step, bar as advance:
        for batch in local:
            loss_sum += step(partial(_backward, student, objective, batch, settings.tile_positions))
            advance(len(batch.contexts))
    student.head.return_gradient()
    sum_gradients(parameter for _, parameter in student.parameters())
    for _, parameter in student.parameters():
        if parameter.grad is not None:
            parameter.grad /= objective.positions
    return summed(loss_sum) / objective.positions


def _backward(student: LanguageModel, objective: Objective, batch: Batch, tile_positions: int) -> float:
    """Add the gradient of a batch's summed losses to `.grad`; return their sum."""
    states = student.hidden(batch.input_ids("student", student.device))  # (sequences, length, width)
    hidden = batch.gather(states, "student")  # (positions, width)
    cut = hidden.detach().requires_grad_()
    taught = objective.teacher.at(objective.teacher.rows(batch), student.device)  # (positions, width)
    tokens = torch.from_numpy(batch.tokens).long().to(student.device)  # (positions,)
    weights = torch.from_numpy(objective.weights(batch)).to(student.device)  # (positions,)
    loss_sum = torch.zeros((), dtype=torch.float64, device=student.device)  # read once: a GPU waits for who reads
    for tile in tiles(batch.rows, tile_positions):
        with torch.no_grad():
            teacher_logits = objective.teacher.head(taught[tile])  # (tile, vocabulary)
        losses = weights[tile] * objective.loss(student.head(cut[tile]), teacher_logits, tokens[tile])  # (tile,), nats
        losses.sum().backward()  # type: ignore[no-untyped-call]
        loss_sum += losses.detach().double().sum()
    assert cut.grad is not None
    hidden.backward(cut.grad)  # type: ignore[no-untyped-call]
    return loss_sum.item()


def _pass_idly(student: LanguageModel, batch: Batch) -> None:
    """Take part in the passes of other processes, without adding to the gradient."""
    hidden = student.hidden(batch.input_ids("student", student.device))  # (sequences, length, width)
    hidden.backward(torch.zeros_like(hidden))  # type: ignore[no-untyped-call]


def gradient(student: LanguageModel, objective: Objective, settings: ProbeSettings, reporter: Reporter) -> Direction:
    """Gradient of an objective at the student's present weights; leaves no `.grad` behind."""
    accumulate_gradient(student, objective, settings, reporter)
    along = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in student.parameters()]
    for _, parameter in student.parameters():
        parameter.grad = None
    return along
