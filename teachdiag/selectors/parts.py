"""The parts that scores are composed of: columns, their normalisation, and what combines two scores into one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teachdiag.scores import Array, mid_ranks, q3_mask
from teachdiag.scores import soft_or as either_suffices
from teachdiag.selectors.tokens import Tokens

ScoreFunction = Callable[[Tokens], npt.ArrayLike]


@dataclass(frozen=True)
class Score:
    """One piece of a score: how it is computed, which columns it reads, and how it is written down.

    Attributes:
        of: tokens -> shape (N,). It must depend on each position's own statistics and on the table as a whole, never
            on the order of rows.
        columns: what it reads; names without a support size mean that of the tokens.
        formula: the formula in words that the documentation shows.
    """

    of: ScoreFunction
    columns: tuple[str, ...]
    formula: str


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
    return Score(lambda tokens: 1 - _array(a, tokens), a.columns, f"1 - {_bracketed(a)}")


def within_q3(a: Score) -> Score:
    """Put the positions of Q3 first, then all others; by score a inside each.

    The score is mid-rank(a) / N, which is below 1, plus 1 in Q3: it orders like a, whatever the size of a.
    """

    def of(tokens: Tokens) -> Array:
        inside, _, _ = q3_mask(tokens.column("student_entropy"), tokens.column("forward_kl"))
        return mid_ranks(_array(a, tokens)) + inside

    return Score(of, ("student_entropy", "forward_kl", *a.columns), f"Q3 first, then {a.formula}")


def _array(score: Score, tokens: Tokens) -> Array:
    return np.asarray(score.of(tokens), np.float64)


def _combined(a: Score, b: Score, join: Callable[[Array, Array], Array], formula: str) -> Score:
    return Score(lambda tokens: join(_array(a, tokens), _array(b, tokens)), a.columns + b.columns, formula)


def _bracketed(score: Score) -> str:
    return f"({score.formula})" if " - " in score.formula else score.formula
