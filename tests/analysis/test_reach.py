"""What a run could have seen of a primary claim, against rows worked by hand and against the run's own estimates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import World, claims_alone, plant
from scipy.stats import norm

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS
from teachdiag.analysis.step.reach import Reach, precision_of_row, reach_columns
from teachdiag.artefacts import PRIMARY
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings

Z80 = norm.ppf(0.8)


def row(**changed: Any) -> dict[str, Any]:
    """An estimate of 0.2 from 50 prompts, 0.15 beyond a placebo."""
    number = {"estimate": 0.2, "ci_low": 0.0, "ci_high": 0.4, "std_error": 0.1, "noise_floor": 0.0, "n_prompts": 50}
    margin = {"margin": 0.15, "margin_low": -0.15, "margin_high": 0.45, "margin_error": 0.15, "placebo_error": None}
    return number | margin | {"placebo_draws": 5} | changed


def test_the_smallest_effects_by_hand() -> None:
    found = reach_columns(row())
    of_width = 1 / np.sqrt(2 * 49)  # by how much of itself the width scatters, of 49 degrees of freedom
    assert found["detectable_from_0"] == pytest.approx(0.2 + Z80 * np.hypot(0.1, 0.2 * of_width))
    assert found["detectable_from_placebo"] == pytest.approx(0.3 + Z80 * np.hypot(0.15, 0.3 * of_width))
    from_zero, from_placebo = (
        50 * (found[f"detectable_from_{n}"] / d) ** 2 for n, d in (("0", 0.2), ("placebo", 0.15))
    )
    assert from_placebo > from_zero
    assert found["prompts_needed"] == pytest.approx(from_placebo, rel=0.02)  # with which the width is better known
    reach = Reach.of_row(row())
    assert reach is not None
    assert reach.prompts_needed(0.3, 0.3) == pytest.approx(50 * (found["detectable_from_placebo"] / 0.3) ** 2, rel=0.02)


def test_of_the_placebos_draws_a_margin_varies_by_their_mean_alone() -> None:
    reach = Reach.of_row(row(placebo_error=0.12))
    assert reach is not None
    assert reach.of_margin is not None
    of_prompts, of_one_draw = 0.15**2 - 0.12**2, 0.12**2 / (1 + 1 / 5)
    freedom = 0.15**4 / (of_prompts**2 / 49 + 0.12**4 / 4)
    scatter = np.sqrt(of_prompts + of_one_draw / 5 + 0.3**2 / (2 * freedom))
    assert reach.of_margin.end_error == pytest.approx(scatter, rel=1e-12)


def test_sizes_are_on_the_side_of_the_estimate() -> None:
    mirrored = {"estimate": -0.2, "ci_low": -0.4, "ci_high": 0.0}
    mirrored |= {"margin": -0.15, "margin_low": -0.45, "margin_high": 0.15}
    assert reach_columns(row(**mirrored)) == reach_columns(row())


def test_the_end_that_counts_is_the_one_nearer_to_what_a_number_is_told_from() -> None:
    share = {"estimate": 0.8, "ci_low": 0.5, "ci_high": 0.85, "draw_error": 0.1, "n_prompts": 50}
    margins = [precision_of_row(share, value).near for value in (0.0, 0.9)]  # type: ignore[union-attr]
    assert margins == pytest.approx([0.3, 0.05])


def test_rounding_counts_as_nothing() -> None:
    plain, floored = reach_columns(row()), reach_columns(row(noise_floor=0.1))
    assert floored["detectable_from_0"] == pytest.approx(plain["detectable_from_0"] + 0.1)
    above, alone = Reach.of_row(row(noise_floor=0.1, margin_error=None)), Reach.of_row(row(margin_error=None))
    assert above is not None
    assert alone is not None
    assert above.prompts_needed(0.1, 1.0) is None
    assert above.prompts_needed(0.3, 1.0) == alone.prompts_needed(0.2, 1.0)


def test_no_number_of_prompts_helps_where_the_placebo_shows_as_much() -> None:
    assert reach_columns(row(margin=0.0))["prompts_needed"] is None
    assert reach_columns(row(margin=-0.1))["prompts_needed"] is None
    assert reach_columns(row(placebo_error=0.15))["prompts_needed"] is None  # few draws are all of the error
    assert reach_columns(row(std_error=None)) == dict.fromkeys(reach_columns(row()))
    assert reach_columns(row(margin_error=None))["detectable_from_placebo"] is None
    far = {"estimate": 500.0, "ci_low": 499.8, "ci_high": 500.2}
    assert reach_columns(row(**far, margin_error=None))["prompts_needed"] == MIN_PROMPTS


@pytest.mark.slow
def test_a_run_says_what_it_could_have_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims_alone(monkeypatch, refits=True)
    world = World(prompts=32, positions=40, slope_learnable=0.03, mean_gain=0.01)
    run_analysis(plant(tmp_path / "run", world), AnalyzeSettings(draws=400), Reporter(quiet=True))
    primary = PRIMARY.read(PRIMARY.file(tmp_path / "run")).set_index("claim")
    helps = primary.loc["the step helps"]
    mood_and_noise = np.hypot(world.mood, world.noise / np.sqrt(world.positions)) / np.sqrt(world.prompts)
    assert helps["std_error"] == pytest.approx(mood_and_noise, rel=0.3)
    assert helps["detectable_from_0"] == pytest.approx(2.8 * mood_and_noise, rel=0.3)
    for claim, found in primary.iterrows():
        assert found["std_error"] > 0, claim
        assert found["detectable_from_0"] > 2 * found["std_error"], claim
    assert helps["prompts_needed"] == MIN_PROMPTS
