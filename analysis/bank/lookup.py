"""Estimates in the tables of the analysis: a number is looked up by what its row holds."""

import numpy as np
import pandas as pd

from teachdiag.analysis.resampling.bootstrap import Interval
from teachdiag.tables import rows_where

_ENDS = ("estimate", "ci_low", "ci_high")
_ERROR = "draw_error"


def lookup(rows: pd.DataFrame, **held: object) -> Interval | None:
    """Return the first estimate whose row holds these values, by column (None is null); None where there is none."""
    matching = rows_where(rows, **held)
    return None if matching.empty else row_interval(matching.iloc[0])


def lookup_text(rows: pd.DataFrame, **held: object) -> str:
    """Return the same as text; '-' where there is none."""
    interval = lookup(rows, **held)
    return "-" if interval is None else str(interval)


def row_interval(row: pd.Series) -> Interval:
    """Return the estimate of one row with its interval and, where the table has it, its standard error.

    Reads estimate, ci_low, ci_high and draw_error, which may be null.
    """
    estimate, low, high = (np.nan if pd.isna(row[name]) else float(row[name]) for name in _ENDS)
    error = row.get(_ERROR)
    return Interval(estimate, low, high, std_error=None if pd.isna(error) else float(error))
