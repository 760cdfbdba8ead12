"""Formats of rollouts: what each program writes, and what of it is known for sure.

A text is never the whole truth: several id sequences decode to the same text, and the student may have sampled one that
its tokenizer would not choose. Ids that are recovered from text are the tokenizer's own choice, then, and the responses
of such files count as rollouts of the student only as far as students sample what tokenizers choose. Text that lost its
special tokens does not tell whether any stood inside a message or a response either. Nor does a file tell with which
options of the chat template its prompts were rendered (tools, say, or thinking switched off), where they leave no trace
in the text; prompts are rendered with the options that the user gives. Where a format has ids, ids are taken.

Each module of this package is one format, its `FORMAT`; other packages add theirs as entry points of the group
`teachdiag.imports`. No torch: the command line reads their names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from teachdiag.diagnostics.imports.files import Format
from teachdiag.diagnostics.imports.records import BadRow, Record, Row
from teachdiag.errors import SettingsError
from teachdiag.registry import Registry, guarded


def _format(label: str, loaded: object) -> Format:
    """Take a format from elsewhere; whatever its functions raise becomes one sentence."""
    name = label.removeprefix("rollout format ")
    if not isinstance(loaded, Format):
        raise SettingsError(f"{label} is {type(loaded).__name__}, no teachdiag.diagnostics.imports.files.Format")

    def rows(file: Path) -> Iterator[Row]:
        with guarded(label, f"failed at {file}"):
            listed = list(loaded.rows(file))
        return iter(listed)

    def parse(where: str, number: int, fields: Mapping[Any, Any]) -> list[Record]:
        with guarded(label, f"failed at {where}"):
            try:
                result: list[Record] | BadRow = list(loaded.parse(where, number, fields))
            except BadRow as error:
                result = error
        if isinstance(result, BadRow):
            raise result
        return result

    return replace(loaded, name=name, rows=rows, parse=parse)


_modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
_BUILT_IN: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _modules}
FORMATS = Registry("teachdiag.imports", "rollout format", _BUILT_IN, _format)
