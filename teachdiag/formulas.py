"""The parts that scores are composed of: columns, their normalisation, and what combines two scores into one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from teachdiag.artefacts import POSITIONS
from teachdiag.scores import Array, mid_ranks, q3_mask
from teachdiag.scores import soft_or as either_suffices
from teachdiag.settings import HEADLINE_K

_SUFFIX = f"_k{HEADLINE_K}"
# Statistics that are stored once for each support size.
PER_SUPPORT = frozenset(c.name.removesuffix(_SUFFIX) for c in POSITIONS.columns if c.name.endswith(_SUFFIX))


def stored_name(name: str, k: int) -> str:
    """Return the column that holds a statistic: `disagreement` is `disagreement_k16` at K = 16."""
    return f"{name}_k{k}" if name in PER_SUPPORT else name


class Statistics(Protocol):
    """Columns of N positions at one support size, as scores read them, shape (N,) each; names are without that size."""

    def column(self, name: str) -> Array:
        """Return a column as measured."""

    def normed(self, name: str) -> Array:
        """Return a column normalised over the population."""


@dataclass(frozen=True)
class Score:
    """One piece of a score: how it is computed, which columns it reads, and how it is written down.

    Attributes:
        of: tokens -> shape (N,). It must depend on each position's own statistics and on the table as a whole, never
            on the order of rows. What the functions below make reads any `Statistics`.
        columns: what it reads; names without a support size mean that of the tokens.
        formula: the formula in words that the documentation shows.
        whole_lists: whether it reads the same entries of the top-K lists at every support size.
    """

    of: Callable[[Any], npt.ArrayLike]
    columns: tuple[str, ...]
    formula: str
    whole_lists: bool = False

    @property
    def has_k(self) -> bool:
        """Whether it depends on the support size. Lists of ids alone are read for their first few."""
        listed = any(name.endswith("topk_logp") for name in self.columns)
        return (listed and not self.whole_lists) or any(name in PER_SUPPORT for name in self.columns)

    def values(self, statistics: Statistics) -> Array:
        """Return the score of every position, shape (N,), float64."""
        return np.asarray(self.of(statistics), np.float64)


def column(name: str) -> Score:
    """Score by a column as measured. NaN stays unknown."""
    return Score(lambda tokens: tokens.column(name), (name,), name)


def normed(name: str) -> Score:
    """Score by a column, normalised over all positions as the selection asks."""
    return Score(lambda tokens: tokens.normed(name), (name,), f"norm({name})")


def product(a: Score, b: Score) -> Score:
    """Score by both: a b."""
    return _combined(a, b, np.multiply, f"{_bracketed(a)} · {_bracketed(b)}")


def soft_or(a: Score, b: Score) -> Score:
    """Score by either, both within [0, 1]: a + b - a b."""
    return _combined(a, b, either_suffices, f"soft-or({a.formula}, {b.formula})")


def complement(a: Score) -> Score:
    """Score by the lack of a, which lies within [0, 1]: 1 - a."""
    return Score(lambda tokens: 1 - a.values(tokens), a.columns, f"1 - {_bracketed(a)}")


def within_q3(a: Score) -> Score:
    """Put the positions of Q3 first, then all others; by score a inside each.

    The score is mid-rank(a) / N, which is below 1, plus 1 in Q3: it orders like a, whatever the size of a.
    """

    def of(tokens: Statistics) -> Array:
        inside, _, _ = q3_mask(tokens.column("student_entropy"), tokens.column("forward_kl"))
        return mid_ranks(a.values(tokens)) + inside

    return Score(of, ("student_entropy", "forward_kl", *a.columns), f"Q3 first, then {a.formula}")


def _combined(a: Score, b: Score, join: Callable[[Array, Array], Array], formula: str) -> Score:
    return Score(lambda tokens: join(a.values(tokens), b.values(tokens)), a.columns + b.columns, formula)


def _bracketed(score: Score) -> str:
    return f"({score.formula})" if " - " in score.formula else score.formula
