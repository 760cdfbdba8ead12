"""Every command of the command line, by its words, and what it makes of the words behind it."""

from dataclasses import fields
from typing import Any

import typer

from teachdiag.cli import app


def commands() -> dict[str, Any]:
    """Commands without those that only hold others: `import verl`, not `import`."""
    listed: dict[str, Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        if not hasattr(command, "list_commands"):
            listed[" ".join(words)] = command
            return
        for name in command.list_commands(None):
            walk(command.get_command(None, name), (*words, name))

    walk(typer.main.get_command(app), ())
    return listed


def typed(words: list[str]) -> str:
    """Take what stands behind `teachdiag` as the program does, and build the settings; run nothing; return the command.

    Whatever the program refuses raises here.
    """
    known = commands()
    name = both if (both := " ".join(words[:2])) in known else words[0]
    command = known[name]
    context = command.make_context(name.split()[-1], words[len(name.split()) :])
    if settings_class := getattr(command.callback, "settings_class", None):
        declared = {entry.name for entry in fields(settings_class)}
        values = {option: value for option, value in context.params.items() if option in declared}
        settings_class(**{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})
    return name
