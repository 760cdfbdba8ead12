"""What the regressions are fitted to: predictors and outcomes over the same positions, as cross-products by prompt."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from teachdiag.analysis.bootstrap import Array, Codes
from teachdiag.analysis.frame import Outcome
from teachdiag.analysis.scaling import Key, Scores
from teachdiag.errors import EstimationError

GAP = "learnable - incompatible"
_CONTROLS = ("student_entropy", "teacher_entropy", "position")
_CURVE = {  # with D itself a cubic regression spline of D, knots at a third and two thirds of its range
    "disagreement^2": lambda d: d**2,
    "disagreement^3": lambda d: d**3,
    "(disagreement - 1/3)+^3": lambda d: np.maximum(d - 1 / 3, 0) ** 3,
    "(disagreement - 2/3)+^3": lambda d: np.maximum(d - 2 / 3, 0) ** 3,
}
_SPLINE = ("disagreement", *_CURVE, "entropy_x_disagreement", *_CONTROLS)
MODELS = {
    "baseline": ("disagreement", "entropy_x_disagreement", *_CONTROLS),
    "plus_c": ("compatibility", "disagreement", "entropy_x_disagreement", *_CONTROLS),
    "decomposition": ("learnable", "incompatible", *_CONTROLS),
    # The decomposition drops H x D, so it does not contain the baseline; this one does, as D = D^L + D^I.
    "nested": ("learnable", "incompatible", "entropy_x_disagreement", *_CONTROLS),
    # D^L is D x C: beside C and D it is their interaction.
    "interaction": ("learnable", "compatibility", "disagreement", "entropy_x_disagreement", *_CONTROLS),
    "spline": _SPLINE,
    "spline_interaction": ("learnable", "compatibility", *_SPLINE),
}
BASES = {  # with which model each is compared; all but `decomposition` contain theirs
    **dict.fromkeys(("plus_c", "decomposition", "nested", "spline"), "baseline"),
    "interaction": "plus_c",
    "spline_interaction": "spline",
}
PREDICTORS = tuple(dict.fromkeys(term for terms in MODELS.values() for term in terms))


class Sample(NamedTuple):
    """Predictors at one K and some outcomes over the same positions.

    `scaled`: shape (n, q + m), predictors and then outcomes, z-scored, which keeps the moments well conditioned.
    `spread`: shape (q + m,), the standard deviations taken out. `by_prompt`: shape (prompts, 1 + q + m, 1 + q + m),
    cross-products of [1, scaled] of each prompt.
    """

    outcomes: Sequence[Outcome]
    k: int
    scaled: Array
    spread: Array
    by_prompt: Array

    def places(self, terms: Sequence[str], outcome: int) -> list[int]:
        """Return the columns of some predictors and then of one outcome."""
        return [*(PREDICTORS.index(term) for term in terms), len(PREDICTORS) + outcome]


def make_sample(outcomes: Sequence[Outcome], scores: Scores, k: int, n_prompts: int) -> Sample:
    """Build the sample of outcomes that are defined over the same positions.

    Args:
        outcomes: with equal `rows`.
        scores: normalised scores of the whole bank.
        k: support size.
        n_prompts: prompts of the bank.

    Raises:
        EstimationError: a predictor is constant, or a combination of others in its model; the message names it.
    """
    predictors = predictor_columns(scores, outcomes[0], k)
    columns = np.column_stack([*predictors, *(outcome.values for outcome in outcomes)])
    spread = columns.std(axis=0)
    scaled = (columns - columns.mean(axis=0)) / spread
    for terms in MODELS.values():
        _refuse_collinear(scaled[:, [PREDICTORS.index(term) for term in terms]], terms, k)
    return Sample(outcomes, k, scaled, spread, moments(scaled, outcomes[0].prompts, n_prompts))


def predictor_columns(scores: Scores, outcome: Outcome, k: int) -> list[Array]:
    """Return each predictor over the outcome's positions, in the order of `PREDICTORS`, none of them constant.

    Raises:
        EstimationError: one is; the message names it.
    """
    columns = []
    for name in PREDICTORS:
        if name in _CURVE:
            column = _CURVE[name](scores["disagreement", k][outcome.rows])
        else:
            column = scores[score_key(scores, name, k)][outcome.rows]
        if np.ptp(column) == 0:
            raise EstimationError(
                f"predictor {name}{f' (K={k})' if (name, None) not in scores else ''} is {column[0]:g} at every "
                f"position that has {outcome.name}: capture another pair, or more and later positions"
            )
        columns.append(column)
    return columns


def score_key(scores: Mapping[Key, Array], name: str, k: int) -> Key:
    """Return the key of a score, with K where it has one."""
    return (name, k) if (name, k) in scores else (name, None)


def moments(columns: Array, prompts: Codes, n_prompts: int) -> Array:
    """Return each prompt's cross-products of [1, columns]: (positions, q) to (prompts, 1 + q, 1 + q)."""
    order = np.argsort(prompts, kind="stable")
    extended = np.column_stack([np.ones(len(columns)), columns])[order]
    ends = np.searchsorted(prompts[order], np.arange(n_prompts + 1))
    products = np.zeros((n_prompts, extended.shape[1], extended.shape[1]))
    for prompt in range(n_prompts):
        own = extended[ends[prompt] : ends[prompt + 1]]
        products[prompt] = own.T @ own
    return products


def _refuse_collinear(scaled: Array, terms: tuple[str, ...], k: int) -> None:
    correlations = scaled.T @ scaled / len(scaled)
    for count in range(2, len(terms) + 1):
        if np.linalg.matrix_rank(correlations[:count, :count], tol=1e-10, hermitian=True) < count:
            raise EstimationError(
                f"predictor {terms[count - 1]} (K={k}) is a combination of {', '.join(terms[: count - 1])} on this "
                "bank: capture another pair, or more prompts"
            )
