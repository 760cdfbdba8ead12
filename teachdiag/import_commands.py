"""The commands of `teachdiag import`: a scored bank, and rollouts in every format that is built in or installed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from teachdiag import preflight
from teachdiag.commands import plain_command, run_folder, uninterrupted
from teachdiag.help_pages import HelpPage
from teachdiag.progress import Reporter
from teachdiag.settings import ImportSettings, NamedImportSettings
from teachdiag.terminal import show_import

if TYPE_CHECKING:
    from teachdiag.diagnostics.imports.files import Format


class _Imports(TyperGroup):
    """The commands of `import`: those of the app, and one for each format of rollouts, which are looked up when asked.

    Else every command would look for installed formats.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 (click's context, wherever Typer has it)
        """Return the names of all commands."""
        from teachdiag.diagnostics.imports.formats import FORMATS

        return [*super().list_commands(ctx), *FORMATS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """Return the command of a name, or None."""
        from teachdiag.diagnostics.imports.formats import FORMATS

        return _import_command(FORMATS[cmd_name]) if cmd_name in FORMATS else super().get_command(ctx, cmd_name)


importing = typer.Typer(
    help="Bring data from elsewhere: a scored bank, or rollouts to be scored.", no_args_is_help=True, cls=_Imports
)


@importing.command(cls=HelpPage)
def released(
    before: Annotated[
        Path, typer.Option(metavar="PATH", help="Scores of the untouched student: Parquet or CSV, its columns")
    ],
    after: Annotated[Path, typer.Option(metavar="PATH", help="Scores after its update, of the same positions")],
    run: Annotated[Path, typer.Option(parser=run_folder, metavar="PATH", help="Run directory to write")],
    k: Annotated[
        int, typer.Option("--k", metavar="N", help="Support size K that they were scored with (default 16)")
    ] = 16,
) -> None:
    r"""Import a bank that the released code scored, for `teachdiag analyze RUN --compat released`.

    Examples:
        teachdiag import released --before before.csv --after after.csv \
            --run runs/released
    """
    from teachdiag.analysis.released.released_bank import import_bank

    with uninterrupted():
        counts = import_bank(before, after, run, k)
    print(f"{run}: {counts['positions']:,} positions of {counts['contexts']} contexts, K={counts['k']}")


def _import_command(form: "Format") -> Any:  # noqa: ANN401 (a command of Typer's)
    def work(settings: Any) -> dict[str, Any]:  # noqa: ANN401
        preflight.need("models,prompts", "torch", "transformers", "accelerate")
        preflight.before_import(settings)
        from teachdiag.diagnostics.imports.import_rollouts import import_rollouts

        return import_rollouts(form, settings, Reporter())

    work.__name__ = form.name
    more = f"\n\n    {form.more}" if form.more else ""
    work.__doc__ = f"""Import {form.help}, for `teachdiag capture --contexts FILE`.{more}

    Examples:
        teachdiag import {form.name} rollouts/ --student Qwen/Qwen3-0.6B \\
            --contexts rollouts.parquet
        teachdiag import {form.name} step-10 step-20 --student Qwen/Qwen3-0.6B \\
            --contexts rollouts.parquet --skip-bad-rows
    """
    alone = typer.Typer(rich_markup_mode="rich", add_completion=False)
    settings = NamedImportSettings if form.named else ImportSettings
    plain_command(alone, settings, show_import, recipe=False)(work)
    return typer.main.get_command(alone)
