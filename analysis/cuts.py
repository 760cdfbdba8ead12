"""Quantiles that are estimated anew in every bootstrap draw, and what that does to the coefficients.

norm() cuts at quantiles of the bank, which another bank would have elsewhere. The quantiles of a draw are those of its
resampled positions, found from each prompt's counts in blocks of neighbouring values. A coefficient follows them by its
derivative in each quantile, measured on the full sample at one standard deviation to either side: to first order,
without touching the positions again in any draw.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from teachdiag.analysis.bootstrap import Array, Codes
from teachdiag.analysis.design import PREDICTORS, Sample, predictor_columns
from teachdiag.analysis.scaling import combined_scores
from teachdiag.scores import clip_to

_CUTS = (0.05, 0.95)


def redrawn_quantiles(values: Array, prompts: Codes, weights: Array, probabilities: Sequence[float]) -> Array:
    """Return quantiles of the resampled positions in every draw: np.quantile of the repeated rows (type 7), exactly.

    Args:
        values: shape (n,).
        prompts: shape (n,).
        weights: shape (draws, prompts).
        probabilities: which quantiles.

    Returns:
        Shape (draws, quantiles), unit of the values; NaN where a draw holds no position.
    """
    order = np.argsort(values, kind="stable")
    sizes = weights @ np.bincount(prompts, minlength=weights.shape[1])
    found = [_redrawn(values[order], prompts[order], weights, sizes, p) for p in probabilities]
    return np.column_stack(found)


def interpolate(lower: Array, upper: Array, share: Array) -> Array:
    """Go that share of the way from lower to upper, rounded as np.quantile rounds: a cut equals what it ties with."""
    way = upper - lower
    return np.where(share < 0.5, lower + way * share, upper - way * (1 - share))


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
    """One quantile of rising values in every draw: find its block of neighbours first, and then its place in there."""
    n, n_prompts = len(ordered), weights.shape[1]
    width = math.isqrt(n) + 1
    n_blocks = -(-n // width)
    counts = np.bincount(prompts * n_blocks + np.arange(n) // width, minlength=n_prompts * n_blocks)
    up_to = (weights @ counts.reshape(n_prompts, n_blocks)).cumsum(axis=1)  # positions up to the end of each block
    place = p * (sizes - 1)  # among the resampled positions, from 0
    whole = np.floor(place)
    lower, upper = (ordered[_row_at(whole + more, up_to, prompts, weights, width)] for more in (0, 1))
    return np.where(sizes > 0, interpolate(lower, upper, place - whole), np.nan)


def _row_at(place: Array, up_to: Array, prompts: Codes, weights: Array, width: int) -> Codes:
    """Return the row that stands at a place (from 0) among the resampled positions of each draw, or the last row."""
    draws = np.arange(len(place))
    block = np.minimum((up_to <= place[:, None]).sum(axis=1), up_to.shape[1] - 1)
    before = np.where(block > 0, up_to[draws, block - 1], 0.0)
    rows = np.minimum(block[:, None] * width + np.arange(width), len(prompts) - 1)
    reached = before[:, None] + weights[draws[:, None], prompts[rows]].cumsum(axis=1)
    found: Codes = rows[draws, np.minimum((reached <= place[:, None]).sum(axis=1), width - 1)]
    return found
