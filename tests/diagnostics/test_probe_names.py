"""Names of probes: said by people, found again by their settings, agreed on by all processes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from in_ranks import command
from processes import in_processes
from stages import Killed, amend, dying, options, tables
from tiny_pair import PROBE

from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import probe_setup
from teachdiag.diagnostics.probes.names import find_or_name
from teachdiag.errors import RunError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, probe_names
from teachdiag.settings import ProbeSettings

UNNAMED = replace(PROBE, name="")


def finish(run: Path, settings: ProbeSettings) -> str:
    """Begin a probe as the stage does, and end it, unless it is complete; return its name."""
    name, recorded = find_or_name(run, settings)
    stage = Stage(run, f"probes/{name}")
    if not stage.claim(recorded, {}):
        stage.complete({})
    return name


def test_probes_of_a_kind_are_numbered_and_found_again(tmp_path: Path) -> None:
    probes = [
        (UNNAMED, "one_step"),
        (replace(UNNAMED, loss="forward_kl"), "one_step-2"),
        (replace(UNNAMED, seed=1), "one_step-3"),
        (ProbeSettings(kind="predicted"), "predicted"),
    ]
    assert [finish(tmp_path, settings) for settings, _ in probes] == [name for _, name in probes]
    assert [finish(tmp_path, settings) for settings, _ in reversed(probes)] == [name for _, name in reversed(probes)]
    (tmp_path / "probes/one_step-2.json").unlink()
    assert finish(tmp_path, replace(UNNAMED, seed=2)) == "one_step-2"


def test_a_name_of_the_users_own_is_kept_and_no_other_probe_gets_it(tmp_path: Path) -> None:
    assert finish(tmp_path, replace(UNNAMED, name="one_step", seed=1)) == "one_step"
    assert finish(tmp_path, UNNAMED) == "one_step-2"
    assert finish(tmp_path, replace(UNNAMED, seed=1)) == "one_step"  # the same question, by whatever name
    assert finish(tmp_path, replace(UNNAMED, name="one_step-2")) == "one_step-2"
    with pytest.raises(RunError, match=r"one_step-2\.json was made with another configuration \(seed was 0, now 5\)"):
        finish(tmp_path, replace(UNNAMED, name="one_step-2", seed=5))


def test_names_are_listed_as_people_count(tmp_path: Path) -> None:
    names = ["a", "isolated", "one_step", "one_step-2", "one_step-10", "one_step-reverse_kl-adamw-6f51f1"]
    (tmp_path / "probes").mkdir()
    for name in reversed(names):
        (tmp_path / f"probes/{name}.json").touch()
    assert probe_names(tmp_path) == names


def test_a_probe_that_an_older_version_named_is_continued(
    run: Path, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was named by a digest of its settings, and its note lacks what was no option then."""
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    run_probe(whole, UNNAMED, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(probe_setup, "rescore", dying(probe_setup.rescore, 6))
        with pytest.raises(Killed):
            run_probe(run, UNNAMED, quiet)
    old = "one_step-reverse_kl-adamw-6f51f1"
    for file in ("probes/{}.json", "scratch/{}"):
        (run / file.format("one_step")).rename(run / file.format(old))
    amend(run / f"probes/{old}.json", lambda note: note.update(stage=f"probes/{old}") or note["settings"].pop("ties"))
    assert run_probe(run, UNNAMED, quiet)["probe_id"] == old
    assert probe_names(run) == [old]
    note, again = (
        json.loads((folder / f"probes/{name}.json").read_text()) for folder, name in ((run, old), (whole, "one_step"))
    )
    assert note["results"] == again["results"] | {"probe_id": old}
    assert set(tables(run)) == {file.replace("gains/one_step", f"gains/{old}") for file in tables(whole)}


@pytest.mark.slow
def test_processes_agree_on_the_name(run: Path) -> None:
    for settings in (UNNAMED, replace(UNNAMED, seed=1), UNNAMED):
        done = in_processes(2, command, "probe", "--run", str(run), *options(settings))
        assert done.returncode == 0, done.stderr[-3000:]
    assert "one_step is complete" in done.stderr
    assert probe_names(run) == ["one_step", "one_step-2"]
