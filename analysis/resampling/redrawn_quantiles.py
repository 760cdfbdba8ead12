"""Positions of every bootstrap draw in the order of a score: exact quantiles and running sums.

No draw's rows are ever laid out. Ordered positions are cut into blocks of neighbours, whose counts and sums in a draw
come from those of each prompt by one matrix product; only the one block that a quantile or an edge falls into is
looked at row by row.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from scipy.sparse import csr_array

from teachdiag.scores import Array, Codes

_MOST_BLOCKS = 512
_TOGETHER = 1 << 19  # positions that are looked at row by row, over all draws, at the same time


class Population(Protocol):
    """Positions that draws hold, each so many times."""

    @property
    def size(self) -> int:
        """How many positions there are."""

    def counts(self, draws: slice, rows: Codes) -> Array:
        """Return how often positions count, (d, j) to (d, j): each row of `rows` asks about one of some draws."""

    def sums(self, columns: Array, groups: Codes, n_groups: int) -> Array:
        """Sum columns of shape (n, m) within groups of shape (n,) in every draw: shape (draws, m, groups)."""


class Whole(NamedTuple):
    """Every position, as often as its prompt. `prompts`: shape (n,). `weights`: shape (draws, prompts)."""

    prompts: Codes
    weights: Array

    @property
    def size(self) -> int:
        """How many positions there are."""
        return len(self.prompts)

    def counts(self, draws: slice, rows: Codes) -> Array:
        """Return how often positions count in some draws."""
        return np.take_along_axis(self.weights[draws], self.prompts[rows], axis=1)

    def sums(self, columns: Array, groups: Codes, n_groups: int) -> Array:
        """Sum columns within groups in every draw."""
        n_prompts = self.weights.shape[1]
        cells = self.prompts * n_groups + groups
        by_prompt = (np.bincount(cells, column, n_prompts * n_groups).reshape(n_prompts, -1) for column in columns.T)
        return np.stack([self.weights @ of_column for of_column in by_prompt], axis=1)


class Region(NamedTuple):
    """Positions that lie, in a draw, at or below its first border in x and at or above its second in y.

    `whole`: the positions, of which `sometimes` are inside in some draws only, and the others in all. `x`, `y`: shape
    (n,). `borders`: shape (draws, 2). `counted`: how often the sometimes inside count, shape (draws, sometimes).
    """

    whole: Whole
    x: Array
    y: Array
    borders: Array
    sometimes: Codes
    counted: Array

    @classmethod
    def of(cls, whole: Whole, x: Array, y: Array, borders: Array) -> tuple["Region", Codes]:
        """Return the region, and the rows of `whole` that are inside in any draw: its positions, in that order."""
        (low_x, low_y), (high_x, high_y) = borders.min(axis=0), borders.max(axis=0)
        rows = np.flatnonzero((x <= high_x) & (y >= low_y))
        x, y, positions = x[rows], y[rows], Whole(whole.prompts[rows], whole.weights)
        sometimes = np.flatnonzero((x > low_x) | (y < high_y))
        inside = (x[sometimes] <= borders[:, :1]) & (y[sometimes] >= borders[:, 1:])
        return cls(
            positions, x, y, borders, sometimes, positions.weights[:, positions.prompts[sometimes]] * inside
        ), rows

    @property
    def size(self) -> int:
        """How many positions there are."""
        return self.whole.size

    def counts(self, draws: slice, rows: Codes) -> Array:
        """Return how often positions count in some draws: not at all outside the borders."""
        borders = self.borders[draws]
        inside = (self.x[rows] <= borders[:, :1]) & (self.y[rows] >= borders[:, 1:])
        return self.whole.counts(draws, rows) * inside

    def sums(self, columns: Array, groups: Codes, n_groups: int) -> Array:
        """Sum columns within groups in every draw: of positions always inside by prompt, of the others one by one."""
        always = columns.copy()
        always[self.sometimes] = 0
        totals = self.whole.sums(always, groups, n_groups)
        n, group = len(self.sometimes), groups[self.sometimes]
        for number, column in enumerate(columns[self.sometimes].T):
            totals[:, number] += self.counted @ csr_array((column, (np.arange(n), group)), shape=(n, n_groups))
        return totals


class Ordered:
    """A population in the order of a score, with the running counts of every draw at the edges of blocks."""

    def __init__(self, population: Population, score: Array, columns: Array | None = None) -> None:
        """Order positions by a score of shape (n,); sums will be those of columns of shape (n, m)."""
        n = population.size
        self.population, self.order = population, np.argsort(score, kind="stable")
        self.score = score[self.order]
        self.columns = np.ones((n, 1)) if columns is None else np.column_stack([np.ones(n), columns])
        self.width = max(math.isqrt(n), n // _MOST_BLOCKS) + 1
        self.blocks = np.empty(n, np.int64)
        self.blocks[self.order] = np.arange(n) // self.width
        counts = population.sums(self.columns[:, :1], self.blocks, -(-n // self.width))[:, 0]
        self.up_to = np.zeros((len(counts), counts.shape[1] + 1))  # counts of the blocks before each
        np.cumsum(counts, axis=1, out=self.up_to[:, 1:])

    @property
    def total(self) -> Array:
        """Count and sums of all positions in every draw, shape (draws, 1 + m)."""
        return self.population.sums(self.columns, np.zeros_like(self.blocks), 1)[..., 0]

    def quantile(self, p: float) -> Array:
        """Return np.quantile (type 7) of the repeated scores, shape (draws,); NaN where a draw holds none."""
        sizes = self.up_to[:, -1]
        rank = p * np.maximum(sizes - 1, 0)
        whole = np.floor(rank)
        lower, upper = (self.score[self._row_at(np.minimum(whole + more, sizes - 1))] for more in (0, 1))
        return np.where(sizes > 0, interpolate(lower, upper, rank - whole), np.nan)

    def before(self, edges: Codes) -> Array:
        """Return count and sums of the positions before an edge in the order, of one for each draw: (draws, 1 + m)."""
        block = np.minimum(edges // self.width, self.up_to.shape[1] - 2)
        first, last = int(block.min()), int(block.max())
        # Summed are what lies before all edges, and each block that some edge lies in or behind; the rest is one more.
        groups = np.clip(self.blocks, first - 1, last) - (first - 1)
        sums = self.population.sums(self.columns, groups, last - first + 2).cumsum(axis=2)
        totals: Array = sums[np.arange(len(edges)), :, block - first]
        for draws, ranks, counts in self._blocks(block):
            counts *= ranks < edges[draws, None]
            totals[draws] += np.einsum("dj,djm->dm", counts, self.columns[self._rows(ranks)])
        return totals

    def _row_at(self, rank: Array) -> Codes:
        """Return where in the order the position stands that is at a place (from 0) among a draw's, or the last."""
        ends = self.up_to[:, 1:]
        block = np.minimum((ends <= rank[:, None]).sum(axis=1), ends.shape[1] - 1)
        start = self.up_to[np.arange(len(rank)), block]
        ranks: Codes = block * self.width
        for draws, _, counts in self._blocks(block):
            reached = start[draws, None] + counts.cumsum(axis=1)
            ranks[draws] += np.minimum((reached <= rank[draws, None]).sum(axis=1), self.width - 1)
        last: Codes = np.minimum(ranks, len(self.score) - 1)
        return last

    def _blocks(self, block: Codes) -> Iterator[tuple[slice, Codes, Array]]:
        """Yield, some draws at a time, the places in the order of one block a draw, and how often these count.

        Places beyond the last position count 0.
        """
        step = max(1, _TOGETHER // self.width)
        for first in range(0, len(block), step):
            draws = slice(first, first + step)
            ranks = block[draws, None] * self.width + np.arange(self.width)
            yield draws, ranks, self.population.counts(draws, self._rows(ranks)) * (ranks < len(self.score))

    def _rows(self, ranks: Codes) -> Codes:
        return self.order[np.minimum(ranks, len(self.order) - 1)]


def redrawn_quantiles(values: Array, prompts: Codes, weights: Array, probabilities: Sequence[float]) -> Array:
    """Return quantiles of the resampled positions in every draw: np.quantile of the repeated rows (type 7), exactly.

    Args:
        values: shape (n,).
        prompts: shape (n,).
        weights: shape (draws, prompts).
        probabilities: which quantiles.

    Returns:
        Shape (draws, quantiles), unit of the values; NaN where a draw holds no position.
    """
    ordered = Ordered(Whole(prompts, weights), values)
    return np.column_stack([ordered.quantile(p) for p in probabilities])


def interpolate(lower: Array, upper: Array, share: Array) -> Array:
    """Go that share of the way from lower to upper, rounded as np.quantile rounds: a cut equals what it ties with."""
    way = upper - lower
    return np.where(share < 0.5, lower + way * share, upper - way * (1 - share))
