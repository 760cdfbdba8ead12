"""Updates of the student: one optimizer step, a random direction, and the exact way back to theta0."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from teachdiag.diagnostics.alignment import Context, batched
from teachdiag.diagnostics.losses import position_loss
from teachdiag.diagnostics.models import LanguageModel
from teachdiag.diagnostics.scoring import tiles
from teachdiag.diagnostics.teacher_states import TeacherStates
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import ProbeSettings


@dataclass(frozen=True)
class Step:
    """What one optimizer step did.

    Attributes:
        loss: mean loss over the update's positions at theta0, nats.
        gradient_norm: before clipping.
        update_norm: Euclidean norm of theta1 - theta0.
        positions: positions in the update batch.
    """

    loss: float
    gradient_norm: float
    update_norm: float
    positions: int


class Snapshot:
    """theta0, kept on the CPU, and the assertion that it was restored bit for bit."""

    def __init__(self, student: LanguageModel) -> None:
        """Copy the student's parameters."""
        self._student = student
        self._theta0 = {name: p.detach().to("cpu", copy=True) for name, p in student.parameters()}
        self._digest = parameter_digest(student)

    @torch.no_grad()
    def restore(self) -> None:
        """Put theta0 back.

        Raises:
            RuntimeError: the parameters are not bit for bit those of theta0.
        """
        for name, parameter in self._student.parameters():
            parameter.copy_(self._theta0[name])
            parameter.grad = None
        if parameter_digest(self._student) != self._digest:
            raise RuntimeError("theta0 was not restored bit for bit")

    @torch.no_grad()
    def distance(self) -> float:
        """Euclidean norm of the student's parameters minus theta0, summed in float64."""
        squares = [
            (p.detach().cpu() - self._theta0[name]).double().square().sum() for name, p in self._student.parameters()
        ]
        return float(torch.stack(squares).sum().sqrt())


def parameter_digest(student: LanguageModel) -> str:
    """SHA-256 over every parameter's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for name, parameter in student.parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_step(
    student: LanguageModel,
    contexts: Sequence[Context],
    teacher: TeacherStates,
    settings: ProbeSettings,
    theta0: Snapshot,
    reporter: Reporter,
    replaced: np.ndarray | None = None,
) -> Step:
    """Take one optimizer step from theta0 on the mean loss over every kept position (paper Eq. 7, all tokens).

    Args:
        student: float32 master weights at theta0; afterwards at theta1.
        contexts: the update batch.
        teacher: the teacher's stored states.
        settings: loss, optimizer and sizes of batches and tiles.
        theta0: where the step started, to measure its length.
        reporter: progress.
        replaced: shape (all positions,), the row that stands in for each teacher row, in a placebo.

    Raises:
        SettingsError: gradient or step is not finite.
    """
    loss = accumulate_gradient(student, contexts, teacher, settings, reporter, replaced)
    parameters = [p for _, p in student.parameters()]
    limit = settings.clip_norm or float("inf")
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    step = Step(loss, norm, theta0.distance(), sum(len(c.response) for c in contexts))
    if not math.isfinite(step.gradient_norm + step.update_norm):
        raise SettingsError(
            f"the step is not finite (gradient norm {norm:.3g}, update norm {step.update_norm:.3g}): choose a smaller "
            f"--learning-rate than {settings.learning_rate:g}, or capture with --dtype float32"
        )
    return step


def accumulate_gradient(
    student: LanguageModel,
    contexts: Sequence[Context],
    teacher: TeacherStates,
    settings: ProbeSettings,
    reporter: Reporter,
    replaced: np.ndarray | None = None,
) -> float:
    """Put the gradient of the mean loss into every parameter's `.grad`, which was empty; return that mean, in nats.

    The backward pass is cut at the hidden states that feed the LM head: each tile of logits sends its gradient there
    and is freed before the next is made, so that memory grows with neither the update batch nor the vocabulary. The
    sum of the losses is propagated and the gradient divided at the end: in half precision, terms of a mean over many
    positions would vanish.
    """
    measure = position_loss(settings.loss, settings.jsd_beta)
    total = sum(len(c.response) for c in contexts)
    loss_sum = 0.0
    with reporter.bar("Gradient", total=len(contexts)) as advance:
        for batch in batched(contexts, settings.batch_tokens):
            hidden = batch.gather(student.hidden(batch.input_ids("student", student.device)), "student")
            cut = hidden.detach().requires_grad_()
            rows = teacher.rows(batch)
            taught = teacher.at(rows if replaced is None else replaced[rows], student.device)
            tokens = torch.from_numpy(batch.tokens).long().to(student.device)
            for tile in tiles(batch.rows, settings.tile_positions):
                with torch.no_grad():
                    teacher_logits = teacher.head(taught[tile])
                losses = measure(student.head(cut[tile]), teacher_logits, tokens[tile])
                losses.sum().backward()  # type: ignore[no-untyped-call]
                loss_sum += losses.detach().double().sum().item()
            assert cut.grad is not None
            hidden.backward(cut.grad)  # type: ignore[no-untyped-call]
            advance(len(batch.contexts))
    for _, parameter in student.parameters():
        if parameter.grad is not None:
            parameter.grad /= total
    return loss_sum / total


@torch.no_grad()
def random_direction(student: LanguageModel, norm: float, seed: int) -> None:
    """Move the student from where it is by a Gaussian direction over all parameters, of that Euclidean norm."""
    squares = sum(float(noise.double().square().sum()) for _, noise in _noise(student, seed))
    for parameter, noise in _noise(student, seed):  # drawn again, so that no second copy of the model is kept
        parameter.add_(noise.to(parameter.device), alpha=norm / squares**0.5)


def _noise(student: LanguageModel, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in student.parameters():
        yield parameter, torch.randn(parameter.shape, generator=generator)
