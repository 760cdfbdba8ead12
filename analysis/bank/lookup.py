"""Estimates in the tables of the analysis: a number is looked up by what its row holds."""

import numpy as np
import pandas as pd

from teachdiag.analysis.resampling.bootstrap import Interval
from teachdiag.tables import rows_where

_ENDS = ("estimate", "ci_low", "ci_high")


def lookup(rows: pd.DataFrame, **held: object) -> Interval | None:
    """Return the first estimate whose row holds these values, by column (None is null); None where there is none."""
    matching = rows_where(rows, **held)
    return None if matching.empty else row_interval(matching.iloc[0])


def lookup_text(rows: pd.DataFrame, **held: object) -> str:
    """Return the same as text; '-' where there is none."""
    interval = lookup(rows, **held)
    return "-" if interval is None else str(interval)


def row_interval(row: pd.Series) -> Interval:
    """Return the estimate of one row with its interval; reads estimate, ci_low and ci_high, which may be missing."""
    estimate, low, high = (np.nan if pd.isna(row[name]) else float(row[name]) for name in _ENDS)
    return Interval(estimate, low, high)
