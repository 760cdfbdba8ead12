"""The selector experiment: every statistic against plain loops, planted effects found, absent ones not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import World, plant_probe
from planted_interventions import Experiment, built, plant_bank, plant_lds, plant_placebos, plant_selectors
from scipy.stats import spearmanr
from stages import ROOT

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.bank.measurements import load_bank
from teachdiag.analysis.kinds.gain_matrix import load_cells
from teachdiag.analysis.kinds.selector_gains import draw_seeds_and_prompts, gain_statistics
from teachdiag.analysis.kinds.selectors import selection_sentences, selection_table
from teachdiag.analysis.report.result_block import result_block, study_block
from teachdiag.analysis.report.summary import terminal_tables
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.resampling.two_way import over_seeds, two_way
from teachdiag.artefacts import (
    ESTIMATES,
    FINDINGS,
    INTERVENTION_GAINS,
    INTERVENTIONS,
    PLACEBO_PANEL,
    POSITIONS,
    SELECTION,
)
from teachdiag.errors import ArtefactError, EstimationError
from teachdiag.figures.publish import draw_figures
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings
from teachdiag.tables import Table, shard_path, write_parquet

QUIET = Reporter(quiet=True)
QUICK = AnalyzeSettings(draws=100)
WORLD = World(prompts=12, positions=20)
EFFECTS = {"random": 0.004, "learnable": 0.008, "forward_kl": 0.006, "incompatible": 0.001, "predicted": 0.009}
WHAT = Experiment(effects=EFFECTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any step that goes through the full analysis."""
    run = tmp_path_factory.mktemp("chosen") / "run"
    plant_selectors(run, plant_bank(run, WORLD), WHAT)
    run_analysis(run, QUICK, QUIET)
    return run


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has every kind which this stage compares, and a real step."""
    run = tmp_path_factory.mktemp("full") / "run"
    positions = plant_bank(run, WORLD)
    rng = np.random.default_rng(5)
    plant_probe(run, positions, World(prompts=12, positions=20, slope_learnable=0.06), rng, "step")
    plant_selectors(run, positions, WHAT)
    plant_lds(run, positions, positions[positions["split"] == "update"]["forward_kl"].to_numpy())
    plant_placebos(run, positions, World(prompts=12, positions=20, slope_learnable=0.06), draws=3)
    run_analysis(run, QUICK, QUIET)
    return run


def _read(run: Path, table: Table) -> pd.DataFrame:
    return table.read(run / "analysis" / f"{table.name}.parquet")


def _rows(run: Path, statistic: str, selector: str = "learnable") -> pd.Series:
    """Return one statistic of one selector at 10%, equal norm."""
    rows = _read(run, SELECTION)
    rows = rows[(rows["statistic"] == statistic) & (rows["selector"] == selector)]
    rows = rows[(rows["budget"] == 0.1) & (rows["match"] == "norm")]
    assert len(rows) == 1
    return rows.iloc[0]


def _bank(run: Path) -> pd.DataFrame:
    gains, positions = INTERVENTION_GAINS.read(run / "intervention_gains"), POSITIONS.read(run / "positions")
    return gains.merge(positions, on=["context_id", "position", "prompt_id"])


def _cell(bank: pd.DataFrame, selector: str, budget: float, seed: int, match: str = "norm") -> pd.DataFrame:
    mine = bank[(bank["selector"] == selector) & (bank["budget"] == budget)]
    return mine[(mine["seed"] == seed) & (mine["match"] == match)]


def _of_cell(bank: pd.DataFrame, statistic: str, seed: int, prompts: np.ndarray) -> float:
    """Compute a statistic of `learnable` at 10%, equal norm, in one cell, its rows stacked as often as prompts say."""

    def stacked(selector: str, budget: float) -> pd.DataFrame:
        cell = _cell(bank, selector, budget, seed)
        return pd.concat([cell[cell["prompt_id"] == name] for name in prompts])

    mine = stacked("learnable", 0.1)
    if statistic.startswith("mean_gain_vs"):
        other = ("random", 0.1) if statistic.endswith("random") else ("all", 1.0)
        return float(mine["gain"].mean() - stacked(*other)["gain"].mean())
    if statistic == "mean_gain":
        return float(mine["gain"].mean())
    if statistic == "gain_per_kept":
        return float(mine["gain"].mean() / 9)
    once = _cell(bank, "learnable", 0.1, seed)
    entropy, kl = once["student_entropy"].median(), once["forward_kl"].median()
    inside = mine[(mine["student_entropy"] <= entropy) & (mine["forward_kl"] >= kl)]
    if statistic == "gain_q3":
        return float(inside["gain"].mean())
    q3 = once[(once["student_entropy"] <= entropy) & (once["forward_kl"] >= kl)]
    lower, upper = np.quantile(q3["compatibility_k16"], [1 / 3, 2 / 3])
    relative, c = inside["gain"] / inside["forward_kl_before"], inside["compatibility_k16"]
    return float(relative[c >= upper].mean() - relative[c <= lower].mean())


def _loops(bank: pd.DataFrame, statistic: str, n_draws: int) -> list[float]:
    """Return a statistic and its draws, each the mean over the seeds that the draw holds, one by one."""
    names = np.unique(bank["prompt_id"])
    draws = two_way(Resampling(QUICK.seed, QUICK.draws, len(names)), WHAT.seeds)
    found = []
    for seed_counts, prompt_counts in zip(draws.seeds[: n_draws + 1], draws.prompts, strict=False):
        prompts = np.repeat(names, prompt_counts.astype(int))
        seeds = np.repeat(np.arange(WHAT.seeds), seed_counts.astype(int))
        found.append(float(np.mean([_of_cell(bank, statistic, int(seed), prompts) for seed in seeds])))
    return found


@pytest.mark.parametrize(
    "statistic", ["mean_gain", "mean_gain_vs_random", "mean_gain_vs_all", "gain_per_kept", "gain_q3", "released_gap"]
)
def test_gains_and_their_draws_are_those_of_loops(run: Path, statistic: str) -> None:
    bank = load_bank(run)
    cells = load_cells(run, "chosen", bank)
    draws = draw_seeds_and_prompts(cells, Resampling(QUICK.seed, QUICK.draws, bank.n_prompts))
    groups, group = cells.groups
    wanted = (groups["selector"] == "learnable") & (groups["budget"] == 0.1) & (groups["match"] == "norm")
    (found,) = (s for s in gain_statistics(cells, bank, 1e-5, draws.prompts) if s.name == statistic)
    samples = over_seeds(found.values, group, cells.seeds, draws.seeds)[:, np.flatnonzero(wanted)[0]]
    np.testing.assert_allclose(samples[:13], _loops(_bank(run), statistic, 12), rtol=2e-5, atol=1e-12)
    row = _rows(run, statistic)
    expected = [samples[0], *np.percentile(samples[1:], [2.5, 97.5])]
    assert row[["estimate", "ci_low", "ci_high"]].tolist() == pytest.approx(expected, rel=1e-6)


def test_composition_is_a_plain_mean_over_seeds(run: Path) -> None:
    table = INTERVENTIONS.read(run / "interventions")
    mine = table[(table["selector"] == "learnable") & (table["budget"] == 0.1) & (table["match"] == "norm")]
    for name in ("keep", "q3_share", "mean_learnable", "update_norm", "first_order_gain"):
        row = _rows(run, name)
        assert row["estimate"] == pytest.approx(mine[name].mean())
        assert "bootstrap over update seeds," in row["method"]
    assert _rows(run, "keep")[["ci_low", "ci_high"]].tolist() == pytest.approx([0.1, 0.1])


def test_the_variance_over_seeds_and_prompts_is_the_analytic_one() -> None:
    """Of a_s + b_p, the mean has variance var(a) / S + var(b) (P - 1) / P / P; S - 1 draws make the first unbiased."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 4), rng.normal(0, 2, 15)
    draws = two_way(Resampling(1, 40_000, 15), 4)
    per_seed = a[None] + (draws.prompts @ b / 15)[:, None]
    samples = over_seeds(per_seed, np.zeros(4, np.int64), np.arange(4), draws.seeds)[1:, 0]
    expected = a.var(ddof=1) / 4 + b.var() / 15
    assert samples.var() == pytest.approx(expected, rel=0.03)


def test_a_seed_that_lacks_a_cell_does_not_count() -> None:
    values, weights = np.array([[1.0, 3.0, 10.0]]), np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    found = over_seeds(values, np.array([0, 0, 1]), np.array([0, 1, 0]), weights)
    np.testing.assert_array_equal(found, [[2.0, 10.0], [1.0, 10.0], [3.0, np.nan]])


def test_one_seed_resamples_prompts_alone_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    plant_selectors(run, plant_bank(run, WORLD), replace(WHAT, seeds=1))
    run_analysis(run, QUICK, QUIET)
    gain, keep = _rows(run, "mean_gain"), _rows(run, "keep")
    assert "one update seed, so only prompts are resampled" in gain["method"]
    assert gain["ci_low"] < gain["ci_high"]
    assert np.isnan(keep["ci_low"])
    assert "no interval" in keep["method"]


def test_few_batches_give_no_verdict(run: Path) -> None:
    """Two or three batches make intervals that are far too short: differences are shown, and not judged."""
    few = _read(run, SELECTION).assign(n_seeds=3)
    said = selection_sentences(few, _read(run, ESTIMATES), "chosen")
    assert any("`learnable` (TA-OPD) is not judged (3 batches are too few) against random positions" in s for s in said)
    assert not any("gains more than" in s or s.startswith("Selectors whose kept part") for s in said)


def test_planted_effects_are_found_and_absent_ones_are_not(tmp_path: Path, run: Path) -> None:
    assert _rows(run, "mean_gain_vs_random")["ci_low"] > 0
    assert _rows(run, "mean_gain_vs_random", "incompatible")["ci_high"] < 0
    selection = _read(run, SELECTION).query("statistic == 'mean_gain_vs_random'")
    assert set(selection["selector"]) == EFFECTS.keys() - {"random"}
    said = selection_sentences(_read(run, SELECTION), _read(run, ESTIMATES), "chosen")
    assert any("`learnable` (TA-OPD) gains more than random positions at equal step length" in s for s in said)
    assert any("at equal step length `predicted`" in s for s in said if s.startswith("Largest mean gain of 5"))
    null = tmp_path / "null"
    plant_selectors(null, plant_bank(null, WORLD), replace(WHAT, effects=dict.fromkeys(EFFECTS, 0.004)))
    run_analysis(null, QUICK, QUIET)
    said = selection_sentences(_read(null, SELECTION), _read(null, ESTIMATES), "chosen")
    assert any("`learnable` (TA-OPD) cannot be told from random positions at equal step length" in s for s in said)


def test_the_released_gap_is_no_gain(tmp_path: Path) -> None:
    """Where high C gains more of its KL, the statistic is large whatever the selector gains."""
    run = tmp_path / "run"
    plant_selectors(run, plant_bank(run, WORLD), replace(WHAT, high_c_bonus=0.5, noise=1e-4))
    run_analysis(run, QUICK, QUIET)
    found = [_rows(run, "released_gap", name)["estimate"] for name in ("learnable", "incompatible")]
    assert found[0] == pytest.approx(found[1], abs=0.02)
    assert found[0] > 0.05
    assert _rows(run, "mean_gain")["estimate"] > _rows(run, "mean_gain", "incompatible")["estimate"] + 0.005


def test_first_order_agreement_is_within_batch_and_budget(run: Path) -> None:
    table = INTERVENTIONS.read(run / "interventions").query("selector != 'all'")
    rows = _read(run, ESTIMATES).query("analysis == 'first_order_agreement'").set_index("term")
    for match in ("rate", "norm"):
        cells = table[table["match"] == match]
        gain, form = cells["mean_gain"], cells["first_order_gain"]
        centred = cells.groupby(["seed", "budget"])[["mean_gain", "first_order_gain"]].transform(lambda x: x - x.mean())
        rank = spearmanr(centred["mean_gain"], centred["first_order_gain"]).statistic
        assert rows["estimate"][f"spearman ({match})"] == pytest.approx(rank, abs=1e-6)
        r2 = 1 - ((gain - form) ** 2).sum() / (centred["mean_gain"] ** 2).sum()
        assert rows["estimate"][f"r2 ({match})"] == pytest.approx(r2, rel=1e-4)


def test_the_released_statistic_is_ranked_against_mean_gain(run: Path) -> None:
    selection = _read(run, SELECTION)
    wide = selection[(selection["match"] == "norm") & (selection["budget"] < 1)].pivot_table(
        index=["selector", "budget"], columns="statistic", values="estimate"
    )
    rows = _read(run, ESTIMATES).query("analysis == 'released_agreement'").set_index("term")
    expected = spearmanr(wide["released_gap"], wide["mean_gain"]).statistic
    assert rows["estimate"]["spearman (norm)"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_a_part_of_the_bank_is_enough_but_not_too_small_a_part(tmp_path: Path) -> None:
    run = tmp_path / "run"
    plant_selectors(run, plant_bank(run, WORLD), replace(WHAT, contexts=9))
    run_analysis(run, QUICK, QUIET)
    assert _rows(run, "mean_gain")[["n_positions", "n_prompts"]].tolist() == [180, 9]
    few = tmp_path / "few"
    plant_selectors(few, plant_bank(few, WORLD), replace(WHAT, contexts=7))
    with pytest.raises(EstimationError, match=r"probe chosen rescored 7 prompts .* more --bank-contexts"):
        run_analysis(few, QUICK, QUIET)


@pytest.mark.parametrize("fault", ["row missing", "other prompt", "other cell"])
def test_cells_of_another_bank_are_refused(tmp_path: Path, fault: str) -> None:
    run = tmp_path / "run"
    plant_selectors(run, plant_bank(run, WORLD), replace(WHAT, seeds=1, matches=("rate",)))
    shard = shard_path(run / "intervention_gains" / "chosen", 0)
    rows = INTERVENTION_GAINS.read(shard)
    messages = {
        "row missing": "do not all hold the same positions",
        "other prompt": "positions that are not the bank's",
        "other cell": "cells that are not the 11 of the interventions",
    }
    if fault == "row missing":
        rows = rows[1:]
    elif fault == "other prompt":
        rows.loc[0, "prompt_id"] = "p999"
    else:
        rows["selector"] = "stranger"
    write_parquet(built(rows), shard)
    with pytest.raises(ArtefactError, match=messages[fault]):
        run_analysis(run, QUICK, QUIET)


@pytest.mark.slow
@pytest.mark.usefixtures("png_alone")
def test_tables_sentences_and_figures_of_a_run_without_a_step(run: Path) -> None:
    assert _read(run, FINDINGS).empty
    assert _read(run, PLACEBO_PANEL).empty
    for unique in (SELECTION, ESTIMATES):
        assert not _read(run, unique).duplicated(list(unique.key)).any()
    table = selection_table(_read(run, SELECTION), "chosen", 0.1)
    assert table["selector"].tolist()[0] == "predicted"
    assert table["selector"].tolist()[-1] == "all (budget 1)"
    assert len(terminal_tables(run)) == 1
    assert {file.stem for file in draw_figures(run, QUIET)} >= {"plane", "budget_curve"}


@pytest.mark.slow
@pytest.mark.usefixtures("png_alone")
def test_a_run_of_many_kinds(full_run: Path) -> None:
    names = {file.stem for file in draw_figures(full_run, QUIET) if file.suffix == ".png"}
    assert names >= {"plane", "coefficients", "q3_contrast", "deciles", "budget_curve", "lds", "placebo_panel"}
    assert len(terminal_tables(full_run)) == 3
    text = (full_run / "summary.md").read_text()
    for title in ("## Step `step`", "## Selectors `chosen`", "## Token-LDS `masks`", "## Placebos of the step `many`"):
        assert title in text
    assert all(f"figures/{name}.png" in text for name in names)
    block = study_block([full_run, full_run])
    assert block.count("**Which positions should carry the loss?**") == 2
    assert "Beyond every null placebo, " in block
    assert "the true teacher on responses dealt to other prompts gains" in block
    assert block.count("Standardised coefficients") == 2
    first_page = result_block(full_run)
    assert "Standardised coefficients" not in first_page
    assert "Primary claims, `step`" in first_page
    estimates = _read(full_run, ESTIMATES)
    assert set(estimates[estimates["analysis"] == "mean"]["probe_id"].str.partition(".")[0]) == {"step"}


@pytest.mark.slow
def test_every_new_name_is_explained(full_run: Path) -> None:
    page = (ROOT / "docs/analysis.md").read_text()
    names = {*_read(full_run, SELECTION)["statistic"], *_read(full_run, PLACEBO_PANEL)["statistic"]}
    names |= set(_read(full_run, ESTIMATES)["analysis"].str.removesuffix("_beyond_placebo"))
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_row_order_changes_nothing(run: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "run"
    plant_selectors(shuffled, plant_bank(shuffled, WORLD), WHAT)
    rows = INTERVENTION_GAINS.read(shuffled / "intervention_gains").sample(frac=1, random_state=1)
    for shard in (shuffled / "intervention_gains" / "chosen").iterdir():
        shard.unlink()
    write_parquet(built(rows), shard_path(shuffled / "intervention_gains" / "chosen", 0))
    run_analysis(shuffled, QUICK, QUIET)
    for table in (SELECTION, ESTIMATES):
        pd.testing.assert_frame_equal(_read(shuffled, table), _read(run, table))
