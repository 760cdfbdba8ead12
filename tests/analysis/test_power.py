"""What a run could have seen, against statsmodels' power of known tests, and against repeated experiments."""

import numpy as np
import pytest
from scipy.stats import norm, t
from statsmodels.stats.power import TTestPower, normal_power

from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Resampling, intervals, resampled_means
from teachdiag.analysis.resampling.power import POWER, Precision

Z = norm.ppf(0.975)


def z_test(n: int, spread: float = 1.0) -> Precision:
    """A mean of n values whose spread is known."""
    return Precision(n, spread / np.sqrt(n), Z * spread / np.sqrt(n))


@pytest.mark.parametrize("n", [10, 64, 500])
@pytest.mark.parametrize("effect", [-0.4, 0.1, 0.3])
def test_power_of_a_mean_is_that_of_the_z_test(n: int, effect: float) -> None:
    truth = normal_power(abs(effect), n, 0.025, alternative="larger")
    assert z_test(n).power(effect) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize("n", [24, 64, 500])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_smallest_effect_is_that_of_the_t_test(n: int, power: float) -> None:
    """Up to what the normal law leaves of Student's."""
    found = Precision(n, n**-0.5, t.ppf(0.975, n - 1) * n**-0.5).detectable(power)
    truth = TTestPower().solve_power(nobs=n, alpha=0.05, power=power)
    assert found == pytest.approx(truth, rel=0.02)


def test_2_8_standard_errors_are_seen_in_four_of_five_runs() -> None:
    assert Precision(50, 0.1, Z * 0.1).detectable() == pytest.approx(0.28016, abs=1e-5)
    precision = Precision(50, 0.1, 0.25)
    for power in (0.1, 0.5, 0.8, 0.99):
        assert precision.power(precision.detectable(power)) == pytest.approx(power, rel=1e-12)
        assert precision.power(-precision.detectable(power)) == pytest.approx(power, rel=1e-12)


@pytest.mark.parametrize("effect", [0.02, -0.1, 0.7])
def test_the_prompts_needed_give_the_power(effect: float) -> None:
    needed = z_test(60, spread=2.0).prompts_needed(effect)
    assert needed is not None
    assert needed == max(np.ceil((2 * (Z + norm.ppf(POWER)) / effect) ** 2), MIN_PROMPTS)
    assert z_test(needed, spread=2.0).power(effect) >= POWER
    if needed > MIN_PROMPTS:
        assert z_test(needed - 1, spread=2.0).power(effect) < POWER


def test_no_effect_needs_more_prompts_than_there_are() -> None:
    assert z_test(60).prompts_needed(0.0) is None


def test_error_of_few_draws_stays_whatever_the_prompts() -> None:
    a, b, width = 4.0, 0.05**2, 2.5  # variance a / n + b, interval +- 2.5 standard errors

    def run(n: int) -> Precision:
        error = np.sqrt(a / n + b)
        return Precision(n, error, width * error, np.sqrt(b))

    needed = run(40).prompts_needed(0.3)
    assert needed is not None
    assert run(needed).power(0.3) >= POWER > run(needed - 1).power(0.3)
    least = (width + norm.ppf(POWER)) * np.sqrt(b)  # what infinitely many prompts would see
    assert run(40).prompts_needed(0.99 * least) is None
    assert run(40).prompts_needed(1.01 * least) is not None


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
        (interval,) = intervals(run(0.0)[:, None])
        assert interval.std_error is not None
        promises.append(Precision(n, interval.std_error, (interval.high - interval.low) / 2).detectable())
    effect = float(np.mean(promises))
    found = np.mean([np.percentile(run(effect)[1:], 2.5) > 0 for _ in range(400)])
    assert found == pytest.approx(POWER, abs=0.05)
