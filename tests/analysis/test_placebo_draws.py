"""The one rule for what lies beyond a placebo: by hand, against simulated draws, and the same in panel and verdict."""

import numpy as np
import pytest
from scipy.stats import norm, t

from teachdiag.analysis.bank.measurements import Probe, Step
from teachdiag.analysis.resampling.bootstrap import intervals
from teachdiag.analysis.step.placebo_draws import beyond_rows, one_more_draw, pool_draws


def test_widening_by_hand() -> None:
    """Samples of variance 4 and draws 1 and 3: s^2 (1 + 1/2) = 3, so 7 in all, on 1 (7/3)^2 degrees of freedom."""
    samples = np.array([2.0, 0.0, 4.0, 0.0, 4.0])
    expected = 2 * np.sqrt(7 / 4) * t.ppf(0.975, (7 / 3) ** 2) / norm.ppf(0.975)
    found = one_more_draw(samples, [1.0, 3.0])
    np.testing.assert_allclose(found, [2.0, *(2 + expected * np.array([-1, 1, -1, 1]))])


def test_one_draw_and_equal_draws_are_left_as_they_are() -> None:
    samples = np.array([2.0, 0.0, 4.0])
    for by_draw in ([2.0], [2.0, 2.0], [2.0, np.nan]):
        np.testing.assert_array_equal(one_more_draw(samples, by_draw), samples)


@pytest.mark.parametrize(
    ("draws", "spread", "most"), [(2, 0.0, 0.025), (2, 1.0, 0.04), (3, 1.0, 0.03), (5, 5.0, 0.035)]
)
def test_one_more_draw_of_a_placebo_is_rarely_beyond_it(draws: int, spread: float, most: float) -> None:
    """The real step is one more draw; numbers vary by 1 over prompts and by `spread` over draws: on one side."""
    rng, beyond, n = np.random.default_rng(0), 0, 1000
    noise = rng.normal(0, np.sqrt(1 + 1 / draws), 400)
    for numbers in rng.normal(0, np.hypot(1, spread), (n, draws + 1)):
        difference = numbers[-1] - numbers[:-1].mean()
        samples = np.r_[difference, difference + noise]
        beyond += intervals(one_more_draw(samples, list(numbers[:-1]))[:, None], 64)[0].side() > 0
    assert beyond / n <= most


def _row(probe_id: str, samples: list[float]) -> dict:
    term = {"analysis": "mean", "outcome": "gain", "k": None, "term": "bank"}
    return term | {"probe_id": probe_id, "draws": np.array(samples), "n_prompts": 20, "method": "m", "std_error": 1.0}


def test_draws_are_pooled_and_differences_are_paired() -> None:
    probes = [Probe("s.random", "random", "update", "kl", {}, draw) for draw in (0, 1)]
    step = Step(Probe("s", "one_step", "update", "kl", {}), tuple(probes))
    rows = [_row("s", [5.0, 6, 4, 5]), _row("s.random", [1.0, 2, 0, 1]), _row("s.random", [3.0, 4, 2, 3])]
    real, pooled = pool_draws(rows)
    assert real == rows[0] | {"placebo_error": None}
    assert pooled["estimate"] == 2.0
    np.testing.assert_array_equal(pooled["draws"], [2.0, 3, 1, 2])
    assert pooled["by_draw"] == [1.0, 3.0]
    (margin,) = beyond_rows([real, pooled], [step], {"mean"})
    assert margin["estimate"] == 3.0
    assert margin["analysis"] == "mean_beyond_placebo"
    # Prompts move both sides alike: the difference does not vary with them, and is left without a range of draws.
    assert (margin["ci_low"], margin["ci_high"]) == (3.0, 3.0)
