"""Predictive validity: how well does each signal, known before the update, predict gain on prompts not seen?

Cross-validation holds out whole prompts. Every signal enters through the same cubic splines of its rank, so that a
comparison is about the signal and not about its functional form. Normalised scores use quantiles of the whole bank at
theta0: those never see a gain.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.bank.normalised import Key, Scores
from teachdiag.analysis.resampling.bootstrap import (
    Resampling,
    evenly_spaced,
    intervals,
    ratio,
    variance,
)
from teachdiag.analysis.step.cross_validation import Data, Fits, Products, fit_other_folds, out_of_fold, squared_errors
from teachdiag.analysis.step.splines import rank_splines
from teachdiag.scores import Array, Codes, in_order, mid_places, near_places
from teachdiag.settings import SUPPORT_SIZES
from teachdiag.signals import BASE, VALIDITY, Signal, members_of, on_top_of_base, versus_base

REFIT_EVERY = 10  # one draw in so many is fitted anew
CrossProducts = Callable[[], Iterable[Products]]
Samples = dict[str, Array]  # by analysis, shape (draws, sets)
_TOGETHER = 100_000_000  # values of outcomes that are fitted together
_KEPT = 1 << 25  # numbers among the cross-products of all prompts that are held: 256 MB
_FITTED_AT_ONCE = 10  # of the draws that are fitted anew
_AT_ONCE = 1 << 22  # predictions of draws fitted anew that are ranked together
_REFITTED = 128, 1 << 13  # the most prompts and positions that draws are fitted anew to


def difference(analysis: str) -> str:
    """Return the name of the analysis that holds a set's number less raw KL's."""
    return f"{analysis}_difference"


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
    outcomes: Sequence[Outcome],
    bank: Bank,
    raw: Scores,
    folds: Codes,
    resampling: Resampling,
    sets: Mapping[Key, Sequence[Key]] | None = None,
    refits: int | None = None,
) -> list[dict[str, Any]]:
    """Return the estimates of predictive validity of outcomes that are defined over the same positions.

    Args:
        outcomes: a real step's and placebos' alike, with equal `rows`.
        bank: the bank they are of.
        raw: the compared scores over the whole bank.
        folds: shape (repeats, prompts), fold assignments to average over: one alone decides small differences.
        resampling: gives the draws, shared by all outcomes and both sides of every difference.
        sets: what is compared, raw KL among it; by default every set of `predictor_sets`.
        refits: draws that are fitted anew; by default one in `REFIT_EVERY`.
    """
    sets, weights = sets or predictor_sets(bank.added), resampling.weights("validity")
    data = _data(outcomes, raw, sets, folds)
    observed = _observed(data, weights)
    samples = _cross_validated(data, observed, sets, weights, refits)
    estimates: list[dict[str, Any]] = []
    for outcome, drawn in zip(outcomes, samples, strict=True):
        estimates += _validity_rows(outcome, list(sets), drawn, resampling)
    return estimates + _spearman_rows(outcomes, data, observed, raw, weights, resampling)


def cross_validated(
    outcomes: Sequence[Outcome],
    raw: Scores,
    sets: Mapping[Key, Sequence[Key]],
    folds: Codes,
    weights: Array,
    refits: int | None = None,
) -> list[Samples]:
    """Return `cv_r2` and `cv_rank` of every set of predictors for each outcome, and what they are less raw KL's.

    Draws hold predictions fixed, and are stretched about the estimate until they spread as much as some of them do
    that are fitted anew: other prompts would give other predictions too, and where there is nothing to predict that is
    most of the spread. Arguments as `validity` has them; `weights` has shape (draws, prompts), the estimate's first;
    so many draws are fitted anew, in a large bank to part of it (`_refitted_part`).
    """
    data = _data(outcomes, raw, sets, folds)
    observed = _observed(data, weights)
    return _cross_validated(data, observed, sets, weights, refits)


def _data(outcomes: Sequence[Outcome], raw: Scores, sets: Mapping[Key, Sequence[Key]], folds: Codes) -> Data:
    used = list(dict.fromkeys(key for members in sets.values() for key in members))
    splines = rank_splines(used, lambda key: outcomes[0].of(raw[key]))
    return Data(splines, used, [outcome.values for outcome in outcomes], outcomes[0].prompts, folds)


def _cross_validated(
    whole: Data,
    observed: Sequence["_Ranked"],
    sets: Mapping[Key, Sequence[Key]],
    weights: Array,
    refits: int | None,
) -> list[Samples]:
    refits = len(weights) // REFIT_EVERY if refits is None else refits
    step = max(1, _TOGETHER // len(whole.prompts))
    samples: list[Samples] = []
    for first in range(0, len(observed), step):
        data = whole._replace(values=whole.values[first : first + step])
        products = _products(data, weights.shape[1])
        fixed = _fixed(data, observed[first : first + step], sets, products, weights)
        if refits and len(weights) > 1:
            stretches = _stretches(data, sets, products, fixed, weights, refits)
            fixed = [_stretched(*of_outcome) for of_outcome in zip(fixed, stretches, strict=True)]
        samples += fixed
    return samples


def _products(data: Data, n_prompts: int) -> CrossProducts:
    """Return what gives the cross-products of each prompt: kept, or made again each time where they are too many."""
    if n_prompts * (len(data.splines.owners) + len(data.values)) ** 2 > _KEPT:
        return data.products
    kept = list(data.products())
    return lambda: kept


def _fixed(
    data: Data,
    observed: Sequence["_Ranked"],
    sets: Mapping[Key, Sequence[Key]],
    products: CrossProducts,
    weights: Array,
) -> list[Samples]:
    """Fit all sets to the whole of the data and hold the predictions fixed in every draw."""
    fits = fit_other_folds(data, sets, products())
    return _samples(_explained(data, fits, products, weights), _ranked(data, observed, fits, sets, weights), sets)


def _stretches(
    whole: Data,
    sets: Mapping[Key, Sequence[Key]],
    products: CrossProducts,
    fixed: list[Samples],
    weights: Array,
    refits: int,
) -> list[Samples]:
    """Return how much further refits spread than predictions held fixed, at least 1: shape (sets,) by analysis."""
    data, weights = _refitted_part(whole, weights)
    if data is not whole:
        products = _products(data, weights.shape[1])
        observed = _observed(data, weights)
        fixed = _fixed(data, observed, sets, products, weights)
    anew = _fitted_anew(data, sets, products, weights[1 : refits + 1])
    return [
        {name: np.fmax(1.0, ratio(refitted[name].std(axis=0), drawn[1:].std(axis=0))) for name, drawn in held.items()}
        for held, refitted in zip(fixed, anew, strict=True)
    ]


def _stretched(samples: Samples, stretches: Samples) -> Samples:
    """Stretch draws about the estimate, which comes first."""
    return {name: drawn[0] + (drawn - drawn[0]) * stretches[name] for name, drawn in samples.items()}


def _refitted_part(data: Data, weights: Array) -> tuple[Data, Array]:
    """Return the part of a large bank that draws are fitted anew to, with how often each of its prompts counts.

    Prompts evenly spaced, and positions evenly spaced among theirs; a smaller bank is returned as it is. By how much
    draws are stretched does not depend on a bank's size where there is no effect, since refits and draws that hold
    predictions fixed spread alike as it shrinks. Where there is one, a smaller bank's refits spread more beside them,
    so that a part stretches no less than the whole would.
    """
    chosen = evenly_spaced(weights.shape[1], _REFITTED[0])
    rows = np.flatnonzero(np.isin(data.prompts, chosen))
    rows = rows[evenly_spaced(len(rows), _REFITTED[1])]
    if len(rows) == len(data.prompts):
        return data, weights
    return data.at(chosen, rows), weights[:, chosen]


def _explained(data: Data, fits: Fits, products: CrossProducts, weights: Array) -> Array:
    """Return R2 of fits to the whole bank in every draw, shape (outcomes, draws, sets)."""
    m, n_prompts = len(data.values), weights.shape[1]
    total, unexplained = np.zeros((n_prompts, m)), np.zeros((n_prompts, len(fits.columns), m))
    for owners, of_means, of_fits in squared_errors(data, fits, products()):
        total[owners], unexplained[owners] = of_means, of_fits
    return np.array([explained(total[:, number], unexplained[..., number], weights) for number in range(m)])


def _ranked(
    data: Data, observed: Sequence["_Ranked"], fits: Fits, sets: Mapping[Key, Sequence[Key]], weights: Array
) -> Array:
    """Return how fits to the whole bank rank its positions in every draw, shape (outcomes, draws, sets)."""
    ranked = np.empty((len(observed), len(weights), len(sets)))
    for number, keys in enumerate(sets.values()):
        predicted = out_of_fold(data, fits, data.designs(keys), number)
        for of_outcome, outcome, of_set in zip(ranked, observed, predicted, strict=True):
            places = near_places(of_set) - len(of_set) / 2
            of_outcome[:, number] = outcome.correlation(places, data.prompts, weights)
    return ranked


def _fitted_anew(
    data: Data, sets: Mapping[Key, Sequence[Key]], products: CrossProducts, weights: Array
) -> list[Samples]:
    """Fit all sets anew to the prompts of every draw; a prompt that is drawn twice is twice in the same fold.

    Two fold assignments are averaged over, which gives the spread of ten but for some percent. Draws that leave nothing
    outside some fold are passed over.
    """
    data = data._replace(folds=data.folds[:2])
    weights = np.array([counts for counts in weights if _trains_every_fold(data.folds, counts)])
    parts = np.array_split(weights, -(-len(weights) // _FITTED_AT_ONCE))
    fits = Fits.joined([fit_other_folds(data, sets, products(), part) for part in parts])
    return _samples(_explained_anew(data, fits, products, weights), _ranked_anew(data, fits, sets, weights), sets)


def _explained_anew(data: Data, fits: Fits, products: CrossProducts, weights: Array) -> Array:
    """Return R2 of fits to some draws, each in its own draw: shape (outcomes, draws, sets)."""
    shape = len(data.values), len(weights), len(fits.columns)
    base, left = np.zeros(shape[:2]), np.zeros(shape)
    for owners, of_means, of_fits in squared_errors(data, fits, products()):
        counts = weights[:, owners]
        base += np.einsum("dp,pdm->md", counts, of_means.reshape(len(owners), -1, shape[0]))
        left += np.einsum("dp,psdm->mds", counts, of_fits.reshape(len(owners), shape[2], -1, shape[0]))
    return 1 - ratio(left, base[..., None])


def _ranked_anew(data: Data, fits: Fits, sets: Mapping[Key, Sequence[Key]], weights: Array) -> Array:
    """Return how fits to some draws rank positions, each in its own draw: shape (outcomes, draws, sets)."""
    n, m = len(data.prompts), len(data.values)
    observed = centred_ranks(np.column_stack(data.values)).T.copy()
    sums = np.empty((6, m, len(weights), len(sets)))
    step = max(1, _AT_ONCE // (n * m))
    for number, keys in enumerate(sets.values()):
        designs = list(data.designs(keys))
        for first in range(0, len(weights), step):
            part = fits.part(slice(first * m, (first + step) * m))
            predicted = out_of_fold(data, part, designs, number).reshape(-1, m, n)
            for draw, of_draw in enumerate(predicted, first):
                sums[:, :, draw, number] = weighted_sums(observed, of_draw, weights[draw, data.prompts])
    return _correlation(*sums)


def _trains_every_fold(folds: Codes, counts: Array) -> bool:
    """Whether prompts are drawn outside every fold of every assignment."""
    return all((counts[assigned != fold] > 0).any() for assigned in folds for fold in np.unique(assigned))


def _samples(r2: Array, ranked: Array, sets: Mapping[Key, Sequence[Key]]) -> list[Samples]:
    """Name what was found of each outcome, shape (outcomes, draws, sets), and put beside it what raw KL leaves."""
    base = list(sets).index((BASE, None))
    return [_beside_base({"cv_r2": a, "cv_rank": b}, base) for a, b in zip(r2, ranked, strict=True)]


def _beside_base(alone: Samples, base: int) -> Samples:
    return alone | {difference(name): drawn - drawn[:, base : base + 1] for name, drawn in alone.items()}


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
    """Return the mid-ranks of each column less their mean, shape (n, m)."""
    return np.column_stack([_centred(column) for column in values.T])


def _centred(values: Array) -> Array:
    return mid_places(values) - len(values) / 2


def rank_correlation(observed: Array, score: Array, prompts: Codes, weights: Array) -> Array:
    """Return Spearman's correlation of m outcomes, each with its own score, in every draw, shape (draws, m).

    Ranks are those of the full sample, mid-ranks for ties; a draw re-weights them.

    Args:
        observed: centred ranks, shape (n, m).
        score: centred ranks, shape (n, m), or (n, 1) for one score.
        prompts: shape (n,).
        weights: shape (draws, prompts).
    """
    pairs = zip(observed.T, np.broadcast_to(score, observed.shape).T, strict=True)
    return np.column_stack([_Ranked.of(y, prompts, weights).correlation(x, prompts, weights) for y, x in pairs])


def _observed(data: Data, weights: Array) -> list["_Ranked"]:
    """Rank every outcome."""
    return [_Ranked.of(_centred(values), data.prompts, weights) for values in data.values]


class _Ranked(NamedTuple):
    """The ranks of an outcome, and what they sum to in every draw, which its correlations with all scores share.

    `doubled`: shape (n,), twice the centred ranks, which are whole numbers. `sums`: shape (draws, 3), of 1, y and y^2.
    """

    doubled: npt.NDArray[np.int32]
    sums: Array

    @classmethod
    def of(cls, y: Array, prompts: Codes, weights: Array) -> "_Ranked":
        """Take centred ranks, shape (n,)."""
        sums = _totals((power(y) for power in (np.ones_like, np.copy, np.square)), prompts, weights)
        return cls((2 * y).astype(np.int32), sums)

    def correlation(self, x: Array, prompts: Codes, weights: Array) -> Array:
        """Return the correlation with a score's centred ranks, shape (n,), in every draw: shape (draws,)."""
        products = (x * other for other in (1.0, x, self.doubled / 2))
        return _correlation(*self.sums.T, *_totals(products, prompts, weights).T)


def _totals(columns: Iterable[Array], prompts: Codes, weights: Array) -> Array:
    """Sum columns, of shape (n,), over the positions of every draw: shape (draws, columns)."""
    n_prompts = weights.shape[1]
    return np.asarray(weights @ np.column_stack([np.bincount(prompts, column, n_prompts) for column in columns]))


def weighted_sums(observed: Array, score: Array, counts: Array) -> Array:
    """Return what Spearman's correlations of outcomes, each with its own score, are made of, shape (6, m).

    The sums of 1, y, y^2, x, x^2 and x y where each position counts so many times, y and x ranks of positions that
    count once each, mid-ranks for ties.

    Args:
        observed: centred ranks, shape (m, n).
        score: shape (m, n), any unit.
        counts: shape (n,).
    """
    order, places = in_order(score)
    x, y, counted = places - score.shape[-1] / 2, np.take_along_axis(observed, order, -1), counts[order]
    by_x, by_y = counted * x, counted * y
    each = ((by_y, y), (by_x, x), (by_y, x))
    of_y, of_x, of_both = (np.einsum("mn,mn->m", *pair) for pair in each)
    return np.stack([counted.sum(-1), by_y.sum(-1), of_y, by_x.sum(-1), of_x, of_both])


def _correlation(n: Array, sum_y: Array, squares_y: Array, sum_x: Array, squares_x: Array, products: Array) -> Array:
    """Return Pearson's correlation from sums over n rows."""
    covariance = ratio(products, n) - ratio(sum_x, n) * ratio(sum_y, n)
    return ratio(covariance, np.sqrt(variance(n, sum_x, squares_x) * variance(n, sum_y, squares_y)))


def _validity_rows(outcome: Outcome, sets: list[Key], samples: Samples, resampling: Resampling) -> list[dict[str, Any]]:
    method = resampling.method(
        "prompt-grouped CV of cubic rank splines, averaged over fold assignments, spread of predictions fitted anew"
    )
    rows = []
    for analysis in ("cv_r2", "cv_rank"):
        alone, differences = (
            intervals(samples[name], resampling.n_prompts) for name in (analysis, difference(analysis))
        )
        for (name, k), interval, beside in zip(sets, alone, differences, strict=True):
            rows.append(outcome.row(analysis, name, k, "1", interval, method))
            if name != BASE:
                rows.append(outcome.row(difference(analysis), versus_base(name), k, "1", beside, method))
    return rows


def _spearman_rows(
    outcomes: Sequence[Outcome],
    data: Data,
    observed: Sequence[_Ranked],
    scores: Scores,
    weights: Array,
    resampling: Resampling,
) -> list[dict[str, Any]]:
    method, n = resampling.method("Spearman, no model"), len(data.prompts)
    doubled = dict(zip(data.scores, data.splines.doubled_ranks, strict=True))
    rows = []
    for key in scores:
        ranks = (doubled[key] - n) / 2 if key in doubled else _centred(outcomes[0].of(scores[key]))
        correlations = np.column_stack([ranked.correlation(ranks, data.prompts, weights) for ranked in observed])
        for outcome, interval in zip(outcomes, intervals(correlations, resampling.n_prompts), strict=True):
            rows.append(outcome.row("spearman", key[0], key[1], "1", interval, method))
    return rows
