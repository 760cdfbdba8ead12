"""Runs with a known truth, judged by the analysis and the headline; `make bench PARTS=simulation` has hundreds."""

import pytest
from planted_efficiency import EfficiencyWorld
from simulated_runs import Simulated, headline_of, primary_of

from teachdiag.analysis.report.headline import Headline
from teachdiag.analysis.step.claims import PRIMARY_CLAIMS
from teachdiag.analysis.step.reach import Reach

QUIET = {"contexts": 96, "batch": 48, "noise": 0.3, "mood": 0.03, "prompt_noise": 0.5}


def text(said: Headline) -> str:
    return " ".join(said.sentences)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_without_an_effect_nothing_is_claimed_or_advised(seed: int) -> None:
    primary, said = headline_of(Simulated(), EfficiencyWorld(mean=0.0, slope_kl=0.0), seed)
    assert not primary["status"].isin(("holds", "reversed")).any()
    assert "nothing else is claimed of it" in text(said)
    assert not said.command.startswith("teachdiag train")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_effect_is_stated(seed: int) -> None:
    primary, said = headline_of(Simulated(mean_gain=0.01, slope=0.03), None, seed)
    assert "beyond every placebo" in text(said)
    told = text(said).partition("Not told")[0].lower()
    for claim in PRIMARY_CLAIMS[1], PRIMARY_CLAIMS[3]:
        assert claim.above.lower() in told
        assert (primary.loc[primary["claim"] == claim.finding, "status"] == "holds").all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slope_kl", "slope_learnable", "verdict"), [(-1.0, 1.2, "is supported"), (1.0, -1.2, "is not supported")]
)
def test_planted_efficiency_gives_the_verdict(slope_kl: float, slope_learnable: float, verdict: str) -> None:
    world = EfficiencyWorld(mean=0.06, slope_kl=slope_kl, slope_learnable=slope_learnable, **QUIET)
    for seed in range(2):
        said = headline_of(Simulated(compared=False), world, seed)[1]
        assert f"The claim that teachability beats raw KL {verdict} on this pair" in text(said)


@pytest.mark.slow
def test_a_run_finds_what_another_promised_to_detect() -> None:
    """The smallest effect that some runs say they would detect is found by about four runs in five."""
    alone = {"compared": False, "placebo_draws": 1}
    idle = [primary_of(Simulated(**alone), seed)[0] for seed in range(5)]
    reaches = [reach for row in idle if (reach := Reach.of_row(row))]
    effect = sum(reach.detectable()[0] for reach in reaches) / len(reaches)
    rows = [primary_of(Simulated(mean_gain=effect, **alone), seed)[0] for seed in range(100, 140)]
    assert {row["claim"] for row in rows} == {PRIMARY_CLAIMS[0].finding}
    found = sum(row["ci_low"] > row["noise_floor"] for row in rows) / len(rows)
    assert found == pytest.approx(0.8, abs=0.15)
