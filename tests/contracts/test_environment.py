"""docs/environment.md lists every environment variable that the code reads or sets, and no other.

The truth is the code itself, read by its syntax.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from stages import ROOT

NAME = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
ROOMS = ("teachdiag", "diagnostics", "analysis", "figures", "tools")
OURS = ("tests", "benchmarks")  # whose worlds play launchers; what counts there is our own


def _named(node: ast.expr) -> str:
    """A name in capitals; of an f-string, what is put in is `*`."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _variables(file: Path) -> Iterator[str]:
    """What is asked of or put into os.environ, and keys in capitals of what is given to a process as a whole."""
    for node in ast.walk(ast.parse(file.read_text())):
        where = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if re.fullmatch(r"(os\.)?(environ\.(get|setdefault|pop)|getenv)", where):
            yield _named(node.args[0])  # type: ignore[attr-defined]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
            yield _named(node.slice)
        elif isinstance(node, ast.Dict):
            keys = [_named(key) for key in node.keys if key]
            if keys and all(NAME.fullmatch(key) and "_" in key + "_" * key.startswith("PYTHON") for key in keys):
                yield from keys


def test_the_page_lists_what_the_code_reads_and_sets() -> None:
    found = {name for room in ROOMS for file in (ROOT / room).rglob("*.py") for name in _variables(file)}
    mine = {name for room in OURS for file in (ROOT / room).rglob("*.py") for name in _variables(file)}
    found |= {name for name in mine if name.startswith("TEACHDIAG_")}
    page = (ROOT / "docs/environment.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    written = {name.replace("<MANIFEST>", "*") for name in listed} - {"TRACKIO_PROJECT", "WANDB_PROJECT"} | {
        "*_PROJECT"
    }
    assert found - {""} == written
