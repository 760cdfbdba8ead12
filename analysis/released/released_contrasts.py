"""High-minus-low gaps and matched pairs as the released code computes them: fixed cuts, no scale, no caliper."""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from teachdiag.analysis.step.support_contrast import fixed_gaps
from teachdiag.scores import Array, Codes

DRAWS = 1000


class Gap(NamedTuple):
    """A difference of means with its percentile interval, and how many positions each arm holds."""

    estimate: float
    low: float
    high: float
    n_high: int
    n_low: int


class Matched(NamedTuple):
    """Differences within pairs: how many, their mean and median (NaN without pairs)."""

    pairs: int
    mean: float
    median: float


def gap(values: Array, score: Array, cuts: tuple[float, float], clusters: Codes, seed: int, draws: int = DRAWS) -> Gap:
    """Mean where a score is at or above its upper cut less mean where it is at or below its lower one.

    Args:
        values: shape (n,).
        score: shape (n,); its cuts are made once.
        cuts: quantiles of the lower and the upper cut.
        clusters: shape (n,): those that own a position are resampled.
        seed: of the draws.
        draws: those that leave an arm empty are skipped.
    """
    low, high = np.quantile(score, cuts)
    upper, lower = score >= high, score <= low
    drawn = fixed_gaps(values[:, None], upper, lower, _dense(clusters), _weights(clusters, seed, draws))[:, 0]
    ends = np.percentile(drawn[1:][~np.isnan(drawn[1:])], [2.5, 97.5])
    return Gap(float(drawn[0]), float(ends[0]), float(ends[1]), int(upper.sum()), int(lower.sum()))


def mean_interval(values: Array, clusters: Codes, seed: int, draws: int) -> tuple[float, float]:
    """Percentile interval of a mean, the clusters that own a value resampled."""
    dense, weights = _dense(clusters), _weights(clusters, seed, draws)[1:]
    means = (weights @ np.bincount(dense, values)) / (weights @ np.bincount(dense))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def match_nearest(values: Array, score: Array, features: Array, clusters: Codes) -> Matched:
    """Pair each position above its cluster's median score with the nearest at or below it, with replacement.

    Args:
        values: shape (n,).
        score: shape (n,).
        features: shape (n, f), unscaled; squared Euclidean distance, the first of equals wins.
        clusters: shape (n,).
    """
    differences: list[Array] = []
    for cluster in np.unique(clusters):
        rows = np.flatnonzero(clusters == cluster)
        above = score[rows] > np.median(score[rows])
        high, low = rows[above], rows[~above]
        if len(high) and len(low):
            nearest = cdist(features[high], features[low], "sqeuclidean").argmin(axis=1)
            differences.append(values[high] - values[low[nearest]])
    if not differences:
        return Matched(0, np.nan, np.nan)
    paired = np.concatenate(differences)
    return Matched(len(paired), float(paired.mean()), float(np.median(paired)))


def _dense(clusters: Codes) -> Codes:
    return np.unique(clusters, return_inverse=True)[1].astype(np.int64)


def _weights(clusters: Codes, seed: int, draws: int) -> Array:
    """How often each cluster counts, shape (1 + draws, clusters), row 0 all ones."""
    n = len(np.unique(clusters))
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([np.ones(n), drawn])
