"""Random weights of a few blocks, such that intervals of what is averaged over these are as wide as Student's.

With four or eight blocks, drawing them with replacement makes intervals that are too short twice over: the variance is
(S - 1) / S of what it should be, and percentiles are those of a normal where t with S - 1 degrees of freedom is due.
"""

import numpy as np

from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.scores import Array
from teachdiag.seeds import derive_seed


def block_weights(resampling: Resampling, n_blocks: int) -> Array:
    """Return how much each block counts in each draw, shape (1 + draws, blocks); row 0 holds ones: the estimate.

    Weights are 1 + T (z - mean z) sqrt(S / (S - 1)), with z standard normal and T = sqrt((S - 1) / chi2(S - 1)) shared
    by the blocks of a draw. They sum to S; some are negative. Given T, the mean of S values under these weights is
    normal around their mean with its usual variance s^2 / S; over draws it has Student's t distribution with S - 1
    degrees of freedom, so that its percentiles are the t interval.

    Args:
        resampling: seed and number of draws.
        n_blocks: S, at least 2.
    """
    rng = np.random.default_rng(derive_seed(resampling.seed, "bootstrap", "bank blocks"))
    z = rng.standard_normal((resampling.draws, n_blocks))
    scale = np.sqrt(n_blocks / rng.chisquare(n_blocks - 1, (resampling.draws, 1)))  # sqrt(S / (S - 1)) T
    return np.vstack([np.ones(n_blocks), 1 + scale * (z - z.mean(axis=1, keepdims=True))])
