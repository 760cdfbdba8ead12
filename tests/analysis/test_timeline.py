"""The timeline: overlaps and what is left by brute force, errors in closed form, sentences, page, and checkpoints."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from legible import illegible
from planted import World, bank_frame, positions_table
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from teachdiag.analysis.training.timeline import ratio, run_timeline
from teachdiag.artefacts import CANARY_POSITIONS, MONITOR, TIMELINE
from teachdiag.cli import app
from teachdiag.errors import ArtefactError, SettingsError
from teachdiag.figures.style import theme
from teachdiag.figures.timeline import publish_timeline, timeline_figure
from teachdiag.settings import TimelineSettings
from teachdiag.tables import write_parquet

STEPS = (0, 10, 20)
NOTHING = dict.fromkeys(MONITOR.schema.names)


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """Looks at a bank whose KL halves; a score is dealt anew at the second look, and C is constant at the third."""
    folder, rng = tmp_path / "watched", np.random.default_rng(4)
    frame = bank_frame(World(prompts=20), rng)
    (folder / "canary").mkdir(parents=True)
    (folder / "monitor").mkdir()
    for number, step in enumerate(STEPS):
        look = frame.copy()
        look["forward_kl"] = (frame["forward_kl"] * 0.5**number).astype("float32")
        if step == 10:
            look["student_entropy"] = rng.permutation(frame["student_entropy"])
        if step == 20:
            look["compatibility_k16"] = np.float32(1)
        table = positions_table(look)
        table = table.append_column("step", pa.array([step] * len(look), pa.int32()))
        built = CANARY_POSITIONS.build({name: table[name] for name in table.column_names})
        write_parquet(built, folder / f"canary/step-{step:08d}.parquet")
        row = NOTHING | {"step": step, "population": "canary", "n_positions": len(look), "n_contexts": 20}
        row |= {"seconds": 0.1, "learnable": 0.4 * 0.9**number, "incompatible": 0.2, "alarms": ""}
        row |= {"alarms": "saturated C" if step == 20 else ""}
        write_parquet(MONITOR.build_rows([row]), folder / f"monitor/step-{step:08d}.parquet")
    return folder


def test_overlaps_and_what_is_left_are_those_of_sorting(watched: Path) -> None:
    settings = TimelineSettings(runs=[str(watched)], selector="forward_kl,entropy,learnable", budget=0.1)
    run_timeline(watched, settings)
    rows = TIMELINE.read(TIMELINE.file(watched)).set_index(["step", "selector"])
    looks = [CANARY_POSITIONS.read(watched / f"canary/step-{step:08d}.parquet") for step in STEPS]
    size = math.ceil(0.1 * len(looks[0]))
    for name, column in (("forward_kl", "forward_kl"), ("entropy", "student_entropy")):
        first = set(np.argsort(-looks[0][column].to_numpy())[:size])
        for step, look in zip(STEPS, looks, strict=True):
            now = set(np.argsort(-look[column].to_numpy())[:size])
            row = rows.loc[(step, name)]
            assert row["overlap"] == pytest.approx(len(first & now) / size)
            at = list(first)
            assert row["left"] == pytest.approx(look["forward_kl"][at].sum() / looks[0]["forward_kl"][at].sum())
            assert row["n_positions"] == size
    assert rows.loc[(10, "entropy"), "overlap"] < 0.5
    assert rows.loc[(20, "forward_kl"), "overlap"] == 1
    assert rows.loc[(20, "all"), "left"] == pytest.approx(0.25)
    assert rows.loc[(20, "all"), "left_ci_low"] == pytest.approx(0.25, abs=1e-6)
    assert np.isnan(rows.loc[(20, "learnable"), "overlap"])  # where C is constant, D^L is not defined


def test_the_interval_of_a_ratio_is_that_of_a_mean_where_prompts_are_alike() -> None:
    rng = np.random.default_rng(0)
    prompts, part = np.repeat(np.arange(9), 4), rng.random(36)
    share, low, high = ratio(part, np.ones(36), prompts)
    means = part.reshape(9, 4).mean(1)
    error = means.std(ddof=1) / 3
    assert (share, low, high) == pytest.approx((means.mean(), means.mean() - 1.96 * error, means.mean() + 1.96 * error))
    assert ratio(part, np.ones(36), np.zeros(36, int)) == (pytest.approx(part.mean()), None, None)


def test_it_says_what_is_left_and_how_long_masks_held(watched: Path) -> None:
    settings = TimelineSettings(runs=[str(watched)], selector="forward_kl,entropy", budget=0.1)
    said = run_timeline(watched, settings)["sentences"]
    assert said[0].startswith("After 20 steps 25% [25%, 25%] of KL(teacher || student) is left on ")
    assert "of the mean scores at first 81% of D^L and 100% of D^I" in said[0]
    assert "it never fell below a half" in said[1]
    assert "it first fell below a half at step 10" in said[2]
    assert said[3] == "Alarm on the canary: saturated C, from step 20 on (1 looks)."
    page = publish_timeline(watched).read_text()
    assert "<svg" in page
    assert "first fell below a half at step 10" in page
    assert (watched / "timeline.md").read_text().count("\n| ") == 5  # head, rule and three looks


def test_the_figure_can_be_read(watched: Path) -> None:
    run_timeline(watched, TimelineSettings(runs=[str(watched)]))
    with theme():
        figure = timeline_figure(TIMELINE.read(TIMELINE.file(watched)))
        assert illegible(figure) == []
    assert "After 20 steps 25% of the KL is left" in figure.seen


def test_one_look_is_no_timeline(watched: Path) -> None:
    for step in STEPS[1:]:
        (watched / f"canary/step-{step:08d}.parquet").unlink()
    with pytest.raises(ArtefactError, match="has 1 looks at a canary, and a timeline needs two"):
        run_timeline(watched, TimelineSettings(runs=[str(watched)]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runs": ["a", "b"]}, "--runs is .*: it must be one folder"),
        ({"budget": 1.0}, r"--budget is 1.0: it must be in \(0, 1\)"),
        ({"selector": ","}, "--selector is ',': it must be the names of selectors"),
        ({"checkpoints": "a/best", "canary": "r"}, "--checkpoints is 'a/best': it must be folders whose names end in"),
        ({"checkpoints": "a/10,b/10", "canary": "r"}, "--checkpoints is .*: it must be folders"),
        ({"checkpoints": "a/10"}, "--canary is '': it must be the run"),
        ({"canary": "r"}, "--canary belongs to --checkpoints: leave it out"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TimelineSettings(**{"runs": ["a"]} | values)


def test_checkpoints_have_the_step_of_their_name_or_the_one_that_is_given() -> None:
    named = TimelineSettings(runs=["a"], checkpoints="out/checkpoint-200, out/checkpoint-100/,300=out/best", canary="r")
    assert named.steps == {100: "out/checkpoint-100/", 200: "out/checkpoint-200", 300: "out/best"}


@pytest.mark.slow
def test_checkpoints_are_looked_at_and_told(
    tmp_path: Path, captured_once: Path, student_path: str, teacher_path: str
) -> None:
    """Students between student and teacher: the KL falls."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (student_path, teacher_path))
    with torch.no_grad():
        for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
            ours.lerp_(theirs[: len(ours)], 0.7)
    saved = tmp_path / "checkpoint-30"
    student.save_pretrained(saved)
    AutoTokenizer.from_pretrained(student_path).save_pretrained(saved)
    words = ["timeline", str(tmp_path / "later"), "--canary", str(captured_once), "--checkpoints", str(saved)]
    words += ["--contexts", "6", "--selector", "forward_kl", "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "2 looks" in done.stdout
    rows = TIMELINE.read(TIMELINE.file(tmp_path / "later")).set_index(["step", "selector"])
    assert rows.loc[(0, "all"), "left"] == 1
    assert rows.loc[(30, "all"), "left"] < 0.6
    assert (tmp_path / "later/timeline.html").exists()
