"""The two-way bootstrap of the selector experiment: update seeds and bank prompts are both drawn anew.

A cell (one selector, budget, seed and match) needs only the sum of each prompt's gains. A draw weights prompts inside a
cell and seeds between cells, so a thousand draws of all cells are two matrix products.
"""

from dataclasses import dataclass

import numpy as np

from teachdiag.analysis.resampling.bootstrap import Interval, Resampling, intervals, ratio
from teachdiag.scores import Array, Codes
from teachdiag.seeds import derive_seed


@dataclass(frozen=True)
class TwoWay:
    """How often each seed and each prompt counts in each draw; row 0 of both holds ones: the estimate.

    `seeds`: shape (1 + draws, seeds). `prompts`: shape (1 + draws, prompts).
    """

    seeds: Array
    prompts: Array

    @property
    def n_seeds(self) -> int:
        """Update batches behind every mean."""
        return int(self.seeds.shape[1])

    def method(self, what: str) -> str:
        """Return the text of the `method` column for a number that depends on seeds and prompts."""
        draws = f"{len(self.seeds) - 1} draws, percentile"
        if self.n_seeds == 1:
            return f"{what}; one update seed, so only prompts are resampled: prompt-cluster bootstrap, {draws}"
        return f"{what}, mean over {self.n_seeds} update seeds; bootstrap over update seeds x bank prompts, {draws}"

    def seed_method(self, what: str) -> str:
        """Return the same for a number that no bank prompt enters on its own."""
        if self.n_seeds == 1:
            return f"{what}; one update seed, so there is no interval"
        draws = f"{len(self.seeds) - 1} draws, percentile"
        return f"{what}, mean over {self.n_seeds} update seeds; bootstrap over update seeds, {draws}"


def two_way(resampling: Resampling, n_seeds: int) -> TwoWay:
    """Draw seeds and prompts, independently of one another.

    Of S seeds, S - 1 are drawn with replacement: the variance of the mean of S - 1 draws is then, on average, that of
    the mean of S seeds, where S draws would give (S - 1) / S of it (Rao and Wu 1988). With one seed there is nothing to
    resample, and its weight is 1 in every draw.
    """
    if n_seeds == 1:
        seeds = np.ones((resampling.draws, 1))
    else:
        rng = np.random.default_rng(derive_seed(resampling.seed, "bootstrap", "update seeds"))
        seeds = rng.multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), size=resampling.draws).astype(np.float64)
    return TwoWay(np.vstack([np.ones(n_seeds), seeds]), resampling.weights("interventions"))


def cell_means(sums: Array, counts: Array, prompts: Array) -> Array:
    """Return the mean over positions of each cell in every draw.

    Args:
        sums: each prompt's sum in each cell, shape (cells, prompts).
        counts: positions of each prompt, shape (prompts,).
        prompts: weights of the prompts, shape (draws, prompts).

    Returns:
        Shape (draws, cells); NaN where a draw holds no position.
    """
    return ratio(prompts @ sums.T, (prompts @ counts)[:, None])


def over_seeds(values: Array, groups: Codes, seeds: Codes, weights: Array) -> Array:
    """Return the mean over seeds of each group of cells in every draw.

    Args:
        values: shape (draws, cells), or (1, cells) where no prompt enters; NaN where a cell has no number.
        groups: shape (cells,), which selector, budget and match, from 0.
        seeds: shape (cells,), which seed, from 0.
        weights: of the seeds, shape (draws, seeds).

    Returns:
        Shape (draws, groups); NaN where some cell that counts has no number, or a draw holds none of the group's seeds.
    """
    belongs = np.eye(groups.max() + 1)[groups]
    counted = weights[:, seeds]
    known = np.where(np.isnan(values), 0.0, values)
    lost = (counted * np.isnan(values)) @ belongs
    means = ratio((counted * known) @ belongs, counted @ belongs)
    return np.where(lost > 0, np.nan, means)


def seed_intervals(samples: Array, n_seeds: int) -> list[Interval]:
    """Turn samples that only seeds move, shape (1 + draws, m), into intervals; with one seed there are none."""
    measured = intervals(samples)
    return measured if n_seeds > 1 else [Interval(i.estimate, np.nan, np.nan, i.draws) for i in measured]
