"""The placebo panel: its statistics against the full analysis, its rule against the verdict, and known worlds."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import World, claims_alone, plant_probe
from planted_interventions import DRAWN, plant_bank, plant_placebos
from scipy.stats import spearmanr

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.kinds.placebo import panel_table
from teachdiag.analysis.kinds.placebo_panel import STATISTICS, panel_sentences
from teachdiag.artefacts import ESTIMATES, FINDINGS, GAINS, PLACEBO_PANEL, POSITIONS, PRIMARY
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings
from teachdiag.tables import Table

QUIET = Reporter(quiet=True)
QUICK = AnalyzeSettings(draws=200)
EFFECT = World(prompts=16, positions=30, slope_learnable=0.06, slope_incompatible=0.01)
NO_EFFECT_OF_C = replace(EFFECT, slope_incompatible=0.06)
GAP, RANK = "beta_L - beta_I per unit of norm", "CV rank of {D^L, D^I} less raw KL"
RANK_CLAIM = "{D^L, D^I} predicts gain better than raw KL alone (out-of-fold rank correlation)"
CLAIM = "beta_L > beta_I (decomposition, per unit of norm)"


@pytest.fixture(scope="module", autouse=True)
def _claims_and_panel_alone() -> Iterator[None]:
    """Nothing here reads what no claim reads."""
    with pytest.MonkeyPatch.context() as patch:
        claims_alone(patch, refits=True)
        yield


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that judge no prediction."""
    claims_alone(monkeypatch)


def _run(folder: Path, world: World, draws: int = 5, step: bool = True) -> Path:
    run = folder / "run"
    positions = plant_bank(run, world)
    if step:
        plant_probe(run, positions, world, np.random.default_rng(11), "step")
    plant_placebos(run, positions, world, draws)
    run_analysis(run, QUICK, QUIET)
    return run


def _read(run: Path, table: Table) -> pd.DataFrame:
    return table.read(run / "analysis" / f"{table.name}.parquet")


def _survives(run: Path, statistic: str) -> dict[str, bool | None]:
    rows = _read(run, PLACEBO_PANEL)
    return dict(rows[rows["statistic"] == statistic][["update", "survives"]].itertuples(index=False))


def _verdict(run: Path, statistic: str) -> str:
    said = panel_sentences(_read(run, PLACEBO_PANEL).to_dict("records"))
    return next(s for s in said if f": {statistic} " in s)


@pytest.fixture(scope="module")
def effect_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("effect"), EFFECT)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_numbers_are_those_of_the_full_analysis(effect_run: Path) -> None:
    """The real step and draw 0 of a placebo, analysed as a step of their own, give the same point estimates."""
    panel = _read(effect_run, PLACEBO_PANEL)
    plain = effect_run.parent / "plain"
    plant_bank(plain, EFFECT)
    (plain / "gains").mkdir()
    for folder in sorted((effect_run / "gains").glob("many*")):
        rows = GAINS.read(folder)
        _copy(rows[rows["draw"] == 0], plain, folder.name)
    note = (effect_run / "probes" / "step.json").read_text()
    (plain / "probes").mkdir()
    (plain / "probes" / "many.json").write_text(note)
    run_analysis(plain, QUICK, QUIET)
    estimates = _read(plain, ESTIMATES)
    estimates = estimates[(estimates["outcome"] == "gain") & (estimates["k"].isna() | (estimates["k"] == 16))]
    for statistic, analysis, term in (
        ("mean gain", "mean", "bank"),
        ("beta_L", "standardized_decomposition", "learnable"),
        ("beta_I per unit of norm", "slope_decomposition", "incompatible"),
        (GAP, "slope_decomposition", "learnable - incompatible"),
        ("beta_L - beta_I beside H x D", "standardized_nested", "learnable - incompatible"),
        ("Spearman with compatibility", "spearman", "compatibility"),
        ("CV R2 of raw KL", "cv_r2", "forward_kl"),
        ("CV rank of {D^L, D^I} less raw KL", "cv_rank_difference", "decomposition vs forward_kl"),
    ):
        near = {"rel": 1e-3} if statistic.startswith("CV") else {"rel": 1e-9, "abs": 1e-12}  # last digits decide ties
        mine = panel[panel["statistic"] == statistic].set_index("update")
        found = estimates[(estimates["analysis"] == analysis) & (estimates["term"] == term)].set_index("update")
        assert mine["estimate"].iloc[0] == pytest.approx(found["estimate"]["one_step"], **near)
        for update in DRAWN:
            assert mine["draws"][update][0] == pytest.approx(found["estimate"][update], **near)


def test_spearman_and_released_gap_are_those_of_plain_formulas(effect_run: Path) -> None:
    bank = GAINS.read(effect_run / "gains" / "many").merge(
        POSITIONS.read(effect_run / "positions"), on=["context_id", "position"]
    )
    panel = _read(effect_run, PLACEBO_PANEL).drop_duplicates("statistic").set_index("statistic")["estimate"]
    expected = spearmanr(bank["gain"], bank["logit_alignment"]).statistic
    assert panel["Spearman with logit_alignment"] == pytest.approx(expected, abs=1e-9)
    q3 = bank[
        (bank["student_entropy"] <= bank["student_entropy"].median())
        & (bank["forward_kl"] >= bank["forward_kl"].median())
        & bank["gain_relative"].notna()
    ]
    low, high = q3["compatibility_k16"].quantile([1 / 3, 2 / 3])
    gap = q3[q3["compatibility_k16"] >= high]["gain_relative"].mean()
    gap -= q3[q3["compatibility_k16"] <= low]["gain_relative"].mean()
    assert panel["released gap"] == pytest.approx(gap, rel=1e-6)


def test_panel_and_verdict_have_one_rule(effect_run: Path) -> None:
    """The same step, judged as a step of its own with these draws, is beyond the same placebos by the same margins."""
    plain = effect_run.parent / "alone"
    plant_bank(plain, EFFECT)
    shutil.copytree(effect_run / "gains", plain / "gains", ignore=shutil.ignore_patterns("step*", "*rollouts"))
    shutil.copytree(effect_run / "probes", plain / "probes", ignore=shutil.ignore_patterns("many*"))
    (plain / "probes" / "step.json").rename(plain / "probes" / "many.json")
    run_analysis(plain, QUICK, QUIET)
    panel = _read(effect_run, PLACEBO_PANEL)
    for statistic, claim in ((GAP, CLAIM), ("mean gain", "the step helps"), (RANK, RANK_CLAIM)):
        mine = panel[(panel["statistic"] == statistic) & panel["survives"].notna()]
        found = _read(plain, PRIMARY).set_index("claim").loc[claim]
        nearest = mine[mine["update"] == found["nearest_placebo"]].iloc[0]
        assert nearest["margin"] == pytest.approx(found["margin"], rel=1e-6)
        assert nearest["margin_low"] == pytest.approx(found["margin_low"], rel=1e-6)
        assert nearest["n_draws"] == found["placebo_draws"] == 5
        if found["status"] in ("holds", "reversed"):
            assert mine["survives"].all()


def test_an_effect_of_c_survives_and_holds(effect_run: Path) -> None:
    found = _survives(effect_run, GAP)
    assert found.pop("shuffled_rollouts") is None  # whose teacher is true
    assert set(found.values()) == {True}
    assert _verdict(effect_run, GAP).startswith("Survives: ")
    findings = _read(effect_run, FINDINGS)
    claim = findings[(findings["finding"] == CLAIM) & (findings["k"] == 16)].iloc[0]
    assert claim["status"] == "holds"
    table = panel_table(_read(effect_run, PLACEBO_PANEL), "many")
    assert table["statistic"].tolist() == list(STATISTICS)
    assert table.set_index("statistic")["survives"][GAP] == "yes"


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_without_an_effect_of_c_neither_says_there_is_one(tmp_path: Path) -> None:
    """Gain rises with D alone: both coefficients are real, and their difference is nothing."""
    run = _run(tmp_path, NO_EFFECT_OF_C)
    assert False in _survives(run, GAP).values()
    assert _verdict(run, GAP).startswith("Does not survive: ")
    assert _verdict(run, "Spearman with forward_kl").startswith("Survives: ")
    findings = _read(run, FINDINGS)
    claim = findings[(findings["finding"] == CLAIM) & (findings["k"] == 16)].iloc[0]
    assert claim["status"] == "not shown"


@pytest.mark.usefixtures("quick")
def test_a_placebo_that_shows_the_gap_too_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path, replace(EFFECT, placebo_slope_learnable=0.06), step=False)
    found = _survives(run, GAP)
    assert [found[name] for name in ("shuffled_teacher", "random_direction")] == [False] * 2
    assert found["shuffled_rollouts"] is None
    assert found["theta0"] is True or found["theta0"] == True  # noqa: E712
    sentence = _verdict(run, GAP)
    assert sentence.startswith("Does not survive: ")
    assert "random_direction 0.0" in sentence
    assert "theta0" not in sentence
    assert "The true teacher on dealt responses: shuffled_rollouts 0.0" in sentence


@pytest.mark.usefixtures("quick")
def test_one_draw_is_judged_over_prompts_alone(tmp_path: Path) -> None:
    run = _run(tmp_path, EFFECT, draws=1, step=False)
    rows = _read(run, PLACEBO_PANEL)
    assert rows["draw_sd"].isna().all()
    row = rows[(rows["statistic"] == GAP) & (rows["update"] == "random_direction")].iloc[0]
    assert row["margin_low"] < row["margin"] < row["margin_high"]
    assert "(one draw), difference " in row["sentence"]


@pytest.mark.usefixtures("quick")
def test_a_placebo_without_spread_is_not_compared(tmp_path: Path) -> None:
    run = _run(tmp_path, replace(EFFECT, null_theta0=True), step=False)
    rows = _read(run, PLACEBO_PANEL)
    theta0 = rows[(rows["update"] == "theta0") & (rows["statistic"] == GAP)].iloc[0]
    assert theta0["n_undefined"] == 5
    assert theta0["survives"] is None
    assert "no draw of theta0 has this statistic" in theta0["sentence"]
    assert "(not judged against theta0)" in _verdict(run, GAP)
    assert "## Placebos of the step `many`" in (run / "summary.md").read_text()


def test_csv_holds_the_draws_as_text(effect_run: Path) -> None:
    table = pd.read_csv(effect_run / "analysis" / "placebo_panel.csv")
    draws = [float(x) for x in table["draws"][0].split()]
    assert draws == pytest.approx(list(_read(effect_run, PLACEBO_PANEL)["draws"][0]))


def _copy(rows: pd.DataFrame, run: Path, name: str) -> None:
    from planted import write_gains

    write_gains(run, rows, name)
