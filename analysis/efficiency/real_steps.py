"""What real masked steps kept of the whole batch's gain, beside what first order says of the same batches."""

from collections.abc import Iterator
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
    for cell, whole in cells_beside_all(taken):
        selector, budget = str(cell["selector"].iloc[0]), float(cell["budget"].iloc[0])
        for match in MATCHES:
            lengths = _lengths(cell, whole, match)
            share = _share(_sums(sums, cell) @ lengths, _sums(sums, whole).sum(axis=1), weights)
            shares.append(RealShare(selector, budget, match, share, share_of_batches(cell, whole, match)))
    return shares


def cells_beside_all(steps: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Yield the rows of every selector and budget, batch by batch, and those of the whole of the same batches."""
    everything = rows_where(steps, selector=ALL).sort_values("batch")
    for _, cell in steps[steps["selector"] != ALL].groupby(["selector", "budget"], sort=False):
        yield cell.sort_values("batch"), everything[everything["batch"].isin(cell["batch"])]


def share_of_batches(cell: pd.DataFrame, whole: pd.DataFrame, match: str) -> float:
    """Return what a cell keeps of the whole batches' gain to first order, with the probe's own optimizer."""
    return float(_lengths(cell, whole, match) @ _per_length(cell) / _per_length(whole).sum())


def _lengths(cell: pd.DataFrame, whole: pd.DataFrame, match: str) -> Array:
    """Length of a cell's step on every batch, in that of the step on the whole of it, shape (batches,)."""
    return _column(cell, "direction_norm") / _column(whole, "direction_norm") if match == "rate" else np.ones(len(cell))


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
