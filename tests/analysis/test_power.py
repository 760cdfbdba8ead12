"""What a run could have seen, against statsmodels' power of the t test, and against repeated experiments."""

import numpy as np
import pytest
from scipy.stats import norm, t
from statsmodels.stats.power import TTestPower

from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Resampling, intervals, resampled_means
from teachdiag.analysis.resampling.power import POWER, Precision
from teachdiag.analysis.step.placebo_draws import one_more_draw

Z = norm.ppf(0.975)


def t_test(n: int, spread: float = 1.0) -> Precision:
    """A mean of n values with Student's interval."""
    error = spread / np.sqrt(n)
    return Precision(n, error, t.ppf(0.975, n - 1) * error, t.ppf(0.975, n - 1) * error)


@pytest.mark.parametrize("n", [10, 64, 500])
@pytest.mark.parametrize("effect", [-0.4, 0.1, 0.3])
def test_power_of_a_mean_is_that_of_the_t_test(n: int, effect: float) -> None:
    truth = TTestPower().power(abs(effect), n, 0.025, alternative="larger")
    assert t_test(n).power(effect) == pytest.approx(truth, abs=0.02)


@pytest.mark.parametrize("n", [10, 24, 500])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_smallest_effect_is_that_of_the_t_test(n: int, power: float) -> None:
    truth = TTestPower().solve_power(nobs=n, alpha=0.05, power=power)
    assert t_test(n).detectable(power) == pytest.approx(truth, rel=0.04)


def test_2_8_standard_errors_are_seen_in_four_of_five_runs() -> None:
    assert Precision(10**9, 0.1, Z * 0.1, Z * 0.1).detectable() == pytest.approx(0.28016, abs=1e-5)
    precision = Precision(50, 0.1, 0.25, 0.3)
    for power in (0.1, 0.5, 0.8, 0.99):
        assert precision.power(precision.detectable(power)) == pytest.approx(power, rel=1e-12)
        assert precision.power(-precision.detectable(power)) == pytest.approx(power, rel=1e-12)


@pytest.mark.parametrize("effect", [0.25, 0.4, 0.7])
def test_the_prompts_needed_are_those_of_the_t_test(effect: float) -> None:
    precision = t_test(60, spread=2.0)
    needed = precision.prompts_needed(effect)
    assert needed is not None
    assert precision.at(needed).power(effect) >= POWER > precision.at(needed - 1).power(effect)
    truth = TTestPower().solve_power(effect / 2, alpha=0.05, power=POWER)
    assert needed == pytest.approx(truth, rel=0.05)  # the interval keeps its 2.0 errors, of 1.97 with more prompts


def test_a_large_effect_needs_the_fewest_prompts_and_none_no_number_of_them() -> None:
    assert t_test(60).prompts_needed(50.0) == MIN_PROMPTS
    assert t_test(60).prompts_needed(0.0) is None


def test_a_skewed_number_is_seen_as_its_logarithm_is() -> None:
    """exp(x) with x normal, told from its limit at x = 0: where the logarithm's own interval leaves 0 out."""
    mean, error = 2.8 * 0.1, 0.1
    low, high = (np.exp(mean + side * Z * error) for side in (-1, 1))
    number = np.exp(mean)
    precision = Precision(10**9, number * error, number - low, high - number)
    assert precision.power(number - 1) == pytest.approx(norm.cdf(0.84), abs=0.02)


def test_error_of_few_draws_stays_whatever_the_prompts() -> None:
    a, b, width = 4.0, 0.05**2, 2.5  # variance a / n + b, interval +- 2.5 standard errors
    error = np.sqrt(a / 40 + b)
    run = Precision(40, error, width * error, width * error, np.sqrt(b), 5)
    needed = run.prompts_needed(0.3)
    assert needed is not None
    enough = run.at(needed)
    assert enough.std_error == pytest.approx(np.sqrt(a / needed + b), rel=1e-12)
    assert enough.power(0.3) >= POWER > run.at(needed - 1).power(0.3)
    # With infinitely many prompts the margin varies by s^2 / D, and its width by that of s.
    scatter = np.hypot(np.sqrt(b / 6), width * np.sqrt(b) / np.sqrt(2 * 4))
    least = width * np.sqrt(b) + norm.ppf(POWER) * scatter
    assert run.prompts_needed(0.99 * least) is None
    assert run.prompts_needed(1.01 * least) is not None


@pytest.mark.parametrize(("share_of_draws", "n_draws"), [(0.9, 3), (0.5, 5), (0.2, 5)])
def test_a_margin_over_few_draws_is_seen_as_often_as_promised(share_of_draws: float, n_draws: int) -> None:
    """Of repeated runs with new prompts and new draws of a placebo, by the rule that judges margins."""
    rng, n, runs = np.random.default_rng(n_draws), 60, 3000
    over_draws, over_prompts = share_of_draws, (1 - share_of_draws) * n  # variances of one draw, and of one prompt
    quantiles = norm.ppf((np.arange(400) + 0.5) / 400)
    promised, ends = [], []
    for _ in range(runs):
        draws = rng.normal(0, np.sqrt(over_draws), n_draws)
        real = rng.normal(0, np.sqrt(over_prompts / n)) - draws.mean()
        seen = np.sqrt(over_prompts / n * rng.chisquare(n - 1) / (n - 1))  # the bootstrap's error over prompts
        (interval,) = intervals(one_more_draw(np.append(real, real + seen * quantiles), list(draws))[:, None], n)
        one_more = np.var(draws, ddof=1) * (1 + 1 / n_draws)
        near, far = real - interval.low, interval.high - real
        promised.append(Precision(n, np.sqrt(seen**2 + one_more), near, far, np.sqrt(one_more), n_draws))
        ends.append(interval.low)
    near, error = (np.mean([getattr(p, name) for p in promised]) for name in ("near", "end_error"))
    effect = near + norm.ppf(POWER) * error
    assert np.mean(np.array(ends) + effect > 0) == pytest.approx(POWER, abs=0.05)


@pytest.mark.parametrize(("n", "tails"), [(24, 4), (100, 30)])
def test_repeated_runs_see_what_the_first_one_promised(n: int, tails: int) -> None:
    """Means over prompts of unequal size, by the bootstrap itself."""
    rng = np.random.default_rng(n)
    resampling = Resampling(0, 400, n)
    weights = resampling.weights("power")

    def run(effect: float) -> np.ndarray:
        sizes = rng.integers(5, 40, n)
        prompts = np.repeat(np.arange(n), sizes)
        values = effect + rng.standard_t(tails, n)[prompts] * 0.3 + rng.normal(0, 1, len(prompts))
        return resampled_means(values[:, None], prompts, weights)[:, 0]

    promises = []
    for _ in range(100):
        (interval,) = intervals(run(0.0)[:, None], n)
        assert interval.std_error is not None
        half = (interval.high - interval.low) / 2
        promises.append(Precision(n, interval.std_error, half, half).detectable())
    effect = float(np.mean(promises))
    found = np.mean([intervals(run(effect)[:, None], n)[0].low > 0 for _ in range(400)])
    assert found == pytest.approx(POWER, abs=0.05)
