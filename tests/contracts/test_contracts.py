"""Schemas, the run directory, the command line and the package: what users and other programs rely on.

The truth is what is declared (schemas, settings) and what stands in the checkout.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stages import ROOT, STAGES
from typer import Context
from typer.main import get_command

from teachdiag.artefacts import CONTEXTS, DECILES, TABLES, data_dictionary
from teachdiag.cli import app
from teachdiag.errors import ArtefactError, InputError, RunError, SettingsError
from teachdiag.runs import Stage, writing
from teachdiag.seeds import derive_seed
from teachdiag.settings import (
    AnalyzeSettings,
    CaptureSettings,
    ProbeSettings,
)
from teachdiag.settings.base import help_texts
from teachdiag.tables import Column, Table, write_parquet

SMALL = Table(
    name="small",
    folder="small/",
    written_by="capture",
    meaning="A table for these tests.",
    key=("row",),
    columns=(
        Column("row", pa.int64(), "1", "key"),
        Column("value", pa.float32(), "nats", "a number"),
        Column("pair", pa.list_(pa.float32(), 32), "nats", "a list"),
        Column("maybe", pa.float32(), "nats", "may be null", nullable=True),
    ),
)


def values(n: int = 3) -> dict[str, object]:
    return {"row": np.arange(n), "value": np.ones(n), "pair": np.zeros((n, 32)), "maybe": [None] * n}


def test_tables_round_trip_with_units(tmp_path: Path) -> None:
    write_parquet(SMALL.build(values()), tmp_path / "small/part-00000.parquet")
    write_parquet(SMALL.build(values()), tmp_path / "small/part-00001.parquet")
    frame = SMALL.read(tmp_path / "small")
    assert len(frame) == len(pd.read_parquet(tmp_path / "small")) == 6
    field = pq.read_schema(tmp_path / "small/part-00000.parquet").field("value")
    assert field.metadata[b"unit"] == b"nats"
    assert not field.nullable
    assert list(SMALL.read(tmp_path / "small", ["row"]).columns) == ["row"]


def test_gaps_and_strangers_are_refused(tmp_path: Path) -> None:
    hole = np.zeros((3, 32))
    hole[2, 5] = np.inf
    cases = [
        ({"value": np.array([1, np.nan, 1])}, "column value has no finite value at row 1"),
        ({"value": [1.0, 1.0, None]}, "column value has no finite value at row 2"),
        ({"pair": hole}, "column pair has no finite value at row 2"),
        ({"maybe": [None, float("nan"), None]}, "column maybe has no finite value at row 1"),
        ({"extra": [1, 2, 3]}, r"unknown \['extra'\]"),
    ]
    for change, message in cases:
        with pytest.raises(ArtefactError, match=message):
            SMALL.build(values() | change)
    pq.write_table(pa.table({"row": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ArtefactError, match="lacks the columns value, pair"):
        SMALL.read(tmp_path / "other.parquet")
    with pytest.raises(ArtefactError, match=r"no small table at .* run the stage that writes it \(capture\)"):
        SMALL.read(tmp_path / "absent")


def test_every_column_is_explained_in_one_place() -> None:
    page = (ROOT / "docs/artefacts.md").read_text()
    assert page == data_dictionary(), "run `make docs`"
    for table in TABLES:
        assert len({c.name for c in table.columns}) == len(table.columns)
        assert set(table.key) <= {c.name for c in table.columns}
        assert all(c.meaning for c in table.columns)


def begun(run: Path) -> Stage:
    """A stage that was claimed, wrote a shard, and was killed."""
    stage = Stage(run, "capture", tables=("small",), scratch="scratch/capture")
    assert stage.claim({"seed": 1}, {"model": "a"}) is False
    write_parquet(SMALL.build(values()), run / "small/part-00000.parquet")
    return stage


def test_stages_resume_refuse_and_complete(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no capture stage: run `teachdiag capture --run"):
        Stage(tmp_path, "capture").require()
    stage = begun(tmp_path)
    assert stage.claim({"seed": 1}, {"model": "a"}) is False  # resumed
    with pytest.raises(RunError, match="unfinished: run `teachdiag capture"):
        stage.require()
    changed = r"another configuration \(model was 'a', now 'b'\): choose another --run, or delete capture.json, small, "
    with pytest.raises(RunError, match=changed):
        stage.claim({"seed": 1}, {"model": "b"})
    stage.complete({"rows": 3})
    assert stage.claim({"seed": 1}, {"model": "a"}) is True
    assert stage.require()["results"] == {"rows": 3}
    for damaged in ("{", "[]", '{"status": "complete"}'):
        stage.note.write_text(damaged)
        with pytest.raises(RunError, match="is damaged"):
            stage.require()


def test_a_stage_that_computed_nothing_may_begin_anew(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "capture", tables=("small",), scratch="scratch/capture")
    stage.claim({"seed": 1}, {})
    (tmp_path / "scratch/capture").mkdir(parents=True)
    assert stage.claim({"seed": 2}, {}) is False
    assert not (tmp_path / "scratch/capture").exists()


def test_results_of_unknown_making_are_refused(tmp_path: Path) -> None:
    stage = begun(tmp_path)
    stage.note.unlink()
    with pytest.raises(RunError, match=r"has results of capture but no capture.json .* delete small, scratch/capture"):
        stage.claim({"seed": 1}, {})


def test_only_the_stages_own_leftovers_are_removed(tmp_path: Path) -> None:
    stage = begun(tmp_path)
    for place in ("small/part-00001.parquet.part", "movie.mkv.part"):
        (tmp_path / place).write_text("")
    stage.claim({"seed": 1}, {"model": "a"})
    assert not (tmp_path / "small/part-00001.parquet.part").exists()
    assert (tmp_path / "movie.mkv.part").exists()


def test_a_half_finished_stage_is_not_continued_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = begun(tmp_path)
    with pytest.raises(RunError, match=r"threads was None, now 4"):
        stage.claim({"seed": 1}, {"model": "a"}, {"threads": 4})
    monkeypatch.setattr("teachdiag.runs.environment", lambda: {"packages": {"torch": "0.1"}})
    with pytest.raises(RunError, match=r"packages.torch was .*, now '0.1'"):
        stage.claim({"seed": 1}, {"model": "a"})


def test_one_writer_a_run(tmp_path: Path) -> None:
    with writing(tmp_path / "run"), pytest.raises(RunError, match="in use by another"), writing(tmp_path / "run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used as a run directory"), writing(tmp_path / "file"):
        pass


@given(st.integers(0, 2**40), st.text(max_size=5), st.text(max_size=5))
def test_seeds_are_named(seed: int, one: str, other: str) -> None:
    assert 0 <= derive_seed(seed, one) < 2**63
    assert (derive_seed(seed, one) == derive_seed(seed, other)) == (one == other)


def test_settings_refuse_impossible_values() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: CaptureSettings(top_p=0.0), r"--top-p is 0.0: it must be in \(0, 1\]"),
        (lambda: CaptureSettings(positions=0), "--positions is 0: it must be at least 1, and finite"),
        (lambda: CaptureSettings(dtype="int8"), "--dtype is 'int8': it must be one of float32, bfloat16"),  # type: ignore[arg-type]
        (lambda: CaptureSettings(student_drop_layers="last"), "--student-drop-layers is 'last'"),
        (lambda: ProbeSettings(learning_rate=-1), "--learning-rate"),
        (lambda: ProbeSettings(learning_rate=float("nan")), "--learning-rate"),
        (lambda: ProbeSettings(learning_rate=float("inf")), "--learning-rate"),
        (lambda: ProbeSettings(learning_rate=0), "--learning-rate is 0.0: it must be between 1e-12 and 1 with"),
        (lambda: ProbeSettings(optimizer="sgd", learning_rate=1e30), "--learning-rate is 1e[+]30: it must be between"),
        (lambda: ProbeSettings(kind="isolated", learning_rate="1e-400"), "--learning-rate is 0.0"),
        (lambda: ProbeSettings(learning_rate="fast"), "--learning-rate is 'fast': it must be a number or 'auto'"),
        (lambda: ProbeSettings(name="a/b"), "--name"),
        (lambda: AnalyzeSettings(draws=3), "--draws is 3: it must be at least 100, and finite"),
    ]
    for build, message in cases:
        with pytest.raises(SettingsError, match=message):
            build()
    assert CaptureSettings().dropped_layers == (20,)
    assert CaptureSettings(teacher_prompt="privileged").dropped_layers == ()
    assert CaptureSettings(student="some/model").dropped_layers == ()


def teachdiag(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "teachdiag.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_needs_no_torch_and_every_option_is_explained() -> None:
    code = "import sys, teachdiag.cli; assert not {'torch', 'statsmodels', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert list(commands) == ["demo", *STAGES, "check-loss", "timeline", "compare-teachers", "push", "import"]
    assert set(commands["import"].list_commands(Context(commands["import"]))) == {
        *("released", "trl", "verl", "slime", "msswift", "skyrl", "prime-rl", "jsonl")
    }
    places = {"analyze": "runs", "figures": "runs", "report": "runs"}  # of the others --run
    for name, settings in STAGES.items():
        own = {f.name for f in fields(settings)} | {"recipe", "json"}
        expected = own if name in ("plan", "calibrate") else own | {places.get(name, "run"), "quiet"}
        expected |= {"report_to"} if name in ("capture", "probe", "analyze") else set()
        assert {p.name for p in commands[name].params} - {"help", "list"} == expected
        assert all(p.help or help_texts(settings)[p.name] for p in commands[name].params)


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, refused: Callable[..., str]) -> None:
    recipe = tmp_path / "recipe.toml"
    cases = [
        (("probe", "--run", tmp_path / "none"), None, "has no capture stage"),
        (("analyze", tmp_path / "none"), None, "has no capture stage"),
        (("capture", "--prompts", "gsm9k", "--run", tmp_path / "run"), None, "no prompt manifest 'gsm9k'"),
        (("capture", "--device", "abacus", "--run", tmp_path / "run"), None, "--device 'abacus' cannot be used"),
        (("probe", "--recipe", recipe), "[probe]\nspeed = 3", "[probe] has no option speed"),
        (("probe", "--recipe", recipe), "[probe", "is not TOML"),
        (
            ("probe", "--recipe", recipe),
            "seed = 3",
            "seed is no table of a stage: put options under [capture], [probe]",
        ),
        (("probe", "--recipe", recipe), "[prob]\nseed = 3", "prob is no table of a stage"),
        (("probe", "--recipe", recipe, "--run", tmp_path), "[probe]\nlearning-rate = -3", "--learning-rate is -3.0"),
        (
            ("probe", "--recipe", recipe, "--learning-rate", -4),
            "[probe]\nlearning_rate = -3",
            "--learning-rate is -4.0",
        ),
    ]
    for arguments, text, message in cases:
        if text:
            recipe.write_text(text)
        assert message in refused(*arguments)


@pytest.mark.slow
def test_a_process_says_so_too(tmp_path: Path) -> None:
    done = teachdiag("analyze", tmp_path / "none")
    assert done.returncode == 2
    assert re.fullmatch("teachdiag: .* has no capture stage.*\n", done.stderr)
    assert done.stdout == ""
    assert teachdiag("--version").stdout.strip() == version("teachdiag")
    wrong = teachdiag("probe", "--loss", "l2")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, links to other folders not followed."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # what an earlier build has left in the checkout would be packed too
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "teachdiag", copy / "teachdiag", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    ours = {n for n in names if ".dist-info/" not in n}
    assert all(n.startswith("teachdiag/") for n in ours)
    assert [Path(n).name for n in names if ".dist-info/licenses/" in n] == ["LICENSE"]
    rooms = [ROOT / "teachdiag", *(ROOT / room for room in ("diagnostics", "analysis", "figures", "data_manifests"))]
    shipped = {".py", ".typed", ".toml", ".json", ".html", ".css", ".js"}
    expected = {
        f"teachdiag/{'' if room.name == 'teachdiag' else f'{room.name}/'}{file.relative_to(room).as_posix()}"
        for room in rooms
        for file in _files(room)
        if file.suffix in shipped and "notebooks" not in file.parts
    }
    assert ours == expected


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {version('teachdiag')}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("room", ["analysis", "diagnostics", "figures"])
def test_rooms_refuse_their_bare_names(room: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"the import name is teachdiag.{room}" in done.stderr


def test_the_pages_name_every_table_and_error() -> None:
    assert all(f"## `{t.name}`" in data_dictionary() for t in (CONTEXTS, DECILES))
    assert all(issubclass(e, InputError) for e in (ArtefactError, RunError, SettingsError))


def test_events_tell_how_long_a_stage_took(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "capture")
    with stage.timed():
        pass
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["begin", "end"]
    assert events[1]["seconds"] >= 0
