"""Every sentence with which the code refuses an input, by kind: read from the code itself, for the page of questions.

A sentence is the first argument of an error class of `teachdiag.errors`; what is filled in when it is raised stands as
an ellipsis.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from teachdiag import errors
from teachdiag.markdown import bullets

ROOT = Path(__file__).parents[1]
ROOMS = ("teachdiag", "diagnostics", "analysis", "figures")
_KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__base__ is errors.InputError]


@cache
def refusals() -> dict[str, list[str]]:
    """Return the sentences of each kind of error, in alphabetical order, with the kind's own sentence as its name."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for room in ROOMS:
        for module in (ROOT / room).rglob("*.py"):
            for kind, sentence in _raised(ast.parse(module.read_text())):
                found[kind].add(sentence)
    return {
        str(kind.__doc__): sorted(found[kind.__name__], key=str.casefold) for kind in _KINDS if found[kind.__name__]
    }


def refusals_page() -> str:
    """Return them as Markdown, a heading a kind."""
    parts = [f"### {title}\n\n{bullets([_plain(text) for text in texts])}" for title, texts in refusals().items()]
    return "\n\n".join(parts)


def _raised(module: ast.AST) -> Iterator[tuple[str, str]]:
    names = {kind.__name__ for kind in _KINDS}
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
            sentence = _text(node.args[0])
            if sentence.count("…") * 12 < len(sentence):  # else all of it is made elsewhere
                yield node.func.id, sentence


def _text(node: ast.expr) -> str:
    """Return a string as it stands in the code, or an ellipsis for what is not known before it runs."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def _plain(text: str) -> str:
    """Return a sentence whose signs are no Markdown."""
    return text.replace("`", "\\`").replace("*", "\\*").replace("<", "&lt;").replace("[", "\\[").replace("_", "\\_")
