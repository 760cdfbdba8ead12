"""Help pages: every option's text is on them whole, they are legible at 80 columns, and their examples can be typed.

What they are compared with are the settings classes and the command line's own parser.
"""

import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import commands, typed
from typer.testing import CliRunner

from teachdiag.cli import app

ROOT = Path(__file__).parents[2]
WIDTH, LEFT = 80, 36  # columns of a page, and those that the names of options may take of it


COMMANDS = commands()


def _page(words: str, width: int) -> list[str]:
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(app, [*words.split(), "--help"])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.mark.parametrize("words", COMMANDS)
def test_every_text_is_whole_and_legible(words: str) -> None:
    wide, narrow = "\n".join(_page(words, 2000)), _page(words, WIDTH)
    assert max(map(len, narrow)) <= WIDTH
    names = {line[1:LEFT].split()[0] for line in narrow if line[2:3].strip() and line.startswith("│")}
    settings_class = getattr(COMMANDS[words].callback, "settings_class", None)
    for entry in fields(settings_class) if settings_class else ():
        text = entry.metadata["help"]
        assert (text() if callable(text) else text) in wide
    for parameter in COMMANDS[words].params:
        assert (parameter.help or "") in wide
        forms = [parameter.metavar] if parameter.param_type_name == "argument" else parameter.opts
        assert names.issuperset((*forms, *parameter.secondary_opts))


@pytest.mark.parametrize("words", COMMANDS)
def test_examples_can_be_typed(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = _page(words, WIDTH)
    start = next(number for number, line in enumerate(page) if line.startswith("╭─ Examples"))
    text = "\n".join(line.strip("│╰─╯ ") for line in page[start + 1 :])
    examples = [shlex.split(example) for example in text.replace("\\\n", " ").splitlines() if example]
    assert len(examples) >= 1 + (words != "import released")
    for program, *given in examples:
        assert program == "teachdiag"
        assert typed(given) == words


@pytest.mark.parametrize("words", ["", "import", *COMMANDS])
def test_the_short_form_asks_for_help_too(words: str) -> None:
    asked = [CliRunner().invoke(app, [*words.split(), form]) for form in ("-h", "--help")]
    assert asked[0].exit_code == 0
    assert asked[0].stdout == asked[1].stdout


def test_options_stand_in_panels() -> None:
    page = _page("capture", WIDTH)
    titles = [line.strip("╭─╮ ") for line in page if line.startswith("╭")]
    assert titles == [*("Options", "Models", "Prompts", "Sampling", "Engines", "Scale", "Of every command", "Examples")]
