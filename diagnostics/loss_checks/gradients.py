"""Gradients of a loss with respect to the student's logits: of one draw of tokens, and expected over all of them.

Shapes: S sequences, L columns, V shared vocabulary. Models are not involved: a token at one place moves no logit at
another, so that every token can be put at every place.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from teachdiag.errors import SettingsError
from teachdiag.registry import guarded

LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """Some positions of a bank, laid out as a loss reads them. Row t predicts token t: nothing is left to be shifted.

    The first and the last column are no student's tokens, so that a loss must leave them alone.

    Attributes:
        student: the student's logits, shape (S, L, V), float32.
        teacher: the teacher's, of that shape.
        tokens: token ids that the student drew from these rows, shape (S, L), int64.
        mask: whether the student wrote the token, shape (S, L), bool; in each row the Trues are consecutive.
        end_ids: tokens that end a response.
    """

    student: Tensor
    teacher: Tensor
    tokens: Tensor
    mask: Tensor
    end_ids: tuple[int, ...]

    @property
    def last(self) -> Tensor:
        """Marks the last own token of each sequence, shape (S, L), bool."""
        following = torch.cat([self.mask[:, 1:], torch.zeros_like(self.mask[:, :1])], 1)
        return self.mask & ~following


@dataclass(frozen=True)
class Expected:
    """A loss's gradient over draws of the token at each position, y ~ p.

    Attributes:
        mean: the expected gradient, shape (S, L, V).
        square: the expected squared norm of one draw's gradient, shape (S, L).
        error: squared standard error of `mean`, from the tokens that were drawn and not enumerated, shape (S, L).
        sampled: whether the gradient depends on the tokens.
    """

    mean: Tensor
    square: Tensor
    error: Tensor
    sampled: bool


def gradient(
    name: str, loss: LossFunction, sample: Sample, tokens: Tensor | None = None, teacher: Tensor | None = None
) -> Tensor:
    """Gradient of a loss at the student's logits, shape (S, L, V); of losses of single tokens, that of their sum.

    Args:
        name: how an error names the loss.
        loss: (student logits, teacher logits, token ids, mask) to one number, or to one a token, shape (S, L).
        sample: the positions.
        tokens: instead of those of the sample, shape (S, L).
        teacher: logits instead of those of the sample, shape (S, L, V).

    Raises:
        SettingsError: the loss fails, or returns something of another shape.
    """
    logits = sample.student.clone().requires_grad_()
    with guarded(name, "failed"):  # copies, which a loss may write into
        value = loss(
            logits,
            (sample.teacher if teacher is None else teacher).clone(),
            (sample.tokens if tokens is None else tokens).clone(),
            sample.mask.clone(),
        )
    if not isinstance(value, Tensor) or value.shape not in ((), sample.mask.shape):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SettingsError(f"{name} returned {shape}: it must return one number, or one a token, like token_ids")
    if not value.requires_grad:
        return torch.zeros_like(sample.student)
    with guarded(name, "failed on the way back"):
        (found,) = torch.autograd.grad(value.where(sample.mask, 0).sum() if value.ndim else value, logits)
    return found


def expected(name: str, loss: LossFunction, sample: Sample, candidates: int, draws: int, seed: int) -> Expected:
    """The loss's expected gradient: exact over each position's likeliest tokens, drawn from the others.

    In every call each position has its next token, beginning anywhere in its list, so that whatever a loss computes
    over a batch (a mean advantage, say) stays that of a mixed one.

    Args:
        name: how an error names the loss.
        loss: the loss.
        sample: the positions.
        candidates: tokens over which the expectation is exact.
        draws: draws from the other tokens, at least 2.
        seed: of these.

    Raises:
        SettingsError: as for `gradient`.
    """
    at = partial(gradient, name, loss, sample)
    once = at()
    if torch.equal(once, at(_others(sample))):
        square = once.square().sum(-1)
        return Expected(once, square, torch.zeros_like(square), sampled=False)
    mean, tail = torch.zeros_like(once), torch.zeros_like(once)
    square, tail_square = torch.zeros_like(once[..., 0]), torch.zeros_like(once[..., 0])
    for tokens, weights, drawn in _tokens(sample, candidates, draws, seed):  # (S, L) each
        gradients = at(tokens)
        norm = gradients.square().sum(-1)
        mean += weights[..., None] * gradients
        square += weights * norm
        tail += (weights * drawn)[..., None] * gradients
        tail_square += weights.square() * drawn * norm
    # Of M draws with weight w each, sum w^2 |g|^2 - |sum w g|^2 / M estimates the variance of their weighted sum.
    error = (tail_square - tail.square().sum(-1) / draws).clamp_min(0) * draws / (draws - 1)
    return Expected(mean, square, error, sampled=True)


def _others(sample: Sample) -> Tensor:
    """Other tokens everywhere: the likeliest, or the second where that was drawn; shape (S, L)."""
    first, second = sample.student.topk(2).indices.unbind(-1)
    return torch.where(first == sample.tokens, second, first)


def _tokens(sample: Sample, candidates: int, draws: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield tokens, their weights, which add up to 1, and whether they are drawn from the tail; shape (S, L) each."""
    probability = sample.student.softmax(-1)
    head, ids = probability.topk(min(candidates, probability.shape[-1]))  # (S, L, candidates)
    weights, drawn = head, torch.zeros_like(head)
    rest = probability.scatter(-1, ids, 0)
    if candidates < probability.shape[-1]:
        mass = rest.sum(-1, keepdim=True)
        generator = torch.Generator("cpu").manual_seed(seed)
        rest += torch.finfo(rest.dtype).tiny  # where nothing is left, anything is drawn, and weighs nothing
        tail = torch.multinomial(rest.flatten(0, 1).cpu(), draws, replacement=True, generator=generator)
        ids = torch.cat([ids, tail.to(ids).view(*ids.shape[:2], draws)], -1)
        weights = torch.cat([head, (mass / draws).expand(*ids.shape[:2], draws)], -1)
        drawn = torch.cat([drawn, torch.ones_like(weights[..., -draws:])], -1)
    total = ids.shape[-1]
    start = torch.arange(sample.tokens.numel(), device=ids.device).view(sample.tokens.shape)  # (S, L)
    for call in range(total):
        place = ((start + call) % total)[..., None]
        yield tuple(values.gather(-1, place)[..., 0] for values in (ids, weights, drawn))  # type: ignore[misc]
