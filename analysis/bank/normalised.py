"""Scores of every position at theta0: normalised, combined, and how much of them clipping and ties decide."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.resampling.bootstrap import Array, Codes
from teachdiag.scores import clip_to, q3_mask, quantile_range, soft_or
from teachdiag.settings import SUPPORT_SIZES

Key = tuple[str, int | None]  # name of a score, and its support size K where it has one
Scores = Mapping[Key, Array]
Parts = Mapping[str, Array]  # normalised H of both, D and C at one K, and the position

BUDGETS = (1, 3, 5, 10, 30)  # percent of positions that a selector would keep
_PER_SUPPORT = ("disagreement", "compatibility")
_PARTS = ("student_entropy", "teacher_entropy", "position", "disagreement", "compatibility")
_AUDITED = ("learnable", "incompatible", "tip", "learnable_entropy")
_COMBINED: dict[str, tuple[tuple[str, ...], Callable[..., Array]]] = {  # of which parts, and how
    "entropy_x_disagreement": (("student_entropy", "disagreement"), lambda h, d: h * d),
    "learnable": (("disagreement", "compatibility"), lambda d, c: d * c),
    "incompatible": (("disagreement", "compatibility"), lambda d, c: d * (1 - c)),
    "tip": (("student_entropy", "disagreement"), soft_or),
    "learnable_entropy": (("student_entropy", "disagreement", "compatibility"), lambda h, d, c: soft_or(h, d * c)),
}


def label(key: Key) -> str:
    """Name a score, with its K where it has one."""
    name, k = key
    return name if k is None else f"{name} (K={k})"


class LazyScores(Mapping[Key, Array]):
    """Scores that are made each time they are asked for, so that a large bank does not hold all of them."""

    def __init__(self, makers: Mapping[Key, Callable[[], Array]]) -> None:
        """Take what makes each score."""
        self._makers = makers

    def __getitem__(self, key: Key) -> Array:
        """Make one score, shape (positions,)."""
        return self._makers[key]()

    def __iter__(self) -> Iterator[Key]:
        """Go through the keys."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Count the scores."""
        return len(self._makers)


def where_defined(scores: Scores, outcome: Outcome) -> Scores:
    """Return the same scores, at the positions where an outcome is defined."""
    return LazyScores({key: partial(lambda own: outcome.of(scores[own]), key) for key in scores})


def normalised_scores(bank: Bank) -> Scores:
    """Return the scores that the regressions and selectors use, each of shape (positions,), within [0, 1].

    `learnable` D^L = norm(D) norm(C) and `incompatible` D^I = norm(D) (1 - norm(C)) share D between them. Quantiles
    are over the whole bank and from theta0 alone.

    Raises:
        EstimationError: a column cannot be normalised.
    """
    makers: dict[Key, Callable[[], Array]] = {
        (name, None): _normed(bank, name) for name in ("student_entropy", "teacher_entropy")
    }
    makers["position", None] = partial(bank.column, "pos_norm")
    for k in SUPPORT_SIZES:
        makers |= {(name, k): _normed(bank, f"{name}_k{k}") for name in _PER_SUPPORT}
        for name, (parts, formula) in _COMBINED.items():
            makers[name, k] = partial(_combine, formula, [makers[score_key(makers, part, k)] for part in parts])
    return LazyScores(makers)


def score_key(scores: Mapping[Key, object], name: str, k: int) -> Key:
    """Return the key of a score, with K where it has one."""
    return (name, k) if (name, k) in scores else (name, None)


def parts_of(scores: Scores, k: int) -> Parts:
    """Return what every score at one K is made of, shape (positions,) each."""
    return {name: scores[score_key(scores, name, k)] for name in _PARTS}


def combined_score(parts: Parts, name: str) -> Array:
    """Return one score at the K of its parts."""
    if name in parts:
        return parts[name]
    wanted, formula = _COMBINED[name]
    return formula(*(parts[part] for part in wanted))


def raw_scores(bank: Bank, normalised: Scores) -> Scores:
    """Return the scores whose predictive validity is compared, each of shape (positions,).

    Raw KL, C, D and alignments stay as measured; `learnable` and `incompatible` exist only as normalised scores.
    """
    makers: dict[Key, Callable[[], Array]] = {
        ("forward_kl", None): partial(bank.column, "forward_kl"),
        ("logit_alignment", None): partial(bank.column, "logit_alignment"),
        ("hidden x logit_alignment", None): lambda: bank.column("hidden_norm_sq") * bank.column("logit_alignment"),
    }
    for k in SUPPORT_SIZES:
        makers |= {(name, k): partial(bank.column, f"{name}_k{k}") for name in _PER_SUPPORT}
        makers |= {(name, k): partial(normalised.__getitem__, (name, k)) for name in ("learnable", "incompatible")}
    return LazyScores(makers)


def in_q3(bank: Bank, rows: Codes | None = None) -> tuple[np.ndarray, float, float]:
    """Return the Q3 mask and the medians that bound it: student entropy <= its median, forward KL >= its median.

    Args:
        bank: the bank.
        rows: of a part of it, whose own medians are meant; all of it by default.
    """
    entropy, kl = bank.column("student_entropy"), bank.column("forward_kl")
    return q3_mask(entropy, kl) if rows is None else q3_mask(entropy[rows], kl[rows])


def saturation_rows(bank: Bank, normalised: Scores) -> list[dict[str, Any]]:
    """Return the rows of the saturation table: one a normalised score."""
    rows = [_saturation_row(bank, normalised, name, None, name) for name in ("student_entropy", "teacher_entropy")]
    for k in SUPPORT_SIZES:
        rows += [_saturation_row(bank, normalised, name, k, f"{name}_k{k}") for name in _PER_SUPPORT]
        rows += [_saturation_row(bank, normalised, name, k, None) for name in _AUDITED]
    return rows


def decided_by_tie(values: Array, percent: int) -> float:
    """Return the share of an exact budget of ceil(percent% of N) top scores that a tie at its edge decides.

    0 if the budget ends between two different values; 1 if every place goes to positions of the same score.
    """
    budget = -(-percent * len(values) // 100)
    edge = np.partition(values, -budget)[-budget]
    places = budget - int((values > edge).sum())
    return places / budget if int((values == edge).sum()) > places else 0.0


def _saturation_row(bank: Bank, normalised: Scores, name: str, k: int | None, column: str | None) -> dict[str, Any]:
    values = normalised[name, k]
    low, high = (None, None) if column is None else quantile_range(bank.column(column), column)
    return {
        "score": name,
        "k": k,
        "q05": low,
        "q95": high,
        "share_at_lowest": float((values == values.min()).mean()),
        "share_at_highest": float((values == values.max()).mean()),
        **{f"tied_at_{percent:02d}pct": decided_by_tie(values, percent) for percent in BUDGETS},
        "n_positions": len(values),
    }


def _normed(bank: Bank, column: str) -> Callable[[], Array]:
    low, high = quantile_range(bank.column(column), column)
    return lambda: clip_to(bank.column(column), low, high)


def _combine(formula: Callable[..., Array], parts: Sequence[Callable[[], Array]]) -> Array:
    return formula(*(part() for part in parts))
