"""What real masked steps kept of the whole batch's gain, beside what first order says of the same batches."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from teachdiag.analysis.efficiency.step_lengths import ALL
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling, intervals, ratio
from teachdiag.scores import Array
from teachdiag.settings import MATCHES
from teachdiag.tables import rows_where

_CELL = ["selector", "budget", "batch"]


@dataclass(frozen=True)
class RealShare:
    """One cell of which real steps were taken: what they kept, and what first order says of the very same batches."""

    selector: str
    budget: float
    match: str
    real: Interval
    first_order: float

    @property
    def agrees(self) -> bool:
        """Whether the interval of the real share holds first order's."""
        return self.real.low <= self.first_order <= self.real.high


def real_shares(steps: pd.DataFrame, gains: pd.DataFrame, resampling: Resampling) -> list[RealShare]:
    """Return every cell of which real steps were taken, at equal norm and at equal rate.

    All steps on one batch have the length of that on the whole of it. A step at equal rate is |masked direction| /
    |whole direction| times as long, and so, to first order, is its gain: that of the short step is multiplied by it.

    Args:
        steps: rows of `masked_steps` of one probe.
        gains: rows of `masked_gains` of the same: what each prompt of the bank gained.
        resampling: of the bank's prompts; gains of the whole batch are drawn alike, so that shares are paired.
    """
    taken = steps[steps["real_gain"].notna()]
    totals = gains.assign(total=gains["gain"] * gains["n_positions"])
    sums = totals.pivot_table(index="prompt_id", columns=_CELL, values="total", aggfunc="sum")
    weights = replace(resampling, n_prompts=len(sums)).weights("real steps") if len(sums) >= MIN_PROMPTS else None
    shares = []
    for selector, budget in taken[["selector", "budget"]].drop_duplicates().itertuples(index=False):
        cell = rows_where(taken, selector=selector, budget=budget).sort_values("batch")
        whole = rows_where(taken, selector=ALL)
        whole = whole[whole["batch"].isin(cell["batch"])].sort_values("batch")
        if selector == ALL:
            continue
        for match in MATCHES:
            lengths = _column(cell, "direction_norm") / _column(whole, "direction_norm")
            lengths = lengths if match == "rate" else np.ones(len(cell))
            expected = float(lengths @ _per_length(cell) / _per_length(whole).sum())
            share = _share(_sums(sums, cell) @ lengths, _sums(sums, whole).sum(axis=1), weights)
            shares.append(RealShare(selector, budget, match, share, expected))
    return shares


def _column(cells: pd.DataFrame, name: str) -> Array:
    return np.asarray(cells[name], np.float64)


def _per_length(cells: pd.DataFrame) -> Array:
    """Gain to first order of a step of length 1, nats, shape (cells,)."""
    return _column(cells, "first_order") / _column(cells, "direction_norm")


def _sums(sums: pd.DataFrame, cells: pd.DataFrame) -> Array:
    """Sums of gains of every prompt in some cells, nats, shape (prompts, cells)."""
    return np.asarray(sums[pd.MultiIndex.from_frame(cells[_CELL])], np.float64)


def _share(kept: Array, full: Array, weights: Array | None) -> Interval:
    """Return the ratio of two sums over prompts, shape (prompts,) each; no interval where the lower may be 0."""
    if weights is None:
        return Interval(float(kept.sum() / full.sum()), np.nan, np.nan)
    below = weights @ full
    (share,) = intervals(ratio(weights @ kept, below)[:, None])
    known = intervals(below[:, None])[0].side() == 1
    return share if known else Interval(share.estimate, np.nan, np.nan)
