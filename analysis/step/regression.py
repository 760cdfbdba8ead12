"""Gain explained by teachability: standardised regressions with prompt-cluster intervals (paper section 3.3).

Every model is fitted from the moments of its variables, so a bootstrap draw is one small solve. Standardised
coefficients are re-standardised within each draw; slopes are per unit of the normalised score, in the outcome's unit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Bank
from teachdiag.analysis.resampling.bootstrap import Resampling, intervals, ratio
from teachdiag.analysis.step.design import BASES, MODELS, Correlated, Sample
from teachdiag.analysis.step.inference import contrasts_of, crv1, model_of
from teachdiag.analysis.step.redrawn_cuts import Redrawn, redraw_cuts
from teachdiag.errors import EstimationError
from teachdiag.scores import Array


class Fit(NamedTuple):
    """One model of m outcomes in every draw. `standardized`, `slopes`: shape (draws, m, terms). `r2`: (draws, m)."""

    standardized: Array
    slopes: Array
    r2: Array


class Draws(NamedTuple):
    """What a sample's models are fitted to in every draw: its variables, z-scored.

    `variables`: in each of 1 + draws. `redrawn`: how the cuts of the normalisation move; None where they are those of
    the full sample in every draw.
    """

    variables: Correlated
    redrawn: Redrawn | None
    n_prompts: int
    method: str


def regressions(sample: Sample, bank: Bank, resampling: Resampling, *, redraw: bool = True) -> list[dict[str, Any]]:
    """Fit every model to every outcome of a sample and return the estimates.

    Args:
        sample: predictors and outcomes.
        bank: the bank they are of.
        resampling: gives the draws.
        redraw: whether the cuts of the normalised scores are estimated anew in every draw.
    """
    draws = draw(sample, bank, resampling, redraw=redraw)
    fits = {model: fit_draws(sample, terms, draws) for model, terms in MODELS.items()}
    return [row for index in range(len(sample.outcomes)) for row in _rows(sample, index, fits, draws)]


def draw(sample: Sample, bank: Bank, resampling: Resampling, *, redraw: bool) -> Draws:
    """Make the draws of a sample; arguments as `regressions` has them."""
    weights = resampling.weights("regression")
    variables = Correlated.of(np.tensordot(weights, sample.by_prompt, axes=1))
    redrawn = redraw_cuts(sample, bank, resampling) if redraw else None
    method = resampling.method(f"{{}}; cuts of norm {'redrawn, to first order' if redraw else 'fixed'}")
    return Draws(variables, redrawn, bank.n_prompts, method)


def fit(variables: Correlated, predictors: Sequence[int], outcomes: Sequence[int]) -> Fit:
    """Least squares of each of some variables on others, in every draw.

    Args:
        variables: of all draws. A draw in which one does not vary gives NaN.
        predictors: which of the variables.
        outcomes: which of the variables.

    Raises:
        EstimationError: some draw's predictors are exactly collinear.
    """
    within = variables.correlations[:, np.array(predictors)[:, None], predictors]
    with_outcomes = variables.correlations[:, np.array(predictors)[:, None], outcomes]
    usable = ~np.isnan(within).any(axis=(1, 2))
    standardized = np.full((len(within), len(outcomes), len(predictors)), np.nan)
    try:
        standardized[usable] = np.linalg.solve(within[usable], with_outcomes[usable]).swapaxes(1, 2)
    except np.linalg.LinAlgError:
        raise EstimationError("the predictors are collinear in a bootstrap draw: capture more prompts") from None
    slopes = standardized * ratio(variables.spread[:, outcomes, None], variables.spread[:, None, predictors])
    return Fit(standardized, slopes, (standardized * with_outcomes.swapaxes(1, 2)).sum(axis=2))


def fit_draws(sample: Sample, terms: Sequence[str], draws: Draws) -> Fit:
    """Fit one model to every outcome in every draw, slopes in their own units, and let it follow the redrawn cuts.

    Args:
        sample: the regressions' sample.
        terms: the model's predictors.
        draws: of the sample.
    """
    return follow_cuts(fit_fixed(sample, terms, draws), sample, terms, draws)


def fit_fixed(sample: Sample, terms: Sequence[str], draws: Draws) -> Fit:
    """Fit one model to every outcome in every draw, with the cuts of the full sample in all of them."""
    return _fitted(sample, terms, draws.variables, sample.spread)


def follow_cuts(fixed: Fit, sample: Sample, terms: Sequence[str], draws: Draws) -> Fit:
    """Let what `fit_fixed` gave follow the cuts, if these are redrawn."""
    cuts = draws.redrawn
    if cuts is None:
        return fixed
    lower, higher = (
        _fitted(sample, terms, variables, cuts.spread[:, side]) for side, variables in enumerate(cuts.variables)
    )
    return Fit(
        *(at + np.tensordot(cuts.moves, (up - down) / 2, 1) for at, up, down in zip(fixed, higher, lower, strict=True))
    )


def _fitted(sample: Sample, terms: Sequence[str], variables: Correlated, spread: Array) -> Fit:
    """Fit one model to every outcome; `spread`, shape (..., q + m): of what was z-scored, in its own units."""
    q, m = len(sample.predictors), len(sample.outcomes)
    predictors = [sample.predictors.index(term) for term in terms]
    fitted = fit(variables, predictors, range(q, q + m))
    return fitted._replace(slopes=fitted.slopes * spread[..., q:, None] / spread[..., None, predictors])


def _rows(sample: Sample, index: int, fits: Mapping[str, Fit], draws: Draws) -> list[dict[str, Any]]:
    outcome = sample.outcomes[index]
    rows = [row for model in MODELS for row in _coefficient_rows(sample, index, model, fits[model], draws)]
    shares = [("r2", model, fits[model].r2) for model in MODELS]
    shares += [("delta_r2", model, fits[model].r2 - fits[base].r2) for model, base in BASES.items()]
    return rows + [
        outcome.row(f"fit_{model}", term, sample.k, "1", interval, draws.method.format("OLS, in sample"))
        for term, model, values in shares
        for interval in intervals(values[:, index : index + 1], draws.n_prompts)
    ]


def _coefficient_rows(sample: Sample, index: int, model: str, estimate: Fit, draws: Draws) -> list[dict[str, Any]]:
    """Return each coefficient and the gap, standardised and per unit, with both kinds of uncertainty."""
    outcome, columns = sample.outcomes[index], sample.columns(MODELS[model], index)
    per_unit = sample.spread[columns[-1]] / sample.spread[columns[:-1]]  # of z-scored coefficients of the full sample
    contrasts, names = contrasts_of(MODELS[model])
    covariance = crv1(model_of(sample.by_prompt, columns))[1:, 1:]
    rows = []
    for scale, unit, text, coefficients, factors in (
        ("standardized", "1", "OLS, z-scored", estimate.standardized[:, index], np.ones(len(per_unit))),
        ("slope", outcome.unit, "OLS, per unit of norm", estimate.slopes[:, index], per_unit),
    ):
        scaled = contrasts * factors
        errors = np.sqrt(np.einsum("ci,ij,cj->c", scaled, covariance, scaled))
        rows += [
            outcome.row(
                f"{scale}_{model}", name, sample.k, unit, interval, draws.method.format(text), std_error=float(error)
            )
            for name, interval, error in zip(
                names, intervals(coefficients @ contrasts.T, draws.n_prompts), errors, strict=True
            )
        ]
    return rows
