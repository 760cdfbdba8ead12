"""A selector, and what it keeps."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from teachdiag.errors import SettingsError
from teachdiag.formulas import Score, stored_name
from teachdiag.scores import Array, Mask
from teachdiag.selectors.tokens import KEYS, Tokens


@dataclass(frozen=True)
class Kept:
    """Which positions carry the loss.

    Attributes:
        kept: shape (N,), in the order of the tokens.
        topped_up: positions kept beyond the budget for the sake of a per-sequence minimum; they are in `kept`.
        tied: share of the budget's places, in [0, 1], that only the tie rule decided.
    """

    kept: Mask
    topped_up: int
    tied: float


@dataclass(frozen=True)
class Selector:
    """A score with a name and the source it comes from.

    Attributes:
        name: what it is asked for by.
        score: how positions are scored.
        source: where it is from.
        mask: what it keeps of N tokens at a budget, where that follows rules of its own instead of the order of scores.
    """

    name: str
    score: Score
    source: str
    mask: Callable[[Tokens, float], Kept] | None = None

    def columns(self, k: int) -> tuple[str, ...]:
        """Return the stored columns that a table must have for this selector at support size K, keys included."""
        return tuple(dict.fromkeys((*KEYS, *(stored_name(name, k) for name in self.score.columns))))

    def scores(self, tokens: Tokens) -> Array:
        """Return one score a position, shape (N,), float64; NaN means unknown and ranks last.

        Raises:
            SettingsError: a column is missing, or the scores are not one finite (or unknown) number a position.
            EstimationError: a column cannot be normalised.
        """
        values = np.asarray(self.score.of(tokens))
        if values.shape != (len(tokens),) or values.dtype.kind not in "biuf":
            raise SettingsError(
                f"selector {self.name} returned {values.dtype} of shape {values.shape}, where one number for each of "
                f"{len(tokens)} positions is due"
            )
        scores = values.astype(np.float64)
        if np.isinf(scores).any():
            first = int(np.flatnonzero(np.isinf(scores))[0])
            raise SettingsError(
                f"selector {self.name} scored row {first} as {scores[first]}: scores are finite, or NaN"
            )
        return scores
