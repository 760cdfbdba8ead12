"""The selection arithmetic of the code released with TA-OPD (arXiv 2605.26844), to reproduce its masks.

It differs from `budget` on purpose: ties go to the earliest positions, Q3 masks fall short of the budget when Q3 is
small, every sequence keeps at least one token beyond the budget, TA-OPD+Ent normalises D C after the product, and a
score without spread is zero.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from teachdiag.errors import SettingsError
from teachdiag.formulas import Score
from teachdiag.scores import Array, Mask
from teachdiag.selectors.budget import Key, best, context_codes, top_up
from teachdiag.selectors.published import blocks, members
from teachdiag.selectors.selector import Kept, Selector
from teachdiag.selectors.tokens import Tokens

# Its statistics are made from two top-K lists. Where they are not given, ours stand in, measured on the same tokens.
LIVE = {
    "live_entropy": "student_entropy",
    "live_disagreement": "disagreement",
    "live_compatibility": "compatibility_bound",
}
_FLOOR = 1e-12  # probability of what is not in a list
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class _Live:
    """Normalised statistics of the batch, shape (N,) each; `dc` is the norm of the product of the raw D and C."""

    h: Array
    d: Array
    c: Array
    dc: Array

    @property
    def q3(self) -> Mask:
        """Mask of its Q3: H strictly below the median of H, D at least at its own."""
        return (self.h < np.median(self.h)) & (self.d >= np.median(self.d))


@dataclass(frozen=True)
class _Mask:
    """One mask: its score, whether only Q3 competes, and whether the lowest scores are kept."""

    score: Callable[[_Live], Array]
    in_q3: bool = False
    lowest: bool = False


_MASKS = {
    "dlearn_high": _Mask(lambda x: x.d * x.c),
    "ca_softor": _Mask(lambda x: x.h + x.dc - x.h * x.dc),
    "entropy": _Mask(lambda x: x.h),
    "divergence": _Mask(lambda x: x.d),
    "tip": _Mask(lambda x: x.h + x.d - x.h * x.d),
    "compatibility": _Mask(lambda x: x.c),
    "dincompat_high": _Mask(lambda x: x.d * (1 - x.c)),
    "q3": _Mask(lambda x: (1 - x.h) * x.dc, in_q3=True),
    "q3_highc": _Mask(lambda x: x.c, in_q3=True),
    "q3_lowc": _Mask(lambda x: x.c, in_q3=True, lowest=True),
    "q3_dlearn_high": _Mask(lambda x: x.d * x.c, in_q3=True),
    "q3_dlearn_low": _Mask(lambda x: x.d * x.c, in_q3=True, lowest=True),
    "q3_dincompat_high": _Mask(lambda x: x.d * (1 - x.c), in_q3=True),
}
METHODS = (*_MASKS, "split_budget_ca", "random")
RELEASED = "released:"  # stands before the name of such a mask wherever a selector is named
_LISTS = (
    *("student_topk_ids", "teacher_topk_ids", "student_topk_logp", "teacher_topk_logp"),
    "student_logp_at_teacher_topk",
)


def released_mask(name: str) -> Selector:
    """Return the mask of a name that begins with `released:`, as a selector; it makes its statistics of both lists.

    Raises:
        SettingsError: the released code has none of that name.
    """
    method = name.removeprefix(RELEASED)
    _check_method(method)

    def no_scores(tokens: Tokens) -> Array:
        raise SettingsError(f"{name} is a mask, with no score to weigh positions by")

    return Selector(
        name,
        Score(no_scores, _LISTS, name),
        "code of TA-OPD, arXiv 2605.26844",
        lambda tokens, budget: select_released(with_live_statistics(tokens), method, budget),
    )


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise SettingsError(f"the released code has no mask {method!r}: choose from {', '.join(METHODS)}")


def select_released(tokens: Tokens, method: str, budget: float, minimum: int = 1, entropy_share: float = 0.5) -> Kept:
    """Select like the released code: n = max(1, ceil(budget N)) of the whole batch, then a minimum per sequence.

    Every position counts as valid. Quantiles are those of 5% and 95% over the batch; what is not finite, or of a column
    without spread, becomes 0. Equal scores go to the earliest positions (to the latest where the lowest scores are
    kept), then to the order of rows. A sequence that got fewer than `minimum` is topped up with its best tokens by
    `ca_softor`, whatever the method. A budget of 1 masks nothing.

    Args:
        tokens: one rollout batch. Columns `live_entropy`, `live_disagreement` and `live_compatibility`
            (`with_live_statistics` adds them) are used where they are; else `student_entropy`, `disagreement` and
            `compatibility_bound` stand in for them, at the tokens' K. The bound is the released default for C; give an
            exact C as `live_compatibility`.
        method: one of `METHODS`, the names of its masks.
        budget: share of positions, in (0, 1]; its product with N is rounded as there, float error included.
        minimum: positions that each sequence keeps at least; its default of 1.
        entropy_share: share of the budget that `split_budget_ca` gives to entropy.

    Raises:
        SettingsError: the method is unknown, the budget is impossible, or a column is missing.
    """
    _check_method(method)
    if not 0 < budget <= 1:
        raise SettingsError(f"the budget is {budget}: it must be a share of positions in (0, 1]")
    if budget == 1:
        return Kept(np.ones(len(tokens), bool), topped_up=0, tied=0.0)
    n = max(1, math.ceil(budget * len(tokens)))
    live = _normalised(tokens)
    if method == "split_budget_ca":
        kept, tied = _split(tokens, live, n, entropy_share)
    elif method == "random":
        kept, tied = _take(tokens, tokens.uniform("released/random"), np.ones(len(tokens), bool), n)
    else:
        kept, tied = _masked(tokens, live, _MASKS[method], n)
    fallback = _keys(tokens, _MASKS["ca_softor"].score(live))
    return Kept(kept, top_up(kept, context_codes(tokens), minimum, fallback), tied)


def with_live_statistics(tokens: Tokens) -> Tokens:
    """Add the statistics that the released code makes from both models' top-K lists during training.

    `live_entropy`: entropy of the student's list, renormalised, over ln K. `live_disagreement`: KL(q || p) over U, each
    renormalised by the mass of its own list and put to 1e-12 off its list. `live_compatibility`: teacher mass on S & T
    (paper Eq. 17). Shapes (N,), the first and last pure numbers, the second in nats.
    """
    lists, logs = ([tokens.top_list(name) for name in names] for names in (_LISTS[:2], _LISTS[2:]))
    columns = {name: np.empty(len(tokens)) for name in LIVE}
    for rows in blocks(len(tokens)):
        block = _live_block(*(ids[rows].T for ids in lists), *(np.exp(x[rows].T.astype(np.float64)) for x in logs))
        for name, values in zip(LIVE, block, strict=True):
            columns[name][rows] = values
    return replace(tokens, columns={**tokens.columns, **columns})


def _live_block(
    student: np.ndarray, teacher: np.ndarray, p: Array, q: Array, p_at_teacher: Array
) -> tuple[Array, Array, Array]:
    """The three live statistics of one block; every argument is of shape (K, B)."""
    shared, student_shared = members(teacher, student), members(student, teacher)
    own_p, own_q = p / p.sum(0), q / q.sum(0)
    seen = np.where(shared, np.maximum(p_at_teacher / p.sum(0), _FLOOR), _FLOOR)
    on_teacher = np.maximum(own_q, _FLOOR)
    on_student_only = np.where(student_shared, 0.0, _FLOOR * np.log(_FLOOR / np.maximum(own_p, _FLOOR)))
    entropy = -(own_p * np.log(np.maximum(own_p, _FLOOR))).sum(0) / math.log(len(p))
    disagreement = (on_teacher * np.log(on_teacher / seen)).sum(0) + on_student_only.sum(0)
    return entropy, disagreement, (q * shared).sum(0).clip(0, 1)


def _normalised(tokens: Tokens) -> _Live:
    h, d, c = (tokens.column(live if live in tokens.columns else column) for live, column in LIVE.items())
    return _Live(*(_norm(values) for values in (h, d, c, d * c)))


def _norm(values: Array) -> Array:
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    low, high = (_quantile(np.sort(values[finite]), share) for share in (0.05, 0.95))
    if abs(high - low) < _NO_SPREAD:
        return np.zeros_like(values)
    scaled: Array = np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1)
    return scaled


def _quantile(ordered: Array, share: float) -> float:
    """Interpolate linearly in the order of operations of the release: its rounding decides what ties at the clip."""
    rank = share * (len(ordered) - 1)
    below, above = math.floor(rank), math.ceil(rank)
    return float(ordered[below] * (1 - (rank - below)) + ordered[above] * (rank - below))


def _masked(tokens: Tokens, live: _Live, mask: _Mask, n: int) -> tuple[Mask, float]:
    competing = live.q3 if mask.in_q3 else np.ones(len(tokens), bool)
    return _take(tokens, mask.score(live), competing, min(n, int(competing.sum())), mask.lowest)


def _split(tokens: Tokens, live: _Live, n: int, entropy_share: float) -> tuple[Mask, float]:
    """Give a share of the budget to H, half rounded to even, and what remains to (1 - H) DC among the rest."""
    by_entropy = min(max(round(entropy_share * n), 0), n)
    first, tied = _take(tokens, live.h, np.ones(len(tokens), bool), by_entropy)
    second, tied_too = _take(tokens, (1 - live.h) * live.dc, ~first, n - by_entropy)
    return first | second, (tied * by_entropy + tied_too * (n - by_entropy)) / n


def _take(tokens: Tokens, score: Array, competing: Mask, n: int, lowest: bool = False) -> tuple[Mask, float]:
    return best(np.where(competing, 0, -1), np.array([n]), _keys(tokens, score, lowest), ties_from=1)


def _keys(tokens: Tokens, score: Array, lowest: bool = False) -> list[Key]:
    """Rank by (score, -position), falling; rising for the lowest. The order of rows decides what is left."""
    position = tokens.column("position")
    return [lambda: -score, lambda: position] if lowest else [lambda: score, lambda: -position]
