"""Teachers of one bank beside one another.

The truth: plain means over the same tokens, and a bootstrap in plain loops.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from graded import write_graded
from tiny_pair import EFFICIENCY_PROBE, PROBE, save_model
from typer.testing import CliRunner

from teachdiag.analysis.teachers.compare import lacking_probes, run_compare_teachers
from teachdiag.artefacts import GRADES, POSITIONS, PREDICTIONS
from teachdiag.cli import app
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.probe import run_probe
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, CompareTeachersSettings, ProbeSettings
from teachdiag.tables import write_parquet

D, C = "disagreement_k16", "compatibility_k16"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, captured_once: Path, tiny_settings: CaptureSettings) -> list[Path]:
    """The tiny pair's bank under its own teacher, and under one that is nothing like the student."""
    folder = tmp_path_factory.mktemp("teachers")
    shutil.copytree(captured_once, folder / "near")
    other = replace(tiny_settings, teacher=save_model(folder / "model", seed=9), contexts=str(folder / "near/contexts"))
    brought = replace(other, prompts="gsm_symbolic", bank_prompts=64, update_prompts=64)
    run_capture(folder / "far", brought, Reporter(quiet=True))
    return [folder / "near", folder / "far"]


def bank(run: Path) -> pd.DataFrame:
    table = POSITIONS.read(run / "positions")
    return table[table["split"] == "bank"].sort_values(["context_id", "position"]).astype({D: float, C: float})


def compared(runs: list[Path], **options: int) -> pd.DataFrame:
    rows = run_compare_teachers(CompareTeachersSettings(runs=[str(run) for run in runs], **options))["rows"]
    return pd.DataFrame(rows).set_index(["measure", "run"])


def test_measures_are_means_over_the_same_tokens(runs: list[Path]) -> None:
    near, far = map(bank, runs)
    truth = {
        "log q of the student's tokens": (near["teacher_logp"].mean(), far["teacher_logp"].mean()),
        "raw KL": (near["forward_kl"].mean(), far["forward_kl"].mean()),
        "D": (near[D].mean(), far[D].mean()),
        "C": (near[C].mean(), far[C].mean()),
        "learnable D C": ((near[D] * near[C]).mean(), (far[D] * far[C]).mean()),
        "learnable share of D": ((near[D] * near[C]).sum() / near[D].sum(), (far[D] * far[C]).sum() / far[D].sum()),
    }
    first = np.mean([a > b for a, b in zip(near[D] * near[C], far[D] * far[C], strict=True)])
    truth["positions with most to learn"] = first, 1 - first
    found = compared(runs)
    assert set(found.index.get_level_values("measure")) == set(truth)
    for name, (ours, theirs) in truth.items():
        assert found.loc[(name, "near"), "estimate"] == pytest.approx(ours, rel=1e-5)
        assert found.loc[(name, "far"), "estimate"] == pytest.approx(theirs, rel=1e-5)
        assert found.loc[(name, "far"), "difference"] == pytest.approx(theirs - ours, rel=1e-4, abs=1e-6)
        assert pd.isna(found.loc[(name, "near"), "difference"])
    assert found.loc[("D", "far"), "difference_low"] > 0  # they are told apart


def test_prompts_are_resampled_together(runs: list[Path]) -> None:
    """Whole prompts, the same ones for both teachers; the interval is as wide as that of plain loops."""
    near, far = map(bank, runs)
    by_prompt = [
        (near[D][near["prompt_id"] == p].to_numpy(), far[D][far["prompt_id"] == p].to_numpy())
        for p in sorted(set(near["prompt_id"]))
    ]
    rng, found = np.random.default_rng(7), []
    for _ in range(2000):
        drawn = [by_prompt[i] for i in rng.integers(0, len(by_prompt), len(by_prompt))]
        found.append(np.concatenate([b for _, b in drawn]).mean() - np.concatenate([a for a, _ in drawn]).mean())
    row = compared(runs, draws=2000).loc[("D", "far")]
    plain = np.std(found) * np.sqrt(10 / 9) * 2 * 2.262  # t of 9 degrees of freedom
    assert row["difference_high"] - row["difference_low"] == pytest.approx(plain, rel=0.15)
    assert (row.to_numpy() == compared(runs, draws=2000, seed=0).loc[("D", "far")].to_numpy()).all()
    assert row["ci_low"] != compared(runs, draws=2000, seed=1).loc[("D", "far"), "ci_low"]


def test_a_teacher_of_which_only_a_list_is_known_has_bounds(runs: list[Path], tmp_path: Path) -> None:
    """Beside an exact one, whose bounds are its values; what both lack is left out."""
    listed = Path(shutil.copytree(runs[1], tmp_path / "listed"))
    for file in (listed / "positions").glob("*.parquet"):
        table = pq.read_table(file).to_pandas()
        for name in ("compatibility", "disagreement"):
            for k in (8, 16, 32):
                exact = table.pop(f"{name}_k{k}")
                table[f"{name}_low_k{k}"], table[f"{name}_high_k{k}"] = exact * 0.9, exact * 1.1
        write_parquet(POSITIONS.build(table.drop(columns=["forward_kl"]).to_dict("list")), file)
    found = compared([runs[0], listed])
    assert set(found.index.get_level_values("measure")) == {
        "log q of the student's tokens",
        *(f"{symbol}, {side}" for symbol in "CD" for side in ("at least", "at most")),
    }
    assert found.loc[("C, at least", "near"), "estimate"] == found.loc[("C, at most", "near"), "estimate"]
    assert found.loc[("D, at most", "listed"), "estimate"] == pytest.approx(1.1 * bank(runs[1])[D].mean(), rel=1e-5)


def test_the_command_prints_and_writes_a_table(runs: list[Path]) -> None:
    done = CliRunner().invoke(app, ["compare-teachers", *map(str, runs)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "learnable D C" in done.output
    assert "|" in (runs[0].parent / "comparison/teachers.md").read_text()
    summary = json.loads(CliRunner().invoke(app, ["compare-teachers", *map(str, runs), "--json"]).output)
    assert summary["rows"][0]["difference"] is None
    assert all(Path(file).exists() for file in summary["files"])


def test_runs_that_do_not_pair_up_are_refused(
    runs: list[Path], tmp_path: Path, tiny_settings: CaptureSettings, refused: Callable[..., str]
) -> None:
    other = tmp_path / "other"
    run_capture(other, replace(tiny_settings, seed=1, bank_prompts=8, update_prompts=1), Reporter(quiet=True))
    assert "has not the contexts of" in refused("compare-teachers", runs[0], other)
    assert "has no capture stage" in refused("compare-teachers", runs[0], tmp_path / "none")
    with pytest.raises(SettingsError, match="it must be two or more, each once"):
        CompareTeachersSettings(runs=["runs/a"])
    with pytest.raises(SettingsError, match="it must be two or more, each once"):
        CompareTeachersSettings(runs=["runs/a", "runs/a"])


@pytest.mark.slow
def test_lacking_probes_are_taken_as_the_first_run_took_them(runs: list[Path], tmp_path: Path) -> None:
    """Of a learning rate and options of its own; after that nothing is lacking, and gains are those of the probes."""
    both = [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs]
    predicted = ProbeSettings(kind="predicted", method="one-sided", batch_tokens=100, tile_positions=7)
    for probe in (replace(PROBE, name=""), EFFICIENCY_PROBE, predicted):
        run_probe(both[0], probe, Reporter(quiet=True))
    asked = ["compare-teachers", *map(str, both), "--probe", "--draws", "100"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert "gain of the step [nats]" in done.output
    assert lacking_probes(CompareTeachersSettings(runs=[str(run) for run in both])) == []
    found = compared(both, draws=100)
    for run in both:
        note = json.loads((run / "probes/one_step.json").read_text())
        assert note["settings"]["learning_rate"] == 1e-4
        gain = note["results"]["updates"]["one_step"]["mean_gain"]
        assert found.loc[("gain of the step", run.name), "estimate"] == pytest.approx(gain, rel=1e-5)
        assert json.loads((run / "probes/efficiency.json").read_text())["settings"]["blocks"] == 3
    most = found.loc["positions with most predicted gain", "estimate"]
    assert most.sum() == pytest.approx(1)


@pytest.mark.slow
def test_graded_answers_tell_what_each_teacher_adds_to_success(
    tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    """From contexts that are brought and graded, under two teachers, to what is printed."""
    asked = replace(tiny_settings, update_prompts=10, max_new_tokens=1)
    run_capture(tmp_path / "asked", asked, quiet)
    write_graded(tmp_path / "asked", tmp_path / "mine.parquet")
    teachers = {"near": tiny_settings.teacher, "far": save_model(tmp_path / "model", seed=9)}
    predicted = ProbeSettings(kind="predicted", method="one-sided", batch_tokens=400, tile_positions=50)
    means, grades = {}, []
    for name, teacher in teachers.items():
        brought = replace(asked, teacher=teacher, contexts=str(tmp_path / "mine.parquet"), grade=True)
        run_capture(tmp_path / name, brought, quiet)
        grades.append(GRADES.read(tmp_path / name / "grades")["grade"].tolist())
        run_probe(tmp_path / name, predicted, quiet)
        means[name] = PREDICTIONS.read(tmp_path / name / "predictions/predicted")["success_inner"].mean()
    assert grades[0] == grades[1]
    done = CliRunner().invoke(app, ["compare-teachers", *(str(tmp_path / name) for name in teachers)])
    assert done.exit_code == 0, done.output
    assert "success" in done.output
    found = compared([tmp_path / name for name in teachers])
    for name, mean in means.items():
        assert found.loc[("success of a step", name), "estimate"] == pytest.approx(mean, rel=1e-4)
