"""What settings and recipes refuse, by the annotations of their fields: other types, and numbers that mean nothing.

The truth is the annotation of each field, and values and sentences written by hand.
"""

import json
import math
import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from stages import ROOT, STAGES
from typer.testing import CliRunner

from teachdiag.cli import app, main
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import (
    CaptureSettings,
    PlanSettings,
    ProbeSettings,
    ReportSettings,
    TrainSettings,
    headline_budget,
)
from teachdiag.settings.base import Checked, fits, flag
from teachdiag.sweeps import plan
from teachdiag.terminal import show_models

VALUES: list[Any] = [True, None, 7, 2.5, "7", "float32", [], [3], ["x"], {}, {"a": 1}, b"x", (1,), 1j]
NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, -1, -0.5, 10**30, -(10**30), 2**63]
OPTIONS = [(stage, entry.name) for stage, settings in STAGES.items() for entry in fields(settings)]  # type: ignore[arg-type]


def _base(stage: str) -> dict[str, Any]:
    return {"models": ["x"]} if stage == "evaluate" else {}


@pytest.mark.parametrize(("stage", "name"), OPTIONS)
def test_every_field_refuses_what_is_not_of_its_type(stage: str, name: str) -> None:
    settings, hint = STAGES[stage], get_type_hints(STAGES[stage])[name]
    for value in VALUES:
        if not fits(value, hint):
            with pytest.raises(SettingsError, match=f"^{flag(name)} is .*: it must be "):
                settings(**_base(stage) | {name: value})
    if fits(0, hint) and not fits("", hint):
        for number in NUMBERS:
            with pytest.raises(SettingsError, match=f"^{flag(name)} (is .*: it must be|belongs to) "):
                settings(**_base(stage) | {name: number})
    if fits("", hint):
        for text in ("a\0b", "\udcff"):
            with pytest.raises(SettingsError, match=f"^{flag(name)} .*"):
                settings(**_base(stage) | {name: text})


@pytest.mark.parametrize(("stage", "name"), [own for own in OPTIONS if own[1] not in ("sweep", "models")])
def test_recipes_are_read_by_type_and_not_by_what_python_makes_of_it(stage: str, name: str, tmp_path: Path) -> None:
    recipe, hint = tmp_path / "recipe.toml", get_type_hints(STAGES[stage])[name]
    wrong = [v for v in VALUES if isinstance(v, bool | int | float | str | list | dict) and not fits(v, hint)]
    for value in (wrong[0], wrong[-1]):
        written = json.dumps(value) if not isinstance(value, dict) else "{a = 1}"
        recipe.write_text(f"[{stage}]\n{name.replace('_', '-')} = {written}\n")
        models = ["x"] if stage == "evaluate" else []
        with pytest.raises(SettingsError, match=f"recipe .*: {name} is .*: it must be "):
            CliRunner().invoke(app, [stage, *models, "--recipe", str(recipe)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[capture]\nseed = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("[capture]\nseed = " + "[" * 3000 + "]" * 3000, "is not TOML: "),
        ("[capture]\nrun = 3", "run is 3: it must be text"),
        ("[capture]\nquiet = 1", "quiet is 1: it must be true or false"),
        ('[capture]\nrun = "a\\u0000b"', "is no name of a folder"),
        ("[capture]\nseed = 1\nseed = 2", "is not TOML: "),
    ],
)
def test_recipes_that_no_machine_should_take_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        CliRunner().invoke(app, ["capture", "--recipe", str(tmp_path / "r.toml")], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[sweep]\narms = [["full"]]\nbudgets = [0.1]\nseeds = 1', "needs arms, a list, each entry text"),
        ('[sweep]\narms = ["full"]\nbudgets = [true]\nseeds = 1', "needs budgets, a list, each entry a number"),
        ('[sweep]\narms = ["full"]\nbudgets = [nan]\nseeds = 1', "arm full at budget nan: --budget is nan: it must be"),
        ('[sweep]\narms = ["full"]\nbudgets = [0.1]\nseeds = true', "needs seeds, a whole number"),
        ('[sweep]\narms = ["full"]\nbudgets = [0.1]\nseeds = 1000000000000', "with at most 100000 cells"),
        ('[sweep]\narms = ["full"]\nbudgets = [0.1]\nseeds = -1', "seeds is -1: it must be from 1 up"),
        (
            '[sweep]\narms = ["full"]\nbudgets = [0.1]\nseeds = 1\n[arms]\nfull = 3',
            "arms.full is 3: it must be a table",
        ),
        ('[sweep]\narms = ["a"]\nbudgets = [0.1]\nseeds = 1\n[arms.a]\nsoft = 1', "--soft is 1: it must be true or"),
        ("sweep = 3", r"\[sweep\] and \[arms\] are tables"),
        ("[sweep", "is not TOML"),
    ],
)
def test_sweeps_of_other_types_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        plan(TrainSettings(sweep=str(tmp_path / "sweep.toml")))


@pytest.mark.parametrize("run", ["", "-", "a" * 300, "x/" + "é" * 200, "a\0b"])
@pytest.mark.parametrize("command", [("capture", "--run"), ("analyze",), ("import", "released", "--run")])
def test_a_run_has_a_name(run: str, command: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="is no name of a folder"):
        CliRunner().invoke(app, [*command, run], catch_exceptions=False)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (CaptureSettings, {"temperature": 1e-30}),
        (TrainSettings, {"temperature": 1e30}),
        (TrainSettings, {"learning_rate": 0.0}),
        (TrainSettings, {"learning_rate": 1e30}),
        (TrainSettings, {"weight_decay": 1e30}),
        (TrainSettings, {"eval_temperature": 1e-9}),
        (TrainSettings, {"seed": 2**31}),
        (ProbeSettings, {"kind": "selectors", "seeds": 10**9}),
        (PlanSettings, {"positions": 1e308}),
        (PlanSettings, {"teacher_parameters": 1e300}),
        (ReportSettings, {"budget": 1.5}),
    ],
)
def test_values_that_mean_nothing_are_refused(settings: type[Checked], values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"^{flag(list(values)[-1])} is .*: it must be "):
        settings(**values)


def test_defaults_and_ints_for_floats_are_fine() -> None:
    for stage, settings in STAGES.items():
        assert settings(**_base(stage))
    assert CaptureSettings(temperature=1).temperature == 1
    assert TrainSettings(eval_temperature=0).answering.temperature == 0
    assert all(f.default is not MISSING or f.name == "models" for s in STAGES.values() for f in fields(s))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("capture --nope", "No such option: --nope .*: see .* capture --help"),
        ("probe --loss l2", "no loss 'l2': choose from reverse_kl, forward_kl"),
        ("capture --positions x", "Invalid value for '--positions': .* integer"),
        ("capture extra", r"Got unexpected extra argument.* \(extra\)"),
        ("evaluate", "Missing argument 'MODEL'"),
        ("nope", "No such command 'nope'"),
        ("train --sweep [sweep]", r"recipe '\[sweep\]' cannot be read"),
    ],
)
def test_a_slip_on_the_command_line_is_one_sentence(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["teachdiag", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert re.fullmatch(f"teachdiag: .*{message}.*\n", said.err)
    assert said.out == ""


def test_messages_keep_their_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().say("[arms] has [bold]no[/bold] [link=x]")
    assert capsys.readouterr().err == "[arms] has [bold]no[/bold] [link=x]\n"
    with Reporter().bar("Training [a]-10pct", total=1) as advance:
        advance()
    assert "Training [a]-10pct" in capsys.readouterr().err
    show_models({"models": [{"arm": "[b]x", "budget": 1.0, "seed": 0, "right": 0.5, "unparseable": 0.0}]}, Path("[r]"))
    shown = capsys.readouterr().out
    assert "[b]x" in shown
    assert "[r]: answers" in shown


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (ProbeSettings, {"jsd_beta": 0.3}, "--jsd-beta belongs to --loss jsd: leave it out"),
        (TrainSettings, {"jsd_beta": 0.3}, "--jsd-beta belongs to --loss jsd: leave it out"),
        (ProbeSettings, {"kind": "lds", "mask_budget": 1.0}, "--mask-budget is 1.0: it must be above 0, and below 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    settings: type[Checked], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(message)}"):
        settings(**values)
    assert settings(loss="jsd", jsd_beta=0.3)


def test_the_headline_budget_is_nearest_to_a_tenth_by_ratio() -> None:
    assert headline_budget([0.01, 0.05, 0.2, 0.4]) == 0.05  # 0.2 is twice a tenth too: of two as near, the smaller
    assert headline_budget([0.3, 1.0]) == 0.3
    assert headline_budget([1.0]) == 1.0


def test_the_recipes_that_are_shipped_or_in_the_docs_can_be_read() -> None:
    """Every table of every one is settings of its stage; that of a sweep is read by the sweep."""
    recipes = sorted([*(ROOT / "docs").rglob("*.toml"), *(ROOT / "teachdiag/recipes").glob("*.toml")])
    assert len(recipes) > 8
    for recipe in recipes:
        tables = tomllib.loads(recipe.read_text())
        assert tables.keys() <= {*STAGES, "sweep"}, recipe
        for stage, values in tables.items():
            if stage in STAGES:
                STAGES[stage](**values)
