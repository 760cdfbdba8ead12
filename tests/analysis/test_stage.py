"""The whole stage on planted worlds: does the verdict say what was planted, and does bad input get its sentence?

The truth is what was planted; means, deciles and differences are computed again by pandas and numpy.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from contrast_worlds import percentiles
from planted import PLACEBOS, World, claims_alone, plant, plant_probe, write_gains, write_positions
from stages import ROOT, amend

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.kinds.steps import coefficient_table, validity_table
from teachdiag.analysis.report.result_block import study_block
from teachdiag.analysis.report.summary import terminal_tables
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.design import GAP
from teachdiag.artefacts import DECILES, ESTIMATES, FINDINGS, GAINS, POSITIONS, SATURATION, SURFACES
from teachdiag.errors import ArtefactError, EstimationError, InputError, RunError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import SUPPORT_SIZES, AnalyzeSettings
from teachdiag.tables import Table

QUIET = Reporter(quiet=True)
QUICK = AnalyzeSettings(draws=100)
EFFECT = World(slope_learnable=0.06, slope_incompatible=0.01)
GAP_CLAIMS = [
    f"beta_L > beta_I ({m}, {s})" for m in ("decomposition", "nested") for s in ("standardised", "per unit of norm")
]


@pytest.fixture(scope="module")
def effect_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = plant(tmp_path_factory.mktemp("effect") / "run", EFFECT)
    run_analysis(run, QUICK, QUIET)
    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no claim reads is left out, and no claim about prediction is judged."""
    claims_alone(monkeypatch)


def _read(run: Path, table: Table) -> pd.DataFrame:
    return table.read(run / "analysis" / f"{table.name}.parquet")


def _status(run: Path, finding: str, k: int | None = 16) -> str:
    return str(_finding(run, finding, k)["status"])


def _finding(run: Path, finding: str, k: int | None = 16) -> pd.Series:
    rows = _read(run, FINDINGS)
    rows = rows[(rows["finding"] == finding) & (rows["outcome"] == "gain")]
    return rows[rows["k"].isna() if k is None else rows["k"] == k].iloc[0]


def _analysed(run: Path, world: World) -> Path:
    plant(run, world)
    run_analysis(run, QUICK, QUIET)
    return run


def test_a_planted_effect_holds(effect_run: Path) -> None:
    assert [_status(effect_run, claim) for claim in GAP_CLAIMS] == ["holds"] * 4
    assert _status(effect_run, "{D^L, D^I} improves on raw KL when added to it (cross-validated R2)") == "holds"
    assert _status(effect_run, "the step helps", None) == "holds"
    sentences = json.loads((effect_run / "analyze.json").read_text())["results"]["verdict"]
    assert any(s.startswith("Holds at K=16: gain rises more with learnable than with incompatible") for s in sentences)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_planted_reverse_is_reversed(tmp_path: Path) -> None:
    run = _analysed(tmp_path / "run", World(slope_learnable=0.0, slope_incompatible=0.06))
    assert [_status(run, claim) for claim in GAP_CLAIMS] == ["reversed"] * 4


@pytest.mark.slow
def test_without_an_effect_findings_are_as_rare_as_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims_alone(monkeypatch, refits=True)
    # Every claim has 2.5% to be found by chance, so some are found: the rate is what is promised.
    worlds = [World(prompts=24, positions=20, seed=seed) for seed in range(12)]
    runs = [_analysed(tmp_path / f"run{world.seed}", world) for world in worlds]
    assert {len(_read(run, FINDINGS)) for run in runs} == {_n_findings() - len(SUPPORT_SIZES)}  # no contrasts
    assert np.mean([(_read(run, FINDINGS)["status"] == "holds").mean() for run in runs]) < 0.05
    headline = [_status(run, GAP_CLAIMS[0]) for run in runs]
    assert headline.count("not shown") >= 10
    assert headline.count("holds") <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_what_a_placebo_shows_too_is_an_artefact(tmp_path: Path) -> None:
    run = _analysed(tmp_path / "run", replace(EFFECT, placebo_slope_learnable=0.06))
    assert [_status(run, claim) for claim in GAP_CLAIMS] == ["artefact"] * 4
    sentence = _finding(run, GAP_CLAIMS[0])["sentence"]
    assert sentence.startswith("Artefact at K=16")
    assert "a placebo shows it too: random_direction" in sentence


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_placebo_far_smaller_than_the_effect_does_not_cancel_it(tmp_path: Path) -> None:
    """Per unit of norm: the placebo's slope is clear of 0, and a fifteenth of the real one."""
    run = _analysed(tmp_path / "run", replace(EFFECT, placebo_slope_learnable=0.003, noise=0.002, mood=0.0))
    finding = _finding(run, "beta_L > beta_I (decomposition, per unit of norm)")
    shown = _read(run, ESTIMATES).query("analysis == 'slope_decomposition' and k == 16 and outcome == 'gain'")
    shown = shown[(shown["term"] == GAP) & (shown["probe_id"] == "step.random_direction")]
    assert shown["ci_low"].item() > 0
    assert finding["status"] == "holds"
    assert "beyond every placebo, the nearest being" in finding["sentence"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_an_effect_that_a_noisy_placebo_may_have_too_is_unclear(tmp_path: Path) -> None:
    """The placebo has the same slope under more noise: its interval holds 0, and so does the difference."""
    noisy = replace(EFFECT, placebo_slope_learnable=0.06, placebo_noise=0.5)
    run = _analysed(tmp_path / "run", noisy)
    finding = _finding(run, "beta_L > beta_I (decomposition, per unit of norm)")
    assert finding["ci_low"] > 0
    assert finding["status"] == "unclear"
    assert "not told apart from a placebo" in finding["sentence"]


def test_differences_from_placebos_are_paired(effect_run: Path) -> None:
    """The difference's interval is that of the differences of the draws, made again here one by one."""
    estimates = _read(effect_run, ESTIMATES)
    bank = POSITIONS.read(effect_run / "positions").query("split == 'bank'")
    prompts = np.unique(bank["prompt_id"].to_numpy(str), return_inverse=True)[1]
    weights = Resampling(QUICK.seed, QUICK.draws, prompts.max() + 1).weights("mean")
    gains = [GAINS.read(effect_run / "gains" / p)["gain"].to_numpy() for p in ("step", "step.random_direction")]
    draws = [[np.average(gain, weights=w[prompts]) for w in weights] for gain in gains]
    row = estimates.query(
        "analysis == 'mean_beyond_placebo' and probe_id == 'step.random_direction' and outcome == 'gain'"
    )
    expected = percentiles(np.subtract(*draws), prompts.max() + 1)
    np.testing.assert_allclose(row[row["term"] == "bank"][["ci_low", "ci_high"]].to_numpy()[0], expected, rtol=1e-6)


def _with_ladder(run: Path, probe_id: str, rate: float, *rungs: tuple[float, float, float | None]) -> None:
    """Give a planted probe a ladder, from the mean gain, the first-order gain and R2 of each rung."""
    note = run / f"probes/{probe_id}.json"
    found = [
        {"share": 2.0**-n, "learning_rate": rate * 2.0**-n, "mean_gain": gain, "first_order_gain": first, "r2": r2}
        | {"noise": 1e-6, "short_enough": None if r2 is None else r2 >= 0.95}
        for n, (gain, first, r2) in enumerate(rungs)
    ]
    longest = next((rung["learning_rate"] for rung in found if rung["short_enough"]), None)
    taken = {"learning_rate": rate, "short_enough": found[0]["short_enough"]}
    ladder = taken | {"longest": longest, "rungs": found}
    amend(note, lambda content: content["results"].update(ladder=ladder))


def _judged(run: Path) -> tuple[list[str], set[str], list[str]]:
    """The status of the step itself, that of all other claims, and the verdict's sentences."""
    verdict = run_analysis(run, QUICK, QUIET)["verdict"]
    assert verdict[0] in (run / "summary.md").read_text()
    assert verdict[0] in study_block([run])
    status = _read(run, FINDINGS).set_index("finding")["status"]
    return [status["the step helps"]], set(status.drop("the step helps")), verdict


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_nothing_is_judged_on_a_step_that_was_too_long(tmp_path: Path) -> None:
    """Whatever else the tables show: first order does not explain the step, and the rate to use is said."""
    run = plant(tmp_path / "run", EFFECT)
    _with_ladder(run, "step", 4e-5, (0.01, 0.03, 0.4), (0.01, 0.015, 0.8), (0.01, 0.0075, 0.96))
    step, others, verdict = _judged(run)
    assert (step, others) == (["too long"], {"not judged"})
    assert "at learning rate 4e-05 first order explains 40.0% of the variance of the gain" in verdict[0]
    assert "use `--learning-rate 1e-05`, the longest of its ladder that is short enough" in verdict[0]
    assert not any("Holds" in sentence for sentence in verdict)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("ladder", "said", "status"),
    [
        ((), "probe again with `--learning-rate auto`", "too long"),
        # f = 0.01, g = -0.02: largest at f / (2 (f - g)) = 1/6 of the step, so 1/8
        ([(-0.02, 0.01, 0.97)], "first order alone foresees 0.01): use `--learning-rate 1e-06`", "too long"),
        ([(-0.02, -0.03, 0.97)], "no shorter one along it would help: first order alone foresees -0.03", "reversed"),
        ([(-0.02, 0.01, 0.3)], "no step down to 8e-06 is short enough", "too long"),
    ],
)
def test_nothing_is_judged_on_a_step_that_does_harm(
    tmp_path: Path, ladder: list[tuple[float, float, float]], said: str, status: str
) -> None:
    run = plant(tmp_path / "run", replace(EFFECT, mean_gain=-0.06))
    if ladder:
        _with_ladder(run, "step", 8e-6, *ladder)
    step, others, verdict = _judged(run)
    assert (step, others) == ([status], {"not judged"})
    assert said in verdict[0]
    assert "mean gain -0.0" in verdict[0]
    assert len(verdict) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_step_that_is_short_enough_is_judged(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", EFFECT)
    _with_ladder(run, "step", 1e-5, (0.03, 0.031, 0.962), (0.015, 0.0155, 0.99))
    step, others, _ = _judged(run)
    assert step == ["holds"]
    assert "not judged" not in others
    assert "First order explains 96.2% of the variance of its gain" in (run / "summary.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_mean_gain_within_the_noise_floor_is_not_shown(tmp_path: Path) -> None:
    # Far from 0 by its interval, but smaller than what rescoring in another layout moves (1e-5 nats).
    run = _analysed(tmp_path / "run", World(mean_gain=8e-6, mood=0.0, noise=1e-6))
    assert _status(run, "the step helps", None) == "not shown"


@pytest.mark.slow
def test_a_constant_outcome_is_said_and_skipped(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", replace(EFFECT, null_theta0=True))
    sentences = run_analysis(run, QUICK, QUIET)["verdict"]
    said = (
        "Left out of regressions and prediction: gain, gain_reverse, gain_relative, gain_log of step.theta0, exactly 0"
    )
    assert f"{said} everywhere." in sentences
    estimates = _read(run, ESTIMATES)
    theta0 = estimates[(estimates["probe_id"] == "step.theta0") & (estimates["outcome"] == "gain")]
    assert set(theta0["analysis"]) == {"mean", "noise_floor", "mean_beyond_placebo", "specifications"}
    assert (theta0.loc[theta0["analysis"] == "mean", ["estimate", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert "theta0 not estimable" in _read(run, FINDINGS)["placebos"].iloc[1]
    assert coefficient_table(estimates, "step").loc[lambda t: t["update"] == "theta0", "beta_L"].tolist() == ["-"] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_saturation_is_reported_where_it_was_planted(tmp_path: Path) -> None:
    run = _analysed(tmp_path / "run", World(saturated=True))
    audit = _read(run, SATURATION).set_index(["score", "k"])
    bank = POSITIONS.read(run / "positions").query("split == 'bank'")
    for k in SUPPORT_SIZES:
        row = audit.loc[("compatibility", k)]
        assert row["share_at_highest"] == pytest.approx((bank[f"compatibility_k{k}"] == 1).mean())
        assert row["q95"] == 1
        assert row["tied_by_clip_at_05pct"] == row["left_to_chance_at_05pct"] == 1  # C itself is 1, without any clip
    entropy = audit.xs("student_entropy").iloc[0]
    assert entropy["tied_by_clip_at_01pct"] == 1  # the clip puts 5% of positions at 1
    assert entropy["left_to_chance_at_01pct"] == 0  # whose entropies differ


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_two_steps_are_both_judged(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", EFFECT)
    plant_probe(run, POSITIONS.read(run / "positions"), World(), np.random.default_rng(9), "idle")
    verdict = run_analysis(run, QUICK, QUIET)["verdict"]
    each = _n_findings() - len(SUPPORT_SIZES)  # without the contrasts
    assert _read(run, FINDINGS).groupby("probe_id").size().tolist() == [each] * 2
    assert {sentence.split(":")[0] for sentence in verdict} == {"idle", "step"}
    assert terminal_tables(run) == []  # the first page has them


def test_every_probe_has_the_same_rows(effect_run: Path) -> None:
    estimates = _read(effect_run, ESTIMATES)
    probes = estimates[(estimates["probe_id"] != "") & ~estimates["analysis"].str.endswith("_beyond_placebo")]
    assert not estimates.duplicated(list(ESTIMATES.key)).any()
    assert set(probes["probe_id"]) == {"step", *(f"step.{name}" for name in PLACEBOS)}
    assert len(set(probes.groupby("probe_id").size())) == 1
    for table in (DECILES, SURFACES, SATURATION, FINDINGS):
        assert not _read(effect_run, table).duplicated(list(table.key)).any()


def test_means_and_deciles_are_plain_means(effect_run: Path) -> None:
    positions = POSITIONS.read(effect_run / "positions")
    bank = GAINS.read(effect_run / "gains" / "step").merge(positions, on=["context_id", "position"])
    estimates, deciles = _read(effect_run, ESTIMATES), _read(effect_run, DECILES)
    mine = estimates[(estimates["probe_id"] == "step") & (estimates["analysis"] == "mean")]
    for outcome in ("gain", "gain_relative"):
        row = mine[(mine["outcome"] == outcome) & (mine["term"] == "bank")].iloc[0]
        assert row["estimate"] == pytest.approx(bank[outcome].mean(), rel=1e-5)
        assert row["n_dropped"] == bank[outcome].isna().sum()
    groups = bank.groupby(pd.qcut(bank["forward_kl"], 10, labels=False))["gain"]
    found = deciles[
        (deciles["probe_id"] == "step") & (deciles["score"] == "forward_kl") & (deciles["outcome"] == "gain")
    ]
    np.testing.assert_allclose(found.sort_values("decile")["estimate"], groups.mean(), rtol=1e-5)
    q3 = bank[
        (bank["student_entropy"] <= bank["student_entropy"].median())
        & (bank["forward_kl"] >= bank["forward_kl"].median())
    ]
    assert mine[(mine["outcome"] == "gain") & (mine["term"] == "q3")]["estimate"].item() == pytest.approx(
        q3["gain"].mean(), rel=1e-5
    )


def test_surfaces_average_to_the_whole(effect_run: Path) -> None:
    surfaces, estimates = _read(effect_run, SURFACES), _read(effect_run, ESTIMATES)
    cells = surfaces[(surfaces["probe_id"] == "step") & (surfaces["k"] == 16)]
    whole = estimates[
        (estimates["probe_id"] == "step") & (estimates["analysis"] == "mean") & (estimates["term"] == "bank")
    ]
    mean = whole.loc[whole["outcome"] == "gain", "estimate"].item()
    assert np.average(cells["value"], weights=cells["n_positions"]) == pytest.approx(mean)
    assert cells["n_positions"].sum() == EFFECT.prompts * EFFECT.positions
    assert (cells["x_low"] <= cells["x_high"]).all()


@pytest.mark.slow
def test_same_seed_same_bytes_and_row_order_changes_nothing(
    effect_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = tmp_path / "shuffled"
    plant(shuffled, EFFECT)
    write_positions(shuffled, POSITIONS.read(shuffled / "positions").sample(frac=1, random_state=1))
    for folder in (shuffled / "gains").iterdir():
        write_gains(shuffled, GAINS.read(folder).sample(frac=1, random_state=2), folder.name)
    run_analysis(shuffled, QUICK, QUIET)
    for table in (ESTIMATES, DECILES, SURFACES, SATURATION, FINDINGS):
        for kind in ("parquet", "csv"):
            file = Path("analysis") / f"{table.name}.{kind}"
            assert (shuffled / file).read_bytes() == (effect_run / file).read_bytes(), file
    claims_alone(monkeypatch)
    run_analysis(shuffled, replace(QUICK, seed=1), QUIET)  # recomputed, not refused
    one, other = (_read(run, ESTIMATES).query("analysis == 'mean'") for run in (effect_run, shuffled))
    assert (one["ci_low"].to_numpy() != other["ci_low"].to_numpy()).all()


def test_summary_and_tables_for_people(effect_run: Path) -> None:
    estimates = _read(effect_run, ESTIMATES)
    coefficients, validity = coefficient_table(estimates, "step"), validity_table(estimates, "step")
    assert coefficients.shape == (12, 8)
    assert validity.shape == (18, 7)
    text = (effect_run / "summary.md").read_text()
    for cell in (
        coefficients["beta_L"].iloc[0],
        validity["one_step"].iloc[0],
        "of 24 `gsm_symbolic` prompts",
        "figures/coefficients.png",
    ):
        assert cell in text


def test_every_estimate_is_explained(effect_run: Path) -> None:
    page = (ROOT / "docs/analysis.md").read_text()
    names = {
        *_read(effect_run, ESTIMATES)["analysis"].str.removesuffix("_beyond_placebo"),
        *_read(effect_run, SURFACES)["surface"],
    }
    assert {name for name in names if f"`{name}`" not in page} == set()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_an_unfinished_or_missing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no capture stage"):
        run_analysis(tmp_path / "nothing", QUICK, QUIET)
    run = plant(tmp_path / "run", World())
    Stage(run, "probes/killed").claim({"name": "killed", "seed": 3}, {})
    command = f"teachdiag probe --run {run} --name killed --optimizer adamw --seed 3"
    goes_on = f"probe killed is unfinished and left out: `{command}` continues it"
    assert run_analysis(run, QUICK, QUIET)["left_out"] == [goes_on]
    for note in (run / "probes").iterdir():
        if note.name != "killed.json":
            note.unlink()
    with pytest.raises(
        RunError, match=r"has no finished probe: run `teachdiag probe .* first; probe killed is unfinished"
    ):
        run_analysis(run, QUICK, QUIET)


@pytest.mark.parametrize(
    ("world", "error", "message"),
    [
        (World(prompts=7), EstimationError, "the bank has 7 prompts and intervals need at least 8"),
        (World(constant_c=True), EstimationError, "column compatibility_k8 is 1 at both its 5% and its 95% quantile"),
        (World(positions=1, prompts=40), EstimationError, "predictor position is 0 at every position that has gain"),
    ],
    ids=["too few prompts", "constant C", "one position a context"],
)
def test_banks_that_carry_no_estimate(tmp_path: Path, world: World, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        run_analysis(plant(tmp_path / "run", world), QUICK, QUIET)


@pytest.mark.parametrize("fault", ["row missing", "other prompt", "row twice"])
def test_gains_of_another_bank_are_refused(tmp_path: Path, fault: str) -> None:
    run = plant(tmp_path / "run", World())
    gains = GAINS.read(run / "gains" / "step")
    if fault == "row missing":
        gains = gains[1:]
    elif fault == "other prompt":
        gains.loc[0, "prompt_id"] = "p999"
    else:
        gains = pd.concat([gains[1:], gains[1:2]])
    write_gains(run, gains, "step")
    message = "hold a position twice" if fault == "row twice" else "are not the bank's 720"
    with pytest.raises(ArtefactError, match=message):
        run_analysis(run, QUICK, QUIET)


@pytest.mark.slow
def test_the_update_positions_are_left_alone(effect_run: Path, tmp_path: Path) -> None:
    run = plant(tmp_path / "run", EFFECT)
    positions = POSITIONS.read(run / "positions")
    positions.loc[positions["split"] == "update", "forward_kl"] = 50.0
    write_positions(run, positions)
    run_analysis(run, QUICK, QUIET)
    pd.testing.assert_frame_equal(_read(run, ESTIMATES), _read(effect_run, ESTIMATES))


def _n_findings() -> int:
    per_k = 4 + 3 * 2 + 2 * 4 + 1  # gaps on gain, on other outcomes; C and {D^L, D^I}, two measures; Q3
    return 1 + per_k * len(SUPPORT_SIZES) + 4
