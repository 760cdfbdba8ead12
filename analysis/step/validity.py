"""Predictive validity: how well does each signal, known before the update, predict gain on prompts not seen?

Cross-validation holds out whole prompts. Every signal enters through the same cubic splines of its rank, so that a
comparison is about the signal and not about its functional form. Normalised scores use quantiles of the whole bank at
theta0: those never see a gain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.bank.normalised import Key, Scores
from teachdiag.analysis.resampling.bootstrap import Resampling, intervals, ratio, variance
from teachdiag.analysis.step.cross_validation import Data, fit_other_folds, out_of_fold, squared_errors
from teachdiag.analysis.step.splines import rank_splines
from teachdiag.scores import Array, Codes, mid_places
from teachdiag.settings import SUPPORT_SIZES
from teachdiag.signals import BASE, VALIDITY, Signal, members_of, on_top_of_base, versus_base

_TOGETHER = 100_000_000  # values of outcomes that are fitted together


def predictor_sets(added: Sequence[Signal] = ()) -> dict[Key, tuple[Key, ...]]:
    """Return the scores in each compared set: raw KL, then each set of signals alone and on top of raw KL.

    Args:
        added: signals of installed packages, of which those with that role join.
    """
    sets = {name: members_of(name) for name in VALIDITY} | {s.name: (s,) for s in added if "validity" in s.roles}
    base: tuple[Key, ...] = ((BASE, None),)
    alone: dict[Key, tuple[Key, ...]] = {
        (name, k): tuple((signal.name, k) for signal in members)
        for k in (None, *SUPPORT_SIZES)
        for name, members in sets.items()
        if members[0].has_k == (k is not None)
    }
    on_top = {(on_top_of_base(name), k): base + keys for (name, k), keys in alone.items()}
    return {(BASE, None): base, **alone, **on_top}


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
    sets, weights = predictor_sets(bank.added), resampling.weights("validity")
    samples = cross_validated(outcomes, bank, raw, sets, folds, weights)
    estimates: list[dict[str, Any]] = []
    for outcome, drawn in zip(outcomes, samples, strict=True):
        estimates += _validity_rows(outcome, list(sets), drawn, resampling)
    return estimates + _spearman_rows(outcomes, raw, weights, resampling)


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
    used = list(dict.fromkeys(key for members in sets.values() for key in members))
    splines = rank_splines(used, lambda key: outcomes[0].of(raw[key]))
    step = max(1, _TOGETHER // len(outcomes[0].prompts))
    samples: list[dict[str, Array]] = []
    for first in range(0, len(outcomes), step):
        values = [outcome.values for outcome in outcomes[first : first + step]]
        samples += _cross_validate(Data(splines, used, values, outcomes[0].prompts, folds), sets, weights)
    return samples


def _cross_validate(data: Data, sets: Mapping[Key, Sequence[Key]], weights: Array) -> list[dict[str, Array]]:
    fits = fit_other_folds(data, sets)
    total, unexplained = squared_errors(data, fits, weights.shape[1])
    ranks = [centred_ranks(sample) for sample in data.values]
    drawn = np.empty((len(ranks), len(weights), len(sets)))
    for number, keys in enumerate(sets.values()):
        predicted = out_of_fold(data, fits, keys, number)
        for sample, y, column in zip(drawn, ranks, predicted.T, strict=True):
            sample[:, number] = rank_correlation(y, centred_ranks(column), data.prompts, weights)[:, 0]
    return [
        {"cv_r2": explained(total[:, number], unexplained[..., number], weights), "cv_rank": sample}
        for number, sample in enumerate(drawn)
    ]


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


def centred_ranks(values: Array) -> Array:
    """Return mid-ranks less their mean, shape (n,)."""
    return mid_places(values) - len(values) / 2


def rank_correlation(observed: Array, score: Array, prompts: Codes, weights: Array) -> Array:
    """Return Spearman's correlation of the outcome with a score in every draw, shape (draws, 1).

    Ranks are those of the full sample, mid-ranks for ties; a draw re-weights them.

    Args:
        observed: centred ranks, shape (n,).
        score: centred ranks, shape (n,).
        prompts: shape (n,).
        weights: shape (draws, prompts).
    """
    columns = (None, observed, observed**2, score, score**2, score * observed)
    totals = weights @ np.column_stack([np.bincount(prompts, column, weights.shape[1]) for column in columns])
    n, sum_y, squares_y, sum_x, squares_x, products = np.split(totals, len(columns), axis=1)
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
        alone, differences = (
            intervals(values, resampling.n_prompts) for values in (drawn, drawn - drawn[:, base : base + 1])
        )
        for (name, k), interval, difference in zip(sets, alone, differences, strict=True):
            rows.append(outcome.row(analysis, name, k, "1", interval, method))
            if name != BASE:
                rows.append(outcome.row(f"{analysis}_difference", versus_base(name), k, "1", difference, method))
    return rows


def _spearman_rows(
    outcomes: Sequence[Outcome], scores: Scores, weights: Array, resampling: Resampling
) -> list[dict[str, Any]]:
    observed = [centred_ranks(outcome.values) for outcome in outcomes]
    method = resampling.method("Spearman, no model")
    rows = []
    for name, k in scores:
        ranks = centred_ranks(outcomes[0].of(scores[name, k]))
        for outcome, y in zip(outcomes, observed, strict=True):
            (interval,) = intervals(rank_correlation(y, ranks, outcome.prompts, weights), resampling.n_prompts)
            rows.append(outcome.row("spearman", name, k, "1", interval, method))
    return rows
