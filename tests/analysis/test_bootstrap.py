"""The bootstrap's parts: the draws, the sums, and draws that leave a number undefined.

The truth: sums by pandas' groupby, and cases worked by hand.
"""

import numpy as np
import pandas as pd
import pytest
from contrast_worlds import moments

from teachdiag.analysis.resampling.bootstrap import Interval, Resampling, intervals, prompt_sums
from teachdiag.analysis.step.design import Correlated
from teachdiag.analysis.step.profiles import group_means, percentile_bins
from teachdiag.analysis.step.regression import fit
from teachdiag.analysis.step.validity import centred_ranks, rank_correlation

RNG = np.random.default_rng(1)


def test_draws_are_whole_samples_of_prompts_named_by_statistic() -> None:
    resampling = Resampling(0, 200, 20)
    weights = resampling.weights("mean")
    assert weights.shape == (201, 20)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 20).all()
    np.testing.assert_array_equal(weights, Resampling(0, 200, 20).weights("mean"))
    assert (weights != resampling.weights("regression")).any()
    assert (weights != Resampling(1, 200, 20).weights("mean")).any()


def test_sums_are_those_of_groupby() -> None:
    prompts, values = RNG.integers(0, 5, 60), RNG.normal(size=(60, 3))
    prompts[prompts == 2] = 3  # prompt 2 has no position
    expected = pd.DataFrame(values).groupby(prompts).sum().reindex(range(5), fill_value=0.0)
    np.testing.assert_allclose(prompt_sums(values, prompts, 5), expected, atol=1e-12)


def test_intervals_are_percentiles_of_the_draws_alone() -> None:
    samples = np.r_[100.0, np.arange(1001.0)][:, None]
    assert intervals(samples) == [Interval(100.0, 25.0, 975.0)]


@pytest.mark.parametrize(
    ("low", "high", "beyond", "side"), [(1, 2, 0, 1), (-2, -1, 0, -1), (-1, 2, 0, 0), (1, 2, 1.5, 0)]
)
def test_side(low: float, high: float, beyond: float, side: int) -> None:
    assert Interval(0.0, low, high).side(beyond) == side


def test_a_number_that_some_draw_lacks_has_no_interval() -> None:
    # The outcome exists in prompts 0 and 1 only; the second draw holds neither, so it has nothing to average or to fit.
    prompts = np.repeat([0, 1], 10)
    x, y = RNG.normal(size=(2, 20))
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 3.0], [2.0, 1.0, 0.0]])
    totals = np.tensordot(weights, moments(np.column_stack([x, y]), prompts, 3), axes=1)
    for samples in (
        fit(Correlated.of(totals), [0], [1]).slopes[:, 0],
        rank_correlation(centred_ranks(y[:, None]), centred_ranks(x[:, None]), prompts, weights),
        group_means(y, np.zeros(20, np.int64), 1, prompts, weights),
    ):
        assert np.isnan(samples[:, 0]).tolist() == [False, True, False]
        (interval,) = intervals(samples)
        assert "[" not in str(interval)
        assert interval.columns() == {"estimate": samples[0, 0], "ci_low": None, "ci_high": None, "draw_error": None}
        assert interval.side() == 0


def test_bins_are_even_and_ties_share_one() -> None:
    assert np.bincount(percentile_bins(RNG.permutation(100).astype(float))).tolist() == [10] * 10
    # Forty zeros have the mid-rank 20.5 of 100: bin 2; the others fill bins 4 to 9.
    assert np.unique(percentile_bins(np.r_[np.zeros(40), np.arange(1.0, 61.0)])).tolist() == [2, 4, 5, 6, 7, 8, 9]
