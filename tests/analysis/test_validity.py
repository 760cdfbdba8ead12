"""Predictive validity against an explicit loop, rank correlation against scipy, and what the folds must not mix."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from teachdiag.analysis.bank.measurements import Outcome
from teachdiag.analysis.resampling import bootstrap
from teachdiag.analysis.resampling.bootstrap import Resampling, intervals
from teachdiag.analysis.step import validity as module
from teachdiag.analysis.step.cross_validation import (
    Data,
    Fits,
    draw_folds,
    fit_other_folds,
    out_of_fold,
    squared_errors,
)
from teachdiag.analysis.step.splines import rank_splines
from teachdiag.analysis.step.validity import (
    centred_ranks,
    cross_validated,
    difference,
    explained,
    predictor_sets,
    rank_correlation,
    weighted_sums,
)
from teachdiag.errors import EstimationError
from teachdiag.signals import BASE

RNG = np.random.default_rng(5)
PROMPTS = np.repeat(np.arange(15), 20)
X = {("a", None): RNG.lognormal(size=300), ("b", 8): np.minimum(RNG.uniform(0, 2, 300), 1.0)}
Y = np.column_stack([np.sin(X["a", None]) + RNG.normal(0, 0.3, 300), X["b", 8] + RNG.normal(0, 0.3, 300)])
WEIGHTS = Resampling(0, 200, 15).weights("validity")

FOLDS = draw_folds(15, 5, 2, seed=0)
SETS = {("a", None): (("a", None),), ("both", 8): (("a", None), ("b", 8))}


def _truncated_powers(z: np.ndarray) -> np.ndarray:
    """Span the same cubic splines of ranks in another basis: x, x^2, x^3 and (x - knot)^3 to the right of each knot."""
    x = np.array([(z < v).mean() + (z == v).mean() / 2 for v in z])
    knots = {float(np.quantile(x, p)) for p in (0.1, 0.3, 0.5, 0.7, 0.9)} - {x.min(), x.max()}
    return np.column_stack([x, x**2, x**3, *(np.maximum(x - knot, 0) ** 3 for knot in sorted(knots))])


def _fit(scores: dict, y: np.ndarray, folds: np.ndarray = FOLDS) -> tuple[Data, dict, Fits]:
    data = Data(rank_splines(list(scores), scores.__getitem__), list(scores), list(y.T), PROMPTS, folds)
    sets = {name: members for name, members in SETS.items() if set(members) <= set(scores)}
    return data, sets, fit_other_folds(data, sets, list(data.products()))


def test_out_of_fold_predictions_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_BLOCK", 37)
    data, _, fits = _fit(X, Y)
    sums_total, sums_unexplained = np.zeros((15, 2)), np.zeros((15, 2, 2))
    for owners, of_means, of_fits in squared_errors(data, fits, data.products()):
        sums_total[owners], sums_unexplained[owners] = of_means, of_fits
    bases = {key: _truncated_powers(values) for key, values in X.items()}
    for place, members in enumerate(SETS.values()):
        design = np.hstack([np.ones((300, 1)), *(bases[m] for m in members)])
        for column in range(2):
            predicted, unexplained, total = np.zeros(300), np.zeros(300), np.zeros(300)
            for folds in FOLDS[:, PROMPTS]:
                for fold in range(5):
                    training, held = folds != fold, folds == fold
                    mean = Y[training, column].mean()
                    coefficients = np.linalg.lstsq(design[training], Y[training, column] - mean, rcond=None)[0]
                    beyond = design[held] @ coefficients
                    predicted[held] += beyond / 2
                    unexplained[held] += (Y[held, column] - mean - beyond) ** 2 / 2
                    total[held] += (Y[held, column] - mean) ** 2 / 2
            found = out_of_fold(data, fits, data.designs(members), place)
            np.testing.assert_allclose(found[column], predicted, rtol=1e-6, atol=1e-8)
            for sums, rows in ((sums_unexplained[:, place, column], unexplained), (sums_total[:, column], total)):
                np.testing.assert_allclose(sums, np.bincount(PROMPTS, rows), rtol=1e-6)


def test_folds_hold_out_whole_prompts_evenly_and_anew_in_each_repeat() -> None:
    folds = draw_folds(48, 5, 3, seed=0)
    assert [sorted(np.bincount(assignment).tolist()) for assignment in folds] == [[9, 9, 10, 10, 10]] * 3
    assert (folds[0] != folds[1]).any()
    assert (draw_folds(48, 5, 3, seed=0) == folds).all()
    assert (draw_folds(48, 5, 3, seed=1) != folds).any()
    with pytest.raises(EstimationError, match="--folds is 9 and the bank has 8 prompts"):
        draw_folds(8, 9, 1, seed=0)


def test_held_out_rows_never_reach_the_fit() -> None:
    disturbed = np.where((FOLDS[0, PROMPTS] == 2)[:, None], 1e6, Y)
    before, after = (_fit(X, y, FOLDS[:1])[2] for y in (Y, disturbed))
    for own, other in zip(before.coefficients, after.coefficients, strict=True):
        np.testing.assert_array_equal(own[0, 2], other[0, 2])
        assert (own[0, 1] != other[0, 1]).any()
    np.testing.assert_array_equal(before.means[0, 2], after.means[0, 2])


def test_monotone_versions_of_a_score_predict_the_same() -> None:
    found = []
    for a in (X["a", None], X["a", None] ** 3):
        data, _, fits = _fit({("a", None): a}, Y)
        found.append(out_of_fold(data, fits, data.designs(SETS["a", None]), 0))
    plain, bent = found
    np.testing.assert_allclose(plain, bent, rtol=1e-12)


def test_a_constant_score_is_named() -> None:
    with pytest.raises(EstimationError, match=r"compatibility \(K=8\) has one value at every position"):
        rank_splines([("compatibility", 8)], lambda key: np.ones(40))


def test_r2_is_that_of_a_loop_over_stacked_rows() -> None:
    means, predicted = RNG.normal(0, 0.1, 300), Y[:, 1] + RNG.normal(0, 0.2, 300)
    total, unexplained = (np.bincount(PROMPTS, (Y[:, 1] - fitted) ** 2) for fitted in (means, predicted))
    found = explained(total, unexplained[:, None], WEIGHTS)[:, 0]
    for counts, r2 in zip(WEIGHTS, found, strict=True):
        rows = np.concatenate([np.flatnonzero(p == PROMPTS) for p in range(15) for _ in range(int(counts[p]))])
        error, base = Y[rows, 1] - predicted[rows], Y[rows, 1] - means[rows]
        assert r2 == pytest.approx(1 - (error**2).sum() / (base**2).sum(), abs=1e-10)


def test_rank_correlation_is_spearmans_and_draws_keep_the_ranks() -> None:
    scores = np.column_stack(list(X.values()))
    found = rank_correlation(centred_ranks(Y[:, [0, 0]]), centred_ranks(scores), PROMPTS, WEIGHTS)
    for column in range(2):
        assert found[0, column] == pytest.approx(spearmanr(Y[:, 0], scores[:, column]).statistic, abs=1e-12)
    ranks = [
        np.array([(v > column).sum() + ((v == column).sum() + 1) / 2 for v in column])
        for column in (Y[:, 0], X["b", 8])
    ]
    rows = np.concatenate([np.flatnonzero(p == PROMPTS) for p in range(15) for _ in range(int(WEIGHTS[7, p]))])
    assert found[7, 1] == pytest.approx(np.corrcoef(ranks[0][rows], ranks[1][rows])[0, 1], abs=1e-12)


def test_sums_of_one_draw_are_those_of_spearmans_ranks() -> None:
    tied = np.stack([*X.values(), np.round(Y[:, 1], 1), np.zeros(300) * Y[:, 0]])  # with ties, and with 0 of both signs
    observed = np.tile(centred_ranks(Y[:, :1]).T, (len(tied), 1))
    ranks = np.stack([rankdata(score) for score in tied]) - 150.5
    for counts in WEIGHTS[:20, PROMPTS]:
        parts = [np.ones_like(ranks), observed, observed**2, ranks, ranks**2, ranks * observed]
        expected = np.stack([part @ counts for part in parts])
        np.testing.assert_allclose(weighted_sums(observed, tied, counts), expected, rtol=1e-12, atol=1e-8)


def test_every_signal_stands_alone_and_on_top_of_raw_kl() -> None:
    sets = predictor_sets()
    assert sets["forward_kl", None] == (("forward_kl", None),)
    for (name, k), members in sets.items():
        if name.startswith("forward_kl + "):
            assert members == (("forward_kl", None), *sets[name.removeprefix("forward_kl + "), k])
    assert len(sets) == 1 + 2 * (2 + 2 * 3)


def _cross_validated(y: np.ndarray, weights: np.ndarray, refits: int) -> dict[str, np.ndarray]:
    everywhere = np.ones(len(PROMPTS), bool)
    outcome = Outcome("p", "one_step", "gain", everywhere, y, PROMPTS)
    sets = {(BASE, None): ((BASE, None),), ("b", 8): (("b", 8),)}
    scores = {(BASE, None): X["a", None], ("b", 8): X["b", 8]}
    return cross_validated([outcome], scores, sets, FOLDS, weights, refits)[0]


def test_cross_products_that_are_not_kept_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = _cross_validated(Y[:, 0], WEIGHTS[:30], 3)
    monkeypatch.setattr(module, "_KEPT", 1)
    for name, again in _cross_validated(Y[:, 0], WEIGHTS[:30], 3).items():
        np.testing.assert_array_equal(again, kept[name])


def _r2_of_rows(y: np.ndarray, key: tuple, fitted: np.ndarray, evaluated: np.ndarray) -> float:
    """Out-of-fold R2 at some rows, listed as often as they are drawn, of fits to others."""
    design = np.column_stack([np.ones(300), _truncated_powers(X[key])])
    squares, base = 0.0, 0.0
    for folds in FOLDS[:, PROMPTS]:
        for fold in range(5):
            training, held = fitted[folds[fitted] != fold], evaluated[folds[evaluated] == fold]
            mean = y[training].mean()
            b = np.linalg.lstsq(design[training], y[training] - mean, rcond=None)[0]
            squares += ((y[held] - mean - design[held] @ b) ** 2).sum()
            base += ((y[held] - mean) ** 2).sum()
    return 1 - squares / base


@pytest.mark.parametrize(("most", "absent"), [((128, 8192), ()), ((12, 160), (4, 9, 14))], ids=["all", "a part"])
def test_draws_spread_as_much_as_refits_to_repeated_rows_do(
    most: tuple[int, int], absent: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refits of the truth: rows laid out as often as they are drawn, folds of their own prompts.

    A part of the bank is all but every fifth prompt, and two of three of the positions of these.
    """
    monkeypatch.setattr(module, "_REFITTED", most)
    noise, refits, weights = RNG.normal(0, 1, 300), 12, WEIGHTS[:60]
    fixed, found = (_cross_validated(noise, weights, number)["cv_r2"] for number in (0, refits))
    part = np.flatnonzero(~np.isin(PROMPTS, absent))
    part = part[np.arange(len(part)) % 3 != 2] if absent else part
    drawn = [
        np.concatenate([part[PROMPTS[part] == p] for p in range(15) for _ in range(int(counts[p]))])
        for counts in weights
    ]
    spreads = [
        [
            np.std(values)
            for values in zip(*([_r2_of_rows(noise, key, *rows) for key in X] for rows in each), strict=True)
        ]
        for each in ([(part, rows) for rows in drawn[1:]], [(rows, rows) for rows in drawn[1 : refits + 1]])
    ]
    stretch = np.maximum(1, np.divide(*spreads[::-1]))
    np.testing.assert_allclose(found, fixed[0] + (fixed - fixed[0]) * stretch, rtol=1e-6)
    np.testing.assert_array_equal(found[0], fixed[0])
    assert (stretch > 1).all()


@pytest.mark.slow
def test_without_an_effect_at_most_one_difference_in_twenty_leaves_0_out() -> None:
    """What predictions held fixed do not reach: here one in five."""
    left, fixed = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 0.5, 15)[PROMPTS] + rng.normal(0, 1, 300)
        for refits, missed in ((0, fixed), (30, left)):
            drawn = _cross_validated(noise, WEIGHTS, refits)[difference("cv_rank")]
            missed.append(intervals(drawn, 15)[1].side() != 0)
    assert np.mean(fixed) > 0.1
    assert np.mean(left) <= 0.05
