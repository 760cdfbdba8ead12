"""What a run could have seen: the smallest effect that its intervals tell apart from 0, and the prompts that one needs.

An effect d is told apart from 0 where the 95% interval around its estimate leaves 0 out on the effect's side, so where
the estimate exceeds its distance w to the interval's nearer end (that of a ratio reaches further out than in). The
estimate is about normal around d with standard error s, so this happens with power P = Phi((d - w) / s), and the
smallest effect that is seen with power P is w + z_P s: 2.80 s at 80%, for an interval of +- 1.96 s (Cohen 1988,
chapter 2).

Of s^2 = a / n + b, the part a / n falls with the number of prompts n; b, as of few draws of a placebo, does not. The
interval keeps its ratio of width to error, so that an effect d needs n = a / ((d / (w / s + z_P))^2 - b) prompts.
"""

import math
from dataclasses import dataclass

from scipy.stats import norm

from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS

POWER = 0.8  # the share of repeated runs that see an effect which is called detectable


@dataclass(frozen=True)
class Precision:
    """How exactly a run tells a number. All but `n_prompts` are in the number's unit.

    `n_prompts`: prompts behind it. `std_error`: standard deviation of the estimate over repetitions of the run.
    `error_margin`: from the estimate to that end of its 95% interval which lies nearer to what it is told apart from, 0
    or another value. `fixed_error`: the part of the standard error that more prompts do not lessen.
    """

    n_prompts: int
    std_error: float
    error_margin: float
    fixed_error: float = 0.0

    def power(self, effect: float) -> float:
        """Return the share of repeated runs that tell an effect of this size and sign apart from 0."""
        return float(norm.cdf((abs(effect) - self.error_margin) / self.std_error))

    def detectable(self, power: float = POWER) -> float:
        """Return the smallest effect, above 0, that is told apart from 0 with this power."""
        return self.error_margin + float(norm.ppf(power)) * self.std_error

    def prompts_needed(self, effect: float, power: float = POWER) -> int | None:
        """Return how many prompts tell an effect apart from 0 with this power; None where no number of them does."""
        largest_variance = (effect * self.std_error / self.detectable(power)) ** 2  # at which the effect is still seen
        room = largest_variance - self.fixed_error**2
        if room <= 0:
            return None
        falling = self.n_prompts * max(self.std_error**2 - self.fixed_error**2, 0.0)
        return max(math.ceil(falling / room), MIN_PROMPTS)
