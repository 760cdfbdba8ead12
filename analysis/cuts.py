"""What cuts that are estimated anew in every bootstrap draw do to the coefficients.

norm() cuts at quantiles of the bank, which another bank would have elsewhere. A coefficient follows the quantiles of a
draw by its derivative in each, measured on the full sample at one standard deviation to either side: to first order,
without touching the positions again in any draw.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from teachdiag.analysis.bootstrap import Array, Codes
from teachdiag.analysis.design import PREDICTORS, Sample, predictor_columns
from teachdiag.analysis.resampled import redrawn_quantiles
from teachdiag.analysis.scaling import combined_scores
from teachdiag.scores import clip_to

_CUTS = (0.05, 0.95)


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
