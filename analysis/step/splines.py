"""Cubic splines of ranks: one flexible curve for every score, evaluated a block of positions at a time.

Ranks make the curve the same for every monotone version of a score, and keep the few largest values, which reach far
beyond the others, from bending all of it. They are ranks among all positions at theta0, so they never see a gain.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline

from teachdiag.analysis.bank.normalised import Key, label
from teachdiag.errors import EstimationError
from teachdiag.scores import Array, Codes, mid_places

_KNOTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # quantiles of the interior knots
_DEGREE = 3


class Splines(NamedTuple):
    """The splines of some scores over the same positions.

    `doubled_ranks`: shape (n,) each, twice the mid-ranks: whole numbers that are a rank in (0, 1) over 2 `ranked`.
    `knots`: one sequence a score. `owners`: shape (q,), the score that each column of the design belongs to, in their
    order; -1 is the intercept. `ranked`: how many positions the ranks are among.
    """

    doubled_ranks: Sequence[npt.NDArray[np.int32]]
    knots: tuple[Array, ...]
    owners: Codes
    ranked: int

    def only(self, members: list[int]) -> "Splines":
        """Return the splines of some scores."""
        owners, members = self.owners[self.columns(members)], sorted(members)
        ranks, knots = [self.doubled_ranks[i] for i in members], tuple(self.knots[i] for i in members)
        return self._replace(doubled_ranks=ranks, knots=knots, owners=owners)

    def at(self, rows: Codes) -> "Splines":
        """Return the same curves over some of the positions."""
        return self._replace(doubled_ranks=[ranks[rows] for ranks in self.doubled_ranks])

    def columns(self, members: list[int]) -> Codes:
        """Return the design's columns of an intercept and some scores."""
        return np.flatnonzero(np.isin(self.owners, [-1, *members]))

    def design(self, rows: Codes) -> Array:
        """Evaluate an intercept and every basis function at some positions: shape (rows, q).

        The first function of each score is left out: beside an intercept, the others span the same curves.
        """
        design = np.ones((len(rows), len(self.owners)))
        end = 1
        for ranks, knots in zip(self.doubled_ranks, self.knots, strict=True):
            basis = BSpline(knots, np.eye(len(knots) - _DEGREE - 1), _DEGREE)
            start, end = end, end + len(knots) - _DEGREE - 2
            design[:, start:end] = basis(ranks[rows] / (2 * self.ranked))[:, 1:]
        return design


def rank_splines(keys: Sequence[Key], score: Callable[[Key], Array]) -> Splines:
    """Place the knots of some scores, each of shape (n,). Knots that coincide, as saturated scores have, count once.

    Raises:
        EstimationError: a score has one value everywhere; the message names it.
    """
    doubled, knots, ranked = [], [], 0
    for key in keys:
        ranks = mid_places(score(key))
        ranked = len(ranks)
        doubled.append((2 * ranks).astype(np.int32))
        knots.append(_knots(ranks / ranked, key))
    widths = [len(sequence) - _DEGREE - 2 for sequence in knots]
    return Splines(doubled, tuple(knots), np.repeat(np.arange(-1, len(knots)), [1, *widths]), ranked)


def _knots(ranks: Array, key: Key) -> Array:
    low, high = ranks.min(), ranks.max()
    if low == high:
        raise EstimationError(
            f"{label(key)} has one value at every position, so its predictive validity cannot be measured: capture "
            "another pair, or more prompts"
        )
    inner = np.unique(np.quantile(ranks, _KNOTS))
    inner = inner[(inner > low) & (inner < high)]
    return np.concatenate([np.repeat(low, _DEGREE + 1), inner, np.repeat(high, _DEGREE + 1)])
