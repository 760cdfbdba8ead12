"""What a run could have seen: the smallest effect that its intervals tell apart from 0, and the prompts that one needs.

An effect d is told apart from 0 where the 95% interval around its estimate leaves 0 out on the effect's side, so where
the interval's nearer end, a distance w below the estimate, lies above 0. That end is about normal around d - w with a
standard error e, so this happens with power P = Phi((d - w) / e), and the smallest effect that is seen with power P is
w + z_P e: 2.80 standard errors at 80%, for an interval of +- 1.96 of them (Cohen 1988, chapter 2). Three things make e
of the estimate's own error s:

- an interval that reaches u to the other side says that numbers scatter the more, the larger they are: towards 0 by
  s w / u;
- w is an estimate itself, of f degrees of freedom, and scatters by w / sqrt(2 f) (Johnson and Welch 1940, on the
  non-central t distribution);
- the interval beside a placebo is that of one more of its D draws, and so is as wide as s^2 (1 + 1/D) makes it, with
  s^2 the variance of one draw; from run to run their mean varies by s^2 / D alone.
"""

import math
from dataclasses import dataclass, replace

from scipy.optimize import brentq
from scipy.stats import norm

from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS

POWER = 0.8  # the share of repeated runs that see an effect which is called detectable
_MOST_PROMPTS = 1e12


@dataclass(frozen=True)
class Precision:
    """How exactly a run tells a number. All but `n_prompts` and `draws` are in the number's unit.

    `n_prompts`: prompts behind it. `std_error`: that of its 95% interval. `near`: from the estimate to that end of the
    interval which lies nearer to what it is told apart from, 0 or another value; `far`: to the other end. `draw_error`:
    the part of the standard error that `draws` draws of a placebo make up, which more prompts do not lessen.
    """

    n_prompts: float
    std_error: float
    near: float
    far: float
    draw_error: float = 0.0
    draws: float = math.inf

    @property
    def end_error(self) -> float:
        """Standard error of the interval's nearer end over repetitions of the run."""
        one_more = self.draw_error**2 / (1 + 1 / self.draws)  # variance of one draw of the placebo
        return math.hypot(math.sqrt(self.std_error**2 - one_more) * self.near / self.far, self.near * self._unknown)

    @property
    def _unknown(self) -> float:
        """1 / sqrt(2 f), with Satterthwaite's (1946) degrees of freedom f of prompts and draws together."""
        of_draws = (self.draw_error / self.std_error) ** 2
        inverse = (1 - of_draws) ** 2 / max(self.n_prompts - 1, 1) + of_draws**2 / max(self.draws - 1, 1)
        return math.sqrt(inverse / 2)

    def power(self, effect: float) -> float:
        """Return the share of repeated runs that tell an effect of this size and sign apart from 0."""
        return float(norm.cdf((abs(effect) - self.near) / self.end_error))

    def detectable(self, power: float = POWER) -> float:
        """Return the smallest effect, above 0, that is told apart from 0 with this power."""
        return self.near + float(norm.ppf(power)) * self.end_error

    def at(self, n_prompts: float) -> "Precision":
        """Return the same of another number of prompts, whose part of the variance falls with them."""
        falling = (self.std_error**2 - self.draw_error**2) * self.n_prompts / n_prompts
        error = math.sqrt(falling + self.draw_error**2)
        narrower = error / self.std_error
        return replace(self, n_prompts=n_prompts, std_error=error, near=self.near * narrower, far=self.far * narrower)

    def prompts_needed(self, effect: float, power: float = POWER) -> int | None:
        """Return how many prompts tell an effect apart from 0 with this power; None where no number of them does."""

        def missed(log_prompts: float) -> float:
            return self.at(math.exp(log_prompts)).detectable(power) - effect

        fewest, most = math.log(MIN_PROMPTS), math.log(_MOST_PROMPTS)
        if missed(most) >= 0:
            return None
        return math.ceil(math.exp(brentq(missed, fewest, most))) if missed(fewest) > 0 else MIN_PROMPTS
