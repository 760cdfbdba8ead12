"""Gain explained by teachability: standardised regressions with prompt-cluster intervals (paper section 3.3).

Every model is fitted from the moments of its variables, so a bootstrap draw is one small solve. Standardised
coefficients are re-standardised within each draw; slopes are per unit of the normalised score, in the outcome's unit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Bank
from teachdiag.analysis.resampling.bootstrap import Resampling, intervals, ratio, variance
from teachdiag.analysis.step.design import BASES, MODELS, Sample
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
    """What a sample's models are fitted to in every draw.

    `totals`: shape (1 + draws, 1 + q + m, 1 + q + m), moments of [1, scaled]. `redrawn`: how the cuts of the
    normalisation move; None where they are those of the full sample in every draw.
    """

    totals: Array
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
    totals = np.tensordot(weights, sample.by_prompt, axes=1)
    redrawn = redraw_cuts(sample, bank, weights) if redraw else None
    method = resampling.method(f"{{}}; cuts of norm {'redrawn, to first order' if redraw else 'fixed'}")
    return Draws(totals, redrawn, bank.n_prompts, method)


def fit(totals: Array, predictors: Sequence[int], outcomes: Sequence[int]) -> Fit:
    """Least squares of each of some variables on others, in every draw.

    Args:
        totals: total moments of [1, variables], shape (draws, 1 + q, 1 + q). A draw in which a variable does not vary
            gives NaN.
        predictors: their columns among the variables.
        outcomes: theirs.

    Raises:
        EstimationError: some draw's predictors are exactly collinear.
    """
    wanted = [0, *(column + 1 for column in (*predictors, *outcomes))]
    correlations, spread = _correlations(totals[:, wanted][:, :, wanted], len(predictors))
    within, with_outcomes = np.split(correlations, [len(predictors)], axis=2)
    usable = ~np.isnan(within).any(axis=(1, 2))
    standardized = np.full((len(totals), len(outcomes), len(predictors)), np.nan)
    try:
        standardized[usable] = np.linalg.solve(within[usable], with_outcomes[usable]).swapaxes(1, 2)
    except np.linalg.LinAlgError:
        raise EstimationError("the predictors are collinear in a bootstrap draw: capture more prompts") from None
    slopes = standardized * ratio(spread[:, len(predictors) :, None], spread[:, None, : len(predictors)])
    return Fit(standardized, slopes, (standardized * with_outcomes.swapaxes(1, 2)).sum(axis=2))


def fit_draws(sample: Sample, terms: Sequence[str], draws: Draws) -> Fit:
    """Fit one model to every outcome in every draw, slopes in their own units, and let it follow the redrawn cuts.

    Args:
        sample: the regressions' sample.
        terms: the model's predictors.
        draws: of the sample.
    """
    q, m = len(sample.predictors), len(sample.outcomes)
    predictors, outcomes = [sample.predictors.index(term) for term in terms], range(q, q + m)

    def in_their_units(fitted: Fit, spread: Array) -> Fit:
        return fitted._replace(slopes=fitted.slopes * spread[..., q:, None] / spread[..., None, predictors])

    plain = in_their_units(fit(draws.totals, predictors, outcomes), sample.spread)
    if draws.redrawn is None:
        return plain
    cuts = draws.redrawn
    lower, higher = (
        in_their_units(fit(cuts.moments[:, side], predictors, outcomes), cuts.spread[:, side]) for side in (0, 1)
    )
    return Fit(
        *(at + np.tensordot(cuts.moves, (up - down) / 2, 1) for at, up, down in zip(plain, higher, lower, strict=True))
    )


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


def _correlations(totals: Array, rows: int) -> tuple[Array, Array]:
    """Turn total moments into correlations of the first variables with all, and standard deviations of all.

    Args:
        totals: shape (draws, q + 1, q + 1).
        rows: how many the first are.

    Returns:
        Shapes (draws, rows, q) and (draws, q).
    """
    n, sums, squares = totals[:, :1, 0], totals[:, 0, 1:], np.diagonal(totals, axis1=1, axis2=2)[:, 1:]
    means = ratio(sums, n)
    spread = np.sqrt(variance(n, sums, squares))
    covariances = ratio(totals[:, 1 : rows + 1, 1:], n[..., None]) - means[:, :rows, None] * means[:, None, :]
    return ratio(covariances, spread[:, :rows, None] * spread[:, None, :]), spread
