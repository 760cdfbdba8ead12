"""Inside Q3, what is gained where support is high less what is gained where it is low (paper Table 1 and Table 6).

Q3 lies between two medians of the bank, and the arms are the outer thirds of a support score inside it. Each bootstrap
draw finds its own medians and thirds, as another bank would, unless the cuts are to be fixed.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.bank.normalised import Key, LazyScores, Scores, in_q3
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling, intervals, ratio, resampled_means
from teachdiag.analysis.resampling.multiplicity import bootstrap_p
from teachdiag.analysis.resampling.redrawn_quantiles import Ordered, Population, Region, Whole, redrawn_quantiles
from teachdiag.formulas import stored_name
from teachdiag.scores import Array, Codes, Mask
from teachdiag.settings import HEADLINE_OUTCOME, SUPPORT_SIZES
from teachdiag.signals import SUPPORT

THIRDS = (1 / 3, 2 / 3)
Q3_CONTRAST = "q3_contrast"
_BOUNDED = "student_entropy", "forward_kl"  # from above and from below, in Q3
_STATISTIC = "contrast"  # whose draws these are


class Arms(NamedTuple):
    """The outer thirds of a score inside Q3, on the full sample. `q3`, `high`, `low`: shape (n,)."""

    q3: Mask
    high: Mask
    low: Mask

    @property
    def note(self) -> str:
        """Why there is nothing to compare, or an empty text."""
        if not self.q3.any():
            return "Q3 holds no position that has this outcome"
        both = int((self.high & self.low).sum())
        return (
            f"the thirds share {both} of {int(self.q3.sum())} positions: the score is tied at its cuts" if both else ""
        )


class Sizes(NamedTuple):
    """How many positions a contrast rests on: columns of the contrasts table."""

    n_high: int
    n_low: int
    n_unmatched: int
    n_positions: int
    n_prompts: int


def support_scores(bank: Bank) -> Scores:
    """Return the support scores that are audited, each of shape (positions,): C and its proxies at every K."""
    return LazyScores(
        {(name, k): partial(bank.column, stored_name(name, k)) for k in SUPPORT_SIZES for name in SUPPORT}
    )


def contrast_rows(
    outcomes: Sequence[Outcome], bank: Bank, resampling: Resampling, *, redraw: bool
) -> list[dict[str, Any]]:
    """Return the rows of the contrasts table, by thirds, of outcomes that are defined over the same positions.

    Args:
        outcomes: with equal `rows`.
        bank: the bank they are of.
        resampling: gives the draws.
        redraw: whether medians and thirds are estimated anew in every draw.
    """
    first = outcomes[0]
    q3 = first.of(in_q3(bank)[0])
    draws = _Draws.of(outcomes, bank, resampling, redraw=redraw)
    cuts = "medians and thirds redrawn" if redraw else "medians and thirds fixed"
    method = resampling.method(f"upper less lower third of the score inside Q3; {cuts}")
    rows: list[dict[str, Any]] = []
    seen: dict[bytes, str] = {}
    for key, score in support_scores(bank).items():
        arms = cut_thirds(q3, first.of(score))
        drawn, note = draws.contrast(arms, first.of(score))
        note = note or _twin(arms, key, seen)
        n_prompts = len(np.unique(draws.prompts[arms.q3]))
        sizes = Sizes(int(arms.high.sum()), int(arms.low.sum()), 0, int(arms.q3.sum()), n_prompts)
        rows += [
            contrast_row(outcome, key, "thirds", interval, sizes, method, note)
            for outcome, interval in zip(outcomes, drawn, strict=True)
        ]
    return rows


def contrast_estimates(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, as estimates, those contrasts by thirds that the verdict asks for: gain at high less at low C."""
    wanted = [row for row in rows if row["score"] == "compatibility" and row["outcome"] == HEADLINE_OUTCOME]
    facts = {"analysis": Q3_CONTRAST, "std_error": None, "n_dropped": 0}
    return [{**facts, **row, "term": row["score"]} for row in wanted if row["estimate"] is not None]


def cut_thirds(q3: Mask, score: Array) -> Arms:
    """Cut a score inside Q3 at its 1/3 and 2/3 quantiles; what equals a cut belongs to that arm.

    Args:
        q3: shape (n,).
        score: shape (n,).
    """
    if not q3.any():
        return Arms(q3, q3, q3)
    low, high = np.quantile(score[q3], THIRDS)
    return Arms(q3, q3 & (score >= high), q3 & (score <= low))


def fixed_gaps(values: Array, high: Mask, low: Mask, prompts: Codes, weights: Array) -> Array:
    """Return the mean over one set of positions less that over another in every draw, neither of which draws move.

    Args:
        values: shape (n, m); only the two sets are read.
        high: shape (n,).
        low: shape (n,).
        prompts: shape (n,).
        weights: shape (draws, prompts).

    Returns:
        Shape (draws, m); NaN where a draw leaves a set empty.
    """
    upper, lower = (resampled_means(values[arm], prompts[arm], weights) for arm in (high, low))
    return upper - lower


class _Draws(NamedTuple):
    """The bootstrap of outcomes of shape (n, m), and Q3 in every draw, with its rows; None where cuts are fixed."""

    values: Array
    prompts: Codes
    weights: Array
    q3: tuple[Region, Codes] | None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], bank: Bank, resampling: Resampling, *, redraw: bool) -> "_Draws":
        first, weights = outcomes[0], resampling.weights(_STATISTIC)
        values = np.column_stack([outcome.values for outcome in outcomes])
        return cls(values, first.prompts, weights, redrawn_q3(bank, first, resampling) if redraw else None)

    def contrast(self, arms: Arms, score: Array) -> tuple[list[Interval], str]:
        """Return each outcome's contrast, and why it, or its interval, is missing."""
        if arms.note:
            return [Interval(np.nan, np.nan, np.nan)] * self.values.shape[1], arms.note
        point = fixed_gaps(self.values, arms.high, arms.low, self.prompts, self.weights[:1])
        n_prompts = len(np.unique(self.prompts[arms.q3]))
        if n_prompts < MIN_PROMPTS:
            note = f"no interval: Q3 lies in only {n_prompts} prompts, and {MIN_PROMPTS} are needed"
            return [Interval(float(x), np.nan, np.nan) for x in point[0]], note
        if self.q3 is None:
            drawn = fixed_gaps(self.values, arms.high, arms.low, self.prompts, self.weights)
        else:
            region, rows = self.q3
            drawn = redrawn_gaps(self.values[rows], score[rows], region)
        drawn[0] = point  # to the last digit, however its sums were ordered
        undefined = int(np.isnan(drawn).any(axis=1).sum())
        note = f"no interval: in {undefined} of {len(drawn) - 1} draws a third is empty, or ties put positions in both"
        return intervals(drawn, self.weights.shape[1]), note if undefined else ""


def redrawn_q3(bank: Bank, outcome: Outcome, resampling: Resampling) -> tuple[Region, Codes]:
    """Bound Q3 by the medians of every draw, which are over the whole bank, where an outcome is defined.

    Returns:
        Q3, and which of those rows lie in it in any draw: its positions, in that order.
    """
    entropy, kl = (outcome.of(bank.column(name)) for name in _BOUNDED)
    whole = Whole(outcome.prompts, resampling.weights(_STATISTIC))
    return Region.of(whole, entropy, kl, _redrawn_medians(bank, resampling))


def q3_in_any_draw(bank: Bank, resampling: Resampling) -> Mask:
    """Return which positions lie inside Q3 in some draw, shape (N,): contrasts by thirds read no others."""
    borders = _redrawn_medians(bank, resampling)
    entropy, kl = (bank.column(name) for name in _BOUNDED)
    return np.asarray((entropy <= borders[:, 0].max()) & (kl >= borders[:, 1].min()))


@lru_cache(maxsize=1)  # which every group of outcomes asks for
def _redrawn_medians(bank: Bank, resampling: Resampling) -> Array:
    """Return the medians that bound Q3 in every draw, shape (1 + draws, 2)."""
    weights = resampling.weights(_STATISTIC)
    medians = [redrawn_quantiles(bank.column(name), bank.prompts, weights, (0.5,)) for name in _BOUNDED]
    return np.hstack(medians)


def redrawn_gaps(values: Array, score: Array, region: Population) -> Array:
    """Return the contrast in every draw, with its Q3 and the thirds of the score inside it.

    Thirds are type-7 quantiles of the resampled positions, as np.quantile gives them. Where ties make both the same,
    the draw has no contrast, as the full sample would have none.

    Args:
        values: shape (n, m).
        score: shape (n,).
        region: Q3 in every draw, n positions.

    Returns:
        Shape (draws, m); NaN where a draw leaves an arm empty.
    """
    ordered = Ordered(region, score, values)
    low, high = (ordered.quantile(p) for p in THIRDS)
    below = ordered.before(np.searchsorted(ordered.score, low, "right"))
    above = ordered.total - ordered.before(np.searchsorted(ordered.score, high, "left"))
    apart = ratio(above[:, 1:], above[:, :1]) - ratio(below[:, 1:], below[:, :1])
    return np.where((low < high)[:, None], apart, np.nan)


def _twin(arms: Arms, key: Key, seen: dict[bytes, str]) -> str:
    """Say which earlier score has the same arms: a proxy that orders alike adds nothing."""
    name = f"{key[0]} (K={key[1]})"
    earlier = seen.setdefault(blake2b(arms.high.tobytes() + arms.low.tobytes()).digest(), name)
    return "" if earlier == name else f"the same arms as {earlier}"


def contrast_row(
    outcome: Outcome, key: Key, design: str, interval: Interval, sizes: Sizes, method: str, note: str
) -> dict[str, Any]:
    """Return one row of the contrasts table; an interval whose estimate is NaN leaves the number out."""
    known = not np.isnan(interval.estimate)
    return {
        "probe_id": outcome.probe_id,
        "update": outcome.update,
        "outcome": outcome.name,
        "score": key[0],
        "k": key[1],
        "design": design,
        "unit": outcome.unit,
        **(interval.columns() if known else {"estimate": None, "ci_low": None, "ci_high": None}),
        "p_value": bootstrap_p(interval.draws) if interval.draws is not None else None,
        "draws": interval.draws,  # no column of the table
        **sizes._asdict(),
        "method": method,
        "note": note,
    }
