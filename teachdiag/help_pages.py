"""The page that `--help` shows of a command: options by panel, legible at 80 columns, and examples at the end.

The examples stand in the docstring of the command's function, behind a line `Examples:`, one a line; one that goes on
in the next line ends with a backslash.
"""

from collections import defaultdict
from textwrap import dedent
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument, TyperCommand

from teachdiag.settings.base import ALWAYS, ENGINES, OPTIONS, PANELS, help_texts

_OPTION_WIDTH = 31  # columns of an option and its value; longer ones are wrapped
_ARGUMENTS = "Arguments"
_BEFORE, _AFTER = (_ARGUMENTS, *PANELS[: PANELS.index(ENGINES)]), PANELS[PANELS.index(ENGINES) :]


class HelpPage(TyperCommand):
    """A command whose help stands in two columns whatever its options are called.

    Typer's own page gives every opposite such as --no-keep and every choice a column, and the text what is left.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (click's own, wherever Typer has it)
        """Print usage, what the command does, a panel for each group of options, and the examples."""
        console = Console(highlight=False)
        console.print(Padding(Text(self.get_usage(ctx), style="bold"), 1))
        text, _, examples = (self.help or "").partition("\n\nExamples:\n")
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        console.print(Padding(Text("\n\n".join(paragraphs)), (0, 1, 1, 1)))
        settings_class = getattr(self.callback, "settings_class", None)
        texts = help_texts(settings_class) if settings_class else {}
        panels: defaultdict[str, Table] = defaultdict(_two_columns)
        parameter: Any  # an option or an argument
        for parameter in self.get_params(ctx):
            panels[_panel(parameter)].add_row(
                Text(_names(parameter), style="bold cyan"), Text(texts.get(parameter.name) or parameter.help or "")
            )
        others = (title for title in panels if title not in _AFTER)
        for title in dict.fromkeys((*_BEFORE, *others, *_AFTER)):
            if title in panels:
                console.print(_framed(title, panels[title]))
        console.print(_framed("Examples", Text(dedent(examples), style="green")))


def _panel(parameter: Any) -> str:  # noqa: ANN401
    if isinstance(parameter, TyperArgument):
        return _ARGUMENTS
    return ALWAYS if parameter.name == "help" else parameter.rich_help_panel or OPTIONS


def _names(parameter: Any) -> str:  # noqa: ANN401
    """An argument's name, or an option's with its value, and below it its opposite."""
    if isinstance(parameter, TyperArgument):
        return str(parameter.metavar)
    value = "" if parameter.is_flag else f" {parameter.metavar}"
    return "\n".join((", ".join(sorted(parameter.opts, key=len)) + value, *parameter.secondary_opts))


def _framed(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=title, title_align="left", border_style="dim")


def _two_columns() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(max_width=_OPTION_WIDTH)
    table.add_column(ratio=1)
    return table
