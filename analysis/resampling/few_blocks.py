"""Random weights of a few blocks, such that intervals of what is averaged over these are as wide as Student's.

With four or eight blocks, drawing them with replacement makes intervals that are too short twice over: the variance is
(S - 1) / S of what it should be, and percentiles are those of a normal where t with S - 1 degrees of freedom is due.
"""

import numpy as np
from scipy.stats import t

from teachdiag.analysis.resampling.bootstrap import CLEAR, Interval, Resampling
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


def p_above(interval: Interval, threshold: float, n_blocks: int) -> float:
    """Return the one-sided p-value of a number no larger than a threshold, from its interval's lower half.

    Tails are those of t with as many degrees of freedom as there are blocks, less one.
    """
    freedom = max(n_blocks - 1, 1)
    error = (interval.estimate - interval.low) / t.ppf(0.975, freedom)
    return float(t.sf((interval.estimate - threshold) / error, freedom)) if error > 0 else 1.0


def clear_side(interval: Interval, n_blocks: int) -> int:
    """Return 1 or -1 where a number is told from 0 on that side, at 0.5% each; 0 else, and without an interval.

    Stricter than an interval of 95%: what is divided by such a number must not be near 0, and a run makes statements on
    its step too, so that one run in twenty at most makes a false one.
    """
    upside_down = Interval(-interval.estimate, -interval.high, -interval.low)
    above, below = (p_above(side, 0.0, n_blocks) < CLEAR / 2 for side in (interval, upside_down))
    return int(above) - int(below)
