"""What a run could have seen of a claim: the smallest effect told apart from 0, and from the nearest placebo."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from teachdiag.analysis.resampling.power import POWER, Precision


@dataclass(frozen=True)
class Reach:
    """How far a run sees on the side of 0 on which its estimate lies; effects are sizes on that side, above 0.

    `from_zero`: precision of the estimate. `from_placebo`: of its margin over the nearest placebo; None where there is
    none. `zero`: size up to which the number counts as 0. `placebo`: what the nearest placebo shows, below 0 where that
    lies on the other side.
    """

    from_zero: Precision
    from_placebo: Precision | None
    zero: float
    placebo: float

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Reach | None":
        """Read a row of the primary claims; None where its number has no standard error.

        What the row lacks of the nearest placebo is taken as: there is none.
        """
        known = {name: value for name, value in row.items() if not pd.isna(value)}
        of_number = _precision(known, "std_error", "ci_low", "ci_high")
        if of_number is None:
            return None
        of_margin = _precision(known, "margin_error", "margin_low", "margin_high", "placebo_error")
        side = -1 if known["estimate"] < 0 else 1
        return cls(of_number, of_margin, known.get("noise_floor", 0.0), side * known.get("placebo_estimate", 0.0))

    def detectable(self, power: float = POWER) -> tuple[float, float | None]:
        """Return the smallest effect told apart from 0, and from the nearest placebo, with this power."""
        beside = None if self.from_placebo is None else max(0.0, self.placebo + self.from_placebo.detectable(power))
        return self.zero + self.from_zero.detectable(power), beside

    def prompts_needed(self, effect: float, power: float = POWER) -> int | None:
        """Return how many prompts tell an effect apart from 0 and from the nearest placebo, each with this power.

        None where no number does: the placebo shows as much, or the error of its few draws hides the difference.
        """
        needed = [_needed(self.from_zero, effect - self.zero, power)]
        if self.from_placebo is not None:
            needed.append(_needed(self.from_placebo, effect - self.placebo, power))
        return None if None in needed else max(number for number in needed if number is not None)


def reach_columns(row: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Return the columns of a row of the primary claims that say what the run could have seen of it."""
    reach = Reach.of_row(row)
    if reach is None:
        return dict.fromkeys(("detectable_from_0", "detectable_from_placebo", "prompts_needed"))
    from_zero, from_placebo = reach.detectable()
    return {
        "detectable_from_0": from_zero,
        "detectable_from_placebo": from_placebo,
        "prompts_needed": reach.prompts_needed(abs(row["estimate"])),
    }


def _precision(known: Mapping[str, Any], error: str, low: str, high: str, fixed: str = "") -> Precision | None:
    if not {error, low, high} <= known.keys() or not known[error] > 0:
        return None
    return Precision(known["n_prompts"], known[error], (known[high] - known[low]) / 2, known.get(fixed, 0.0))


def _needed(precision: Precision, effect: float, power: float) -> int | None:
    return precision.prompts_needed(effect, power) if effect > 0 else None
