"""A finished run that was damaged: whatever bit is flipped, whatever a note is made into, a later stage says so.

The truth is the undamaged run: its tables, page and pictures.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from stages import Killed, amend, dying, tables
from tiny_pair import PROBE

from teachdiag.analysis import analyze
from teachdiag.analysis.analyze import run_analysis
from teachdiag.diagnostics import capture as capture_stage
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.probe import run_probe
from teachdiag.errors import ArtefactError, InputError, RunError
from teachdiag.figures.publish import publish
from teachdiag.figures.report import html
from teachdiag.figures.report.html import write_report
from teachdiag.notes import first_fault
from teachdiag.progress import Reporter
from teachdiag.runs import SUMMARY
from teachdiag.settings import AnalyzeSettings, CaptureSettings, ReportSettings
from teachdiag.tables import read_parquet, write_parquet

pytestmark = pytest.mark.slow

QUIET = Reporter(quiet=True)
READ = (".parquet", ".json", ".svg")  # what a later stage reads; the rest is for people


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, analysed_once: Path) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(analysed_once, run)
    _report(run)
    return run


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _report(run: Path) -> bytes:
    write_report(run, ReportSettings(contexts=2), QUIET)
    return (run / "report.html").read_bytes()


def _flip(whole: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(whole)
    damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def test_no_flipped_bit_goes_unnoticed(copied: Path) -> None:
    rng, page = random.Random(0), _report(copied)
    files = sorted(file for file in copied.rglob("*") if file.suffix in READ and file.parent.name != "tables")
    assert {file.parent.name for file in files} > {"run", "probes", "vocabulary", "positions", "analysis", "figures"}
    for file in rng.choices(files, k=300):
        whole = file.read_bytes()
        file.write_bytes(_flip(whole, rng))
        told = ""
        try:
            assert _report(copied) == page, file  # white space of a note
        except InputError as error:
            told = str(error)
        assert not told or file.name in told or file.parent.name in told
        file.write_bytes(whole)


def test_what_nobody_reads_may_change(copied: Path) -> None:
    rng, page = random.Random(1), _report(copied)
    for file in copied.rglob("*"):
        if file.is_file() and file.stat().st_size and (file.suffix not in READ or file.parent.name == "tables"):
            file.write_bytes(_flip(file.read_bytes(), rng))
    assert _report(copied) == page


def test_no_flipped_bit_of_a_page_reads_as_another_number(tmp_path: Path) -> None:
    """Without checksums of pages, four in five of these read back wrong without a word."""
    rng, file = random.Random(0), tmp_path / "t.parquet"
    table = pa.table({"x": [rng.gauss(0, 1) for _ in range(2000)], "y": [str(n % 7) for n in range(2000)]})
    write_parquet(table, file)
    whole, refused = file.read_bytes(), 0
    for _ in range(300):
        start = len(whole) // 20
        file.write_bytes(whole[:start] + _flip(whole[start : -len(whole) // 10], rng) + whole[-len(whole) // 10 :])
        try:
            assert read_parquet(file).equals(table)
        except ArtefactError:
            refused += 1
    assert refused > 290


def _set(*path: str, to: Any) -> Callable[[dict], None]:
    def change(note: dict) -> None:
        for key in path[:-1]:
            note = note[key]
        if to is KeyError:
            del note[path[-1]]
        else:
            note[path[-1]] = to

    return change


NOTES = ("capture.json", "probes/p.json", "analyze.json", "analysis/summary.json", "figures.json")
MENDED = {  # a key, what it becomes, and what is said of it
    "capture.json": [
        (("settings", "student"), KeyError, "settings.student is missing"),
        (("settings", "positions"), None, "settings.positions is None, not a whole number"),
        (("settings", "temperature"), "1", "settings.temperature is '1', not a number"),
        (("settings", "dtype"), "int8", "settings.dtype is 'int8', not one of float32"),
        (("settings", "colour"), 1, "settings.colour is unknown to this version"),
        (("settings",), [], r"settings is \[\], not an object"),
        (("inputs",), KeyError, "inputs is missing"),
        (("inputs", "student"), {}, "inputs.student.d.* is missing"),
        (("inputs", "student", "dropped_layers"), "20", "inputs.student.dropped_layers is"),
        (("tables", "positions"), 3, "tables.positions is 3, not text"),
        (("status",), "finished", "status is 'finished', not one of running, complete"),
    ],
    "probes/p.json": [
        (("settings", "learning_rate"), {}, "settings.learning_rate is {}"),
        (("results", "noise_floor"), "small", "results.noise_floor is"),
        (("made_with",), None, "made_with is None, not an object"),
    ],
    "analyze.json": [(("tables",), [], r"tables is \[\], not an object"), (("results",), 1, "results is 1")],
    "figures.json": [(("tables",), "", "tables is '', not an object")],
}


def _read_again(run: Path, name: str) -> None:
    """Start what reads most of a note."""
    if name == "capture.json":
        run_probe(run, PROBE, QUIET)
    _report(run)


@pytest.mark.parametrize("name", NOTES)
def test_a_damaged_note_is_named(copied: Path, name: str) -> None:
    note = copied / name
    whole = note.read_text()
    for damaged in ("", whole[: len(whole) // 2], "[]", "3", '"text"', "null", "{}", "[" * 100_000, "\ud800"):
        note.write_bytes(damaged.encode(errors="surrogatepass"))
        with pytest.raises(RunError, match=f"{name.split('/')[-1]}|{name}"):
            _report(copied)
    for path, to, said in MENDED.get(name, []):
        note.write_text(whole)
        change = _set(*path, to=to)
        amend(note, change)  # the digest is no help: the schema is
        with pytest.raises(RunError, match=said):
            _read_again(copied, name)
        plain = json.loads(whole)
        change(plain)  # nor is the schema, where a value is possible
        note.write_text(json.dumps(plain))
        with pytest.raises(RunError, match=f"{note.name} is damaged"):
            _report(copied)


def test_a_probe_of_a_kind_that_is_not_installed_is_left_out_by_name(copied: Path) -> None:
    amend(copied / "probes/p.json", _set("settings", "kind", to="none"))
    with pytest.raises(RunError, match=r"has no finished probe: .* probe p is of kind none, which is not installed"):
        run_analysis(copied, AnalyzeSettings(draws=100), QUIET)


def test_another_possible_value_is_noticed(copied: Path) -> None:
    note = copied / "capture.json"
    note.write_text(note.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RunError, match=r"capture.json is damaged \(it is not what teachdiag wrote\): restore it"):
        run_probe(copied, PROBE, QUIET)


def test_notes_of_older_versions_are_read(copied: Path) -> None:
    """They have no digest, no vocabulary among the tables, and not every setting of today."""
    note = copied / "capture.json"
    content = json.loads(note.read_text())
    del content["sha256"], content["tables"]["vocabulary"], content["settings"]["store"], content["stage"]
    note.write_text(json.dumps(content))
    (copied / "figures.json").unlink()
    assert _report(copied)


def test_a_killed_analysis_is_made_again(copied: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(analyze, "write_parquet_and_csv", dying(analyze.write_parquet_and_csv, 3))
        with pytest.raises(Killed):
            run_analysis(copied, AnalyzeSettings(draws=100), QUIET)
    for start in (_report, lambda run: publish(run, QUIET, "plane")):
        with pytest.raises(RunError, match=r"the analyze stage of .* is unfinished: run `teachdiag analyze"):
            start(copied)
    run_analysis(copied, AnalyzeSettings(draws=100), QUIET)
    notes = [json.loads((run / "analyze.json").read_text()) for run in (copied, finished)]
    digests = [{name: digest for name, digest in note["tables"].items() if name != SUMMARY} for note in notes]
    assert digests[0] == digests[1]
    for texts in (
        [json.dumps(note["results"]) for note in notes],
        *([(run / name).read_text() for run in (copied, finished)] for name in ("summary.md", SUMMARY)),
    ):
        ours, theirs = (re.sub(r"--run \S+", "--run", text) for text in texts)  # commands name the copy's own place
        assert ours == theirs
    assert tables(copied) == tables(finished)


@pytest.mark.parametrize("after", [0, 1])
def test_killed_figures_and_reports_are_made_again(copied: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [file for file in (copied / "figures").iterdir() if file.stem == "coefficients" and file.suffix == ".png"]
    before = {file: file.read_bytes() for file in [*drawn, copied / "report.html"]}
    assert len(before) == 2
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace, after))
        with pytest.raises(Killed):
            publish(copied, QUIET, "coefficients")
    publish(copied, QUIET, "coefficients")
    with monkeypatch.context() as patch:
        patch.setattr(html, "write_text", dying(html.write_text, 0))
        with pytest.raises(Killed):
            _report(copied)
    _report(copied)
    assert {file: file.read_bytes() for file in before} == before
    assert not [*copied.rglob("*.part")]


@pytest.mark.parametrize("place", ["positions/part-00099.parquet", "contexts/more.parquet", "vocabulary/b.parquet"])
def test_a_stray_shard_is_refused(
    copied: Path, place: str, tiny_settings: CaptureSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = copied / place.split("/")[0] / "part-00000.parquet"
    shutil.copy(shard, copied / place)
    with pytest.raises(RunError, match="is no longer what the capture stage wrote"):
        _report(copied)
    monkeypatch.setattr(capture_stage, "_sample_and_score", _killed)
    run = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        run_capture(run, tiny_settings, QUIET)
    (run / place).parent.mkdir(exist_ok=True)
    shutil.copy(shard, run / place)
    with pytest.raises(RunError, match=f"{place} was not written by this stage"):
        run_capture(run, tiny_settings, QUIET)


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("value", "schema", "fault"),
    [
        ({"a": 1}, {"a": int}, ""),
        ({"a": True}, {"a": int}, "a is True, not a whole number"),
        ({"a": 1}, {"a": float}, ""),
        ({"a": 1.5}, {"a": int | None}, "a is 1.5, not a whole number"),
        ({"a": None}, {"a": int | None}, ""),
        ({"a": {"b": [1, "2"]}}, {"a": {"b": list[int]}}, "a.b is [1, '2'], not a list, each entry a whole number"),
        ({"a": [{"b": 1}]}, {"a": [{"b": str}]}, "a[0].b is 1, not text"),
        ({}, {"a?": int}, ""),
        ({}, {"a": int}, "a is missing"),
        ({"b": 1}, {"a?": int}, "b is unknown to this version"),
        ({"b": 1}, {"a?": int, ...: Any}, ""),
        ({"b": 1}, dict[str, str], "it is {'b': 1}, not a table"),
        ([], {"a?": int}, "it is [], not an object"),
    ],
)
def test_a_schema_names_the_key(value: object, schema: object, fault: str) -> None:
    assert first_fault(value, schema) == fault
