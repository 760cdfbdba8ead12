"""First-order predictions: directional derivatives of every position's loss and KL at theta0, without a backward pass.

The derivative of a function of the logits along a direction v is its gradient at the logits times their slope along v.
The slope of the hidden states comes from two forward passes, at theta0 + h v and theta0 - h v (central differences), or
from one pass in forward mode (Jacobian-vector product); the LM head's part is exact either way. What comes out belongs
to each *loss term*. Gradients hooked at a position's activations are something else: they mix all later losses.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from teachdiag.diagnostics.models.alignment import KEY, Batch, Context, batched, in_shards
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.probes.teacher_states import TeacherStates
from teachdiag.diagnostics.probes.theta0 import Direction, Theta0, inner
from teachdiag.diagnostics.processes.collectives import gathered_rows
from teachdiag.diagnostics.processes.group import in_share
from teachdiag.diagnostics.scoring.position_loss import PositionLoss
from teachdiag.diagnostics.scoring.tiles import tiles
from teachdiag.errors import EstimationError, ModelError, cause
from teachdiag.progress import Reporter
from teachdiag.settings import ProbeSettings

_FIRST_LENGTH = 0.02  # Euclidean length of the first step that is tried
_HALVINGS = 14
_SETTLED = 1e-3  # relative change from one halving to the next that is good enough
_TOLERATED = 0.05  # and that beyond which nothing is reported
_TRIAL_POSITIONS = 96  # positions on which the step is chosen, and the share of all contexts that these may take
_TRIAL_SHARE = 1 / 32
GROUP = 8  # contexts between two moves of the weights


class Term(NamedTuple):
    """A function of every position's logits, and the teacher's states that it is taken under."""

    loss: PositionLoss
    teacher: TeacherStates


class Tangent(NamedTuple):
    """Hidden states of a batch's rows and their slope along a direction, shape (rows, width) each."""

    hidden: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Along:
    """A direction at theta0, and how slopes along it are taken.

    Attributes:
        student: the student, at theta0.
        theta0: the way back.
        direction: one tensor a parameter.
        step: h of the differences; None takes the exact slope, in forward mode.
        start: the student's states at theta0, where differences are one-sided: one pass a direction. None takes them
            from both sides.
    """

    student: LanguageModel
    theta0: Theta0
    direction: Direction
    step: float | None
    start: TeacherStates | None = None

    def tangents(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Tangent]]:
        """Yield every batch with its hidden states and their slopes."""
        if self.step is None:
            for batch in batches:
                yield batch, self._forward_mode(batch)
            return
        ahead = self._moved(self.step, batches)
        if self.start is not None:
            for batch, plus in zip(batches, ahead, strict=True):
                hidden = self.start.at(self.start.rows(batch), plus.device)
                yield batch, Tangent(hidden, (plus - hidden) / self.step)
            return
        for batch, plus, minus in zip(batches, ahead, self._moved(-self.step, batches), strict=True):
            yield batch, Tangent((plus + minus) / 2, (plus - minus) / (2 * self.step))

    def head_slopes(self) -> tuple[Tensor | None, Tensor | None]:
        """The direction's parts of the LM head's weight, (vocabulary, width), and bias, (vocabulary,); None is 0."""
        head = self.student.head
        return self._part_of(head.weight), self._part_of(head.bias)

    def _part_of(self, parameter: Tensor | None) -> Tensor | None:
        for (_, candidate), part in zip(self.student.parameters(), self.direction, strict=True):
            if candidate is parameter:
                return part
        return None

    def _moved(self, distance: float, batches: Sequence[Batch]) -> list[Tensor]:
        self.theta0.displace(self.direction, distance)
        hidden = [self.student.hidden_rows(batch, "student") for batch in batches]
        self.theta0.restore()
        return hidden

    def _forward_mode(self, batch: Batch) -> Tangent:
        decoder = self.student.model.get_decoder()
        part = {id(p): d for (_, p), d in zip(self.student.parameters(), self.direction, strict=True)}
        named = {name: p for name, p in decoder.named_parameters() if id(p) in part}
        ids = batch.input_ids("student", self.student.device)

        def states(*weights: Tensor) -> Tensor:
            moved = dict(zip(named, weights, strict=True))
            output = torch.func.functional_call(decoder, moved, (), {"input_ids": ids, "use_cache": False})
            hidden: Tensor = output.last_hidden_state
            return hidden

        # Fused attention kernels have no forward mode. torch warns of its own use of TorchScript there.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(), _refusing():
            warnings.simplefilter("ignore", DeprecationWarning)
            hidden, slope = torch.func.jvp(  # type: ignore[misc]
                states, tuple(p.detach() for p in named.values()), tuple(part[id(p)] for p in named.values())
            )
        return Tangent(batch.gather(hidden, "student"), batch.gather(slope, "student"))


@contextmanager
def _refusing() -> Iterator[None]:
    """Say what to do where an architecture uses an operation that torch cannot differentiate forwards."""
    try:
        yield
    except NotImplementedError as error:
        raise ModelError(
            f"torch has no forward mode for this student ({cause(error)}): use --method central"
        ) from error


def derivatives(
    along: Along,
    contexts: Sequence[Context],
    terms: Mapping[str, Term],
    settings: ProbeSettings,
    reporter: Reporter,
) -> pa.Table:
    """Derivative along a direction of terms of every position's logits; several processes share the contexts.

    For a loss whose gradient is not that of its value (`sampled_reverse_kl`, with its detached advantage) it is the
    inner product of the direction with the gradient that a step would take.

    Returns:
        `context_id`, `position`, and one float32 column a term, sorted by position; nats per unit of the direction.
    """
    tables = []
    with reporter.bar("First-order predictions", total=len(contexts)) as advance:
        for number, group in enumerate(in_shards(contexts, GROUP)):
            if not in_share(number):
                continue
            for batch, tangent in along.tangents(batched(group, settings.batch_tokens)):
                columns = _contracted(along, batch, tangent, terms, settings.tile_positions)
                tables.append(pa.table({"context_id": batch.context_ids, "position": batch.positions} | columns))
                advance(len(batch.contexts))
    return gathered_rows(tables).sort_by(KEY)


def choose_step(along: Along, contexts: Sequence[Context], term: Term, settings: ProbeSettings) -> tuple[float, float]:
    """Choose the step of the central differences by halving it until the derivatives settle.

    Too long a step bends, too short a step drowns in rounding: the change of the derivatives from one halving to the
    next falls, and then rises again. The step before the smallest change is taken, unless one is small enough earlier.

    Returns:
        The step (in units of the direction), and the relative change of the derivatives when it is halved once more:
        root mean square over the trial positions, by that of the derivatives.

    Raises:
        EstimationError: no step settles, or the direction is not finite.
    """
    length = math.sqrt(inner(along.direction, along.direction))
    if not math.isfinite(length) or length == 0:
        raise EstimationError(
            f"there is nothing to differentiate along: the direction has length {length:g}; choose another "
            "--learning-rate, or capture with --dtype float32"
        )
    trial = _some(contexts)
    quiet = Reporter(quiet=True)
    best = (0.0, math.inf)
    step = _FIRST_LENGTH / length
    previous: np.ndarray | None = None
    for _ in range(_HALVINGS):
        tried = Along(along.student, along.theta0, along.direction, step)
        values = derivatives(tried, trial, {"value": term}, settings, quiet)["value"].to_numpy()
        if previous is not None:
            change = float(np.linalg.norm(values - previous)) / max(float(np.linalg.norm(values)), 1e-30)
            if change > 2 * best[1]:
                break
            best = (2 * step, change) if change < best[1] else best
            if best[1] < _SETTLED:
                break
        previous, step = values, step / 2
    if best[1] > _TOLERATED:
        raise EstimationError(
            f"central differences do not settle: halving the step still changes the derivatives by {best[1]:.1%} at "
            "best, so rounding drowns them; use --method jvp"
        )
    return best


def _contracted(
    along: Along, batch: Batch, tangent: Tangent, terms: Mapping[str, Term], tile_positions: int
) -> dict[str, np.ndarray]:
    """Gradient of each term at a batch's logits times the slope of these logits, tile by tile."""
    head, (weight_slope, bias_slope) = along.student.head, along.head_slopes()
    device = along.student.device
    teachers = {id(term.teacher): term.teacher for term in terms.values()}  # terms may share one
    taught = {key: teacher.at(teacher.rows(batch), device) for key, teacher in teachers.items()}  # (rows, width) each
    tokens = torch.from_numpy(batch.tokens).long().to(device)  # (rows,)
    columns = {name: torch.empty(batch.rows, device=device) for name in terms}
    for tile in tiles(batch.rows, tile_positions):
        hidden, slope = (part[tile].detach().float() for part in tangent)
        with torch.no_grad():  # logits of shape (positions, vocabulary), one for each teacher
            teacher_logits = {key: teacher.head(taught[key][tile]) for key, teacher in teachers.items()}
            logits, logit_slope = head(hidden), head.slope(hidden, slope, weight_slope, bias_slope)
        for name, term in terms.items():
            at_logits = _logit_gradient(term.loss, logits, teacher_logits[id(term.teacher)], tokens[tile])
            columns[name][tile] = torch.linalg.vecdot(at_logits, logit_slope)
    return {name: column.cpu().numpy() for name, column in columns.items()}


def _logit_gradient(function: PositionLoss, logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
    cut = logits.detach().requires_grad_()  # (positions, vocabulary)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(cut, teacher_logits, tokens).sum(), cut)
    return gradient


def _some(contexts: Sequence[Context]) -> list[Context]:
    """The first contexts that hold enough positions for a trial, or the small share of all that it may cost."""
    held = np.cumsum([c.rows for c in contexts])
    enough = int(np.searchsorted(held, _TRIAL_POSITIONS)) + 1
    return list(contexts[: min(enough, max(1, round(_TRIAL_SHARE * len(contexts))))])
