"""Every piece of code on the pages: Python is run on a run with the demo's tables, commands are taken as typed.

`tests/worlds/pages.py` tells how a piece says that it cannot be run, and why.
"""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import typed
from pages import PAGES, SHELL, snippets, teachdiag_commands
from stages import ROOT
from typer.testing import CliRunner

from teachdiag import open_run
from teachdiag.artefacts import TABLES
from teachdiag.cli import app
from teachdiag.settings import KINDS

FOUND = {page.relative_to(ROOT).as_posix(): snippets(page) for page in PAGES}
COMMANDS = {
    shlex.join(words): snippet.place
    for found in FOUND.values()
    for snippet in found
    if snippet.language in SHELL and not snippet.why_not
    for words in teachdiag_commands(snippet.text)
}
_READERS = ("figures", "report", "plan")  # what is run on the demo's run; analyze has made it


def _read_the_demo(command: str) -> bool:
    words = shlex.split(command)
    return words[:1] in [[name] for name in _READERS] and [w for w in words if w.startswith("runs/")] == ["runs/demo"]


@pytest.fixture
def demo(tmp_path: Path, demo_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader types: the checkout's, with a run in `runs/demo`."""
    shutil.copytree(demo_once, tmp_path / "runs/demo")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/demo"


@pytest.mark.slow
def test_the_run_has_the_tables_of_the_demo(demo: Path) -> None:
    by_probes = {*KINDS["one_step"].folders, *KINDS["efficiency"].folders}
    assert set(open_run(demo).tables) == {
        table.name for table in TABLES if table.written_by in ("capture", "analyze") or table.name in by_probes
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, found in FOUND.items() if any(s.language == "python" for s in found)])
def test_python_runs(page: str, demo: Path) -> None:
    """Blocks of a page follow one another, as in a notebook."""
    names: dict[str, Any] = {}
    for snippet in FOUND[page]:
        if snippet.language == "python" and not snippet.why_not:
            exec(compile("\n" * (snippet.line - 1) + snippet.text, ROOT / page, "exec"), names)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_can_be_typed(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    assert words, f"{COMMANDS[command]}: teachdiag alone shows its help"
    if not words[0].startswith("-"):
        typed(words)


@pytest.mark.slow
@pytest.mark.usefixtures("png_alone")
@pytest.mark.parametrize("command", [command for command in COMMANDS if _read_the_demo(command)])
def test_what_reads_the_demo_runs(command: str, demo: Path) -> None:
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, f"{COMMANDS[command]}: {done.exception or done.output}"


def test_pieces_that_are_not_run_say_why(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\n1\n```\n\n<!-- not run: takes a GPU -->\n\n```python\n2\n```\n- item\n\n  ```sh\n  ls\n  ```\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pages.ROOT", tmp_path)
        found = snippets(page)
        assert [(s.place, s.language, s.text, s.why_not) for s in found] == [
            ("page.md:2", "python", "1\n", ""),
            ("page.md:8", "python", "2\n", "takes a GPU"),
            ("page.md:13", "sh", "ls\n", ""),
        ]
    for text in ("<!-- not run: -->\n```\nls\n```", "<!-- not run: a -->\nwords\n```\nls\n```", "<!-- not run: a -->"):
        page.write_text(text)
        with pytest.raises(AssertionError, match="not run"):
            snippets(page)


def test_commands_are_found_whatever_starts_them() -> None:
    text = """
    $ .venv/bin/teachdiag analyze runs/demo  # teachdiag is here
    A=1 teachdiag plan \\
        --from runs/demo && teachdiag report > page
    accelerate launch --config_file x.yaml -m teachdiag train --trl '{"a": 1}'
    torchrun --nproc-per-node 2 -m -- teachdiag probe
    pip install teachdiag
    python -m teachdiag.selectors
    """
    assert list(teachdiag_commands(text)) == [
        ["analyze", "runs/demo"],
        ["plan", "--from", "runs/demo"],
        ["report"],
        ["train", "--trl", '{"a": 1}'],
        ["probe"],
    ]
