"""Every command of the command line, by its words."""

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
