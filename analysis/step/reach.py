"""What a run could have seen of a claim: the smallest effect told apart from 0, and from the nearest placebo."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from teachdiag.analysis.resampling.power import POWER, Precision

_ENDS = ("ci_low", "ci_high")


@dataclass(frozen=True)
class Reach:
    """How far a run sees on the side of 0 on which its estimate lies; effects are sizes on that side, above 0.

    `of_number`: precision of the estimate. `of_margin`: of how far it lies beyond the nearest placebo's; None where no
    placebo was run. `zero`: size up to which the number counts as 0.
    """

    of_number: Precision
    of_margin: Precision | None
    zero: float

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Reach | None":
        """Read a row of the primary claims; None where its number has no standard error."""
        known = _known(row)
        of_number = _precision(known, "estimate", "std_error", *_ENDS)
        if of_number is None:
            return None
        of_margin = _precision(known, "margin", "margin_error", "margin_low", "margin_high")
        if of_margin is not None and "placebo_error" in known:
            of_margin = replace(of_margin, draw_error=known["placebo_error"], draws=known["placebo_draws"])
        return cls(of_number, of_margin, known.get("noise_floor", 0.0))

    def detectable(self, power: float = POWER) -> tuple[float, float | None]:
        """Return the smallest effect told apart from 0, and the smallest difference told apart from the placebo."""
        margin = None if self.of_margin is None else self.of_margin.detectable(power)
        return self.zero + self.of_number.detectable(power), margin

    def prompts_needed(self, effect: float, margin: float, power: float = POWER) -> int | None:
        """Return how many prompts tell an effect apart from 0 and from the nearest placebo, each with this power.

        Args:
            effect: its size.
            margin: by how much it exceeds what the nearest placebo shows.
            power: of each comparison.

        Returns:
            None where no number does: the placebo shows as much, or the error of its few draws hides the difference.
        """
        needed = [_needed(self.of_number, effect - self.zero, power)]
        if self.of_margin is not None:
            needed.append(_needed(self.of_margin, margin, power))
        return None if None in needed else max(number for number in needed if number is not None)

    def prompts_needed_again(self, row: Mapping[str, Any]) -> int | None:
        """Return how many prompts an effect and a margin as large as those of the row need."""
        side = -1 if row["estimate"] < 0 else 1
        margin = 0.0 if self.of_margin is None else side * row["margin"]
        return self.prompts_needed(side * row["estimate"], margin)


def reach_columns(row: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Return the columns of a row of the primary claims that say what the run could have seen of it."""
    reach = Reach.of_row(row)
    from_zero, from_placebo = reach.detectable() if reach else (None, None)
    needed = reach.prompts_needed_again(row) if reach else None
    return {"detectable_from_0": from_zero, "detectable_from_placebo": from_placebo, "prompts_needed": needed}


def precision_of_row(row: Mapping[str, Any], apart_from: float = 0.0) -> Precision | None:
    """Return how exactly a table's row tells its estimate from a value, in the estimate's unit.

    None where the row has no interval, or no standard error.
    """
    return _precision(_known(row), "estimate", "draw_error", *_ENDS, apart_from=apart_from)


def _precision(
    known: Mapping[str, Any], number: str, error: str, low: str, high: str, apart_from: float = 0.0
) -> Precision | None:
    if not {number, error, low, high} <= known.keys() or not known[error] > 0:
        return None
    ends = known[number] - known[low], known[high] - known[number]
    near, far = ends if known[number] > apart_from else reversed(ends)
    return Precision(known["n_prompts"], known[error], near, far) if min(ends) > 0 else None


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not pd.isna(value)}


def _needed(precision: Precision, effect: float, power: float) -> int | None:
    return precision.prompts_needed(effect, power) if effect > 0 else None
