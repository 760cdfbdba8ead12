"""Estimates in the tables of the analysis: a number is looked up by what its row holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.analysis.resampling.bootstrap import Interval
from teachdiag.tables import holding

_ENDS = ("estimate", "ci_low", "ci_high")
_ERROR = "draw_error"


def lookup(rows: pd.DataFrame, **held: object) -> Interval | None:
    """Return the first estimate whose row holds these values, by column (None is null); None where there is none."""
    places = np.flatnonzero(holding(rows, **held))
    if not places.size:
        return None
    return row_interval({name: rows[name].iloc[places[0]] for name in (*_ENDS, _ERROR) if name in rows})


def lookup_text(rows: pd.DataFrame, **held: object) -> str:
    """Return the same as text; '-' where there is none."""
    interval = lookup(rows, **held)
    return "-" if interval is None else str(interval)


def row_dicts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, each by column."""
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def row_interval(row: "pd.Series[Any] | Mapping[str, Any]", names: Sequence[str] = _ENDS) -> Interval:
    """Return an estimate of one row with its interval and, where the table has it, its standard error.

    Args:
        row: of a table; what is missing there is NaN.
        names: the columns of the estimate and of its interval's ends.
    """
    estimate, low, high = (np.nan if pd.isna(row[name]) else float(row[name]) for name in names)
    error = row.get(_ERROR)
    return Interval(estimate, low, high, std_error=None if pd.isna(error) else float(error))
