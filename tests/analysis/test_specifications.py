"""The specification curve: every choice against its own definition, written down with numpy; the headline's is claimed.

The world is planted: the gain follows D^L more than D^I, under whatever choice.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from planted import World, plant, without_refits

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.bank.measurements import Bank, Step, load_bank, load_step, select_outcome
from teachdiag.analysis.bank.normalised import normalised_scores, raw_scores
from teachdiag.analysis.kinds import kind
from teachdiag.analysis.report.caveats import choices_text
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.cross_validation import draw_folds
from teachdiag.analysis.step.design import GAP, make_sample
from teachdiag.analysis.step.profiles import mean_rows
from teachdiag.analysis.step.regression import regressions
from teachdiag.analysis.step.specifications import WINDOWS, Evidence, agreement_rows, specification_rows
from teachdiag.analysis.step.validity import validity
from teachdiag.artefacts import ESTIMATES, SPECIFICATIONS
from teachdiag.figures.run_tables import load_tables, steps_of
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings

UPDATE = {"loss": "reverse_kl", "optimizer": "adamw", "learning_rate": 1e-5}
CHOICES = list(SPECIFICATIONS.key)


def measured(run: Path) -> tuple[Bank, Step, Evidence]:
    bank = load_bank(run)
    normalised = normalised_scores(bank)
    folds, draws = draw_folds(bank.n_prompts, 3, 2, 0), Resampling(0, 100, bank.n_prompts)
    return bank, load_step(run, "step", bank), Evidence(bank, normalised, raw_scores(bank, normalised), folds, draws)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bank, Step, Evidence]:
    effect = World(slope_learnable=0.06, slope_incompatible=0.01, mean_gain=0.002)
    return measured(plant(tmp_path_factory.mktemp("effect") / "run", effect))


@pytest.fixture(scope="module")
def rows(world: tuple[Bank, Step, Evidence]) -> list[dict]:
    _, step, evidence = world
    return [row for window in WINDOWS for row in specification_rows(step, window, evidence, "redrawn")]


@pytest.fixture(scope="module")
def table(rows: list[dict]) -> pd.DataFrame:
    return SPECIFICATIONS.build_rows([row | UPDATE for row in rows]).to_pandas()


def test_every_combination_of_choices_has_one_row(table: pd.DataFrame) -> None:
    assert not table.duplicated(CHOICES).any()
    counts = pd.crosstab(table["probe_id"], table["quantity"])
    trimmed = 4 * 4 * 3  # outcomes, windows, trimmings
    assert (counts["mean gain"] == trimmed).all()
    assert (counts["beta_L - beta_I"] == trimmed * 3 * 4 * 2 * 2).all()  # K, controls, cuts, measures
    assert (counts[["{D^L, D^I} less raw KL", "C less raw KL"]] == trimmed * 3 * 2).all(axis=None)
    assert (table[table["headline"]].groupby("probe_id").size() == 4).all()


def test_the_headline_is_the_number_that_is_claimed(world: tuple[Bank, Step, Evidence], table: pd.DataFrame) -> None:
    bank, step, evidence = world
    gain = select_outcome(step.real, "gain", bank)
    sample = make_sample([gain], evidence.normalised, 16, bank.n_prompts)
    claimed = pd.DataFrame(
        mean_rows(gain, bank, evidence.resampling)
        + regressions(sample, bank, evidence.resampling)
        + validity([gain], bank, evidence.raw, evidence.folds, evidence.resampling)
    )
    asked = {
        "mean gain": ("mean", "bank", None),
        "beta_L - beta_I": ("slope_decomposition", GAP, 16),
        "{D^L, D^I} less raw KL": ("cv_rank_difference", "decomposition vs forward_kl", 16),
        "C less raw KL": ("cv_rank_difference", "compatibility vs forward_kl", 16),
    }
    headline = table[table["headline"] & (table["probe_id"] == "step")].set_index("quantity")
    for quantity, (analysis, term, k) in asked.items():
        of_term = claimed[(claimed["analysis"] == analysis) & (claimed["term"] == term)]
        (row,) = of_term[of_term["k"].isna() if k is None else of_term["k"] == k].to_dict("records")
        for name in ("estimate", "ci_low", "ci_high", "n_positions", "n_prompts"):
            assert headline.loc[quantity, name] == pytest.approx(row[name], rel=1e-9), (quantity, name)
        assert headline.loc[quantity, "unit"] == row["unit"]


def _kept(
    bank: Bank, step: Step, outcome: str, window: str, trimming: str, update: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values of one outcome of an update by the definitions of window and trimming."""
    t, share = bank.column("position"), bank.column("pos_norm")
    inside = {"all": t >= 0, "first half": share <= 0.5, "second half": share > 0.5}.get(window, t > 2)
    rows = np.flatnonzero(inside)
    if trimming == "ten largest out":
        gain = step.real.column("gain")[rows]
        rows = rows[np.sort(np.argsort(-np.abs(gain - gain.mean()), kind="stable")[10:])]
    (probe,) = (p for p in step.first_draws if p.update == update)
    y = probe.column(outcome)[rows]
    rows, y = rows[~np.isnan(y)], y[~np.isnan(y)]
    if trimming == "winsorised at 1%":
        low, high = np.quantile(y, 0.01), np.quantile(y, 0.99)
        y = np.minimum(np.maximum(y, low), high)
    return rows, y


def _spline(x: np.ndarray) -> list[np.ndarray]:
    return [x, x**2, x**3, np.maximum(x - 1 / 3, 0) ** 3, np.maximum(x - 2 / 3, 0) ** 3]


def _gap(bank: Bank, rows: np.ndarray, y: np.ndarray, k: int, control: str, measure: str) -> float:
    """beta_L - beta_I by least squares on the columns themselves."""

    def normed(name: str) -> np.ndarray:
        column = bank.column(name)
        low, high = np.quantile(column, [0.05, 0.95])
        return np.clip((column - low) / (high - low), 0, 1)[rows]

    h, teacher, d, c = map(normed, ("student_entropy", "teacher_entropy", f"disagreement_k{k}", f"compatibility_k{k}"))
    controls = {
        "none": [],
        "linear": [h, teacher],
        "linear, H x D": [h, teacher, h * d],
        "splines": [*_spline(h), *_spline(teacher)],
    }
    x = np.column_stack([d * c, d * (1 - c), bank.column("pos_norm")[rows], *controls[control]])
    slopes = np.linalg.lstsq(np.column_stack([np.ones(len(x)), x]), y, rcond=None)[0][1:]
    if measure == "standardised":
        slopes = slopes * x.std(axis=0) / y.std()
    return float(slopes[0] - slopes[1])


def test_means_and_coefficients_are_what_each_choice_says(
    world: tuple[Bank, Step, Evidence], table: pd.DataFrame
) -> None:
    bank, step, _ = world
    judged = table[table["quantity"].isin(["mean gain", "beta_L - beta_I"])].sample(150, random_state=3)
    assert set(judged["control"].dropna()) == set(table["control"].dropna())
    for row in judged.to_dict("records"):
        rows, y = _kept(bank, step, row["outcome"], row["window"], row["trimming"], row["update"])
        if row["quantity"] == "mean gain":
            expected = y.mean()
        else:
            expected = _gap(bank, rows, y, int(row["k"]), row["control"], row["measure"])
        assert row["estimate"] == pytest.approx(expected, rel=1e-6, abs=1e-12), row
        assert row["n_positions"] == len(y)
        assert row["outcome_spread"] == pytest.approx(y.std())


def test_the_same_cuts_give_narrower_intervals_and_the_same_estimates(table: pd.DataFrame) -> None:
    gaps = table[table["quantity"] == "beta_L - beta_I"].set_index(CHOICES)
    redrawn, fixed = (gaps.xs(cuts, level="cuts") for cuts in ("redrawn", "fixed"))
    pd.testing.assert_series_equal(redrawn["estimate"], fixed["estimate"])
    assert not np.allclose(redrawn["ci_low"], fixed["ci_low"])


def test_agreement_counts_signs_and_sides(
    world: tuple[Bank, Step, Evidence], rows: list[dict], table: pd.DataFrame
) -> None:
    bank, step, _ = world
    found = {(row["probe_id"], row["term"]): row["estimate"] for row in agreement_rows(rows, step, bank)}
    side = (table["ci_low"] > 0).astype(int) - (table["ci_high"] < 0).astype(int)
    for (probe_id, quantity), own in table.groupby(["probe_id", "quantity"]):
        headline = table[table["headline"] & (table["probe_id"] == "step") & (table["quantity"] == quantity)].index[0]
        signs = np.sign(own["estimate"]) == np.sign(table.loc[headline, "estimate"])
        assert found[probe_id, f"{quantity}: specifications"] == len(own)
        assert found[probe_id, f"{quantity}: same sign"] == pytest.approx(signs.mean())
        assert found[probe_id, f"{quantity}: same side of 0"] == pytest.approx(
            (side[own.index] == side[headline]).mean()
        )
    estimates = pd.DataFrame(agreement_rows(rows, step, bank))
    of_gap = [found["step", f"beta_L - beta_I: {term}"] for term in ("same sign", "same side of 0")]
    assert f"2304 of beta_L - beta_I: {of_gap[0]:.0%} and {of_gap[1]:.0%}; " in choices_text(estimates, "step")
    assert choices_text(estimates, "another") == ""
    assert found["step", "beta_L - beta_I: same side of 0"] > 0.95  # as planted
    assert found["step.theta0", "beta_L - beta_I: same side of 0"] < 0.2


def test_a_large_bank_has_those_of_a_bank_of_some_of_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth is a run that holds every third prompt and nothing else."""
    without_refits(monkeypatch)
    effect = World(prompts=30, positions=12, slope_learnable=0.06, mean_gain=0.01)
    large, small = plant(tmp_path / "large", effect), plant(tmp_path / "small", effect)
    chosen = pa.array(load_bank(large).names[::3])
    for shard in [*(small / "positions").iterdir(), *(small / "gains").glob("*/*")]:
        content = pq.read_table(shard)
        pq.write_table(content.filter(pc.is_in(content["prompt_id"], chosen)), shard)
    found = []
    for run, part in ((small, 10**6), (large, 10)):
        monkeypatch.setattr(kind, "_PART", (part, 1))
        run_analysis(run, AnalyzeSettings(draws=100, fold_repeats=2), Reporter(quiet=True))
        (step,) = steps_of(load_tables(run))
        assert step.specified_population.endswith(", specifications on 10 of these, evenly spaced") == (run == large)
        estimates = ESTIMATES.read(ESTIMATES.file(run))
        assert choices_text(estimates, "step").endswith("They are of 10 of the bank's 30 prompts.") == (run == large)
        rows = estimates[estimates["analysis"] == "specifications"].reset_index(drop=True)
        found.append([SPECIFICATIONS.read(SPECIFICATIONS.file(run)), rows])
    for of_small, of_large in zip(*found, strict=True):
        assert set(of_large["n_prompts"]) <= {10, 0}
        assert not of_small["method"].str.contains("evenly").any()
        expected = of_small.assign(method=of_small["method"] + "; of 10 of 30 prompts, evenly spaced")
        pd.testing.assert_frame_equal(of_large, expected)


def test_a_large_bank_is_not_refused_for_what_its_part_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part has fewer prompts than folds are asked for; then its C is 1 everywhere, which the bank's is not."""
    without_refits(monkeypatch)
    monkeypatch.setattr(kind, "_PART", (10, 1))
    run = plant(tmp_path / "run", World(prompts=30, positions=12, slope_learnable=0.06, mean_gain=0.01))
    settings = AnalyzeSettings(draws=100, fold_repeats=2, folds=20)
    run_analysis(run, settings, Reporter(quiet=True))
    rows = SPECIFICATIONS.read(SPECIFICATIONS.file(run))
    assert set(rows["n_prompts"]) == {10}
    assert rows["estimate"].notna().mean() > 0.9
    chosen = pa.array(load_bank(run).names[::3])
    for shard in (run / "positions").iterdir():
        content = pq.read_table(shard)
        number = content.schema.names.index("compatibility_k16")
        saturated = pc.if_else(pc.is_in(content["prompt_id"], chosen), np.float32(1), content["compatibility_k16"])
        pq.write_table(content.set_column(number, "compatibility_k16", saturated), shard)
    run_analysis(run, settings, Reporter(quiet=True))
    rows = SPECIFICATIONS.read(SPECIFICATIONS.file(run))
    assert set(rows["n_prompts"]) == {30}
    assert not rows["method"].str.contains("evenly").any()


def test_what_cannot_be_estimated_says_why(tmp_path: Path) -> None:
    """Responses of three tokens leave nothing in a window; a constant outcome has a mean and nothing else."""
    bank, step, evidence = measured(plant(tmp_path / "run", World(positions=3, prompts=60, null_theta0=True)))
    short = pd.DataFrame(specification_rows(step, "without the first three", evidence, "redrawn"))
    assert short["estimate"].isna().all()
    assert set(short["method"]) == {"the outcome is there in 0 prompts of the 8 needed"}
    whole = pd.DataFrame(specification_rows(step, "all", evidence, "redrawn"))
    still = whole[(whole["update"] == "theta0") & (whole["outcome"] == "gain")]
    assert set(still.loc[still["quantity"] == "mean gain", "estimate"]) == {0}
    assert set(still.loc[still["quantity"] != "mean gain", "method"]) == {"exactly 0 everywhere"}
    assert not agreement_rows(short.assign(window="all").to_dict("records"), step, bank)
