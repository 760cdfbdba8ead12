"""Outcome by quarter of a score, what is left of it beside H, D and position, and outcome by response position.

Paper Figures 4D and 5C, and its check by binned residuals. Equal scores share a bucket, so that no order among ties
matters; saturated scores have fewer buckets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.bank.normalised import Key, Scores, in_q3, where_defined
from teachdiag.analysis.resampling.bootstrap import Resampling, intervals, ratio
from teachdiag.analysis.resampling.redrawn_quantiles import redrawn_quantiles
from teachdiag.analysis.step.profiles import group_means, group_sums
from teachdiag.scores import Array, Codes, Mask, quantile_bins
from teachdiag.settings import SUPPORT_SIZES
from teachdiag.signals import BUCKETS

POSITION_EDGES = (0, 1, 2, *(2**n + 1 for n in range(1, 15)))  # first position of each bucket of the position profile
_QUARTERS, _TENTHS = 4, 10
_TRIM, _WINSOR = (0.05, 0.95), ((0.01, 0.99), (0.05, 0.95))
_UNDEFINED = {"share of total": "have a total that is 0 or of the other sign"}


class _Region(NamedTuple):
    """Some positions, cut into buckets by a score.

    `inside`: shape (n,); `codes`: shape (inside,), from 0; `rows`: of the inside, one array a bucket; `facts`: what
    every row of a bucket says.
    """

    inside: Mask
    codes: Codes
    rows: list[Codes]
    facts: list[dict[str, Any]]

    @classmethod
    def of(cls, region: str, key: Key, score: Array, inside: Mask, codes: Codes, prompts: Codes) -> "_Region":
        """Cut the marked positions by codes that may leave numbers out."""
        dense = (np.cumsum(np.bincount(codes) > 0) - 1)[codes]
        rows = np.split(np.argsort(dense.astype(np.int16), kind="stable"), np.bincount(dense).cumsum()[:-1])
        scores, prompts_inside = score[inside], prompts[inside]
        facts = [
            {"region": region, "score": key[0], "k": key[1], "bucket": number}
            | {"score_low": float(scores[members].min()), "score_high": float(scores[members].max())}
            | {"n_positions": len(members), "n_prompts": np.count_nonzero(np.bincount(prompts_inside[members]))}
            for number, members in enumerate(rows, start=1)
        ]
        return cls(inside, dense, rows, facts)


class _Draws(NamedTuple):
    """The bootstrap of all buckets. `weights`: shape (1 + draws, prompts)."""

    resampling: Resampling
    weights: Array


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
    first = outcomes[0]
    defined = where_defined(scores, first)
    q3, prompts = first.of(in_q3(bank)[0]), first.prompts
    position = first.of(bank.column("position"))
    draws = _Draws(resampling, resampling.weights("buckets"))
    rows: list[dict[str, Any]] = []
    for k in SUPPORT_SIZES:
        for name in BUCKETS:
            rows += _by_quarter(outcomes, (name, k), defined[name, k], q3, prompts, draws)
        rows += _residuals(outcomes, defined, k, prompts, draws)
    buckets = np.searchsorted(POSITION_EDGES, position, "right").astype(np.int64)
    everywhere = np.ones(len(prompts), bool)
    by_position = _Region.of("all", ("position", None), position, everywhere, buckets, prompts)
    weight = None if bank.weight is None else first.of(bank.weight)
    return rows + [row for outcome in outcomes for row in _by_position(outcome, by_position, draws, weight)]


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
        outcome.row(
            "robust_gain", name, None, outcome.unit, intervals(drawn, resampling.n_prompts)[0], resampling.method(name)
        )
        for name, drawn in samples.items()
    ]


def _by_quarter(
    outcomes: Sequence[Outcome], key: Key, score: Array, q3: Mask, prompts: Codes, draws: _Draws
) -> list[dict[str, Any]]:
    """Mean with its interval, median and trimmed mean of every quarter, over all positions and inside Q3."""
    rows: list[dict[str, Any]] = []
    for region, inside in (("all", np.ones_like(q3)), ("q3", q3)):
        if inside.any():
            cut = _Region.of(region, key, score, inside, quantile_bins(score[inside], _QUARTERS), prompts)
            for outcome in outcomes:
                values = outcome.values[inside]
                groups = [values[members] for members in cut.rows]
                rows += _rows(outcome, cut, "mean", outcome.unit, _means(values, outcome, cut, draws), draws)
                for name, point in (("median", np.median), ("trimmed mean", _trimmed)):
                    points = np.array([[point(group) for group in groups]])
                    rows += _rows(outcome, cut, name, outcome.unit, points, draws)
    return rows


def _residuals(
    outcomes: Sequence[Outcome], scores: Scores, k: int, prompts: Codes, draws: _Draws
) -> list[dict[str, Any]]:
    """Mean of what least squares on entropies, D and position leaves, by tenth of every score; the fit is fixed."""
    controls: tuple[Key, ...] = (("student_entropy", None), ("disagreement", k), ("position", None))
    everywhere = np.ones(len(prompts), bool)
    design = [everywhere.astype(np.float64), *(scores[key] for key in (*controls, ("teacher_entropy", None)))]
    gram = np.array([[a @ b for b in design] for a in design])
    rows: list[dict[str, Any]] = []
    for name in BUCKETS:
        score = scores[name, k]
        cut = _Region.of("all", (name, k), score, everywhere, quantile_bins(score, _TENTHS), prompts)
        for outcome in outcomes:
            moments = np.array([column @ outcome.values for column in design])
            fitted = np.linalg.lstsq(gram, moments, rcond=None)[0]
            residual = outcome.values - sum(b * column for b, column in zip(fitted, design, strict=True))
            means = _means(residual, outcome, cut, draws)
            rows += _rows(outcome, cut, "residual mean", outcome.unit, means, draws)
    return rows


def _by_position(outcome: Outcome, cut: _Region, draws: _Draws, weight: Array | None) -> list[dict[str, Any]]:
    """Mean outcome by response position, and each bucket's share of the sum over the bank, if that is not 0.

    Where positions were drawn, each counts for as many tokens as it stands for, so that both are estimates for all
    tokens of the responses; and each bucket's share of these tokens is told.
    """
    if weight is None:
        rows = _rows(outcome, cut, "mean", outcome.unit, _means(outcome.values, outcome, cut, draws), draws)
        values = outcome.values
    else:
        values = weight * outcome.values
        sums, tokens = (_sums(column, outcome, cut.codes, draws.weights) for column in (values, weight))
        rows = _rows(outcome, cut, "mean", outcome.unit, ratio(sums, tokens), draws)
        rows += _rows(outcome, cut, "share of tokens", "1", ratio(tokens, tokens.sum(1, keepdims=True)), draws)
    if values.sum() == 0:
        return rows
    shares = _shares(values, outcome, cut.codes, draws.weights)
    return rows + _rows(outcome, cut, "share of total", "1", shares, draws)


def _sums(values: Array, outcome: Outcome, codes: Codes, weights: Array) -> Array:
    """Sum of each bucket in every draw, shape (draws, buckets)."""
    return weights @ group_sums(values, codes, int(codes.max()) + 1, outcome.prompts, weights.shape[1])


def _shares(values: Array, outcome: Outcome, codes: Codes, weights: Array) -> Array:
    """Each bucket's share of a sum in every draw, shape (draws, buckets).

    Where a draw has a total of the other sign, shares of it mean nothing: NaN there, and so no interval.
    """
    sums = _sums(values, outcome, codes, weights)
    totals = sums.sum(axis=1, keepdims=True)
    return np.where(totals * totals[0] > 0, ratio(sums, totals), np.nan)


def _means(values: Array, outcome: Outcome, cut: _Region, draws: _Draws) -> Array:
    return group_means(values, cut.codes, len(cut.rows), outcome.prompts[cut.inside], draws.weights)


def _rows(
    outcome: Outcome, cut: _Region, statistic: str, unit: str, samples: Array, draws: _Draws
) -> list[dict[str, Any]]:
    """One row a bucket from samples of shape (1 + draws, buckets), or (1, buckets) of a statistic without interval."""
    shared = {"probe_id": outcome.probe_id, "update": outcome.update, "outcome": outcome.name}
    shared |= {"statistic": statistic, "unit": unit}
    if len(samples) == 1:
        method = {"ci_low": None, "ci_high": None, "method": f"{statistic}; no interval is made"}
        estimates = [{"estimate": float(point), **method} for point in samples[0]]
    else:
        n_prompts = [facts["n_prompts"] for facts in cut.facts]
        what, undefined = f"{statistic}; buckets fixed", _UNDEFINED.get(statistic, "leave the bucket empty")
        estimates = draws.resampling.columns(samples, n_prompts, what, undefined)
    return [shared | facts | columns for facts, columns in zip(cut.facts, estimates, strict=True)]


def _whole(values: Array, prompts: Codes, weights: Array) -> Array:
    return group_means(values, np.zeros(len(values), np.int64), 1, prompts, weights)


def _trimmed(values: Array) -> float:
    low, high = np.quantile(values, _TRIM)
    inside = values[(values >= low) & (values <= high)]
    return float((inside if len(inside) else values).mean())  # two values lie beyond their own quantiles
