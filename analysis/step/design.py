"""What the regressions are fitted to: predictors and outcomes over the same positions, as cross-products by prompt."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Outcome
from teachdiag.analysis.bank.normalised import Parts, Scores, combined_score, parts_of
from teachdiag.analysis.resampling.bootstrap import prompt_blocks, ratio, variance
from teachdiag.errors import EstimationError
from teachdiag.scores import Array, Codes
from teachdiag.signals import SIGNALS

GAP = "learnable - incompatible"
_CONTROLS = ("student_entropy", "teacher_entropy", "position")


def _cube(x: Array) -> Array:
    return x * x * x  # ten times as fast as x**3


_POWERS: Mapping[str, Callable[[Array], Array]] = {  # of x: with x itself a cubic regression spline, knots at thirds
    "{}^2": lambda x: x**2,
    "{}^3": _cube,
    "({} - 1/3)+^3": lambda x: _cube(np.maximum(x - 1 / 3, 0)),
    "({} - 2/3)+^3": lambda x: _cube(np.maximum(x - 2 / 3, 0)),
}
_CURVES = {  # term: of which part, and how it is made
    term.format(part): (part, power)
    for part in ("disagreement", "student_entropy", "teacher_entropy")
    for term, power in _POWERS.items()
}


def _curve(part: str) -> tuple[str, ...]:
    """Return the terms of a cubic regression spline of a normalised score."""
    return part, *(term for term, (of, _) in _CURVES.items() if of == part)


_SPLINE = (*_curve("disagreement"), "entropy_x_disagreement", *_CONTROLS)
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
CONTROLLED = {  # the decomposition under every way of taking entropy into account
    "none": ("learnable", "incompatible", "position"),
    "linear": MODELS["decomposition"],
    "linear, H x D": MODELS["nested"],
    "splines": ("learnable", "incompatible", *_curve("student_entropy"), *_curve("teacher_entropy"), "position"),
}


class Sample(NamedTuple):
    """Predictors at one K and some outcomes over the same n positions.

    `predictors`: names of all q. `parts`: shape (n,) each, of what they are made of. `mean`, `spread`: shape (q + m,),
    of predictors and then outcomes, by which they are z-scored. `by_prompt`: shape (prompts, 1 + q + m, 1 + q + m),
    cross-products of [1, z-scored] of each prompt.
    """

    outcomes: Sequence[Outcome]
    k: int
    predictors: tuple[str, ...]
    parts: Parts
    mean: Array
    spread: Array
    by_prompt: Array

    def columns(self, terms: Sequence[str], outcome: int) -> list[int]:
        """Return the columns of some predictors and then of one outcome."""
        return [*(self.predictors.index(term) for term in terms), len(self.predictors) + outcome]

    def variables(self, parts: Parts, rows: slice | Codes) -> Array:
        """Return predictors made of some parts, and then the outcomes, at some positions: shape (rows, q + m)."""
        return variables(self.predictors, parts, [outcome.values[rows] for outcome in self.outcomes])

    def scaled(self, rows: Codes) -> Array:
        """Return predictors and outcomes at some positions, z-scored: shape (rows, q + m)."""
        parts = {name: values[rows] for name, values in self.parts.items()}
        return (self.variables(parts, rows) - self.mean) / self.spread


class Correlated(NamedTuple):
    """What variables need to be regressed on one another in every draw; NaN where one does not vary in a draw.

    `correlations`: shape (draws, q, q). `spread`: shape (draws, q), standard deviations.
    """

    correlations: Array
    spread: Array

    @classmethod
    def of(cls, totals: Array) -> "Correlated":
        """Take the total moments of [1, variables] in every draw, shape (draws, 1 + q, 1 + q)."""
        n, sums, squares = totals[:, :1, 0], totals[:, 0, 1:], np.diagonal(totals, axis1=1, axis2=2)[:, 1:]
        means, spread = ratio(sums, n), np.sqrt(variance(n, sums, squares))
        covariances = ratio(totals[:, 1:, 1:], n[..., None]) - means[:, :, None] * means[:, None, :]
        return cls(ratio(covariances, spread[:, :, None] * spread[:, None, :]), spread)


def make_sample(
    outcomes: Sequence[Outcome],
    scores: Scores,
    k: int,
    n_prompts: int,
    models: Mapping[str, tuple[str, ...]] = MODELS,
) -> Sample:
    """Build the sample of outcomes that are defined over the same positions.

    Args:
        outcomes: with equal `rows`.
        scores: normalised scores of the whole bank.
        k: support size.
        n_prompts: prompts of the bank.
        models: the predictors of each model that will be fitted.

    Raises:
        EstimationError: a predictor is constant, or a combination of others in its model; the message names it.
    """
    first, predictors = outcomes[0], tuple(dict.fromkeys(term for terms in models.values() for term in terms))
    parts = {name: first.of(values) for name, values in parts_of(scores, k).items()}
    width = len(predictors) + len(outcomes)
    raw, lowest, highest = np.zeros((n_prompts, 1 + width, 1 + width)), np.full(width, np.inf), np.full(width, -np.inf)
    for block in prompt_blocks(first.prompts):
        in_block = {name: values[block.rows] for name, values in parts.items()}
        columns = variables(predictors, in_block, [outcome.values[block.rows] for outcome in outcomes])
        raw[block.prompts] = block.products(with_intercept(columns))
        lowest, highest = np.minimum(lowest, columns.min(axis=0)), np.maximum(highest, columns.max(axis=0))
    for index in np.flatnonzero((lowest == highest)[: len(predictors)]):
        name = predictors[index]
        raise EstimationError(
            f"predictor {name}{'' if (name, None) in scores else f' (K={k})'} is {lowest[index]:g} at every position "
            f"that has {first.name}: capture another pair, or more and later positions"
        )
    mean, spread, total = standardised(raw.sum(axis=0))
    for terms in models.values():
        indices = [1 + predictors.index(term) for term in terms]
        _refuse_collinear(total[np.ix_(indices, indices)] / total[0, 0], terms, k)
    return Sample(outcomes, k, predictors, parts, mean, spread, rescaled(raw, mean, spread))


def variables(predictors: Sequence[str], parts: Parts, outcomes: Sequence[Array]) -> Array:
    """Return some predictors and then the outcomes: (n,) each to (n, q + m)."""
    return np.column_stack([*(predictor(name, parts) for name in predictors), *outcomes])


def predictor(name: str, parts: Parts) -> Array:
    """Return one predictor made of some parts, shape (n,)."""
    if name not in _CURVES:
        return combined_score(parts, name)
    part, power = _CURVES[name]
    return power(parts[part])


def reads(name: str) -> tuple[str, ...]:
    """Return what a predictor is made of, `position` aside."""
    return (_CURVES[name][0],) if name in _CURVES else SIGNALS[name].score.columns


def with_intercept(columns: Array) -> Array:
    """Put a column of ones before others."""
    return np.column_stack([np.ones(len(columns)), columns])


def standardised(total: Array) -> tuple[Array, Array, Array]:
    """Return means and standard deviations of m variables, and their moments as if they had been z-scored.

    Args:
        total: moments of [1, variables], shape (1 + m, 1 + m).
    """
    mean = total[0, 1:] / total[0, 0]
    spread = np.sqrt(np.diagonal(total)[1:] / total[0, 0] - mean**2)
    return mean, spread, rescaled(total, mean, spread)


def rescaled(moments: Array, mean: Array, spread: Array) -> Array:
    """Turn moments of [1, x] into those of [1, (x - mean) / spread], shape (..., 1 + m, 1 + m)."""
    change = np.diag(np.append(1.0, 1 / spread))
    change[0, 1:] = -mean / spread
    product: Array = change.T @ moments @ change
    return product


def _refuse_collinear(correlations: Array, terms: tuple[str, ...], k: int) -> None:
    for count in range(2, len(terms) + 1):
        if np.linalg.matrix_rank(correlations[:count, :count], tol=1e-10, hermitian=True) < count:
            raise EstimationError(
                f"predictor {terms[count - 1]} (K={k}) is a combination of {', '.join(terms[: count - 1])} on this "
                "bank: capture another pair, or more prompts"
            )
