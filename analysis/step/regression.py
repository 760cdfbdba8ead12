"""Gain explained by teachability: standardised regressions with prompt-cluster intervals (paper section 3.3).

Every model is fitted from the moments of its variables, so a bootstrap draw is one small solve. Standardised
coefficients are re-standardised within each draw; slopes are per unit of the normalised score, in the outcome's unit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.bank.normalised import Scores
from teachdiag.analysis.resampling.bootstrap import Resampling, intervals, ratio, variance
from teachdiag.analysis.step.design import BASES, MODELS, Sample, make_sample
from teachdiag.analysis.step.inference import contrasts_of, crv1, model_of
from teachdiag.analysis.step.redrawn_cuts import Redrawn, redraw_cuts
from teachdiag.errors import EstimationError
from teachdiag.scores import Array


class Fit(NamedTuple):
    """One model in every draw. `standardized` and `slopes`: shape (draws, terms). `r2`: shape (draws,)."""

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
    method: str


def regressions(sample: Sample, bank: Bank, resampling: Resampling, *, redraw: bool = True) -> list[dict[str, Any]]:
    """Fit every model to every outcome of a sample and return the estimates.

    Args:
        sample: predictors and outcomes.
        bank: the bank they are of.
        resampling: gives the draws.
        redraw: whether the cuts of the normalised scores are estimated anew in every draw.
    """
    weights = resampling.weights("regression")
    totals = np.tensordot(weights, sample.by_prompt, axes=1)
    redrawn = redraw_cuts(sample, bank, weights) if redraw else None
    method = resampling.method(f"{{}}; cuts of norm {'redrawn, to first order' if redraw else 'fixed'}")
    draws = Draws(totals, redrawn, method)
    return [row for index in range(len(sample.outcomes)) for row in _rows(sample, index, draws)]


def point_estimates(outcome: Outcome, bank: Bank, normalised: Scores, k: int) -> dict[tuple[str, str], float]:
    """Return the coefficients of every model at one K without uncertainty, by (analysis, term) of the estimates table.

    Raises:
        EstimationError: a predictor is constant, or a combination of others; the message names it.
    """
    sample = make_sample([outcome], normalised, k, bank.n_prompts)
    totals = sample.by_prompt.sum(axis=0)[None]
    estimates: dict[tuple[str, str], float] = {}
    for model, terms in MODELS.items():
        columns = sample.columns(terms, 0)
        estimate, (contrasts, names) = fit(totals, columns), contrasts_of(terms)
        slopes = estimate.slopes * sample.spread[columns[-1]] / sample.spread[columns[:-1]]
        for scale, coefficients in (("standardized", estimate.standardized), ("slope", slopes)):
            values = (coefficients @ contrasts.T)[0]
            estimates |= {(f"{scale}_{model}", name): float(value) for name, value in zip(names, values, strict=True)}
    return estimates


def fit(totals: Array, columns: Sequence[int]) -> Fit:
    """Least squares of the variable at the last place on those before it, in every draw.

    Args:
        totals: total moments of [1, variables], shape (draws, 1 + q, 1 + q). A draw in which a variable does not vary
            gives NaN.
        columns: of the predictors and then the outcome, among the variables.

    Raises:
        EstimationError: some draw's predictors are exactly collinear.
    """
    wanted = [0, *(column + 1 for column in columns)]
    correlations, spread = _correlations(totals[:, wanted][:, :, wanted])
    usable = ~np.isnan(correlations).any(axis=(1, 2))
    within, with_outcome = correlations[usable][:, :-1, :-1], correlations[usable][:, :-1, -1]
    standardized, r2 = np.full((len(totals), len(columns) - 1), np.nan), np.full(len(totals), np.nan)
    try:
        standardized[usable] = np.linalg.solve(within, with_outcome[..., None])[..., 0]
    except np.linalg.LinAlgError:
        raise EstimationError("the predictors are collinear in a bootstrap draw: capture more prompts") from None
    r2[usable] = (standardized[usable] * with_outcome).sum(axis=1)
    return Fit(standardized, standardized * ratio(spread[:, -1:], spread[:, :-1]), r2)


def _rows(sample: Sample, index: int, draws: Draws) -> list[dict[str, Any]]:
    outcome = sample.outcomes[index]
    fits = {model: _fit_draws(sample, sample.columns(terms, index), draws) for model, terms in MODELS.items()}
    rows = [row for model in MODELS for row in _coefficient_rows(sample, index, model, fits[model], draws)]
    shares = [("r2", model, fits[model].r2) for model in MODELS]
    shares += [("delta_r2", model, fits[model].r2 - fits[base].r2) for model, base in BASES.items()]
    return rows + [
        outcome.row(f"fit_{model}", term, sample.k, "1", interval, draws.method.format("OLS, in sample"))
        for term, model, values in shares
        for interval in intervals(values[:, None])
    ]


def _fit_draws(sample: Sample, columns: list[int], draws: Draws) -> Fit:
    """Fit one model in every draw, slopes in the variables' own units, and let it follow the redrawn cuts."""
    plain = fit(draws.totals, columns)
    unscaled = plain._replace(slopes=plain.slopes * sample.spread[columns[-1]] / sample.spread[columns[:-1]])
    if draws.redrawn is None:
        return unscaled
    cuts = draws.redrawn
    sides = [fit(cuts.moments[:, side], columns) for side in (0, 1)]
    slopes = [
        moved.slopes * cuts.spread[:, side, columns[-1:]] / cuts.spread[:, side][:, columns[:-1]]
        for side, moved in enumerate(sides)
    ]
    return Fit(
        unscaled.standardized + cuts.moves @ (sides[1].standardized - sides[0].standardized) / 2,
        unscaled.slopes + cuts.moves @ (slopes[1] - slopes[0]) / 2,
        unscaled.r2 + cuts.moves @ (sides[1].r2 - sides[0].r2) / 2,
    )


def _coefficient_rows(sample: Sample, index: int, model: str, estimate: Fit, draws: Draws) -> list[dict[str, Any]]:
    """Return each coefficient and the gap, standardised and per unit, with both kinds of uncertainty."""
    outcome, columns = sample.outcomes[index], sample.columns(MODELS[model], index)
    per_unit = sample.spread[columns[-1]] / sample.spread[columns[:-1]]  # of z-scored coefficients of the full sample
    contrasts, names = contrasts_of(MODELS[model])
    covariance = crv1(model_of(sample.by_prompt, columns))[1:, 1:]
    rows = []
    for scale, unit, text, coefficients, factors in (
        ("standardized", "1", "OLS, z-scored", estimate.standardized, np.ones(len(per_unit))),
        ("slope", outcome.unit, "OLS, per unit of norm", estimate.slopes, per_unit),
    ):
        scaled = contrasts * factors
        errors = np.sqrt(np.einsum("ci,ij,cj->c", scaled, covariance, scaled))
        rows += [
            outcome.row(
                f"{scale}_{model}", name, sample.k, unit, interval, draws.method.format(text), std_error=float(error)
            )
            for name, interval, error in zip(names, intervals(coefficients @ contrasts.T), errors, strict=True)
        ]
    return rows


def _correlations(totals: Array) -> tuple[Array, Array]:
    """Turn total moments (draws, q + 1, q + 1) into correlations (draws, q, q) and standard deviations (draws, q)."""
    n, sums, products = totals[:, :1, 0], totals[:, 0, 1:], totals[:, 1:, 1:]
    means = ratio(sums, n)
    spread = np.sqrt(variance(n, sums, np.diagonal(products, axis1=1, axis2=2)))
    covariances = ratio(products, n[..., None]) - means[:, :, None] * means[:, None, :]
    return ratio(covariances, spread[:, :, None] * spread[:, None, :]), spread
