"""What cuts that are estimated anew in every bootstrap draw do to the coefficients.

norm() cuts at quantiles of the bank, which another bank would have elsewhere. A coefficient follows the quantiles of a
draw by its derivative in each, measured on the full sample at one standard deviation to either side: to first order,
without touching the positions again in any draw.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Bank
from teachdiag.analysis.resampling.redrawn_quantiles import redrawn_quantiles
from teachdiag.analysis.step.design import Sample, standardised, with_intercept
from teachdiag.scores import Array, clip_to

_CUTS = (0.05, 0.95)
_CUT = ("student_entropy", "teacher_entropy", "disagreement", "compatibility")  # parts that are normalised
_BLOCK = 4096  # rows whose variables exist at the same time


class Redrawn(NamedTuple):
    """How the cuts move, and the sample's moments where one of them is moved.

    `moves`: shape (draws, cuts), in standard deviations of each cut. `moments`: shape (cuts, 2, 1 + q + m, 1 + q + m),
    of [1, z-scored] in total, with a cut one standard deviation lower and higher. `spread`: shape (cuts, 2, q + m).
    """

    moves: Array
    moments: Array
    spread: Array


def redraw_cuts(sample: Sample, bank: Bank, weights: Array) -> Redrawn:
    """Redraw the eight quantiles that normalise H, the teacher's H, D and C.

    Args:
        sample: the regressions' sample.
        bank: the bank, by whose positions scores are normalised.
        weights: shape (draws, prompts).
    """
    names = [f"{name}_k{sample.k}" if name in ("disagreement", "compatibility") else name for name in _CUT]
    raw = [bank.column(name) for name in names]
    drawn = np.column_stack([redrawn_quantiles(values, bank.prompts, weights, _CUTS) for values in raw])
    moves, deviation = drawn - drawn[0], drawn[1:].std(axis=0)
    cuts = np.array([np.quantile(values, _CUTS) for values in raw]).ravel()
    # A step that would carry a lower cut beyond its upper one is of no draw.
    steps = np.minimum(deviation, np.repeat(cuts[1::2] - cuts[::2], 2) / 4)
    moved = np.array([cuts + side * row for row in np.diag(steps) for side in (-1, 1)])
    scaled = np.divide(moves, steps, out=np.zeros_like(moves), where=steps > 0)
    standardisations = [
        standardised(total) for total in _moments(sample, [sample.outcomes[0].of(values) for values in raw], moved)
    ]
    spread, totals = (np.array([one[part] for one in standardisations]) for part in (1, 2))
    return Redrawn(scaled, totals.reshape(len(steps), 2, *totals.shape[1:]), spread.reshape(len(steps), 2, -1))


def _moments(sample: Sample, raw: Sequence[Array], cuts: Array) -> Array:
    """Total moments of [1, variables] with the scores normalised at other cuts, (c, 8) to (c, 1 + q + m, 1 + q + m)."""
    n, width = len(raw[0]), 1 + len(sample.mean)
    moments = np.zeros((len(cuts), width, width))
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        for total, bounds in zip(moments, cuts.reshape(len(cuts), -1, 2), strict=True):
            parts = {name: clip_to(values[rows], *ends) for name, values, ends in zip(_CUT, raw, bounds, strict=True)}
            parts["position"] = sample.parts["position"][rows]
            extended = with_intercept(sample.variables(parts, rows))
            total += extended.T @ extended
    return moments
