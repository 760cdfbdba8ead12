"""Gain explained by teachability: standardised regressions with prompt-cluster intervals (paper section 3.3).

Every model is fitted from the moments of its variables, so a bootstrap draw is one small solve. Standardised
coefficients are re-standardised within each draw; slopes are per unit of the normalised score, in the outcome's unit.
"""

from typing import Any, NamedTuple

import numpy as np
from statsmodels.regression.linear_model import OLS

from teachdiag.analysis.bootstrap import Array, Codes, Resampling, intervals, prompt_sums, ratio, variance
from teachdiag.analysis.frame import Bank, Outcome
from teachdiag.analysis.scaling import Key, Scores
from teachdiag.errors import EstimationError
from teachdiag.settings import SUPPORT_SIZES

GAP = "learnable - incompatible"
_CONTROLS = ("student_entropy", "teacher_entropy", "position")
MODELS = {
    "baseline": ("disagreement", "entropy_x_disagreement", *_CONTROLS),
    "plus_c": ("compatibility", "disagreement", "entropy_x_disagreement", *_CONTROLS),
    "decomposition": ("learnable", "incompatible", *_CONTROLS),
    # The decomposition drops H x D, so it does not contain the baseline; this one does, as D = D^L + D^I.
    "nested": ("learnable", "incompatible", "entropy_x_disagreement", *_CONTROLS),
}
PREDICTORS = tuple(dict.fromkeys(term for terms in MODELS.values() for term in terms))


class Sample(NamedTuple):
    """What the models of one outcome and K are fitted to.

    `scaled`: shape (n, q), predictors and then the outcome, z-scored over the sample, which keeps the moments well
    conditioned. `spread`: shape (q,), the standard deviations taken out. `totals`: shape (1 + draws, q + 1, q + 1),
    moments of [1, scaled] in every draw.
    """

    outcome: Outcome
    k: int
    scaled: Array
    spread: Array
    totals: Array


class Fit(NamedTuple):
    """One model in every draw. `standardized` and `slopes`: shape (draws, terms). `r2`: shape (draws,)."""

    standardized: Array
    slopes: Array
    r2: Array


def regressions(outcome: Outcome, bank: Bank, normalised: Scores, resampling: Resampling) -> list[dict[str, Any]]:
    """Fit the four models at each K and return their estimates.

    Raises:
        EstimationError: a predictor is constant, or a combination of others; the message names it.
    """
    weights = resampling.weights("regression")
    samples = [_sample(outcome, bank, normalised, k, weights) for k in SUPPORT_SIZES]
    return [row for sample in samples for row in _rows(sample, resampling)]


def point_estimates(outcome: Outcome, bank: Bank, normalised: Scores, k: int) -> dict[tuple[str, str], float]:
    """Return the coefficients of every model at one K without uncertainty, by (analysis, term) of the estimates table.

    Raises:
        EstimationError: a predictor is constant, or a combination of others; the message names it.
    """
    sample = _sample(outcome, bank, normalised, k, np.ones((1, bank.n_prompts)))
    found: dict[tuple[str, str], float] = {}
    for model, terms in MODELS.items():
        places = [PREDICTORS.index(term) for term in terms]
        _refuse_collinear(sample.scaled[:, places], terms, k)
        estimate, (contrasts, names) = fit(sample.totals, places), _contrasts(terms)
        slopes = estimate.slopes * sample.spread[-1] / sample.spread[places]
        for scale, coefficients in (("standardized", estimate.standardized), ("slope", slopes)):
            values = (coefficients @ contrasts.T)[0]
            found |= {(f"{scale}_{model}", name): float(value) for name, value in zip(names, values, strict=True)}
    return found


def moments(columns: Array, prompts: Codes, n_prompts: int) -> Array:
    """Return each prompt's cross-products of [1, columns]: (positions, q) to (prompts, q + 1, q + 1)."""
    extended = np.column_stack([np.ones(len(columns)), columns])
    products = extended[:, :, None] * extended[:, None, :]
    sums = prompt_sums(products.reshape(len(columns), -1), prompts, n_prompts)
    return sums.reshape(n_prompts, *products.shape[1:])


def fit(totals: Array, terms: list[int]) -> Fit:
    """Least squares of the last variable on those at `terms`, from total moments of shape (draws, q + 1, q + 1).

    A draw in which a variable does not vary gives NaN.

    Raises:
        EstimationError: some draw's predictors are exactly collinear.
    """
    correlations, spread = _correlations(totals)
    usable = ~np.isnan(correlations).any(axis=(1, 2))
    within, with_outcome = correlations[usable][:, terms][:, :, terms], correlations[usable][:, terms, -1]
    standardized, r2 = np.full((len(totals), len(terms)), np.nan), np.full(len(totals), np.nan)
    try:
        standardized[usable] = np.linalg.solve(within, with_outcome[..., None])[..., 0]
    except np.linalg.LinAlgError:
        raise EstimationError("the predictors are collinear in a bootstrap draw: capture more prompts") from None
    r2[usable] = (standardized[usable] * with_outcome).sum(axis=1)
    return Fit(standardized, standardized * ratio(spread[:, -1:], spread[:, terms]), r2)


def cluster_robust_errors(predictors: Array, outcome: Array, prompts: Codes, contrasts: Array) -> Array:
    """Return statsmodels' CRV1 standard error of each contrast of the coefficients, shape (contrasts,)."""
    design = np.column_stack([np.ones(len(outcome)), predictors])
    result = OLS(outcome, design).fit(cov_type="cluster", cov_kwds={"groups": prompts})
    with_intercept = np.column_stack([np.zeros(len(contrasts)), contrasts])
    errors: Array = np.asarray(result.t_test(with_intercept).sd, dtype=np.float64).ravel()
    return errors


def _sample(outcome: Outcome, bank: Bank, normalised: Scores, k: int, weights: Array) -> Sample:
    columns = np.column_stack([*_predictors(outcome, normalised, k), outcome.values])
    spread = columns.std(axis=0)
    scaled = (columns - columns.mean(axis=0)) / spread
    totals = np.tensordot(weights, moments(scaled, outcome.prompts, bank.n_prompts), axes=1)
    return Sample(outcome, k, scaled, spread, totals)


def _predictors(outcome: Outcome, normalised: Scores, k: int) -> list[Array]:
    """Return each predictor over the outcome's positions, none of them constant."""
    columns = []
    for name in PREDICTORS:
        key: Key = (name, k) if (name, k) in normalised else (name, None)
        column = normalised[key][outcome.rows]
        if np.ptp(column) == 0:
            raise EstimationError(
                f"predictor {name}{f' (K={k})' if key[1] else ''} is {column[0]:g} at every position that has "
                f"{outcome.name}: capture another pair, or more and later positions"
            )
        columns.append(column)
    return columns


def _rows(sample: Sample, resampling: Resampling) -> list[dict[str, Any]]:
    fits = {}
    for model, terms in MODELS.items():
        places = [PREDICTORS.index(term) for term in terms]
        _refuse_collinear(sample.scaled[:, places], terms, sample.k)
        fits[model] = fit(sample.totals, places)
    rows = [row for model in MODELS for row in _coefficient_rows(sample, model, fits[model], resampling)]
    return rows + [
        sample.outcome.row(f"fit_{model}", term, sample.k, "1", interval, resampling.method("OLS, in sample"))
        for term, base in (("r2", None), ("delta_r2", "baseline"))
        for model in MODELS
        if model != base
        for interval in intervals((fits[model].r2 - (fits[base].r2 if base else 0.0))[:, None])
    ]


def _coefficient_rows(sample: Sample, model: str, estimate: Fit, resampling: Resampling) -> list[dict[str, Any]]:
    """Return each coefficient and the gap, standardised and per unit, with both kinds of uncertainty."""
    terms = MODELS[model]
    places = [PREDICTORS.index(term) for term in terms]
    per_unit = sample.spread[-1] / sample.spread[places]  # turns z-scored coefficients of the full sample into slopes
    contrasts, names = _contrasts(terms)
    rows = []
    for scale, unit, text, coefficients, factors in (
        ("standardized", "1", "OLS, z-scored", estimate.standardized, np.ones(len(terms))),
        ("slope", sample.outcome.unit, "OLS, per unit of norm", estimate.slopes * per_unit, per_unit),
    ):
        errors = cluster_robust_errors(
            sample.scaled[:, places], sample.scaled[:, -1], sample.outcome.prompts, contrasts * factors
        )
        rows += [
            sample.outcome.row(
                f"{scale}_{model}", name, sample.k, unit, interval, resampling.method(text), std_error=float(error)
            )
            for name, interval, error in zip(names, intervals(coefficients @ contrasts.T), errors, strict=True)
        ]
    return rows


def _contrasts(terms: tuple[str, ...]) -> tuple[Array, list[str]]:
    """Return the matrix that turns coefficients into reported numbers: each of them, and beta_L - beta_I."""
    each = np.eye(len(terms))
    if "learnable" not in terms:
        return each, list(terms)
    gap = each[terms.index("learnable")] - each[terms.index("incompatible")]
    return np.vstack([each, gap]), [*terms, GAP]


def _correlations(totals: Array) -> tuple[Array, Array]:
    """Turn total moments (draws, q + 1, q + 1) into correlations (draws, q, q) and standard deviations (draws, q)."""
    n, sums, products = totals[:, :1, 0], totals[:, 0, 1:], totals[:, 1:, 1:]
    means = ratio(sums, n)
    spread = np.sqrt(variance(n, sums, np.diagonal(products, axis1=1, axis2=2)))
    covariances = ratio(products, n[..., None]) - means[:, :, None] * means[:, None, :]
    return ratio(covariances, spread[:, :, None] * spread[:, None, :]), spread


def _refuse_collinear(scaled: Array, terms: tuple[str, ...], k: int) -> None:
    correlations = scaled.T @ scaled / len(scaled)
    for count in range(2, len(terms) + 1):
        if np.linalg.matrix_rank(correlations[:count, :count], tol=1e-10, hermitian=True) < count:
            raise EstimationError(
                f"predictor {terms[count - 1]} (K={k}) is a combination of {', '.join(terms[: count - 1])} on this "
                "bank: capture another pair, or more prompts"
            )
