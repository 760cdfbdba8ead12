"""Many comparisons at once: p-values from bootstrap draws, and the Benjamini-Hochberg rate of false discoveries."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from statsmodels.stats.multitest import multipletests

from teachdiag.scores import Array


def bootstrap_p(draws: Array) -> float | None:
    """Two-sided p-value of 0 from the draws of an estimate: twice the lesser side's share, at least 1 / (draws + 1).

    Args:
        draws: shape (1 + draws,), the estimate first. None where some draw leaves it undefined, or there are none.
    """
    drawn = draws[1:]
    if not len(drawn) or np.isnan(drawn).any():
        return None
    share = min((drawn <= 0).mean(), (drawn >= 0).mean())
    return float(min(1.0, max(2 * share, 1 / (len(drawn) + 1))))


def add_q_values(rows: Sequence[dict[str, Any]], family: Sequence[str]) -> None:
    """Put `q_value` beside every `p_value`: Benjamini and Hochberg (1995), over the rows that agree in `family`."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        row["q_value"] = None
        if row["p_value"] is not None:
            groups.setdefault(tuple(row[name] for name in family), []).append(row)
    for group in groups.values():
        q_values = multipletests([row["p_value"] for row in group], method="fdr_bh")[1]
        for row, q in zip(group, q_values, strict=True):
            row["q_value"] = float(q)
