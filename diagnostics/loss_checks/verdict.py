"""What is wrong with a loss, by name, and how near its expected gradient is to those of both KLs."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from teachdiag.diagnostics.loss_checks.gradients import Expected, LossFunction, Sample, expected, gradient
from teachdiag.diagnostics.scoring.statistics import log_probabilities

SAME = 0.99  # cosine from which an expected gradient is that of a KL
RELATED = 0.3  # and from which it leads to where that KL is lower, by another way
NOTHING = 1e-3  # share of a gradient's size below which another one is nothing beside it
MOST = 0.5  # share of the tokens with a gradient at which a mistake is the loss's, and not a token's
_ERRORS = 3.0  # standard errors within which an expected gradient is not told from 0
_SHARP = 1e-3  # share of one draw's squared size below which that error must be, to say that nothing is expected


@dataclass(frozen=True)
class Verdict:
    """What was found of one loss.

    Attributes:
        name: how it is called.
        reverse: cosine of its expected gradient and that of KL(student || teacher), over the tokens that have one.
        forward: the same for KL(teacher || student).
        bias: distance of its expected gradient from that of the nearer KL, times the best common factor, as a share of
            that; None where there is no such factor.
        noise: standard deviation of one draw's gradient over the expected one's size; None without an expected one.
        nothing: share of tokens whose expected gradient is 0, as far as can be told.
        sampled: whether it depends on the drawn tokens.
        finding: name of the mistake, '' for none.
        sentence: the verdict.
    """

    name: str
    reverse: float | None
    forward: float | None
    bias: float | None
    noise: float | None
    nothing: float
    sampled: bool
    finding: str
    sentence: str

    @property
    def teaches(self) -> bool:
        """Whether steps on it lead to the teacher."""
        return not self.finding


class _Numbers(NamedTuple):
    """The numbers of a verdict.

    Attributes:
        cosines: with the gradients of KL(p || q) and KL(q || p), over the other tokens; None where the draws hide them.
        bias: as in `Verdict`.
        noise: as in `Verdict`.
        nothing: share of tokens without an expected gradient.
        vanishing: the same among those whose single draws have one, and of which it can be told.
    """

    cosines: tuple[float, float] | None
    bias: float | None
    noise: float | None
    nothing: float
    vanishing: float


def judge(name: str, loss: LossFunction, sample: Sample, candidates: int, draws: int, seed: int) -> Verdict:
    """Compare a loss with exact KL at some positions, and name what is wrong with it.

    Args:
        name: how the loss is called.
        loss: (student logits, teacher logits, token ids, mask) to one number, or to one a token.
        sample: the positions.
        candidates: likeliest tokens over which expectations are exact.
        draws: draws from the others.
        seed: of these.

    Raises:
        SettingsError: it fails, or returns something of another shape.
    """
    measured = expected(name, loss, sample, candidates, draws, seed)
    if not measured.mean.isfinite().all():
        sentence = "Its gradient is NaN or infinite at some token."
        return Verdict(name, None, None, None, None, 1.0, measured.sampled, "not finite", sentence)
    numbers = _measure(measured, sample)
    finding, sentence = _mistake(name, loss, sample, measured, numbers) or ("", _agreement(numbers))
    return Verdict(
        name=name,
        reverse=numbers.cosines and numbers.cosines[0],
        forward=numbers.cosines and numbers.cosines[1],
        bias=numbers.bias,
        noise=numbers.noise,
        nothing=numbers.nothing,
        sampled=measured.sampled,
        finding=finding,
        sentence=sentence,
    )


def kl_gradients(sample: Sample) -> tuple[Tensor, Tensor]:
    """Gradients of KL(p || q) and KL(q || p) at the student's logits, shape (S, L, V) each.

    p_v (log p_v/q_v - KL(p || q)) and p_v - q_v, for the student p and the teacher q.
    """
    logp, logq = log_probabilities(sample.student), log_probabilities(sample.teacher)
    p, ratio = logp.exp(), logp - logq
    return p * (ratio - (p * ratio).sum(-1, keepdim=True)), p - logq.exp()


def _measure(measured: Expected, sample: Sample) -> _Numbers:
    size, error = _size(measured.mean), _ERRORS**2 * measured.error  # (S, L) each
    drawn = sample.mask & (measured.square > 0)
    told = drawn & (size > error.maximum(NOTHING**2 * measured.square))
    vanishes = drawn & ~told & (error <= _SHARP * measured.square)
    rest = drawn & ~vanishes
    nothing = 1 - float(rest.sum() / sample.mask.sum())
    vanishing = float(vanishes.sum() / (vanishes | told).sum().clamp_min(1))
    true = (size - measured.error)[rest].sum()  # of the mean itself, without what the draws add to its squared size
    if true <= measured.error[rest].sum():
        return _Numbers(None, None, None, nothing, vanishing)
    reverse, forward = (_cosine(measured.mean[rest], kl[rest], true) for kl in kl_gradients(sample))
    nearer = max(reverse, forward)
    # The best factor c leaves |g - c r| / |c r| = tan of the angle between the gradients.
    bias = (1 - nearer**2) ** 0.5 / nearer if nearer > 0 else None
    variance = (measured.square - size).clamp_min(0)[rest].sum() / true
    return _Numbers((reverse, forward), bias, float(variance.sqrt()), nothing, vanishing)


def _mistake(
    name: str, loss: LossFunction, sample: Sample, measured: Expected, numbers: _Numbers
) -> tuple[str, str] | None:
    """Name the first mistake that explains what was measured, with a sentence; None where there is none."""
    if not (measured.square[sample.mask] > 0).any():
        return "no gradient", "It has no gradient at the student's logits: are they detached?"
    at = partial(gradient, name, loss, sample)
    once = at()
    moved = at(teacher=_as_student(sample))
    if torch.equal(moved, once):
        return "no teacher", "Its gradient does not depend on the teacher's logits."
    if shifted := _shift(sample, once, moved, "the teacher's logits"):
        return shifted
    if measured.sampled and (shifted := _shift(sample, once, at(_exchanged(sample)), "the tokens")):
        return shifted
    outside = (_size(measured.mean)[~sample.mask] > 0).float().mean()
    if outside > 0:
        return "mask", (
            f"It has a gradient at {outside:.0%} of the tokens outside the mask, which are not the student's: is the "
            "mask left out, or shifted?"
        )
    if ending := _ending(sample, once, at):
        return ending
    if numbers.vanishing > MOST:
        return "zero expected gradient", (
            f"At {numbers.vanishing:.0%} of the tokens where that can be told, its gradient is 0 when it is averaged "
            "over what could have been drawn: what weighs log p(y) must depend on y."
        )
    if numbers.cosines is None:
        return "undecided", (
            "Too much of the student's mass is on tokens outside the candidates to tell its expected gradient from 0: "
            "raise --candidates and --tail-draws."
        )
    if max(numbers.cosines, key=abs) < -RELATED:
        return "wrong sign", "Steps on it lead away from the teacher: its sign is wrong."
    if max(numbers.cosines) < RELATED:
        return "another direction", "Its expected gradient follows neither KL: steps on it do not lead to the teacher."
    return None


def _agreement(numbers: _Numbers) -> str:
    assert numbers.cosines is not None, "a loss without is a mistake"
    cosine, nearer = max(zip(numbers.cosines, ("KL(student || teacher)", "KL(teacher || student)"), strict=True))
    left_out = f" {numbers.nothing:.0%} of the tokens get nothing." if numbers.nothing > 0 else ""
    if cosine >= SAME:
        return f"It teaches: on average its gradient is that of {nearer}.{left_out}"
    return f"It teaches, as another divergence: nearest is {nearer}, at cosine {cosine:.2f}.{left_out}"


def _shift(sample: Sample, before: Tensor, after: Tensor, what: str) -> tuple[str, str] | None:
    """Say whether what was changed in one column moves the gradients of others and not its own."""
    change = _size(after - before).sqrt().sum(0)  # (L,)
    column, most = _column(sample), int(change.argmax())
    if float(change[column]) >= NOTHING * float(change[most]):
        return None
    return "off by one", (
        f"Its gradient at position t follows {what} at position t{column - most:+d}: the rows that it is given are "
        "aligned with the tokens already."
    )


def _ending(sample: Sample, once: Tensor, at: "partial[Tensor]") -> tuple[str, str] | None:
    """Say whether the last token of a response gets nothing, whichever it is, or because it ends the text."""
    last = sample.last
    if not (_size(once)[sample.mask & ~last] > 0).any():
        return None
    if not (_size(at(sample.tokens.masked_fill(last, _unending(sample))))[last] > 0).any():
        return "last token", "The last token of a response gets no gradient: is the mask or the sequence one too short?"
    for end in sample.end_ids:
        if not (_size(at(sample.tokens.masked_fill(last, end)))[last] > 0).any():
            return "end of text", (
                f"Token id {end}, which ends the text, gets no gradient where another in its place does: the student "
                "cannot learn from it when to stop."
            )
    return None


def _unending(sample: Sample) -> int:
    """A token that ends no text."""
    return next(token for token in range(sample.student.shape[-1]) if token not in sample.end_ids)


def _column(sample: Sample) -> int:
    """The column that most sequences have inside, and of these the middle one."""
    inside = sample.mask.sum(0)
    full = (inside == inside.max()).nonzero()[:, 0]
    return int(full[len(full) // 2])


def _as_student(sample: Sample) -> Tensor:
    """The teacher's logits with the student's own in one column, where nothing is left to be learned."""
    column, teacher = _column(sample), sample.teacher.clone()
    teacher[:, column] = sample.student[:, column]
    return teacher


def _exchanged(sample: Sample) -> Tensor:
    """The tokens with others in one column: the likeliest, or the second where that was drawn."""
    column, tokens = _column(sample), sample.tokens.clone()
    first, second = sample.student[:, column].topk(2).indices.unbind(-1)
    tokens[:, column] = torch.where(first == tokens[:, column], second, first)
    return tokens


def _size(gradients: Tensor) -> Tensor:
    """Squared norm at each token, shape (S, L)."""
    return gradients.square().sum(-1)


def _cosine(ours: Tensor, kl: Tensor, square: Tensor) -> float:
    """Cosine of two gradients over all their tokens, (tokens, V) each; `square` is the squared size of ours."""
    product = float(ours.flatten().double() @ kl.flatten().double() / (square.sqrt() * kl.double().norm()))
    return min(max(product, -1.0), 1.0)
