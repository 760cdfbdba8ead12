"""Several processes on one run: the same tables as from one, whatever their number; what they refuse together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from in_ranks import command, command_with_its_own_seed, command_without_memory_in_one
from processes import in_processes
from stages import Killed, dying, options, tables, torchrun
from tiny_pair import PROBE

from teachdiag.artefacts import GAINS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import probe_setup
from teachdiag.diagnostics.scoring import positions_table as positions_module
from teachdiag.progress import Reporter
from teachdiag.runs import table_digest
from teachdiag.settings import CaptureSettings
from teachdiag.tables import shard_files, shard_path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tiny_settings: CaptureSettings) -> CaptureSettings:
    """Two groups of rollouts, so that both processes have some, graded too."""
    return replace(tiny_settings, bank_prompts=20, update_prompts=16, grade=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, settings: CaptureSettings) -> dict[int, Path]:
    """The same capture and probe by one, two and three processes."""
    found = {}
    for processes in (1, 2, 3):
        run = tmp_path_factory.mktemp("runs") / str(processes)
        for stage, given in (("capture", settings), ("probe", PROBE)):
            done = in_processes(processes, command, stage, "--run", str(run), *options(given))
            assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = run
    return found


def test_torchrun_starts_what_is_forked_here(tmp_path: Path, settings: CaptureSettings, runs: dict[int, Path]) -> None:
    """The other tests trust it; this one starts processes as a user does."""
    run = tmp_path / "run"
    done = torchrun(2, "-m", "--", "teachdiag", "capture", "--run", str(run), *options(settings))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("contexts", "positions"):
        assert table_digest(run / name) == table_digest(runs[2] / name)


@pytest.mark.parametrize("processes", [2, 3])
def test_capture_does_not_depend_on_the_number_of_processes(runs: dict[int, Path], processes: int) -> None:
    one, several = (
        {name: digest for name, digest in tables(runs[n]).items() if not name.startswith("gains")}
        for n in (1, processes)
    )
    assert one == several
    for note in ("capture.json", "grade.json"):
        assert (runs[1] / note).read_bytes() == (runs[processes] / note).read_bytes()


@pytest.mark.parametrize("processes", [2, 3])
def test_a_probe_sums_its_gradient_over_processes(runs: dict[int, Path], processes: int) -> None:
    """Only the order of that sum differs, so gains agree to the rounding of a gradient."""
    one, several = (GAINS.read(runs[n] / "gains") for n in (1, processes))
    pd.testing.assert_frame_equal(one, several, rtol=2e-3, atol=2e-6)
    real = one["update"] == "one_step"
    assert np.abs(one["gain"][real]).mean() > 100 * np.abs(one["gain"][real] - several["gain"][real]).max()
    steps = [json.loads((runs[n] / "probes/p.json").read_text())["results"]["updates"] for n in (1, processes)]
    for name in ("loss", "gradient_norm", "update_norm"):
        assert steps[0]["one_step"][name] == pytest.approx(steps[1]["one_step"][name], rel=1e-5)
    assert not list((runs[processes] / "scratch").glob("*"))


def test_processes_of_different_settings_are_refused(tmp_path: Path, settings: CaptureSettings) -> None:
    done = in_processes(2, command_with_its_own_seed, "capture", "--run", str(tmp_path / "run"), *options(settings))
    assert done.returncode != 0
    told = "teachdiag: the processes were started with different settings: --seed is 0 in process 0, 1 in process 1"
    assert told in done.stderr
    assert not (tmp_path / "run/capture.json").exists()


@pytest.mark.parametrize(
    ("kind", "folders"),
    [
        ("isolated --sample 0 --fix-contexts 2", ("isolated",)),
        ("predicted", ("predictions",)),
        ("selectors --selector learnable,random --budgets 0.3,1.0 --seeds 2", ("interventions", "intervention_gains")),
        ("lds --masks 4", ("interventions", "predictions")),
        ("efficiency --blocks 3 --learning-rate 1e-3 --method jvp", ("inner_products", "masked_steps", "masked_gains")),
    ],
)
def test_other_kinds_of_probe_find_the_same(
    runs: dict[int, Path], tmp_path: Path, kind: str, folders: tuple[str, ...]
) -> None:
    """Two processes against one, to the rounding of gradients that are summed in another order."""
    copies = {n: tmp_path / str(n) for n in (1, 2)}
    for n, run in copies.items():
        shutil.copytree(runs[1], run)
        done = in_processes(
            n, command, "probe", "--run", str(run), "--name", "k", "--batch-tokens", "100", "--kind", *kind.split()
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for folder in folders:
        one, two = (pd.read_parquet(run / folder / "k") for run in copies.values())
        pd.testing.assert_frame_equal(one, two, rtol=2e-2, atol=2e-5)


def test_a_device_by_number_is_refused_for_several(tmp_path: Path, settings: CaptureSettings) -> None:
    done = in_processes(
        2, command, "capture", "--run", str(tmp_path / "run"), *options(replace(settings, device="meta"))
    )
    assert done.returncode != 0
    assert "--device" in done.stderr


def test_a_model_that_cannot_be_loaded_by_one_process_is_told_of(tmp_path: Path, settings: CaptureSettings) -> None:
    words = ("capture", "--run", str(tmp_path / "run"), *options(settings))
    done = in_processes(2, command_without_memory_in_one, *words)
    assert done.returncode != 0
    assert "teachdiag: out of memory" in done.stderr


def test_a_failure_of_any_process_reaches_the_user(
    tmp_path: Path, settings: CaptureSettings, runs: dict[int, Path]
) -> None:
    """A context whose ids are foreign lies in a shard that is not the first process's."""
    contexts = pd.read_parquet(runs[1] / "contexts")
    broken = tmp_path / "contexts.parquet"
    contexts.loc[5, "response_token_ids"][0] = 9999
    contexts.to_parquet(broken)
    usual = CaptureSettings()
    counts = {"bank_prompts": usual.bank_prompts, "update_prompts": usual.update_prompts}
    given = replace(settings, prompts=usual.prompts, grade=False, contexts=str(broken), **counts)
    done = in_processes(2, command, "capture", "--run", str(tmp_path / "run"), *options(given))
    assert done.returncode != 0
    assert "context 5 holds token id 9999, outside the shared vocabulary" in done.stderr


@pytest.mark.parametrize("table", ["contexts", "positions"])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """One bit is enough, in a run that was killed before it ended."""
    run, quiet = tmp_path / "run", Reporter(quiet=True)
    run_capture(tmp_path / "whole", settings, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(positions_module, "score", dying(positions_module.score, 5))
        with pytest.raises(Killed):
            run_capture(run, settings, quiet)
    shard = run / table / "part-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    run_capture(run, settings, quiet)
    assert tables(run) == tables(tmp_path / "whole")
    assert not list(run.rglob("*.sha256"))


def test_a_damaged_state_of_a_probe_is_rescored(
    tmp_path: Path, settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed probe has rescored is verified too."""
    run, quiet = tmp_path / "run", Reporter(quiet=True)
    run_capture(run, settings, quiet)
    shutil.copytree(run, tmp_path / "whole")
    run_probe(tmp_path / "whole", PROBE, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(probe_setup, "rescore", dying(probe_setup.rescore, 6))
        with pytest.raises(Killed):
            run_probe(run, PROBE, quiet)
    shard = min((run / "scratch/p/before").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    run_probe(run, PROBE, quiet)
    assert tables(run) == tables(tmp_path / "whole")


def test_shards_are_read_by_their_number(tmp_path: Path) -> None:
    """Also where names have another digit."""
    paths = [shard_path(tmp_path, number) for number in (0, 7, 99_999, 100_000, 250_001)]
    for path in reversed(paths):
        path.touch()
    assert shard_files(tmp_path) == paths
