"""What cuts that are estimated anew in every bootstrap draw do to the coefficients.

norm() cuts at quantiles of the bank, which another bank would have elsewhere. A coefficient follows the quantiles of a
draw by its derivative in each, measured on the full sample at one standard deviation to either side: to first order,
without touching the positions again in any draw.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Bank
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.resampling.redrawn_quantiles import redrawn_quantiles
from teachdiag.analysis.step.design import Correlated, Sample, predictor, reads, standardised, with_intercept
from teachdiag.formulas import stored_name
from teachdiag.scores import Array, clip_to

_CUTS = (0.05, 0.95)
_CUT = ("student_entropy", "teacher_entropy", "disagreement", "compatibility")  # parts that are normalised
_BLOCK = 4096  # rows whose variables exist at the same time


class Redrawn(NamedTuple):
    """How the cuts move, and the sample's variables where one of them is moved.

    `moves`: shape (draws, cuts), in standard deviations of each cut. `variables`: z-scored, with each cut one standard
    deviation lower, and with each higher. `spread`: shape (cuts, 2, q + m), theirs before.
    """

    moves: Array
    variables: tuple[Correlated, Correlated]
    spread: Array


def redraw_cuts(sample: Sample, bank: Bank, resampling: Resampling) -> Redrawn:
    """Redraw the eight quantiles that normalise H, the teacher's H, D and C.

    Args:
        sample: the regressions' sample.
        bank: the bank, by whose positions scores are normalised.
        resampling: gives the draws.
    """
    names = [stored_name(name, sample.k) for name in _CUT]
    drawn = np.column_stack([_drawn_cuts(bank, resampling, name) for name in names])
    moves, deviation = drawn - drawn[0], drawn[1:].std(axis=0)
    raw = [bank.column(name) for name in names]
    cuts = np.array([np.quantile(values, _CUTS) for values in raw])
    # A step that would carry a lower cut beyond its upper one is of no draw.
    steps = np.minimum(deviation, np.repeat(cuts[:, 1] - cuts[:, 0], 2) / 4)
    scaled = np.divide(moves, steps, out=np.zeros_like(moves), where=steps > 0)
    moved = cuts[:, None, None] + np.eye(2)[:, None] * [[-1], [1]] * steps.reshape(-1, 2, 1, 1)
    moments = _moments(sample, [sample.outcomes[0].of(values) for values in raw], moved)
    standardisations = [standardised(total) for total in moments.reshape(-1, *moments.shape[-2:])]
    spread, totals = (np.array([one[part] for one in standardisations]) for part in (1, 2))
    variables = Correlated.of(totals[::2]), Correlated.of(totals[1::2])
    return Redrawn(scaled, variables, spread.reshape(len(steps), 2, -1))


@lru_cache(maxsize=8)  # the columns of a bank, whose cuts every regression moves alike
def _drawn_cuts(bank: Bank, resampling: Resampling, column: str) -> Array:
    """Return the quantiles of a stored column in every draw, shape (1 + draws, 2)."""
    return redrawn_quantiles(bank.column(column), bank.prompts, resampling.weights("regression"), _CUTS)


def _moments(sample: Sample, raw: Sequence[Array], moved: Array) -> Array:
    """Total moments of [1, variables] with one part normalised at other cuts, variables of other parts as they are.

    Args:
        sample: the regressions' sample.
        raw: the parts that are normalised, as measured, shape (n,) each.
        moved: where their cuts are moved to, shape (parts, 2, 2, 2): which of the two is, how, and both.

    Returns:
        Shape (parts, 2, 2, 1 + q + m, 1 + q + m).
    """
    width = 1 + len(sample.mean)
    moments = np.zeros((*moved.shape[:3], width, width))
    following = [[i for i, name in enumerate(sample.predictors, 1) if part in reads(name)] for part in _CUT]
    whole = np.zeros((width, width))
    for start in range(0, len(raw[0]), _BLOCK):
        rows = slice(start, start + _BLOCK)
        parts = {name: values[rows] for name, values in sample.parts.items()}
        columns = with_intercept(sample.variables(parts, rows))
        whole += columns.T @ columns
        for part, values, follow, of_part, bounds in zip(_CUT, raw, following, moments, moved, strict=True):
            names, unmoved = [sample.predictors[column - 1] for column in follow], columns[:, follow]
            for total, ends in zip(of_part.reshape(-1, width, width), bounds.reshape(-1, 2), strict=True):
                others = parts | {part: clip_to(values[rows], *ends)}
                for column, name in zip(follow, names, strict=True):
                    columns[:, column] = predictor(name, others)
                total[follow] += columns[:, follow].T @ columns
            columns[:, follow] = unmoved
    for of_part, follow in zip(moments, following, strict=True):
        with_all = of_part[:, :, follow]
        of_part[:] = whole
        of_part[:, :, follow], of_part[..., follow] = with_all, with_all.swapaxes(2, 3)
    return moments
