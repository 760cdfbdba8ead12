"""What a teacher's own top list leaves open: bounds of C and D where log q is unknown at some of the student's ids.

Known are log q at T, the teacher's top 32 ids, and log p everywhere. An id outside T has at most the q of the last id
in T, and all of them together have 1 less the mass of T. Over every q that agrees with this,

    C = sum of q over S                                (paper Eq. 4)
    D = KL(q || p), both renormalised on U = S | T_K   (paper Eq. 3)

have the least and the largest values that are given here. For C they are plain. D is, in x, the unknown part of q, a
convex function of a linear-fractional one, hence quasiconvex: it is largest at a corner of what is possible, where the
ids that the student likes least have their most; and least on the path x = min(most, lambda p), which every minimiser
under these constraints lies on, where its slope along that path, of the sign of log lambda - G with
G = (sum over U of q log(q / p)) / (sum over U of q), is 0, or at the path's end.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from teachdiag.settings import SUPPORT_SIZES

_ROUNDING = 1e-6  # of sums of float32 probabilities, and so of the bounds
_HALVINGS = 60  # of an interval of log lambda
_LOWEST = -100.0  # of log lambda: next to nothing of p


class _Open(NamedTuple):
    """U of N positions, at one K: float64. Logs of what is not in U count for nothing.

    Attributes:
        known: sum of q log(q / p) over the ids of U whose q is known, shape (N,).
        mass: sum of their q, shape (N,).
        base: log of the student's mass on U, shape (N,).
        logp: the student's log-probabilities of S, rising, shape (N, K).
        unknown: which of these have an unknown q, shape (N, K).
        most: log of the largest q that one of these can have, shape (N, 1).
        rest: what all of them have at most together, shape (N, 1).
    """

    known: Tensor
    mass: Tensor
    base: Tensor
    logp: Tensor
    unknown: Tensor
    most: Tensor
    rest: Tensor

    def disagreement(self, x: Tensor) -> Tensor:
        """D where the unknown ids have the probabilities x, shape (N, K)."""
        total = self.mass + x.sum(-1)
        return self._mean(x, total) - total.log() + self.base

    def slope(self, x: Tensor, log_lambda: Tensor) -> Tensor:
        """A number of the sign of D's slope along the path, shape (N, 1)."""
        return log_lambda - self._mean(x, self.mass + x.sum(-1))[:, None]

    def at(self, log_lambda: Tensor) -> Tensor:
        """The path's x, shape (N, K)."""
        return torch.minimum(log_lambda + self.logp, self.most).exp() * self.unknown

    def _mean(self, x: Tensor, total: Tensor) -> Tensor:
        return (self.known + (torch.xlogy(x, x) - x * self.logp).sum(-1)) / total


def support_bounds(tops: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bounds of C and D for K = 8, 16 and 32, shape (N,) each: `compatibility_low_k8` and so on.

    Args:
        tops: ids and log-probabilities of both models' top lists, and the student's log-probabilities at the teacher's,
            shape (N, 32) each, by falling probability.
    """
    columns: dict[str, Tensor] = {}
    for k in SUPPORT_SIZES:
        low, high = _compatibility(tops, k)
        columns[f"compatibility_low_k{k}"], columns[f"compatibility_high_k{k}"] = low.clamp(0, 1), high.clamp(0, 1)
        u = _open(tops, k)
        columns[f"disagreement_low_k{k}"] = (u.disagreement(_least(u)) - _ROUNDING).clamp_min(0)
        columns[f"disagreement_high_k{k}"] = _largest(u) + _ROUNDING
    return {name: values.float() for name, values in columns.items()}


def _compatibility(tops: dict[str, Tensor], k: int) -> tuple[Tensor, Tensor]:
    u = _open(tops, k)
    low = (tops["teacher_topk_logp"].double().exp() * _same(tops, k).any(1)).sum(-1)  # (N,)
    room = torch.minimum(u.rest, u.most.exp() * u.unknown.sum(-1, keepdim=True))[:, 0]
    return low - _ROUNDING, low + room


def _same(tops: dict[str, Tensor], k: int) -> Tensor:
    """Which ids of S (dim 1) are which of the teacher's whole list (dim 2), shape (N, K, 32)."""
    return tops["student_topk_ids"][:, :k, None] == tops["teacher_topk_ids"][:, None, :]


def _open(tops: dict[str, Tensor], k: int) -> _Open:
    logq, logp_listed = tops["teacher_topk_logp"].double(), tops["student_logp_at_teacher_topk"].double()
    same = _same(tops, k)
    known = same.any(1)  # (N, 32): ids of U in the teacher's list
    known[:, :k] = True
    logp, unknown = tops["student_topk_logp"][:, :k].double().flip(1), ~same.any(2).flip(1)
    q = logq.exp()
    return _Open(
        known=(q * (logq - logp_listed) * known).sum(-1),
        mass=(q * known).sum(-1),
        base=((logp_listed.exp() * known).sum(-1) + (logp.exp() * unknown).sum(-1)).log(),
        logp=logp,
        unknown=unknown,
        most=logq[:, -1:] + _ROUNDING,
        rest=(1 - q.sum(-1, keepdim=True)).clamp_min(0) + _ROUNDING,
    )


def _largest(u: _Open) -> Tensor:
    """The largest D, shape (N,), over the corners: so many ids at their most, and what is left of the rest in one."""
    most, before = u.most.exp(), (u.unknown.cumsum(-1) - 1)  # (N, 1); (N, K): unknown ids that the student likes less
    corners = [
        torch.minimum(torch.minimum(u.rest, count * most) - before * most, most).clamp_min(0) * u.unknown
        for count in range(u.unknown.shape[1] + 1)
    ]
    return torch.stack([u.disagreement(x) for x in corners]).amax(0)


def _least(u: _Open) -> Tensor:
    """The x of least D, shape (N, K): halving finds the path's end, and then where the slope changes its sign."""
    lowest = torch.full_like(u.most, _LOWEST)
    highest = (u.most - u.logp).amax(-1, keepdim=True)  # where every id has its most
    end = _last(lowest, highest, lambda place: u.at(place).sum(-1, keepdim=True) <= u.rest)
    return u.at(_last(lowest, end, lambda place: u.slope(u.at(place), place) <= 0))


def _last(low: Tensor, high: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """The last place between two of which something holds that holds up to some place and not beyond, shape (N, 1)."""
    end = high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = holds(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return torch.where(holds(end), end, low)
