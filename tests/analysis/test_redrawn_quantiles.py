"""Quantiles of every bootstrap draw, against numpy on the rows that the draw repeats."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachdiag.analysis.resampling import redrawn_quantiles as module
from teachdiag.analysis.resampling.redrawn_quantiles import interpolate, redrawn_quantiles

PROBABILITIES = (0.0, 0.05, 1 / 3, 0.5, 2 / 3, 0.95, 1.0)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 400), n_prompts=st.integers(1, 20), digits=st.integers(0, 6))
@settings(max_examples=60)
def test_redrawn_quantiles_are_those_of_the_repeated_rows(seed: int, n: int, n_prompts: int, digits: int) -> None:
    """Few digits make ties, unequal prompts make unequal draws, and some draws hold nothing at all."""
    rng = np.random.default_rng(seed)
    values, prompts = rng.normal(size=n).round(digits), rng.integers(0, n_prompts, n) ** 2 // n_prompts
    weights = np.vstack([np.ones(n_prompts), rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=20)])
    found = redrawn_quantiles(values, prompts, weights, PROBABILITIES)
    for draw, counts in enumerate(weights):
        rows = np.repeat(values, counts[prompts].astype(int))
        if len(rows):
            np.testing.assert_array_equal(found[draw], np.quantile(rows, PROBABILITIES))
        else:
            assert np.isnan(found[draw]).all()


@pytest.mark.parametrize(("blocks", "together"), [(512, 1 << 19), (3, 700), (1, 1)])
def test_redrawn_quantiles_are_exact_where_positions_are_many(
    monkeypatch: pytest.MonkeyPatch, blocks: int, together: int
) -> None:
    """Prompts of their own level, the paper's number of positions in a prompt: no neighbour is passed over."""
    monkeypatch.setattr(module, "_MOST_BLOCKS", blocks)
    monkeypatch.setattr(module, "_TOGETHER", together)
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(60), 192)
    values = rng.normal(size=60)[prompts] + rng.lognormal(size=len(prompts))
    weights = rng.multinomial(60, np.full(60, 1 / 60), size=25).astype(float)
    found = redrawn_quantiles(values, prompts, weights, (0.5, 0.95))
    expected = [np.quantile(np.repeat(values, w[prompts].astype(int)), (0.5, 0.95)) for w in weights]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_interpolation_meets_what_it_lies_between(share: float) -> None:
    level, low, high = np.array([0.1]), np.array([-1.0]), np.array([3.0])
    assert interpolate(level, level, np.array([share])) == level
    assert interpolate(low, high, np.array([share])) == pytest.approx(-1 + 4 * share)
