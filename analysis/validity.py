"""Predictive validity: how well does each signal, known before the update, predict gain on prompts not seen?

Cross-validation holds out whole prompts. Every signal enters through the same cubic splines of its rank, so that a
comparison is about the signal and not about its functional form. Normalised scores use quantiles of the whole bank at
theta0: those never see a gain.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bootstrap import Array, Codes, Resampling, intervals, prompt_sums, ratio, variance
from teachdiag.analysis.frame import Bank, Outcome
from teachdiag.analysis.scaling import Key, Scores
from teachdiag.analysis.splines import Splines, rank_splines
from teachdiag.errors import EstimationError
from teachdiag.scores import mid_places
from teachdiag.seeds import derive_seed
from teachdiag.settings import SUPPORT_SIZES

BASE = "forward_kl"
_BLOCK = 16384  # rows whose design exists at the same time
_TOGETHER = 2  # outcomes that are fitted together
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


class Fits(NamedTuple):
    """Least squares on the other folds, for every fold of every assignment, set of predictors and outcome.

    `means`: shape (repeats, folds, m), mean outcome of the other folds. `coefficients`: shape (repeats, folds, q, sets,
    m), of the design's columns, for what an outcome has beyond that mean; 0 for columns outside the set.
    """

    means: Array
    coefficients: Array


def fit_other_folds(
    splines: Splines, sets: Mapping[Key, Sequence[Key]], scores: Sequence[Key], values: Array, row_folds: Codes
) -> Fits:
    """Fit every set of predictors to every outcome, each time without one fold.

    One cross-product of the design serves every set: a set's is the part that belongs to its columns. Those of the
    folds are summed anew for each that is left out, so that a fold's rows never touch its own fit, by rounding neither.

    Args:
        splines: the design.
        sets: the scores in each set of predictors.
        scores: the scores of the design, in its order.
        values: shape (n, m), several outcomes over the same rows.
        row_folds: shape (repeats, n), the fold of each row's prompt.
    """
    repeats, n_folds, q, m = len(row_folds), int(row_folds.max()) + 1, len(splines.owners), values.shape[1]
    folds = np.zeros((repeats, n_folds, q, q + m))  # cross-products of a fold's design with design and outcomes
    for rows in blocks(len(values)):
        design = splines.design(rows)
        extended = np.hstack([design, values[rows]])
        for repeat, fold in np.ndindex(repeats, n_folds):
            mine = np.flatnonzero(row_folds[repeat, rows] == fold)
            folds[repeat, fold] += design[mine].T @ extended[mine]
    others = 1.0 - np.eye(n_folds)
    training = np.einsum("fg,rgij->rfij", others, folds)
    gram, moments = training[..., :q], training[..., q:]
    means = moments[:, :, 0] / gram[:, :, 0, :1]  # the design's first column is the intercept
    centred = moments - gram[..., :1] * means[:, :, None, :]
    coefficients = np.zeros((repeats, n_folds, q, len(sets), m))
    for place, members in enumerate(sets.values()):
        columns = splines.columns([list(scores).index(key) for key in members])
        for repeat, fold in np.ndindex(repeats, n_folds):
            within = gram[repeat, fold][np.ix_(columns, columns)]
            # Saturated scores leave basis functions that hardly any row reaches: the cut leaves these at 0.
            found = np.linalg.lstsq(within, centred[repeat, fold][columns], rcond=_RANK_CUT)[0]
            coefficients[repeat, fold][columns, place] = found
    return Fits(means, coefficients)


class OutOfFold(NamedTuple):
    """What the fits predict for the rows that they have not seen, averaged over fold assignments.

    `predicted`: shape (n, sets, m), beyond the mean of the other folds. `unexplained`: shape (prompts, sets, m), sum of
    (y - prediction)^2 over each prompt. `total`: shape (prompts, m), sum of (y - that mean)^2.

    Mean and the rest are kept apart because the mean of the others falls as a fold's own mean rises: ranks of whole
    predictions would tend to run against the outcome where there is nothing to predict.
    """

    predicted: Array
    unexplained: Array
    total: Array


def out_of_fold(splines: Splines, fits: Fits, values: Array, row_folds: Codes, prompts: Codes) -> OutOfFold:
    """Predict every row by the fits that have not seen its fold.

    Args:
        splines: the design.
        fits: of `fit_other_folds`.
        values: shape (n, m), the outcomes.
        row_folds: shape (repeats, n).
        prompts: shape (n,).
    """
    repeats, n_folds, q, n_sets, m = fits.coefficients.shape
    n_prompts = int(prompts.max()) + 1
    found = OutOfFold(np.zeros((len(values), n_sets, m)), np.zeros((n_prompts, n_sets, m)), np.zeros((n_prompts, m)))
    for rows in blocks(len(values)):
        design, y = splines.design(rows), values[rows]
        unexplained, total = np.zeros((len(y), n_sets, m)), np.zeros((len(y), m))
        for repeat, fold in np.ndindex(repeats, n_folds):
            mine = np.flatnonzero(row_folds[repeat, rows] == fold)
            beyond = (design[mine] @ fits.coefficients[repeat, fold].reshape(q, -1)).reshape(-1, n_sets, m)
            centred = y[mine] - fits.means[repeat, fold]
            found.predicted[rows][mine] += beyond / repeats
            unexplained[mine] += (centred[:, None] - beyond) ** 2 / repeats
            total[mine] += centred**2 / repeats
        sums = prompt_sums(np.hstack([unexplained.reshape(len(y), -1), total]), prompts[rows], n_prompts)
        found.unexplained[:] += sums[:, :-m].reshape(found.unexplained.shape)
        found.total[:] += sums[:, -m:]
    return found


def blocks(n: int) -> list[slice]:
    """Cut n rows into blocks whose designs stay small."""
    return [slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]


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
    used = list(dict.fromkeys(key for members in sets.values() for key in members))
    splines = rank_splines({key: raw[key][rows] for key in used})
    prompts = bank.prompts[rows]
    row_folds = folds[:, prompts]
    found: list[dict[str, Array]] = []
    for first in range(0, len(outcomes), _TOGETHER):
        group = outcomes[first : first + _TOGETHER]
        values = np.column_stack([outcome.values for outcome in group])
        fits = fit_other_folds(splines, sets, used, values, row_folds)
        tested = out_of_fold(splines, fits, values, row_folds, prompts)
        found += [
            {
                "cv_r2": explained(tested.total[:, place], tested.unexplained[..., place], weights),
                "cv_rank": rank_correlation(outcome.values, tested.predicted[..., place], prompts, weights),
            }
            for place, outcome in enumerate(group)
        ]
    return found


def explained(total: Array, unexplained: Array, weights: Array) -> Array:
    """Return R2 = 1 - sum (y - prediction)^2 / sum (y - m)^2 in every draw, m the mean of the training folds.

    Args:
        total: each prompt's sum of (y - m)^2, shape (prompts,), averaged over fold assignments.
        unexplained: each prompt's sum of (y - prediction)^2, shape (prompts, sets), likewise.
        weights: shape (draws, >= prompts).

    Returns:
        Shape (draws, sets); NaN where a draw has nothing to explain.
    """
    weights = weights[:, : len(total)]
    return 1 - ratio(weights @ unexplained, (weights @ total)[:, None])


def rank_correlation(observed: Array, scores: Array, prompts: Codes, weights: Array) -> Array:
    """Return Spearman's correlation of the outcome with each score in every draw.

    Ranks are those of the full sample, mid-ranks for ties; a draw re-weights them. Shapes: observed (n,), scores
    (n, m), prompts (n,), weights (draws, prompts); the result is (draws, m).
    """
    middle = len(observed) / 2
    y, x = mid_places(observed) - middle, np.column_stack([mid_places(column) for column in scores.T]) - middle
    m = x.shape[1]
    columns = np.column_stack([np.ones(len(y)), y, y**2, x, x**2, x * y[:, None]])
    totals = weights @ prompt_sums(columns, prompts, weights.shape[1])
    n, sum_y, squares_y = totals[:, :1], totals[:, 1:2], totals[:, 2:3]
    sum_x, squares_x, products = totals[:, 3 : 3 + m], totals[:, 3 + m : 3 + 2 * m], totals[:, 3 + 2 * m :]
    covariance = ratio(products, n) - ratio(sum_x, n) * ratio(sum_y, n)
    return ratio(covariance, np.sqrt(variance(n, sum_x, squares_x) * variance(n, sum_y, squares_y)))


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
