"""Outcome by quarter of a score, what is left of it beside H, D and position, and outcome by response position.

Paper Figures 4D and 5C, and its check by binned residuals. Equal scores share a bucket, so that no order among ties
matters; saturated scores have fewer buckets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bootstrap import MIN_PROMPTS, Array, Codes, Interval, Resampling, intervals, ratio
from teachdiag.analysis.cuts import redrawn_quantiles
from teachdiag.analysis.frame import Bank, Mask, Outcome
from teachdiag.analysis.profiles import Bins, group_means, group_sums
from teachdiag.analysis.scaling import Key, Scores, in_q3
from teachdiag.scores import quantile_bins
from teachdiag.settings import HEADLINE_K as K

SCORES: tuple[Key, ...] = (
    ("compatibility", K),
    ("learnable", K),
    ("incompatible", K),
    ("disagreement", K),
    ("tip", K),
    ("learnable_entropy", K),
)
POSITION_EDGES = (0, 1, 2, 3, 5, 9, 17, 33)  # first position of each bucket of the position profile
_QUARTERS, _TENTHS = 4, 10
_TRIM, _WINSOR = (0.05, 0.95), ((0.01, 0.99), (0.05, 0.95))
_CONTROLS: tuple[Key, ...] = (
    ("student_entropy", None),
    ("disagreement", K),
    ("position", None),
    ("teacher_entropy", None),
)


class _Region(NamedTuple):
    """Some positions, cut into buckets by a score.

    `inside`: shape (n,); `codes`: shape (inside,), from 0; `rows`: of the inside, one array a bucket; `facts`: what
    every row of a bucket says.
    """

    inside: Mask
    codes: Bins
    rows: list[Codes]
    facts: list[dict[str, Any]]

    @classmethod
    def of(cls, region: str, key: Key, score: Array, inside: Mask, codes: Codes, prompts: Codes) -> "_Region":
        """Cut the marked positions by codes that may leave numbers out."""
        dense = np.unique(codes, return_inverse=True)[1].astype(np.int64)
        rows = np.split(np.argsort(dense, kind="stable"), np.bincount(dense).cumsum()[:-1])
        own, owners = score[inside], prompts[inside]
        facts = [
            {"region": region, "score": key[0], "k": key[1], "bucket": number}
            | {"score_low": float(own[members].min()), "score_high": float(own[members].max())}
            | {"n_positions": len(members), "n_prompts": len(np.unique(owners[members]))}
            for number, members in enumerate(rows, start=1)
        ]
        return cls(inside, dense, rows, facts)


def bucket_rows(
    outcomes: Sequence[Outcome], bank: Bank, scores: Scores, resampling: Resampling
) -> list[dict[str, Any]]:
    """Return the rows of the buckets table of outcomes that are defined over the same positions.

    Args:
        outcomes: with equal `rows`.
        bank: the bank they are of.
        scores: normalised scores of the whole bank.
        resampling: gives the draws; buckets, trimming and fitted residuals are those of the full sample in all.
    """
    rows = outcomes[0].rows
    weights = resampling.weights("buckets")
    everywhere, q3 = np.ones(int(rows.sum()), bool), in_q3(bank.positions)[0][rows]
    prompts = bank.prompts[rows]
    found: list[dict[str, Any]] = []
    for key in SCORES:
        score = scores[key][rows]
        for region, inside in (("all", everywhere), ("q3", q3)):
            if len(np.unique(prompts[inside])) >= MIN_PROMPTS:
                cut = _Region.of(region, key, score, inside, quantile_bins(score[inside], _QUARTERS), prompts)
                found += [row for outcome in outcomes for row in _robust(outcome, cut, weights)]
    design = np.column_stack([np.ones(len(everywhere)), *(scores[key][rows] for key in _CONTROLS)])
    tenths = [
        _Region.of("all", key, scores[key][rows], everywhere, quantile_bins(scores[key][rows], _TENTHS), prompts)
        for key in SCORES
    ]
    position = bank.positions["position"].to_numpy(np.float64)[rows]
    places = np.searchsorted(POSITION_EDGES, position, "right").astype(np.int64)
    by_position = _Region.of("all", ("position", None), position, everywhere, places, prompts)
    for outcome in outcomes:
        residual = outcome.values - design @ np.linalg.lstsq(design, outcome.values, rcond=None)[0]
        for cut in tenths:
            found += _rows(outcome, cut, "residual mean", outcome.unit, _bucket_means(residual, outcome, cut, weights))
        found += _by_position(outcome, by_position, weights)
    return found


def robust_rows(outcome: Outcome, resampling: Resampling) -> list[dict[str, Any]]:
    """Return rows of the estimates table: the median of an outcome, and means that few positions cannot move.

    The median is that of each draw; values beyond the cuts of the full sample are left out (trimmed) or moved to the
    cut (winsorised) in every draw.
    """
    weights, y = resampling.weights("robust gain"), outcome.values
    low, high = np.quantile(y, _TRIM)
    kept = (y >= low) & (y <= high)
    samples = {
        "median": redrawn_quantiles(y, outcome.prompts, weights, (0.5,)),
        "trimmed mean 5-95": _whole(y[kept], outcome.prompts[kept], weights),
    }
    for cuts in _WINSOR:
        name = f"winsorised mean {100 * cuts[0]:g}-{100 * cuts[1]:g}"
        samples[name] = _whole(np.clip(y, *np.quantile(y, cuts)), outcome.prompts, weights)
    return [
        outcome.row("robust_gain", name, None, outcome.unit, intervals(drawn)[0], resampling.method(name))
        for name, drawn in samples.items()
    ]


def _robust(outcome: Outcome, cut: _Region, weights: Array) -> list[dict[str, Any]]:
    """Mean with its interval, median and trimmed mean of every bucket."""
    values = outcome.values[cut.inside]
    groups = [values[members] for members in cut.rows]
    points = {
        "median": [float(np.median(own)) for own in groups],
        "trimmed mean": [_trimmed(own) for own in groups],
    }
    rows = _rows(outcome, cut, "mean", outcome.unit, _bucket_means(values, outcome, cut, weights))
    for name, found in points.items():
        rows += _rows(outcome, cut, name, outcome.unit, [Interval(value, np.nan, np.nan) for value in found])
    return rows


def _by_position(outcome: Outcome, cut: _Region, weights: Array) -> list[dict[str, Any]]:
    """Mean outcome by response position, and each bucket's share of the sum over the bank."""
    rows = _rows(outcome, cut, "mean", outcome.unit, _bucket_means(outcome.values, outcome, cut, weights))
    if outcome.values.sum() == 0:  # there is no whole to have shares of
        return rows
    return rows + _rows(outcome, cut, "share of total", "1", intervals(_shares(outcome, cut.codes, weights)))


def _shares(outcome: Outcome, codes: Bins, weights: Array) -> Array:
    """Each bucket's share of the outcome's sum in every draw, shape (draws, buckets)."""
    sums = group_sums(outcome.values, codes, int(codes.max()) + 1, outcome.prompts, weights.shape[1])
    totals = weights @ sums
    return ratio(totals, totals.sum(axis=1, keepdims=True))


def _bucket_means(values: Array, outcome: Outcome, cut: _Region, weights: Array) -> list[Interval]:
    return intervals(group_means(values, cut.codes, len(cut.rows), outcome.prompts[cut.inside], weights))


def _rows(outcome: Outcome, cut: _Region, statistic: str, unit: str, found: Sequence[Interval]) -> list[dict[str, Any]]:
    own = {"probe_id": outcome.probe_id, "update": outcome.update, "outcome": outcome.name}
    own |= {"statistic": statistic, "unit": unit}
    return [own | facts | interval.columns() for facts, interval in zip(cut.facts, found, strict=True)]


def _whole(values: Array, prompts: Codes, weights: Array) -> Array:
    return group_means(values, np.zeros(len(values), np.int64), 1, prompts, weights)


def _trimmed(values: Array) -> float:
    low, high = np.quantile(values, _TRIM)
    return float(values[(values >= low) & (values <= high)].mean())
