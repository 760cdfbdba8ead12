"""Models sharded over processes: what one process finds that holds them whole, and no more than a share in each."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from in_ranks import (
    command,
    command_killed_while_rescoring,
    command_until_the_student_is_loaded,
    print_what_is_held,
)
from processes import in_processes
from stages import options, tables
from tiny_pair import PROBE, save_model

from teachdiag.artefacts import CONTEXTS, GAINS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.probe import run_probe
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings

pytestmark = pytest.mark.slow

ROUNDING = 1e-5  # of KLs of a few nats in float32, after steps that change them by a hundred times as much and more
PLACEBOS = replace(PROBE, kind="placebo", draws=1)


@pytest.fixture(scope="module")
def settings(tiny_settings: CaptureSettings) -> CaptureSettings:
    return replace(tiny_settings, bank_prompts=12, update_prompts=10)


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory, settings: CaptureSettings) -> Path:
    """A run that only wants to be probed."""
    run = tmp_path_factory.mktemp("captured") / "run"
    run_capture(run, settings, Reporter(quiet=True))
    return run


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, captured: Path) -> Path:
    """The same run, probed by two processes."""
    return probed(captured, tmp_path_factory.mktemp("sharded") / "run", 2, options(PLACEBOS))


def probed(captured: Path, run: Path, processes: int, asked: list[str]) -> Path:
    """Copy a run and probe it with sharded models."""
    shutil.copytree(captured, run)
    done = in_processes(processes, command, "probe", "--run", str(run), *asked, "--shard-model")
    assert done.returncode == 0, done.stderr[-3000:]
    return run


def assert_same(captured: Path, tmp_path: Path, probe: ProbeSettings, sharded: Path) -> None:
    """Compare a probe of sharded models with the same one of whole models in this process."""
    whole = tmp_path / "whole"
    shutil.copytree(captured, whole)
    expected = run_probe(whole, probe, Reporter(quiet=True))["updates"]
    found = json.loads((sharded / f"probes/{probe.name}.json").read_text())["results"]["updates"]
    assert found.keys() == expected.keys()
    for update, facts in expected.items():
        for name in ("loss", "gradient_norm", "update_norm", "positions"):
            assert found[update][name] == pytest.approx(facts[name], rel=1e-6), (update, name)
    ours, theirs = (GAINS.read(run / "gains") for run in (sharded, whole))
    pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=ROUNDING)
    moved = theirs["update"] != "theta0"
    assert theirs["gain"][moved].abs().groupby(theirs["update"]).mean().min() > 100 * ROUNDING


def test_capture(tmp_path: Path, settings: CaptureSettings) -> None:
    """Three groups and eleven shards among two processes, which must take as many passes as each other."""
    given = replace(settings, bank_prompts=20, update_prompts=16, responses=2, shard_contexts=7)
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for run, asked in ((whole, given), (sharded, replace(given, shard_model=True))):
        done = in_processes(2, command, "capture", "--run", str(run), *options(asked))
        assert done.returncode == 0, done.stderr[-3000:]
    pd.testing.assert_frame_equal(CONTEXTS.read(whole / "contexts"), CONTEXTS.read(sharded / "contexts"))
    ours, theirs = (POSITIONS.read(run / "positions") for run in (sharded, whole))
    scalars = ours.select_dtypes("number").columns
    pd.testing.assert_frame_equal(ours[scalars], theirs[scalars], rtol=1e-4, atol=1e-6)


def test_a_step_and_its_placebos(tmp_path: Path, captured: Path, sharded: Path) -> None:
    assert_same(captured, tmp_path, PLACEBOS, sharded)


def test_clipped_steps_with_idle_processes_and_a_head_of_its_own(tmp_path: Path, settings: CaptureSettings) -> None:
    """Each step has one batch for three processes, among which no axis of the weights divides."""
    untied = save_model(tmp_path / "untied", seed=4, tie_word_embeddings=False)
    captured = tmp_path / "captured"
    run_capture(captured, replace(settings, student=untied), Reporter(quiet=True))
    steps = {"steps": 3, "update_contexts": 1, "optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.5}
    probe = replace(PROBE, **steps, weight_decay=0.01)
    assert_same(captured, tmp_path, probe, probed(captured, tmp_path / "sharded", 3, options(probe)))


def test_a_checkpoint(tmp_path: Path, captured: Path) -> None:
    after = save_model(tmp_path / "after", seed=3)
    given = {"name": "p", "kind": "checkpoint", "draws": 1, "student_after": after}
    asked = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert_same(captured, tmp_path, ProbeSettings(**given), probed(captured, tmp_path / "sharded", 2, asked))


def test_a_killed_probe_continues(tmp_path: Path, captured: Path, sharded: Path) -> None:
    """It was killed while it measured the real step's ladder, and ends with the same bytes."""
    run, words = tmp_path / "run", (*options(PLACEBOS), "--shard-model")
    shutil.copytree(captured, run)
    done = in_processes(2, command_killed_while_rescoring, 18, "probe", "--run", str(run), *words)
    assert "Killed" in done.stderr
    assert (run / "scratch/p/ladder-2").exists()
    assert not (run / "scratch/p/ladder.json").exists()
    assert not (run / "scratch/p/shuffled_teacher-0").exists()
    again = in_processes(2, command, "probe", "--run", str(run), *words)
    assert again.returncode == 0, again.stderr[-3000:]
    assert tables(run) == tables(sharded)


def test_a_process_holds_its_share(settings: CaptureSettings) -> None:
    """Between passes half of every weight, and autograd keeps none of a layer, not even as cast to half precision."""
    done = in_processes(2, print_what_is_held, settings)
    assert done.returncode == 0, done.stderr[-3000:]
    kept, held = json.loads(done.stdout)
    for reached, parameters in enumerate(held):
        for shape, here, has_gradient in parameters:
            assert 2 * here == pd.Series(shape).prod()
            assert has_gradient == bool(reached)
    matrices = [shape for shape, *_ in held[0] if len(shape) == 2]
    assert not [shape for shape in kept if shape in matrices or shape[::-1] in matrices]


def test_the_teacher_is_gone_before_the_student_is_loaded(tmp_path: Path, captured: Path) -> None:
    shutil.copytree(captured, tmp_path / "run")
    words = ("probe", "--run", str(tmp_path / "run"), *options(PROBE), "--shard-model")
    done = in_processes(2, command_until_the_student_is_loaded, *words)
    assert "as planned" in done.stderr
    told = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(told) == 2
    assert all(weights > 2 and left == 0 for weights, left in told)


@pytest.mark.parametrize("kind", ["isolated", "predicted", "selectors", "lds"])
def test_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(SettingsError, match=f"--shard-model belongs to --kind one_step or .*, not to {kind}"):
        ProbeSettings(kind=kind, shard_model=True)


def test_fresh_rollouts_are_refused() -> None:
    with pytest.raises(SettingsError, match="--rollouts is 'fresh': it must be 'fixed' with --shard-model"):
        ProbeSettings(steps=2, rollouts="fresh", shard_model=True)


def test_one_process_is_refused(tmp_path: Path, captured: Path, settings: CaptureSettings, quiet: Reporter) -> None:
    with pytest.raises(SettingsError, match=r"there is one: start several, .* teachdiag capture"):
        run_capture(tmp_path / "run", replace(settings, shard_model=True), quiet)
    with pytest.raises(SettingsError, match=r"there is one: start several, .* teachdiag probe"):
        run_probe(captured, replace(PLACEBOS, shard_model=True), quiet)
