"""The code on the pages that people read, README.md and those of docs/, and the way to say that a piece cannot be run.

Such a piece has its reason above its fence, which renderers do not show:

    <!-- not run: downloads two models -->
    ```python
    ...
    ```
"""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stages import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("", "sh", "bash", "shell", "console")
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^ *(?P=fence) *$", re.M | re.S)
_MARK = re.compile(r"<!--\s*not run:(?P<why>.*?)-->", re.S)
_CONTROL = re.compile(r"[();<>|&]+")  # what a shell reads as more than a word


@dataclass(frozen=True)
class Snippet:
    """One fenced block: where it stands, its language, its text, and why it is not run ('' where it is)."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path) -> list[Snippet]:
    """Return the blocks of a page, in order."""
    text, end, found = page.read_text(encoding="utf-8"), 0, []
    for fence in _FENCE.finditer(text):
        between, end, start = text[end : fence.start()], fence.end(), fence.start()
        mark = _MARK.search(between)
        if mark:
            place = f"{page.name}:{text[:start].count(chr(10)) + 1}"
            assert mark["why"].strip(), f"{place}: say why this is not run: <!-- not run: REASON -->"
            assert not between[mark.end() :].strip(), f"{place}: 'not run' stands above a fence, and nothing between"
        words = fence["language"].split()
        found.append(
            Snippet(
                page,
                text[:start].count("\n") + 2,
                words[0] if words else "",
                textwrap.dedent(fence["text"]),
                mark["why"].strip() if mark else "",
            )
        )
    assert not _MARK.search(text[end:]), f"{page.name}: 'not run' stands above no fence"
    return found


def teachdiag_commands(text: str) -> Iterator[list[str]]:
    """Yield what stands behind `teachdiag` in every command of some shell lines, whatever starts it."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.commenters = "#"
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if not _CONTROL.fullmatch(word):
                command.append(word)
                continue
            started = next((n for n in range(len(command)) if _starts(command, n)), None)
            if started is not None:
                yield command[started + 1 :]
            command = []


def _starts(command: list[str], number: int) -> bool:
    """Whether a word is the program, and not an argument of another."""
    before = command[number - 1] if number else ""
    return Path(command[number]).name == "teachdiag" and (number == 0 or before in ("-m", "--") or "=" in before)
