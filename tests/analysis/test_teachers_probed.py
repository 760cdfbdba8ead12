"""What a step towards each of several teachers gains, on planted runs: numbers of numpy over the same positions."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_efficiency import EfficiencyWorld
from planted_teachers import RATE, finish_step, plant_right_and_wrong, plant_step, plant_success, plant_teacher
from scipy.stats import t as student
from stages import amend

from teachdiag.analysis.bank.measurements import finished_probes
from teachdiag.analysis.efficiency.rows import efficiency_rows, load_measured
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.teachers.compare import lacking_probes, run_compare_teachers
from teachdiag.analysis.teachers.pairing import pair
from teachdiag.artefacts import INNER_PRODUCTS, POSITIONS, TEACHER_CURVES, TEACHER_TOKENS, TEACHERS
from teachdiag.errors import RunError
from teachdiag.settings import CompareTeachersSettings, ProbeSettings
from teachdiag.tables import rows_where, shard_path, write_parquet
from teachdiag.terminal import show_teachers

WORLD = EfficiencyWorld(contexts=12, positions=10, prompts=12, blocks=3, batch=4, mean=0.5, prompt_noise=0.0)
DRAWS = 1000


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[pd.DataFrame], list[pd.DataFrame]]:
    """Two graded runs with a probe of every kind that is compared; their gains and predictions."""
    folder = tmp_path_factory.mktemp("teachers")
    runs, gains, predictions = [folder / "near", folder / "far"], [], []
    for number, run in enumerate(runs):
        bank = plant_teacher(run, WORLD, number)
        plant_right_and_wrong(run, bank, 6)
        gains.append(plant_step(run, bank, number, 0.01 * (1 + number)).astype({"gain": np.float32}))
        predictions.append(plant_success(run, bank, number, 0.5 * number))
    return runs, gains, predictions


@pytest.fixture(scope="module")
def summary(planted: tuple[list[Path], Any, Any]) -> dict[str, Any]:
    return run_compare_teachers(settings(planted[0]))


def settings(runs: list[Path], **options: int) -> CompareTeachersSettings:
    return CompareTeachersSettings(runs=[str(run) for run in runs], **({"draws": DRAWS} | options))


def copied(planted: tuple[list[Path], Any, Any], folder: Path) -> list[Path]:
    return [Path(shutil.copytree(run, folder / run.name)) for run in planted[0]]


def test_gains_are_means_by_each_teachers_own_kl(
    planted: tuple[list[Path], list[pd.DataFrame], Any], summary: dict[str, Any]
) -> None:
    rows = pd.DataFrame(summary["rows"]).set_index(["measure", "run"])
    near, far = (table["gain"].to_numpy(np.float64) for table in planted[1])
    shares = [table["gain"].sum() / table["forward_kl_before"].sum() for table in planted[1]]
    for name, ours, theirs in (
        ("gain of the step", near.mean(), far.mean()),
        ("gain, share of its KL", *shares),
    ):
        assert rows.loc[(name, "near"), "estimate"] == pytest.approx(ours, rel=1e-5)
        assert rows.loc[(name, "far"), "estimate"] == pytest.approx(theirs, rel=1e-5)
        assert rows.loc[(name, "far"), "difference"] == pytest.approx(theirs - ours, rel=1e-4)
        assert rows.loc[(name, "far"), "yardstick"] == "own"
    prompts = planted[1][0]["prompt_id"].to_numpy()
    apart = [(far - near)[prompts == prompt].mean() for prompt in np.unique(prompts)]  # as many positions each
    rng = np.random.default_rng(5)
    drawn = [np.mean([apart[i] for i in rng.integers(0, 12, 12)]) for _ in range(4000)]
    wide = np.std(drawn) * np.sqrt(12 / 11) * 2 * student.ppf(0.975, 11)
    row = rows.loc[("gain of the step", "far")]
    assert row["difference_high"] - row["difference_low"] == pytest.approx(wide, rel=0.15)


def test_success_is_measured_alike_for_all(
    planted: tuple[list[Path], Any, list[pd.DataFrame]], summary: dict[str, Any]
) -> None:
    rows = pd.DataFrame(summary["rows"]).set_index(["measure", "run"])
    near, far = (table["success_inner"].to_numpy(np.float32).astype(np.float64) for table in planted[2])
    for name, values in (
        ("success of a step", (near.mean(), far.mean())),
        ("positions that raise success", ((near > 0).mean(), (far > 0).mean())),
        ("positions with most success", ((near > far).mean(), (far > near).mean())),
        ("the same, grades shuffled", [table["success_inner_shuffled"].mean() for table in planted[2]]),
    ):
        assert rows.loc[name, "estimate"].to_list() == pytest.approx(values, rel=1e-4, abs=1e-6)
        assert set(rows.loc[name, "yardstick"]) == {"common"}
    assert rows.loc[("success of a step", "far"), "difference_low"] > 0
    assert "all share, at equal learning rate a step towards far adds more than" in summary["sentences"][0]


def test_each_token_says_which_teacher_is_best_there(
    planted: tuple[list[Path], Any, list[pd.DataFrame]], summary: dict[str, Any]
) -> None:
    folder, rows = planted[0][0].parent, pd.DataFrame(summary["rows"]).set_index(["measure", "run"])
    tokens = TEACHER_TOKENS.read(TEACHER_TOKENS.file(folder))
    near, far = (table["predicted_gain"].to_numpy(np.float32) for table in planted[2])
    of_far = rows_where(tokens, run="far")
    np.testing.assert_allclose(of_far["predicted_gain"], far)
    np.testing.assert_array_equal(of_far["predicted_gain_most"].astype(bool), far > near)
    assert rows.loc[("positions with most predicted gain", "far"), "estimate"] == pytest.approx((far > near).mean())
    most = rows_where(tokens, run="near")["success_inner_most"].to_numpy(bool)
    assert (most != of_far["success_inner_most"].to_numpy(bool)).all()
    assert len(TEACHERS.read(TEACHERS.file(folder))) == len(rows)


def shares_by_hand(run: Path, budget: float, draws: int) -> tuple[float, np.ndarray]:
    """The share that raw KL keeps at equal rate, and what it is in draws of update prompts, in plain loops."""
    inner = INNER_PRODUCTS.read(run / "inner_products/efficiency")
    inner["part"] = inner["inner"].astype(float) * inner["block_positions"]
    each = inner.groupby(["context_id", "position", "prompt_id"])[["part", "block_positions"]].sum().reset_index()
    each["total"] = each["part"] / each["block_positions"]
    each = each.merge(POSITIONS.read(run / "positions", ["context_id", "position", "forward_kl"]))
    by_prompt = [group[["forward_kl", "total"]].to_numpy() for _, group in each.groupby("prompt_id")]

    def share(batch: list[np.ndarray]) -> float:
        rows = np.concatenate(batch)
        kept = rows[np.argsort(-rows[:, 0], kind="stable")[: int(np.ceil(budget * len(rows) - 1e-9))]]
        return float(kept[:, 1].mean() / rows[:, 1].mean())

    rng = np.random.default_rng(3)  # the same prompts for every run
    drawn = [share([by_prompt[i] for i in rng.integers(0, 12, 11)]) for _ in range(draws)]
    return share(by_prompt), np.array(drawn)


def test_what_selectors_keep_differs_as_loops_say(
    planted: tuple[list[Path], Any, Any], summary: dict[str, Any]
) -> None:
    curves = TEACHER_CURVES.read(TEACHER_CURVES.file(planted[0][0].parent))
    found = rows_where(curves, selector="forward_kl", budget=0.1, match="rate", statistic="share").set_index("run")
    (near, of_near), (far, of_far) = (shares_by_hand(run, 0.1, 2000) for run in planted[0])
    assert found["estimate"].to_dict() == pytest.approx({"near": near, "far": far}, rel=1e-5)
    assert found.loc["far", "difference"] == pytest.approx(far - near, rel=1e-4)
    low, high = np.percentile(of_far - of_near, [2.5, 97.5])
    ends = found.loc["far", ["difference_low", "difference_high"]].to_list()
    assert ends == pytest.approx([low, high], abs=0.15 * (high - low))
    gain = rows_where(curves, statistic="gain").set_index("run")
    assert gain.loc["far", "difference"] == pytest.approx(gain.loc["far", "estimate"] - gain.loc["near", "estimate"])
    assert {row["selector"] for row in summary["curves"]} == {"forward_kl", "learnable", "entropy", "random"}


def test_own_shares_are_those_of_the_runs_analysis(
    planted: tuple[list[Path], Any, Any], summary: dict[str, Any]
) -> None:
    curves = TEACHER_CURVES.read(TEACHER_CURVES.file(planted[0][0].parent))
    for run in planted[0]:
        (record,) = (record for record in finished_probes(run) if record.kind == "efficiency")
        rows = pd.DataFrame(efficiency_rows(load_measured(run, record), Resampling(0, DRAWS, 12)))
        rows = rows[rows["statistic"].isin(("gain", "share"))]
        key, ends = ["selector", "budget", "match", "statistic"], ["estimate", "ci_low", "ci_high"]
        ours = rows_where(curves, run=run.name).set_index(key)[ends].sort_index()
        pd.testing.assert_frame_equal(ours, rows.set_index(key)[ends].astype(float).sort_index())


def test_a_teacher_beside_itself_differs_by_errors_of_norms_alone(
    planted: tuple[list[Path], Any, Any], tmp_path: Path
) -> None:
    """Draws are paired: whatever they vary cancels."""
    runs = [Path(shutil.copytree(planted[0][0], tmp_path / name)) for name in ("a", "b")]
    rows = pd.DataFrame(run_compare_teachers(settings(runs, draws=100))["rows"])
    apart = ["difference", "difference_low", "difference_high"]
    assert (rows_where(rows, run="b")[apart] == 0).all(axis=None)
    curves = rows_where(TEACHER_CURVES.read(TEACHER_CURVES.file(tmp_path)), run="b")
    assert (rows_where(curves, match="rate")[apart] == 0).all(axis=None)
    at_norm = rows_where(curves, match="norm", selector="forward_kl")
    assert (at_norm["difference"] == 0).all()
    assert (at_norm["difference_high"] > at_norm["difference_low"]).all()


def test_a_terminal_shows_it_in_few_lines(summary: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show_teachers(summary)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 25
    for words in ("gain of the step [nats]", "success of a step", "kept, 10% by raw KL", "far (less near)"):
        assert any(words in line for line in shown)
    three = summary | {
        part: [
            one for row in summary[part] for one in ([row, row | {"run": "third"}] if row["run"] == "far" else [row])
        ]
        for part in ("rows", "curves")
    }
    show_teachers(three)
    of_three = capsys.readouterr().out.splitlines()
    assert "third less near" in of_three[2]
    assert len(of_three) <= 26
    page = Path(summary["files"][-1]).read_text()
    assert "far, less the first" in page


def test_grades_that_do_not_compare_are_said(planted: tuple[list[Path], Any, Any], tmp_path: Path) -> None:
    """Each in one sentence; all else is compared."""

    def said(folder: str, change: Any) -> str:
        runs = copied(planted, tmp_path / folder)
        change(runs[1])
        found = run_compare_teachers(settings(runs, draws=100))
        assert "positions with most predicted gain" in {row["measure"] for row in found["rows"]}
        assert "success of a step" not in {row["measure"] for row in found["rows"]}
        return " ".join(found["sentences"])

    def regraded(run: Path) -> None:
        shutil.rmtree(run / "grades")
        (run / "grade.json").unlink()
        bank = POSITIONS.read(run / "positions")
        plant_right_and_wrong(run, bank[bank["split"] == "bank"], 7)

    note = "probes/predicted.json"
    few = said("few", lambda run: amend(run / note, lambda n: n["results"]["success"].update(prompts=7)))
    assert "graded answers to 7 update prompts, of the 8 needed" in few
    without = said("without", lambda run: amend(run / note, lambda n: n["results"].pop("success")))
    assert "was not graded (capture --grade) before its probe predicted" in without
    assert "have other grades than those of" in said("other", regraded)


def steps_of(folder: Path, *rates: tuple[float, ...]) -> list[Path]:
    """Runs with steps of these rates, and nothing else."""
    runs = [folder / f"run{number}" for number in range(len(rates))]
    for run, found in zip(runs, rates, strict=True):
        for number, rate in enumerate(found):
            finish_step(run, f"step{number}", rate, batch_tokens=100 + number)
    return runs


def test_steps_of_several_rates_pair_at_the_smallest_that_was_found(tmp_path: Path) -> None:
    runs = steps_of(tmp_path, (RATE,), (RATE / 2,))
    found = pair("one_step", runs)
    assert found.records == ()
    assert found.differ == f"--learning-rate 1e-05 in {runs[0]} and 5e-06 in {runs[1]}"
    ((run, wanted),) = found.lacking
    assert (run, wanted.learning_rate, wanted.batch_tokens) == (runs[0], RATE / 2, 100)
    finish_step(runs[0], "shorter", RATE / 2, learning_rate=RATE / 2)
    again = pair("one_step", runs)
    assert [record.probe_id for record in again.records] == ["shorter", "step0"]
    assert again.lacking == ()


def test_probes_are_taken_as_the_first_run_took_its_own(tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        finish_step(run, "fresh", steps=2, rollouts="fresh")
    finish_step(runs[0], "mine", loss="forward_kl", update_contexts=4, learning_rate=1e-6, found=1e-6)
    finish_step(runs[1], "other", learning_rate=1e-6, found=1e-6)
    found = pair("one_step", runs)
    assert "--loss forward_kl in" in found.differ
    assert [(run, w.loss, w.update_contexts, w.learning_rate, w.name) for run, w in found.lacking] == [
        (runs[1], "forward_kl", 4, 1e-6, "")
    ]
    finish_step(runs[1], "mine-too", loss="forward_kl", update_contexts=4, learning_rate=1e-6, found=1e-6, draws=5)
    assert [record.probe_id for record in pair("one_step", runs).records] == ["mine", "mine-too"]
    assert pair("efficiency", runs).lacking == tuple((run, ProbeSettings(kind="efficiency")) for run in runs)


def test_what_is_lacking_is_said_and_the_bank_stands_alone(
    planted: tuple[list[Path], Any, Any], tmp_path: Path
) -> None:
    runs = copied(planted, tmp_path)
    for name in ("one_step", "predicted", "efficiency"):
        (runs[1] / f"probes/{name}.json").unlink()
    found = run_compare_teachers(settings(runs, draws=100))
    assert (found["probes"], found["curves"]) == ({}, [])
    command = f"`teachdiag compare-teachers {runs[0]} {runs[1]} --probe`"
    assert found["sentences"] == [
        f"{command} takes the probes that are lacking, and adds what a step gains, what selectors keep, first-order "
        "gains, token by token."
    ]
    assert {(run, wanted.kind) for run, wanted in lacking_probes(settings(runs))} == {
        (runs[1], kind) for kind in ("one_step", "efficiency", "predicted")
    }
    assert TEACHER_CURVES.read(TEACHER_CURVES.file(tmp_path)).empty


def test_steps_on_other_contexts_or_towards_lists_are_no_comparison(
    planted: tuple[list[Path], Any, Any], tmp_path: Path
) -> None:
    runs = copied(planted, tmp_path)
    file = shard_path(runs[1] / "positions", 1)
    whole = POSITIONS.read_arrow(file)
    for change, said in (
        (lambda table: table.slice(0, table.num_rows - 1), "has not the update contexts of"),
        (lambda table: table.drop_columns(["teacher_entropy"]), "gave no whole distributions"),
    ):
        write_parquet(change(whole), file)
        if said.startswith("gave"):
            first = shard_path(runs[1] / "positions", 0)
            write_parquet(change(POSITIONS.read_arrow(first)), first)
        found = run_compare_teachers(settings(runs, draws=100))
        assert (found["probes"], found["sentences"][0][:28]) == ({}, "The bank alone is compared: ")
        assert said in found["sentences"][0]
        with pytest.raises(RunError, match=said):
            lacking_probes(settings(runs))
