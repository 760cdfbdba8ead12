"""Predicted probes: planted laws with a known R2 and exponent, numbers against NumPy and scipy, noise left out."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from planted import World, plant, plant_predicted, predicted_frame
from scipy.stats import spearmanr

from teachdiag.analysis.bank.measurements import Record, load_bank
from teachdiag.analysis.kinds.predicted import (
    Predicted,
    inner_table,
    predicted_rows,
    predicted_sentences,
    predicted_table,
)
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.placebo_draws import pool_draws
from teachdiag.artefacts import ESTIMATES, POSITIONS
from teachdiag.errors import ArtefactError
from teachdiag.figures.plots.predicted import draw_points, draw_remainders, predicted_figure, read_points
from teachdiag.figures.style import save, theme
from teachdiag.settings import SHRINKS

DRAWS = 100
TERMS = ["1", "1/2", "1/4", "1/8"]
Fault = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("predicted") / "run", World())


@pytest.fixture(scope="module")
def table(run: Path) -> pd.DataFrame:
    return predicted_frame(_bank(run), np.random.default_rng(1), curvature=0.02)


@pytest.fixture(scope="module")
def estimates(run: Path, table: pd.DataFrame) -> pd.DataFrame:
    plant_predicted(run, table, "ahead", noise_floor=1e-7)
    return _estimated(run, "ahead")


def _bank(run: Path) -> pd.DataFrame:
    positions = POSITIONS.read(run / "positions")
    return positions[positions["split"] == "bank"].reset_index(drop=True)


def _estimated(run: Path, probe_id: str) -> pd.DataFrame:
    bank = load_bank(run)
    rows = predicted_rows(run, probe_id, bank, Resampling(0, DRAWS, bank.n_prompts))
    return ESTIMATES.build_rows(pool_draws(rows)).to_pandas()


def _number(estimates: pd.DataFrame, analysis: str, term: str) -> pd.Series:
    (row,) = (row for _, row in estimates.iterrows() if (row["analysis"], row["term"]) == (analysis, term))
    return row


def test_numbers_at_each_share_are_numpys(table: pd.DataFrame, estimates: pd.DataFrame) -> None:
    for share, term in zip(SHRINKS, TERMS, strict=True):
        y, p = table[f"gain_at_{round(1 / share)}"].to_numpy(), share * table["predicted_gain"].to_numpy()
        expected = {
            "predicted_r2": 1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
            "predicted_correlation": np.corrcoef(y, p)[0, 1] ** 2,
            "predicted_spearman": spearmanr(y, p).statistic,
            "predicted_remainder": np.sqrt(((y - p) ** 2).mean()),
            "predicted_mean_remainder": np.abs(y - p).mean(),
        }
        for analysis, value in expected.items():
            row = _number(estimates, analysis, term)
            assert row["estimate"] == pytest.approx(value, rel=1e-4), (analysis, term)
            assert row["ci_low"] <= row["estimate"] <= row["ci_high"]
    assert not estimates.duplicated(list(ESTIMATES.key)).any()


def test_intervals_are_those_of_resampled_prompts(table: pd.DataFrame, estimates: pd.DataFrame) -> None:
    prompts = np.unique(table["prompt_id"].to_numpy(str), return_inverse=True)[1]
    counts = Resampling(0, DRAWS, prompts.max() + 1).weights("predicted")[1:]
    miss = (table["gain_at_1"] - table["predicted_gain"]).to_numpy()
    drawn = [np.sqrt(np.average(miss**2, weights=count[prompts])) for count in counts]
    row = _number(estimates, "predicted_remainder", "1")
    np.testing.assert_allclose([row["ci_low"], row["ci_high"]], np.percentile(drawn, [2.5, 97.5]), rtol=1e-4)


def test_a_planted_law_is_recovered(estimates: pd.DataFrame) -> None:
    """Gain = s p - c s^2 h with sd(p) = 0.05 and c = 0.02: R2 = 1 - c^2 s^2 / (0.05^2 + c^2 s^2), slope 2, beta c."""
    for share, term in zip(SHRINKS, TERMS, strict=True):
        law = 1 - (0.02 * share) ** 2 / (0.05**2 + (0.02 * share) ** 2)
        assert _number(estimates, "predicted_r2", term)["estimate"] == pytest.approx(law, abs=0.02)
    for term in ("all shares", "above noise"):
        assert _number(estimates, "predicted_exponent", term)["estimate"] == pytest.approx(2, abs=1e-4)
    assert _number(estimates, "predicted_beta", "1")["estimate"] == pytest.approx(0.02, rel=0.05)
    assert "3 noise floors (1e-07 nats): none" in _number(estimates, "predicted_exponent", "above noise")["method"]


def test_shares_within_the_noise_are_left_out_of_the_exponent(run: Path) -> None:
    noisy = predicted_frame(_bank(run), np.random.default_rng(2), curvature=0.02, rounding=2e-4)
    plant_predicted(run, noisy, "noisy", noise_floor=4e-4)  # rms remainders: 0.02, 0.005, 0.00125, 0.00037
    found = _estimated(run, "noisy")
    every, clean = (_number(found, "predicted_exponent", term) for term in ("all shares", "above noise"))
    assert every["ci_high"] < 1.96
    assert clean["estimate"] == pytest.approx(2, abs=0.02)
    assert "under 3 noise floors (0.0004 nats): 1/8)" in clean["method"]
    assert _number(found, "predicted_noise_floor", "bank")["estimate"] == 4e-4
    assert "(above noise)" in " ".join(predicted_sentences(found, "noisy"))


def test_where_all_is_noise_there_is_no_exponent_above_it(run: Path) -> None:
    noise = predicted_frame(_bank(run), np.random.default_rng(2), curvature=0.0, rounding=1e-6)
    plant_predicted(run, noise, "noise", noise_floor=1e-6)
    found = _estimated(run, "noise")
    assert abs(_number(found, "predicted_exponent", "all shares")["estimate"]) < 0.1
    assert "predicted_beta" not in set(found["analysis"])
    assert "above noise" not in set(found["term"])
    plant_predicted(run, noise, "unknown")
    assert set(_estimated(run, "unknown").query("analysis == 'predicted_exponent'")["term"]) == {"all shares"}


def _tables(run: Path, estimates: pd.DataFrame, median_size: float) -> SimpleNamespace:
    return SimpleNamespace(run=run, estimates=estimates, scale=lambda *_: {"median_size": median_size})


def test_a_step_of_nothing_is_said(run: Path, table: pd.DataFrame) -> None:
    idle = table.assign(predicted_gain=0.0, **{f"gain_at_{round(1 / s)}": 0.0 for s in SHRINKS})
    plant_predicted(run, idle, "idle", noise_floor=0.0)
    found = _estimated(run, "idle")
    assert set(found["analysis"]) == {
        *("predicted_remainder", "predicted_mean_remainder", "predicted_noise_floor"),
        *("inner_spearman", "inner_spearman_difference"),
    }
    told = predicted_sentences(found, "idle")
    assert told[0].startswith("The step changes no position")
    assert told[1].startswith("Too few shares of the step")
    with theme():
        figure = predicted_figure(_tables(run, found, 0.0), "idle")
        figure.canvas.draw()
    assert any("not estimable" in text.get_text() for ax in figure.axes for text in ax.texts)


def test_every_predictor_is_ranked_against_fix_inner(run: Path, table: pd.DataFrame, estimates: pd.DataFrame) -> None:
    bank = _bank(run)
    found = estimates[estimates["analysis"] == "inner_spearman"].set_index("term")["estimate"]
    assert "predicted" not in found.index
    for term, column in (("forward_kl", "forward_kl"), ("entropy", "student_entropy"), ("prefix", "position")):
        expected = spearmanr(bank[column] * (-1 if term == "prefix" else 1), table["fix_inner"]).statistic
        assert found[term] == pytest.approx(expected, abs=1e-5)
    gap = _number(estimates, "inner_spearman_difference", "learnable vs forward_kl")
    assert gap["estimate"] == pytest.approx(found["learnable"] - found["forward_kl"])
    assert gap["ci_high"] < 0


def test_success_is_ranked_beside_its_placebo_where_enough_prompts_were_graded(run: Path, table: pd.DataFrame) -> None:
    rng = np.random.default_rng(5)
    success = {"success_inner": table["fix_inner"] + rng.normal(0, 1, len(table))}
    success |= {"success_inner_shuffled": rng.normal(0, 1, len(table))}
    facts = {"rollouts": 20, "prompts": 9, "right": 5, "left_out": 1, "baseline": "prompt"}
    plant_predicted(run, table.assign(**success), "graded", noise_floor=1e-7, success=facts)
    found = _estimated(run, "graded")
    rows = found[found["analysis"] == "inner_spearman"].set_index(["outcome", "term"])["estimate"]
    for outcome, values in success.items():
        for term, column in (("predicted", table["fix_inner"]), ("forward_kl", _bank(run)["forward_kl"])):
            assert rows[outcome, term] == pytest.approx(spearmanr(column, values).statistic, abs=1e-5)
    assert list(inner_table(found, "graded").columns[:4]) == [
        *("predictor", "fix_inner", "success_inner", "grades shuffled"),
    ]
    told = " ".join(Predicted(Record("graded", "predicted", {}, {"success": facts})).sentences(_results(found)))
    assert "What lowers L_fix and what makes answers right (20 graded rollouts of 9 prompts, 5 of them right)" in told
    few = facts | {"prompts": 7}
    plant_predicted(run, table.assign(**success), "few", noise_floor=1e-7, success=few)
    found = _estimated(run, "few")
    assert set(found[found["analysis"] == "inner_spearman"]["outcome"]) == {"fix_inner"}
    told = Predicted(Record("few", "predicted", {}, {"success": few})).sentences(_results(found))
    assert told[-1].startswith("Success is not judged: it would rest on 20 graded rollouts of 7 prompts")


def _results(estimates: pd.DataFrame) -> Any:
    return SimpleNamespace(estimates=estimates)


def test_order_of_rows_changes_nothing(run: Path, table: pd.DataFrame, estimates: pd.DataFrame) -> None:
    plant_predicted(run, table.sample(frac=1, random_state=3), "shuffled", noise_floor=1e-7)
    found = _estimated(run, "shuffled").assign(probe_id="ahead")
    pd.testing.assert_frame_equal(found, estimates)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda t: t[1:], "are not the bank's 720"),
        (lambda t: t.assign(prompt_id="p999"), "are not the bank's 720"),
        (lambda t: t.assign(gain_at_4=np.nan), "lacks gain_at_4 at some positions"),
    ],
    ids=["row missing", "other prompt", "no gain"],
)
def test_tables_of_another_bank_are_refused(run: Path, table: pd.DataFrame, fault: Fault, message: str) -> None:
    plant_predicted(run, fault(table), "strange")
    with pytest.raises(ArtefactError, match=message):
        _estimated(run, "strange")


def test_sentences_and_tables_say_what_was_planted(estimates: pd.DataFrame) -> None:
    told = predicted_sentences(estimates, "ahead")
    shown = f"{_number(estimates, 'predicted_r2', '1/8')['estimate']:.3g}"
    assert "R2 " in told[0]
    assert f"{shown} [" in told[0]
    assert "to the power 2 [2, 2] (above noise)" in told[1]
    assert "raw KL ranks the inner product with the gradient of L_fix best" in told[2]
    assert "learnable ranks worse than raw KL" in told[3]
    table = predicted_table(estimates, "ahead")
    assert table["share of the step"].tolist() == TERMS
    assert table["R2"].iloc[-1].startswith(shown)
    assert inner_table(estimates, "ahead")["predictor"].iloc[0] == "raw KL"


def test_the_figure_holds_the_tables_numbers(
    run: Path, table: pd.DataFrame, estimates: pd.DataFrame, tmp_path: Path
) -> None:
    points = read_points(run, "ahead")
    dots = draw_points(points, 1e-3, Figure().subplots()).collections[0].get_offsets()
    np.testing.assert_allclose(dots, table[["predicted_gain", "gain_at_8"]] * [1 / 8, 1], rtol=1e-6)
    ax = draw_remainders(estimates, Figure().subplots())
    for line, analysis in zip(ax.get_lines(), ("predicted_remainder", "predicted_mean_remainder"), strict=False):
        rows = estimates[estimates["analysis"] == analysis]
        np.testing.assert_allclose(line.get_xdata(), SHRINKS)
        np.testing.assert_allclose(line.get_ydata(), rows["estimate"])
    guide, floor = ax.get_lines()[2:4]
    assert guide.get_ydata()[0] / guide.get_ydata()[1] == pytest.approx(4)
    assert set(floor.get_ydata()) == {1e-7}
    tables = _tables(run, estimates, table["predicted_gain"].abs().median())
    with theme():
        once, twice = (save(predicted_figure(tables, "ahead"), tmp_path / n, "p") for n in ("a", "b"))
    assert [file.read_bytes() for file in once] == [file.read_bytes() for file in twice]
