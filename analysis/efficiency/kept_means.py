"""Mean inner products of what every selector keeps of resampled update batches: the selection is made anew in each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from teachdiag.errors import EstimationError
from teachdiag.scores import Array, Codes, Mask
from teachdiag.selectors import Selector, Tokens, counts_at
from teachdiag.selectors.budget import select_each

RANDOM, ORACLE = "random", "oracle"


@dataclass(frozen=True)
class Pool:
    """Update positions whose gradients were multiplied with that of the held-out KL, bank block by bank block.

    `tokens`: their statistics at theta0. `inner`: shape (2, n, blocks), <g_j, h_b> with the teacher's own rows and with
    shuffled ones: positive where a step on the position lowers the KL of the block. `prompts`: shape (n,), numbered
    from 0. `sizes`: shape (blocks,), bank positions of each block.
    """

    tokens: Tokens
    inner: Array
    prompts: Codes
    sizes: Array

    def __len__(self) -> int:
        """Count the positions."""
        return len(self.prompts)

    @property
    def n_prompts(self) -> int:
        """How many prompts the positions are of."""
        return int(self.prompts.max()) + 1

    @property
    def n_blocks(self) -> int:
        """How many blocks the bank was dealt into."""
        return len(self.sizes)

    def total(self) -> Array:
        """Return <g_j, h> of every position with h the gradient of the whole bank's mean KL, shape (n,)."""
        return np.asarray(self.inner[0] @ (self.sizes / self.sizes.sum()))

    def drawn(self, weights: Array) -> tuple[Tokens, Array]:
        """Lay out a batch that holds each prompt's positions so many times: its tokens, and its inner products.

        Args:
            weights: shape (prompts,), whole numbers.
        """
        rows = np.repeat(np.arange(len(self)), weights[self.prompts].astype(np.int64))
        columns = {name: values[rows] for name, values in self.tokens.columns.items()}
        return Tokens(columns, self.tokens.k, self.tokens.seed), self.inner[:, rows]


@dataclass(frozen=True)
class KeptMeans:
    """Mean inner products in every draw, those of the pool itself first.

    `kept`: shape (2, draws, selectors, budgets, blocks), over what each selector keeps, with the teacher's own rows and
    with shuffled ones; NaN where a selector cannot choose. `whole`: shape (2, draws, blocks), over the whole batch.
    """

    kept: Array
    whole: Array


def kept_means(pool: Pool, selectors: Mapping[str, Selector], budgets: Sequence[float], weights: Array) -> KeptMeans:
    """Let every selector choose at every budget, in every draw of the update batch.

    A position that is drawn several times competes so many times. Normalisation, medians and maxima inside a score are
    those of the draw. `random` is no draw of positions: random ones expect the mean of the batch. There is no number at
    a budget that buys more of the pool than a selector knows, nor in a draw of which a column cannot be normalised.

    Args:
        pool: the positions.
        selectors: by name.
        budgets: shares of the batch, below 1.
        weights: how often each prompt counts, shape (draws, prompts); the first draw holds all.
    """
    kept = np.full((2, len(weights), len(selectors), len(budgets), pool.n_blocks), np.nan)
    whole = np.empty((2, len(weights), pool.n_blocks))
    able = [_affordable(pool.tokens, selector, budgets) for selector in selectors.values()]
    for draw, counts in enumerate(weights):
        tokens, inner = pool.drawn(counts)
        whole[:, draw] = inner.mean(axis=1)
        for number, (name, selector) in enumerate(selectors.items()):
            if name == RANDOM:
                kept[:, draw, number] = whole[:, draw, None]
                continue
            for index, mask in _chosen(tokens, selector, budgets, able[number]):
                kept[:, draw, number, index] = inner[:, mask].mean(axis=1)
    return KeptMeans(kept, whole)


def _affordable(tokens: Tokens, selector: Selector, budgets: Sequence[float]) -> Codes:
    """Return the numbers of the budgets that buy no more positions than a selector knows."""
    if selector.mask:
        return np.arange(len(budgets))
    try:
        known = int((~np.isnan(selector.scores(tokens))).sum())
    except EstimationError:
        return np.arange(0)
    return np.flatnonzero([counts_at(budget, np.array([len(tokens)]))[0] <= known for budget in budgets])


def _chosen(tokens: Tokens, selector: Selector, budgets: Sequence[float], able: Codes) -> Iterator[tuple[int, Mask]]:
    """Yield the number of a budget and what a selector keeps at it, shape (positions,), of those at which it can."""
    wanted = [budgets[index] for index in able]
    try:
        if selector.mask:
            selections = [selector.mask(tokens, budget) for budget in wanted]
        else:
            selections = select_each(tokens, selector, wanted)
    except EstimationError:
        return
    yield from zip(able.tolist(), (selection.kept for selection in selections), strict=True)
