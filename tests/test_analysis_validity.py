"""Predictive validity against an explicit loop, rank correlation against scipy, and what the folds must not mix."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from teachdiag.analysis.bootstrap import Resampling
from teachdiag.analysis.validity import (
    draw_folds,
    explained,
    out_of_fold,
    predictor_sets,
    rank_correlation,
    spline_basis,
)
from teachdiag.errors import EstimationError

RNG = np.random.default_rng(5)
PROMPTS = np.repeat(np.arange(15), 20)
X = {("a", None): RNG.lognormal(size=300), ("b", 8): np.minimum(RNG.uniform(0, 2, 300), 1.0)}
Y = np.column_stack([np.sin(X["a", None]) + RNG.normal(0, 0.3, 300), X["b", 8] + RNG.normal(0, 0.3, 300)])
WEIGHTS = Resampling(0, 200, 15).weights("validity")


def _truncated_powers(train: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Span the same cubic splines of ranks in another basis: x, x^2, x^3 and (x - knot)^3 to the right of each knot."""
    ranks, x = (np.array([(train < v).mean() + (train == v).mean() / 2 for v in z]) for z in (train, values))
    low, high = ranks.min(), ranks.max()
    x = np.clip(x, low, high)
    knots = {float(np.quantile(ranks, p)) for p in (0.1, 0.3, 0.5, 0.7, 0.9)} - {low, high}
    return np.column_stack([x, x**2, x**3, *(np.maximum(x - knot, 0) ** 3 for knot in sorted(knots))])


def test_out_of_fold_predictions_are_those_of_a_loop() -> None:
    folds = draw_folds(15, 5, 1, seed=0)[0][PROMPTS]
    sets = {("a", None): (("a", None),), ("both", 8): (("a", None), ("b", 8))}
    means, found = out_of_fold(sets, X, Y, folds)
    for name, members in sets.items():
        for fold in range(5):
            training, held = folds != fold, folds == fold
            fit, use = (
                np.hstack([np.ones((rows.sum(), 1)), *(_truncated_powers(X[m][training], X[m][rows]) for m in members)])
                for rows in (training, held)
            )
            for column in range(2):
                expected = use @ np.linalg.lstsq(fit, Y[training, column], rcond=None)[0]
                np.testing.assert_allclose(means[held, column], Y[training, column].mean())
                predicted = means[held, column] + found[name][held, column]
                np.testing.assert_allclose(predicted, expected, rtol=1e-6, atol=1e-8)


def test_folds_hold_out_whole_prompts_evenly_and_anew_in_each_repeat() -> None:
    folds = draw_folds(48, 5, 3, seed=0)
    assert [sorted(np.bincount(assignment).tolist()) for assignment in folds] == [[9, 9, 10, 10, 10]] * 3
    assert (folds[0] != folds[1]).any()
    assert (draw_folds(48, 5, 3, seed=0) == folds).all()
    assert (draw_folds(48, 5, 3, seed=1) != folds).any()
    with pytest.raises(EstimationError, match="--folds is 9 and the bank has 8 prompts"):
        draw_folds(8, 9, 1, seed=0)


def test_held_out_rows_never_reach_the_fit() -> None:
    folds = draw_folds(15, 5, 1, seed=0)[0][PROMPTS]
    sets = {("a", None): (("a", None),)}
    disturbed = np.where((folds == 2)[:, None], 1e6, Y)
    before, after = (out_of_fold(sets, {("a", None): X["a", None]}, y, folds)[1]["a", None] for y in (Y, disturbed))
    np.testing.assert_array_equal(before[folds == 2], after[folds == 2])


def test_monotone_versions_of_a_score_predict_the_same() -> None:
    folds = draw_folds(15, 5, 1, seed=0)[0][PROMPTS]
    sets = {("a", None): (("a", None),)}
    plain, bent = (
        out_of_fold(sets, {("a", None): a}, Y, folds)[1]["a", None] for a in (X["a", None], X["a", None] ** 3)
    )
    np.testing.assert_allclose(plain, bent, rtol=1e-12)


def test_spline_basis_names_a_constant_column() -> None:
    values = np.r_[np.ones(40), 2.0]
    with pytest.raises(EstimationError, match="column compatibility is 1 at every position of some training folds"):
        spline_basis(values, np.r_[np.ones(40, bool), False], "compatibility")


def test_r2_is_that_of_a_loop_over_stacked_rows() -> None:
    means, predicted = RNG.normal(0, 0.1, 300), Y[:, 1] + RNG.normal(0, 0.2, 300)
    unexplained = (Y[:, 1] - predicted)[:, None] ** 2
    found = explained((Y[:, 1] - means) ** 2, unexplained, PROMPTS, WEIGHTS)[:, 0]
    for counts, r2 in zip(WEIGHTS, found, strict=True):
        rows = np.concatenate([np.flatnonzero(p == PROMPTS) for p in range(15) for _ in range(int(counts[p]))])
        error, base = Y[rows, 1] - predicted[rows], Y[rows, 1] - means[rows]
        assert r2 == pytest.approx(1 - (error**2).sum() / (base**2).sum(), abs=1e-10)


def test_rank_correlation_is_spearmans_and_draws_keep_the_ranks() -> None:
    scores = np.column_stack(list(X.values()))
    found = rank_correlation(Y[:, 0], scores, PROMPTS, WEIGHTS)
    for column in range(2):
        assert found[0, column] == pytest.approx(spearmanr(Y[:, 0], scores[:, column]).statistic, abs=1e-12)
    ranks = [
        np.array([(v > column).sum() + ((v == column).sum() + 1) / 2 for v in column])
        for column in (Y[:, 0], X["b", 8])
    ]
    rows = np.concatenate([np.flatnonzero(p == PROMPTS) for p in range(15) for _ in range(int(WEIGHTS[7, p]))])
    assert found[7, 1] == pytest.approx(np.corrcoef(ranks[0][rows], ranks[1][rows])[0, 1], abs=1e-12)


def test_every_signal_stands_alone_and_on_top_of_raw_kl() -> None:
    sets = predictor_sets()
    assert sets["forward_kl", None] == (("forward_kl", None),)
    for (name, k), members in sets.items():
        if name.startswith("forward_kl + "):
            assert members == (("forward_kl", None), *sets[name.removeprefix("forward_kl + "), k])
    assert len(sets) == 1 + 2 * (2 + 2 * 3)
