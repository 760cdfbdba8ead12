"""How long the step on kept positions is beside that on the whole batch: norms of masked gradients, as measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from teachdiag.scores import Array
from teachdiag.seeds import derive_seed

ALL = "all"  # the selector that keeps the whole batch


@dataclass(frozen=True)
class LengthRatios:
    """|gradient of the whole batch| / |gradient of what is kept|, selector by selector and budget by budget.

    Attributes:
        ratio: shape (selectors, budgets), geometric mean over batches; NaN where no norm was measured.
        error: shape (budgets,), relative standard error of that mean, from the spread between batches of every selector
            that was measured at the budget; NaN with one batch.
        freedom: shape (budgets,), degrees of freedom of that error.
        n_batches: real update batches behind every mean.
        n_contexts: contexts of each of them.
    """

    ratio: Array
    error: Array
    freedom: Array
    n_batches: int
    n_contexts: int

    def drawn(self, seed: int, n_draws: int) -> Array:
        """Return the ratios in draws of their error, t distributed: shape (1 + draws, selectors, budgets)."""
        rng = np.random.default_rng(derive_seed(seed, "bootstrap", "step lengths"))
        t = rng.standard_t(np.maximum(self.freedom, 1), (n_draws, *self.ratio.shape))
        return np.concatenate([self.ratio[None], self.ratio * np.exp(self.error * t)])


def length_ratios(steps: pd.DataFrame, selectors: Sequence[str], budgets: Sequence[float]) -> LengthRatios:
    """Return them from the rows of `masked_steps` of one probe.

    Between batches, selectors at one budget scatter about alike, and two batches alone tell the scatter of none: it is
    pooled over them, as if they were independent.
    """
    logs = steps.assign(log=np.log(steps["gradient_norm"]))
    whole = logs[logs["selector"] == ALL].set_index("batch")["log"]
    logs["log"] = whole.reindex(logs["batch"]).to_numpy() - logs["log"]
    wide = logs.pivot_table(index=["selector", "budget"], columns="batch", values="log")  # one column a batch
    cells = wide.reindex(pd.MultiIndex.from_product([selectors, budgets])).to_numpy()
    by_cell = cells.reshape(len(selectors), len(budgets), -1)  # (selectors, budgets, batches)
    n_batches = by_cell.shape[2]
    measured = ~np.isnan(by_cell).any(axis=2)
    mean = by_cell.mean(axis=2)
    squares = np.where(measured[..., None], (by_cell - mean[..., None]) ** 2, 0).sum(axis=(0, 2))
    freedom = measured.sum(axis=0) * (n_batches - 1)
    error = np.sqrt(np.where(freedom > 0, squares / np.maximum(freedom, 1), np.nan) / n_batches)
    return LengthRatios(np.exp(mean), error, freedom, n_batches, len(steps["context_ids"].iloc[0]))
