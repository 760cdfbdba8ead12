"""Quantiles that are estimated anew in every bootstrap draw, and what that does to the coefficients.

norm() cuts at quantiles of the bank, which another bank would have elsewhere. The quantiles of a draw come from counts
of each prompt's positions below a grid of order statistics. A coefficient follows them by its derivative in each
quantile, measured on the full sample at one standard deviation to either side: to first order, without touching the
positions again in any draw.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from teachdiag.analysis.bootstrap import Array, Codes
from teachdiag.analysis.design import PREDICTORS, Sample, predictor_columns
from teachdiag.analysis.scaling import combined_scores
from teachdiag.scores import clip_to

_CUTS = (0.05, 0.95)
_GRID = 1025  # order statistics around a quantile
_REACH = 8  # how far the grid reaches, in standard deviations of a quantile's rank if prompts were single positions


def redrawn_quantiles(values: Array, prompts: Codes, weights: Array, probabilities: Sequence[float]) -> Array:
    """Return quantiles of the resampled positions in every draw, interpolated between order statistics.

    Args:
        values: shape (n,).
        prompts: shape (n,).
        weights: shape (draws, prompts).
        probabilities: which quantiles.

    Returns:
        Shape (draws, quantiles): type 7, but that only 1025 order statistics around each quantile are told apart.
    """
    order = np.argsort(values, kind="stable")
    sizes = weights @ np.bincount(prompts, minlength=weights.shape[1])
    found = [_redrawn(values[order], prompts[order], weights, sizes, p) for p in probabilities]
    return np.column_stack(found)


class Redrawn(NamedTuple):
    """How the cuts move, and the sample's moments where one of them is moved.

    `moves`: shape (draws, cuts), in standard deviations of each cut. `moments`: shape (cuts, 2, 1 + q + m, 1 + q + m),
    of [1, scaled] in total, with a cut one standard deviation lower and higher. `spread`: shape (cuts, 2, q + m).
    """

    moves: Array
    moments: Array
    spread: Array


def redraw_cuts(sample: Sample, bank: pd.DataFrame, prompts: Codes, weights: Array) -> Redrawn:
    """Redraw the eight quantiles that normalise H, the teacher's H, D and C.

    Args:
        sample: the regressions' sample.
        bank: the bank's positions, by which scores are normalised.
        prompts: shape (positions of the bank,).
        weights: shape (draws, prompts).
    """
    columns = ("student_entropy", "teacher_entropy", f"disagreement_k{sample.k}", f"compatibility_k{sample.k}")
    raw = [bank[name].to_numpy(np.float64) for name in columns]
    drawn = np.column_stack([redrawn_quantiles(values, prompts, weights, _CUTS) for values in raw])
    moves, deviation = drawn - drawn[0], drawn[1:].std(axis=0)
    cuts = np.array([np.quantile(values, _CUTS) for values in raw]).ravel()
    # A step that would carry a lower cut beyond its upper one is of no draw.
    steps = np.minimum(deviation, np.repeat(cuts[1::2] - cuts[::2], 2) / 4)
    moved = [[_moved(sample, bank, raw, cuts + side * row) for side in (-1, 1)] for row in np.diag(steps)]
    scaled = np.divide(moves, steps, out=np.zeros_like(moves), where=steps > 0)
    totals, spread = (np.array([[pair[part] for pair in sides] for sides in moved]) for part in (0, 1))
    return Redrawn(scaled, totals, spread)


def _moved(sample: Sample, bank: pd.DataFrame, raw: Sequence[Array], cuts: Array) -> tuple[Array, Array]:
    """Total moments of [1, scaled] and the spreads, with the scores normalised at other cuts."""
    h, teacher, d, c = (clip_to(values, *own) for values, own in zip(raw, cuts.reshape(-1, 2), strict=True))
    scores = combined_scores(h, teacher, bank["pos_norm"].to_numpy(np.float64), d, c, sample.k)
    columns = np.column_stack(
        [*predictor_columns(scores, sample.outcomes[0], sample.k), sample.scaled[:, len(PREDICTORS) :]]
    )
    spread = columns.std(axis=0)
    extended = np.column_stack([np.ones(len(columns)), (columns - columns.mean(axis=0)) / spread])
    spread[len(PREDICTORS) :] *= sample.spread[len(PREDICTORS) :]
    return extended.T @ extended, spread


def _redrawn(ordered: Array, prompts: Codes, weights: Array, sizes: Array, p: float) -> Array:
    n, n_prompts = len(ordered), weights.shape[1]
    centre, reach = p * (n - 1), max(16.0, _REACH * n * np.sqrt(p * (1 - p) / n_prompts))
    low, high = max(centre - reach, 0.0), min(centre + reach, n - 1.0)
    grid = np.unique(np.linspace(low, high, _GRID).astype(np.int64))
    cell = np.searchsorted(grid, np.arange(grid[-1] + 1))  # the first grid point at or above each order statistic
    counts = np.bincount(prompts[: grid[-1] + 1] * len(grid) + cell, minlength=n_prompts * len(grid))
    below = (weights @ counts.reshape(n_prompts, len(grid))).cumsum(axis=1)  # positions up to each grid point
    place = p * (sizes - 1)  # among the resampled positions, from 0
    lower, upper = (ordered[grid[_first_beyond(below, np.floor(place) + more)]] for more in (0, 1))
    drawn: Array = lower + (place - np.floor(place)) * (upper - lower)
    return drawn


def _first_beyond(below: Array, place: Array) -> Codes:
    """Return the first grid point of each draw up to which more positions lie than a number of them."""
    beyond = (below <= place[:, None]).sum(axis=1)
    first: Codes = np.minimum(beyond, below.shape[1] - 1)
    return first
