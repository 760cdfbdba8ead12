"""Numbers that depend on update batches and on bank blocks, their draws, and intervals over both."""

from dataclasses import dataclass, replace

import numpy as np

from teachdiag.analysis.resampling.bootstrap import Interval, intervals, ratio
from teachdiag.scores import Array


@dataclass(frozen=True)
class Drawn:
    """Numbers in every draw of the update batch, and what each bank block contributes.

    Attributes:
        values: shape (1 + draws, m), from the whole bank; those of all update contexts first.
        influence: shape (1 + draws, m, blocks): if block b counted 1 + e times, a value would rise by about
            e influence_b. Sums to 0 over blocks.
    """

    values: Array
    influence: Array

    def __sub__(self, other: "Drawn") -> "Drawn":
        """Return paired differences."""
        return Drawn(self.values - other.values, self.influence - other.influence)

    def scaled(self, factors: Array) -> "Drawn":
        """Return every number times its factor, which draws may vary: shape (1 + draws, m)."""
        return Drawn(self.values * factors, self.influence * factors[:1, :, None])

    def intervals(self, block_weights: Array) -> list[Interval]:
        """Return the numbers with their 95% intervals; NaN ends where some draw leaves a number undefined.

        Update batches and bank blocks vary on their own, and a draw adds what either does. Part of the differences
        between blocks comes from the update contexts at hand (their interaction), which draws of these hold already:
        the blocks' own variance is what is left of the squared influence beside its variance over draws.

        Args:
            block_weights: shape (1 + draws, blocks), see `few_blocks`.
        """
        moved = (block_weights - 1) @ self._of_blocks().T
        errors = self._std_errors().tolist()
        return [
            replace(interval, std_error=error if interval.known else None)
            for interval, error in zip(intervals(self.values + moved), errors, strict=True)
        ]

    def _std_errors(self) -> Array:
        """Return how far each number scatters where both are drawn anew, shape (m,).

        That over update batches is half the distance of the 16% and 84% quantiles, which few far draws do not move.
        """
        low, high = np.percentile(self.values[1:], [15.87, 84.13], axis=0)
        n_blocks = self.influence.shape[2]
        of_blocks = n_blocks / (n_blocks - 1) * (self._of_blocks() ** 2).sum(axis=1)
        return np.asarray(np.sqrt(((high - low) / 2) ** 2 + of_blocks))

    def _of_blocks(self) -> Array:
        """Return the influence of each block beyond what update contexts explain of its square, shape (m, blocks)."""
        own, drawn = self.influence[0], self.influence[1:]
        squares = (own**2).sum(axis=1)
        left = 1 - ratio(((drawn - own) ** 2).sum(axis=2).mean(axis=0), squares)
        return np.asarray(own * np.sqrt(np.clip(np.where(squares > 0, left, 0), 0, 1))[:, None])  # NaN stays


def mean_of(by_block: Array, sizes: Array) -> Drawn:
    """Return means over the bank, from those of each block.

    Args:
        by_block: shape (1 + draws, m, blocks).
        sizes: bank positions of each block, shape (blocks,).
    """
    shares = sizes / sizes.sum()
    values = by_block @ shares
    return Drawn(values, shares * (by_block - values[..., None]))


def ratio_of(numerator: Array, denominator: Array, sizes: Array) -> Drawn:
    """Return ratios of means over the bank, from the means of each block.

    Args:
        numerator: shape (1 + draws, m, blocks).
        denominator: shape (1 + draws, blocks), that of all m.
        sizes: bank positions of each block, shape (blocks,).
    """
    shares = sizes / sizes.sum()
    below = denominator @ shares
    values = ratio(numerator @ shares, below[:, None])
    off = numerator - values[..., None] * denominator[:, None]
    return Drawn(values, shares * off / below[:, None, None])
