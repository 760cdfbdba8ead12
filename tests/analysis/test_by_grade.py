"""Numbers by grade of the response: against pandas and least squares written out, and a planted difference found.

Every prompt of these banks has two responses, made of two planted ones.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from contrast_worlds import percentiles
from planted import (
    World,
    bank_frame,
    claims_alone,
    decomposition,
    finish_capture,
    finish_probe,
    gains_frame,
    plant,
    plant_grades,
    write_gains,
    write_positions,
)

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.bank.graded import Graded, load_grades
from teachdiag.analysis.bank.measurements import Bank, load_bank
from teachdiag.analysis.bank.normalised import normalised_scores, raw_scores
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.by_grade import Quantity, bank_quantities, mean_rows
from teachdiag.analysis.step.cross_validation import draw_folds
from teachdiag.analysis.step.specifications import Evidence
from teachdiag.artefacts import BY_GRADE, GRADES
from teachdiag.errors import ArtefactError, RunError
from teachdiag.figures.report.html import write_report
from teachdiag.notes import write_note
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import AnalyzeSettings, ReportSettings

WORLD = World(prompts=40, positions=15, slope_learnable=0.08, noise=0.005)
PAIRS = (*[("right", "wrong")] * 3, ("right", "unparseable"), ("wrong", "unparseable"))


@pytest.fixture(scope="module")
def graded_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A run whose step follows D^L in right responses alone; the bank with its grades and gains."""
    run, rng = tmp_path_factory.mktemp("graded") / "run", np.random.default_rng(0)
    bank = bank_frame(WORLD, rng)
    pairs = bank["context_id"] // 2
    bank["prompt_id"] = [f"p{number:02d}" for number in pairs]
    write_positions(run, bank)
    finish_capture(run, WORLD)
    grades = {context: PAIRS[context // 2 % len(PAIRS)][context % 2] for context in bank["context_id"].unique()}
    plant_grades(run, bank, grades)
    bank["grade"] = bank["context_id"].map(grades)
    for update in ("one_step", "theta0", "random_direction"):
        gains = gains_frame(bank, WORLD, rng, "step", update)
        if update == "one_step":
            gains["gain"] -= np.where(bank["grade"] == "right", 0, WORLD.slope_learnable * decomposition(bank)[0])
            bank["gain"] = gains["gain"].astype(np.float32).astype(np.float64)
        write_gains(run, gains, "step" if update == "one_step" else f"step.{update}")
    finish_probe(run, "step")
    return run, bank


def _evidence(bank: Bank, draws: int = 60) -> Evidence:
    normalised = normalised_scores(bank)
    resampling = Resampling(0, draws, bank.n_prompts)
    return Evidence(bank, normalised, raw_scores(bank, normalised), draw_folds(bank.n_prompts, 5, 2, 0), resampling)


def _graded(run: Path, bank: Bank) -> Graded:
    graded = load_grades(run, bank)
    assert graded is not None
    return graded


def test_means_by_grade_and_their_differences_are_those_of_tables_written_out(
    graded_run: tuple[Path, pd.DataFrame],
) -> None:
    run, frame = graded_run
    bank = load_bank(run)
    evidence = _evidence(bank)
    rows = pd.DataFrame(mean_rows(bank_quantities(bank, evidence.normalised), _graded(run, bank), evidence))
    found = rows.set_index(["quantity", "group"])
    frame = frame.assign(learnable=decomposition(frame)[0], code=np.unique(frame["prompt_id"], return_inverse=True)[1])
    for quantity, column in (("forward_kl", "forward_kl"), ("compatibility", "compatibility_k16"), ("learnable",) * 2):
        drawn = {"right": [], "wrong": [], "right - wrong": [], "right - wrong, same prompt": []}
        for counts in evidence.resampling.weights("mean"):
            weights = counts[frame["code"]]
            for grade in ("right", "wrong"):
                inside = frame["grade"] == grade
                drawn[grade].append(np.average(frame.loc[inside, column], weights=weights[inside]))
            drawn["right - wrong"].append(drawn["right"][-1] - drawn["wrong"][-1])
            each = frame.pivot_table(index="code", columns="grade", values=column, aggfunc="mean")
            within = (each["right"] - each["wrong"]).dropna()
            drawn["right - wrong, same prompt"].append(np.average(within, weights=counts[within.index]))
        for group, values in drawn.items():
            row = found.loc[(quantity, group)]
            truth = [values[0], *percentiles(values, bank.n_prompts)]
            np.testing.assert_allclose([row["estimate"], row["ci_low"], row["ci_high"]], truth, rtol=1e-9, atol=1e-12)
    counts = found.loc["forward_kl"]
    by_grade = frame.groupby("grade")
    assert counts.loc["right", "n_responses"] == by_grade["context_id"].nunique()["right"]
    assert counts.loc["wrong", "n_prompts"] == by_grade["prompt_id"].nunique()["wrong"]
    assert counts.loc["unparseable", "n_positions"] == by_grade.size()["unparseable"]


def test_too_few_prompts_have_no_interval(graded_run: tuple[Path, pd.DataFrame]) -> None:
    bank = load_bank(graded_run[0])
    contexts = np.asarray(bank.positions["context_id"])
    graded = Graded(np.where(contexts < 10, 0, 1), contexts)  # five prompts are right
    kl = Quantity("forward_kl", "nats", values=bank.column("forward_kl"))
    rows = {row["group"]: row for row in mean_rows([kl], graded, _evidence(bank))}
    assert rows.keys() == {"right", "wrong", "right - wrong"}
    assert rows["wrong"]["ci_low"] < rows["wrong"]["estimate"] < rows["wrong"]["ci_high"]
    for group in ("right", "right - wrong"):
        assert rows[group]["ci_low"] is None
        assert "no interval from 5 prompts, where 8 are needed" in rows[group]["method"]


def test_a_step_that_teaches_right_responses_alone_is_told(
    graded_run: tuple[Path, pd.DataFrame], quiet: Reporter
) -> None:
    run, frame = graded_run
    run_analysis(run, AnalyzeSettings(draws=100), quiet)
    table = BY_GRADE.read(BY_GRADE.file(run))
    rows = table[table["probe_id"] == "step"].set_index(["quantity", "group"])
    learnable, incompatible = decomposition(frame)
    for grade in ("right", "wrong", "unparseable"):
        inside = (frame["grade"] == grade).to_numpy()
        entropies = [_normed(frame[f"{model}_entropy"]) for model in ("student", "teacher")]
        design = np.column_stack([np.ones(len(frame)), learnable, incompatible, *entropies, frame["pos_norm"]])[inside]
        coefficients = np.linalg.lstsq(design, frame.loc[inside, "gain"], rcond=None)[0]
        gap = rows.loc[("beta_L - beta_I", grade)]
        assert gap["estimate"] == pytest.approx(coefficients[1] - coefficients[2], rel=1e-4)
        assert (gap["ci_low"] > 0) == (grade == "right")
        assert rows.loc[("mean gain", grade), "estimate"] == pytest.approx(frame.loc[inside, "gain"].mean(), rel=1e-5)
    for quantity in ("mean gain", "beta_L - beta_I"):
        assert rows.loc[(quantity, "right - wrong"), "ci_low"] > 0, quantity
    ranked = rows.loc["{D^L, D^I} less raw KL", "estimate"]
    assert ranked["right - wrong"] == pytest.approx(ranked["right"] - ranked["wrong"])
    assert ranked["right - wrong"] > 0
    placebo = table[table["probe_id"] == "step.random_direction"].set_index(["quantity", "group"])
    less = placebo.loc[("beta_L - beta_I", "right - wrong")]
    assert less["ci_low"] < 0 < less["ci_high"]
    summary = (run / "summary.md").read_text()
    assert "## By grade of the response\n\nThe bank's responses: 16 right, 16 wrong, 8 unparseable." in summary
    write_report(run, ReportSettings(), quiet)
    report = (run / "report.html").read_text()
    assert '<details id="grades"><summary>By grade of the response</summary>' in report


def test_a_run_without_grades_says_nothing_of_them(
    tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims_alone(monkeypatch)
    run = plant(tmp_path / "run", World(prompts=9, positions=8))
    run_analysis(run, AnalyzeSettings(draws=100), quiet)
    assert BY_GRADE.read(BY_GRADE.file(run)).empty
    assert "By grade" not in (run / "summary.md").read_text()


def test_grades_that_are_unfinished_or_not_the_banks_are_refused(tmp_path: Path, quiet: Reporter) -> None:
    run = plant(tmp_path / "run", World(prompts=9, positions=8))
    bank = load_bank(run)
    frame = pd.DataFrame({"context_id": [0, 1], "prompt_id": ["a", "b"]})
    plant_grades(run, frame, {0: "right", 1: "wrong"})
    with pytest.raises(ArtefactError, match=r"has no grade of context 2: delete grade.json"):
        load_grades(run, bank)
    note = Stage(run, "grade")
    content = note.read()
    assert content is not None
    write_note({key: value for key, value in content.items() if key != "sha256"} | {"status": "running"}, note.note)
    with pytest.raises(RunError, match=rf"run `teachdiag capture --grade --run {run}` again to continue it"):
        load_grades(run, bank)
    assert len(GRADES.read(run / "grades")) == 2


def _normed(column: pd.Series) -> np.ndarray:
    low, high = np.quantile(column, [0.05, 0.95])
    return np.clip((column - low) / (high - low), 0, 1).to_numpy()
