"""The released statistic: inside Q3, relative gain at high C less relative gain at low C.

The paper's tables call it the gain of a selector (G, "bootstrap gain"). It is no fall of KL: it says how gain is
spread, not how much there is.
"""

from dataclasses import dataclass

import numpy as np

from teachdiag.analysis.step.support_contrast import THIRDS
from teachdiag.scores import Array, Mask


@dataclass(frozen=True)
class Arms:
    """Who is compared inside Q3: C at or above its upper third, and at or below its lower third.

    `high`, `low`: shape (positions,). `n_dropped`: positions of Q3 whose KL is too near the noise floor.
    """

    high: Mask
    low: Mask
    n_dropped: int

    @property
    def size(self) -> int:
        """Positions that the statistic rests on."""
        return int(self.high.sum() + self.low.sum())

    def __bool__(self) -> bool:
        """Whether there is anything to compare: C may be the same at both cuts."""
        return bool(self.high.any() and self.low.any() and not (self.high & self.low).any())


def arms(q3: Mask, compatibility: Array, measurable: Mask) -> Arms:
    """Cut C inside Q3 at its 1/3 and 2/3 quantiles, once, over the positions whose relative gain is defined.

    Args:
        q3: shape (positions,).
        compatibility: C, shape (positions,).
        measurable: where KL before the step stands clear of the noise floor, shape (positions,).
    """
    inside = q3 & measurable
    if not inside.any():
        return Arms(inside, inside, int(q3.sum()))
    lower, upper = np.quantile(compatibility[inside], THIRDS)
    return Arms(inside & (compatibility >= upper), inside & (compatibility <= lower), int((q3 & ~measurable).sum()))
