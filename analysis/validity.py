"""Predictive validity: how well does each signal, known before the update, predict gain on prompts not seen?

Cross-validation holds out whole prompts. Every signal enters through the same cubic splines of its rank, so that a
comparison is about the signal and not about its functional form. Normalised scores use quantiles of the whole bank at
theta0: those never see a gain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.interpolate import BSpline
from scipy.stats import rankdata

from teachdiag.analysis.bootstrap import Array, Codes, Resampling, intervals, prompt_sums, ratio, variance
from teachdiag.analysis.frame import Bank, Mask, Outcome
from teachdiag.analysis.scaling import Key, Scores
from teachdiag.errors import EstimationError
from teachdiag.seeds import derive_seed
from teachdiag.settings import SUPPORT_SIZES

BASE = "forward_kl"
_KNOTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # training quantiles of the interior knots
_DEGREE = 3
_RANK_CUT = 1e-10  # of the largest eigenvalue of a cross-product


def predictor_sets() -> dict[Key, tuple[Key, ...]]:
    """Return the scores in each compared set: raw KL, then each signal alone and on top of raw KL."""
    signals: dict[Key, tuple[Key, ...]] = {
        ("logit_alignment", None): (("logit_alignment", None),),
        ("hidden x logit_alignment", None): (("hidden x logit_alignment", None),),
    }
    for k in SUPPORT_SIZES:
        signals["compatibility", k] = (("compatibility", k),)
        signals["decomposition", k] = (("learnable", k), ("incompatible", k))
    base = ((BASE, None),)
    on_top = {(on_top_of_base(name), k): base + scores for (name, k), scores in signals.items()}
    return {(BASE, None): base, **signals, **on_top}


def on_top_of_base(name: str) -> str:
    """Return the name of the set that adds a signal to raw KL."""
    return f"{BASE} + {name}"


def versus_base(name: str) -> str:
    """Return the term under which a set's difference from raw KL alone is reported."""
    return f"{name} vs {BASE}"


def draw_folds(n_prompts: int, folds: int, repeats: int, seed: int) -> Codes:
    """Assign each prompt to a fold, at random and as evenly as possible, anew in each repeat: (repeats, prompts).

    Raises:
        EstimationError: there are more folds than prompts.
    """
    if folds > n_prompts:
        raise EstimationError(f"--folds is {folds} and the bank has {n_prompts} prompts: ask for fewer folds")
    orders = [np.random.default_rng(derive_seed(seed, "folds", r)).permutation(n_prompts) for r in range(repeats)]
    return (np.stack(orders) % folds).astype(np.int64)


def training_ranks(values: Array, training: Mask) -> Array:
    """Return the share of training rows below each value, ties counted half: shape (n,), within [0, 1]."""
    ordered = np.sort(values[training])
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(ordered))


def spline_basis(values: Array, training: Mask, column: str) -> Array:
    """Evaluate a cubic B-spline basis on the ranks that values have among the training rows.

    Ranks make the basis the same for every monotone version of a score, and keep the few largest values, which reach
    far beyond the others, from bending the whole curve.

    Args:
        values: shape (n,).
        training: shape (n,); range and knots come from these rows.
        column: the name that an error gives.

    Returns:
        Shape (n, b). The first function is left out: with an intercept, the others span the same curves. Knots that
        coincide, as they do for saturated scores, count once.

    Raises:
        EstimationError: the training rows hold one value.
    """
    ranks = training_ranks(values, training)
    low, high = ranks[training].min(), ranks[training].max()
    if low == high:
        raise EstimationError(
            f"column {column} is {values[training][0]:.6g} at every position of some training folds, so its predictive "
            "validity cannot be measured: capture another pair, or more prompts"
        )
    inner = np.unique(np.quantile(ranks[training], _KNOTS))
    inner = inner[(inner > low) & (inner < high)]
    knots = np.concatenate([np.repeat(low, _DEGREE + 1), inner, np.repeat(high, _DEGREE + 1)])
    basis: Array = BSpline.design_matrix(np.clip(ranks, low, high), knots, _DEGREE).toarray()
    return basis[:, 1:]


def out_of_fold(
    sets: Mapping[Key, Sequence[Key]], scores: Scores, outcomes: Array, row_folds: Codes
) -> tuple[Array, dict[Key, Array]]:
    """Predict every row by least squares on the other folds.

    Args:
        sets: the scores in each set of predictors.
        scores: each of shape (n,).
        outcomes: shape (n, m), several outcomes over the same rows.
        row_folds: shape (n,), the fold of each row's prompt.

    Returns:
        The mean outcome of the other folds, shape (n, m); and for each set what it predicts beyond that mean, shape
        (n, m). They are kept apart because the mean of the others falls as a fold's own mean rises: ranks of whole
        predictions would tend to run against the outcome where there is nothing to predict.
    """
    means = np.empty_like(outcomes)
    deviations = {name: np.empty_like(outcomes) for name in sets}
    for fold in np.unique(row_folds):
        training = row_folds != fold
        means[~training] = outcomes[training].mean(axis=0)
        bases = [spline_basis(values, training, label(key)) for key, values in scores.items()]
        design = np.hstack([np.ones((len(outcomes), 1)), *bases])
        owners = np.repeat(np.arange(-1, len(bases)), [1, *(basis.shape[1] for basis in bases)])
        # One cross-product serves every set: a set's is the part that belongs to its columns.
        fitted = design[training]
        gram, moments = fitted.T @ fitted, fitted.T @ (outcomes[training] - outcomes[training].mean(axis=0))
        for name, members in sets.items():
            columns = np.isin(owners, [-1, *(list(scores).index(key) for key in members)])
            # Saturated scores leave basis functions that hardly any row reaches: the cut leaves these at 0.
            coefficients = np.linalg.lstsq(gram[np.ix_(columns, columns)], moments[columns], rcond=_RANK_CUT)[0]
            deviations[name][~training] = design[np.ix_(~training, columns)] @ coefficients
    return means, deviations


def validity(
    outcomes: Sequence[Outcome], bank: Bank, raw: Scores, folds: Codes, resampling: Resampling
) -> list[dict[str, Any]]:
    """Return the estimates of predictive validity of outcomes that are defined over the same positions.

    Args:
        outcomes: a real step's and placebos' alike, with equal `rows`.
        bank: the bank they are of.
        raw: the compared scores over the whole bank.
        folds: shape (repeats, prompts), fold assignments to average over: one alone decides small differences.
        resampling: gives the draws, shared by all outcomes and both sides of every difference.
    """
    sets = predictor_sets()
    samples = cross_validated(outcomes, bank, raw, sets, folds, resampling.weights("validity"))
    scores = {key: values[outcomes[0].rows] for key, values in raw.items()}
    estimates: list[dict[str, Any]] = []
    for outcome, drawn in zip(outcomes, samples, strict=True):
        estimates += _validity_rows(outcome, list(sets), drawn, resampling)
        estimates += _spearman_rows(outcome, scores, resampling.weights("validity"), resampling)
    return estimates


def cross_validated(
    outcomes: Sequence[Outcome],
    bank: Bank,
    raw: Scores,
    sets: Mapping[Key, Sequence[Key]],
    folds: Codes,
    weights: Array,
) -> list[dict[str, Array]]:
    """Return `cv_r2` and `cv_rank` of every set of predictors, shape (draws, sets) each, for each outcome.

    Arguments as `validity` has them; `weights` has shape (draws, prompts).
    """
    rows = outcomes[0].rows
    used = {key: raw[key][rows] for members in sets.values() for key in members}
    values = np.column_stack([outcome.values for outcome in outcomes])
    predicted = np.zeros((len(sets), *values.shape))
    unexplained, total = np.zeros_like(predicted), np.zeros_like(values)
    for assignment in folds:
        means, deviations = out_of_fold(sets, used, values, assignment[bank.prompts[rows]])
        stacked = np.stack(list(deviations.values()))
        predicted += stacked / len(folds)
        unexplained += (values - means - stacked) ** 2 / len(folds)
        total += (values - means) ** 2 / len(folds)
    return [
        {
            "cv_r2": explained(total[:, place], unexplained[:, :, place].T, outcome.prompts, weights),
            "cv_rank": rank_correlation(outcome.values, predicted[:, :, place].T, outcome.prompts, weights),
        }
        for place, outcome in enumerate(outcomes)
    ]


def explained(total: Array, unexplained: Array, prompts: Codes, weights: Array) -> Array:
    """Return R2 = 1 - sum (y - prediction)^2 / sum (y - m)^2 in every draw, m the mean of the training folds.

    Args:
        total: (y - m)^2, shape (n,), averaged over fold assignments.
        unexplained: (y - prediction)^2, shape (n, sets), likewise.
        prompts: shape (n,).
        weights: shape (draws, prompts).

    Returns:
        Shape (draws, sets); NaN where a draw has nothing to explain.
    """
    sums = weights @ prompt_sums(np.column_stack([total, unexplained]), prompts, weights.shape[1])
    return 1 - ratio(sums[:, 1:], sums[:, :1])


def rank_correlation(observed: Array, scores: Array, prompts: Codes, weights: Array) -> Array:
    """Return Spearman's correlation of the outcome with each score in every draw.

    Ranks are those of the full sample, mid-ranks for ties; a draw re-weights them. Shapes: observed (n,), scores
    (n, m), prompts (n,), weights (draws, prompts); the result is (draws, m).
    """
    middle = (len(observed) + 1) / 2
    y, x = rankdata(observed) - middle, rankdata(scores, axis=0) - middle
    m = x.shape[1]
    columns = np.column_stack([np.ones(len(y)), y, y**2, x, x**2, x * y[:, None]])
    totals = weights @ prompt_sums(columns, prompts, weights.shape[1])
    n, sum_y, squares_y = totals[:, :1], totals[:, 1:2], totals[:, 2:3]
    sum_x, squares_x, products = totals[:, 3 : 3 + m], totals[:, 3 + m : 3 + 2 * m], totals[:, 3 + 2 * m :]
    covariance = ratio(products, n) - ratio(sum_x, n) * ratio(sum_y, n)
    return ratio(covariance, np.sqrt(variance(n, sum_x, squares_x) * variance(n, sum_y, squares_y)))


def label(key: Key) -> str:
    """Name a score, with its K where it has one."""
    name, k = key
    return name if k is None else f"{name} (K={k})"


def _validity_rows(
    outcome: Outcome, sets: list[Key], samples: Mapping[str, Array], resampling: Resampling
) -> list[dict[str, Any]]:
    base = sets.index((BASE, None))
    method = resampling.method(
        "prompt-grouped CV of cubic rank splines, averaged over fold assignments, predictions fixed"
    )
    rows = []
    for analysis, drawn in samples.items():
        alone, differences = intervals(drawn), intervals(drawn - drawn[:, base : base + 1])
        for (name, k), interval, difference in zip(sets, alone, differences, strict=True):
            rows.append(outcome.row(analysis, name, k, "1", interval, method))
            if name != BASE:
                rows.append(outcome.row(f"{analysis}_difference", versus_base(name), k, "1", difference, method))
    return rows


def _spearman_rows(outcome: Outcome, scores: Scores, weights: Array, resampling: Resampling) -> list[dict[str, Any]]:
    samples = rank_correlation(outcome.values, np.column_stack(list(scores.values())), outcome.prompts, weights)
    method = resampling.method("Spearman, no model")
    return [
        outcome.row("spearman", name, k, "1", interval, method)
        for (name, k), interval in zip(scores, intervals(samples), strict=True)
    ]
