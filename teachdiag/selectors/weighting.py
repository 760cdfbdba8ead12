"""How a training run spends its loss: which positions of each rollout batch carry it, and with what weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from teachdiag.errors import SettingsError
from teachdiag.scores import Array, Mask
from teachdiag.seeds import derive_seed
from teachdiag.selectors.budget import check_rules, counts_at, known_scores, select
from teachdiag.selectors.catalogue import resolve_selector
from teachdiag.selectors.selector import Selector
from teachdiag.selectors.tokens import Tokens
from teachdiag.settings import HEADLINE_K, Normalisation, Scope, Ties
from teachdiag.signals import positions_table

FULL = "full"  # the selector that keeps everything: full OPD


class Weights(NamedTuple):
    """What each of N positions weighs in the loss.

    `weights`: shape (N,), 0 or 1 for a mask. `kept`: shape (N,), those above 0. `tied`: share of the budget's places
    that only the tie rule decided. `topped_up`: positions kept beyond the budget for the per-sequence minimum.
    """

    weights: Array
    kept: Mask
    tied: float
    topped_up: int


@dataclass(frozen=True)
class Selection:
    """Which positions of a global rollout batch carry the distillation loss.

    Attributes:
        selector: a selector's name, an entry point, `module:function` or `released:MASK`; `full` keeps every position.
        budget: share of the batch's positions that is kept: exactly ceil(budget N).
        k: support size of D, C and their kin.
        normalisation: how scores' columns are put on a common scale, over the global batch.
        scope: whether positions compete over the whole batch or within each sequence.
        minimum: positions that every sequence keeps at least, beyond the budget.
        ties: who is taken among equals.
        soft: weights in proportion to the score, with the budget's total, instead of a mask.
        warmup: steps over which the kept share falls from all to the budget.
        seed: of random scores and random ties, anew at each step.
    """

    selector: str = "learnable"
    budget: float = 0.1
    k: int = HEADLINE_K
    normalisation: Normalisation = "quantile"
    scope: Scope = "global"
    minimum: int = 0
    ties: Ties = "random"
    soft: bool = False
    warmup: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without positions.

        Raises:
            SettingsError: the selector does not exist, needs a probe's results, or a number is impossible.
        """
        if not 0 < self.budget <= 1:
            raise SettingsError(f"the budget is {self.budget}: it must be a share of positions in (0, 1]")
        if self.warmup < 0:
            raise SettingsError(f"the warm-up is {self.warmup}: it must be a number of steps, 0 for none")
        if self.selector != FULL:
            check_rules(self._resolved, self.normalisation, self.scope, self.minimum, self.ties)
            if self.soft and self._resolved.mask:
                raise SettingsError(f"{self.selector} is a mask, with no scores for soft weights: leave these out")
        unknown = sorted(set(self.columns) - {c.name for c in positions_table().columns})
        if unknown:
            raise SettingsError(
                f"selector {self.selector} reads {', '.join(unknown)}, which only a probe measures: it cannot choose "
                "positions while a student is trained"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the `positions` table that the selector reads."""
        return () if self.selector == FULL else self._resolved.columns(self.k)

    def budget_at(self, step: int) -> float:
        """Return the share of positions that is kept at a step, counted from 0: it falls linearly over the warm-up."""
        if self.selector == FULL:
            return 1.0
        share = min(step / self.warmup, 1.0) if self.warmup else 1.0
        return 1.0 + (self.budget - 1.0) * share

    def weigh(self, columns: Mapping[str, npt.NDArray[Any]], step: int = 0) -> Weights:
        """Weigh the N positions of one global batch.

        Args:
            columns: shape (N,) each, or (N, 32) for top-K lists, named as in the table `positions`: those of
                `self.columns`, and always `context_id` and `position`.
            step: optimizer step, from 0.

        Raises:
            SettingsError: a column is missing, or the scores are no scores.
            EstimationError: a column cannot be normalised, as a saturated C.
        """
        budget, n = self.budget_at(step), len(columns["context_id"])
        if budget == 1.0:
            return Weights(np.ones(n), np.ones(n, bool), 0.0, 0)
        tokens = Tokens(columns, self.k, derive_seed(self.seed, "selection", step), self.normalisation)
        if self.soft:
            weights = _in_proportion(known_scores(tokens, self._resolved), int(counts_at(budget, np.array([n]))[0]))
            return Weights(weights, weights > 0, 0.0, 0)
        chosen = select(
            tokens, self._resolved, budget, self.normalisation, self.scope, minimum=self.minimum, ties=self.ties
        )
        return Weights(chosen.kept.astype(np.float64), chosen.kept, chosen.tied, chosen.topped_up)

    @property
    def _resolved(self) -> Selector:
        return resolve_selector(self.selector)


def _in_proportion(scores: Array, total: int) -> Array:
    """Weights in proportion to scores, moved up so that none is negative, with a given sum; unknown scores weigh 0."""
    known = np.nan_to_num(scores - min(float(np.nanmin(scores)), 0.0))
    return known * (total / known.sum()) if known.sum() > 0 else np.full(len(scores), total / len(scores))
