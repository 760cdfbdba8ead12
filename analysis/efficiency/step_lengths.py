"""How long the step on kept positions is beside that on the whole batch: norms of masked gradients, as measured.

Norms are known of a few real batches, shares at equal learning rate of all update contexts. The two go together: where
a batch happens to keep more, the part of its masked gradient along the held-out one is longer, and so is the gradient.
With X a share at equal rate, R a ratio of norms, c the cosine of the whole gradient with the held-out one,

    d log R = -c^2 R (R X) dX,

so that the square of c is the slope of what the measured batches show, and the ratio can be read off where the share is
that of all update contexts (the regression estimator of double sampling; Cochran 1977, chapter 12).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from teachdiag.analysis.resampling.bootstrap import ratio as divided
from teachdiag.scores import Array
from teachdiag.seeds import derive_seed
from teachdiag.tables import rows_where

ALL = "all"  # the selector that keeps the whole batch


@dataclass(frozen=True)
class LengthRatios:
    """|gradient of the whole batch| / |gradient of what is kept|, selector by selector and budget by budget.

    Attributes:
        selectors: their names.
        ratio: shape (selectors, budgets), geometric mean over batches; NaN where no norm was measured.
        share: shape (selectors, budgets), mean share of the same batches at equal rate.
        slope: what log ratio falls by for each unit of ratio^2 share (share - its mean), within [0, 1].
        slope_error: its standard error.
        specific_error, shared_error: shape (budgets,), standard errors of the mean log ratio: what the selectors of a
            budget have each for itself, and together; NaN with one batch.
        freedom: shape (budgets,), degrees of freedom of both.
        n_batches: real update batches behind every mean.
        n_contexts: contexts of each of them.
    """

    selectors: tuple[str, ...]
    ratio: Array
    share: Array
    slope: float
    slope_error: float
    specific_error: Array
    shared_error: Array
    freedom: Array
    n_batches: int
    n_contexts: int

    @property
    def error(self) -> Array:
        """Relative standard error of a ratio, shape (budgets,)."""
        return np.hypot(self.specific_error, self.shared_error)

    def at(self, shares: Array, seed: int) -> Array:
        """Return the ratios at shares of all update contexts, in every draw of these and of their own error.

        Args:
            shares: at equal rate, shape (1 + draws, selectors, budgets), the estimates first.
            seed: of the error's draws.
        """
        n_draws, n_budgets = len(shares) - 1, self.ratio.shape[1]
        beyond = self.ratio**2 * self.share * (shares - self.share)
        freedom = np.maximum(self.freedom, 1)

        def stream(*of: str) -> np.random.Generator:
            return np.random.default_rng(derive_seed(seed, "bootstrap", "step lengths", *of))

        # A stream each, so that no interval depends on who else is compared.
        specific = [stream(name).standard_t(freedom, (n_draws, n_budgets)) for name in self.selectors]
        rng = stream()
        noise = self.specific_error * np.stack(specific, axis=1)
        noise += self.shared_error * rng.standard_t(freedom, (n_draws, 1, n_budgets))
        noise += self.slope_error * rng.standard_normal((n_draws, 1, 1)) * beyond[1:]
        expected = self.ratio * np.exp(-self.slope * beyond)
        return np.concatenate([expected[:1], expected[1:] * np.exp(noise)])


def length_ratios(steps: pd.DataFrame, selectors: Sequence[str], budgets: Sequence[float]) -> LengthRatios:
    """Return them from the rows of `masked_steps` of one probe.

    Two batches alone tell the scatter of no cell: it is pooled over the selectors of a budget, and the slope over all
    cells, as if these were independent. Shares of the batches are known under SGD; else the slope is 0.
    """
    by_cell = {name: _by_cell(steps, name, selectors, budgets) for name in ("gradient_norm", "first_order")}
    logs = -np.log(by_cell["gradient_norm"])  # (selectors, budgets, batches)
    shares = by_cell["first_order"] if (steps["optimizer"] == "sgd").all() else np.ones_like(logs)
    ratio, share = np.exp(logs.mean(axis=2)), shares.mean(axis=2)
    measured, n_batches = ~np.isnan(ratio), logs.shape[2]
    off = np.nan_to_num(logs - logs.mean(axis=2, keepdims=True))
    beyond = np.nan_to_num((ratio**2 * share)[..., None] * (shares - share[..., None]))
    squares = float((beyond**2).sum())
    slope = float(np.clip(-(beyond * off).sum() / squares, 0, 1)) if squares > 0 else 0.0
    off += slope * beyond
    freedom = measured.sum(axis=0) * (n_batches - 1)
    specific, shared = _spreads(off, measured)
    scatter = (off**2).sum() / max(int(freedom.sum()), 1)
    slope_error = float(np.sqrt(scatter / squares)) if squares > 0 else 0.0
    return LengthRatios(
        tuple(selectors),
        ratio,
        share,
        slope,
        slope_error,
        specific_error=np.sqrt(specific / n_batches),
        shared_error=np.sqrt(shared / n_batches),
        freedom=freedom,
        n_batches=n_batches,
        n_contexts=len(steps["context_ids"].iloc[0]),
    )


def _by_cell(steps: pd.DataFrame, column: str, selectors: Sequence[str], budgets: Sequence[float]) -> Array:
    """Return a column over that of the whole of the same batch, shape (selectors, budgets, batches)."""
    whole = rows_where(steps, selector=ALL).set_index("batch")[column]
    relative = steps.assign(relative=steps[column] / whole.reindex(steps["batch"]).to_numpy())
    wide = relative.pivot_table(index=["selector", "budget"], columns="batch", values="relative")
    cells = wide.reindex(pd.MultiIndex.from_product([selectors, budgets])).to_numpy(np.float64)
    return np.asarray(cells.reshape(len(selectors), len(budgets), -1))


def _spreads(off: Array, measured: Array) -> tuple[Array, Array]:
    """Return the variances between batches that the selectors of a budget have each for itself, and together.

    Args:
        off: deviations from each cell's mean, shape (selectors, budgets, batches), 0 where nothing was measured.
        measured: shape (selectors, budgets), which cells were.

    Returns:
        Shape (budgets,) each; NaN with one batch, or without a measured selector.
    """
    count, free = measured.sum(axis=0), off.shape[2] - 1  # (budgets,)
    together = off.sum(axis=0) / np.maximum(count, 1)[:, None]  # (budgets, batches)
    apart = np.where(measured[..., None], off - together, 0)
    total = divided((off**2).sum(axis=(0, 2)), count * free)
    specific = divided((apart**2).sum(axis=(0, 2)), np.maximum(count - 1, 0) * free)
    specific = np.fmin(specific, total)  # that of a single selector is all its own
    return specific, total - specific
