"""Numbers and updates as sentences name them: in alternative texts, captions and printed tables."""

from collections.abc import Iterable

import pandas as pd

from teachdiag.signals import lowered

TITLES = {
    "one_step": "real step",
    "multi_step": "real steps",
    "checkpoint": "trained student",
    "theta0": "theta0, no step",
    "shuffled_teacher": "shuffled teacher",
    "shuffled_rollouts": "shuffled rollouts",
    "random_direction": "random direction",
}


def number_text(value: float) -> str:
    """Return a number as tables show it; '-' where there is none."""
    return "-" if pd.isna(value) else f"{value:.3g}"


def interval_text(estimate: float, low: float, high: float) -> str:
    """Return an estimate with its interval, where it has one."""
    text = number_text(estimate)
    return text if pd.isna(estimate) or pd.isna(low) else f"{text} [{low:.3g}, {high:.3g}]"


def listed(rows: pd.DataFrame, names: Iterable[str]) -> str:
    """Return the estimates of some rows, each after its name, with intervals."""
    numbers = rows[["estimate", "ci_low", "ci_high"]].itertuples(index=False)
    return ", ".join(f"{name} {interval_text(*row)}" for name, row in zip(names, numbers, strict=True))


def plain(symbol: str) -> str:
    """Return what figures write, as sentences do."""
    return lowered(symbol).replace("\n", " ")
