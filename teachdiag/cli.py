"""The command line: options to settings to one call a stage. Heavy imports happen inside the commands."""

import importlib.util
import inspect
import json
import sys
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from teachdiag import __version__
from teachdiag.errors import InputError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import (
    AnalyzeSettings,
    CaptureSettings,
    FiguresSettings,
    ProbeSettings,
    ReportSettings,
    help_text,
)
from teachdiag.terminal import show_analysis, show_capture, show_figures, show_probe, show_report

app = typer.Typer(
    help="""Which of the teacher's token-level signals can this student actually learn?

    [bold]teachdiag capture[/bold]   sample the student's rollouts, score both models at every position
    [bold]teachdiag probe[/bold]     step on the teacher's signals, whole or one by one, and measure what each does
    [bold]teachdiag analyze[/bold]   ask whether teachability predicts that gain better than raw KL
    [bold]teachdiag figures[/bold]   draw figures again, all or one
    [bold]teachdiag report[/bold]    put it all on one page that opens in a browser, tokens included

    Each stage reads and writes a run directory. With no options at all the first three do the demo: an embedded
    language model as teacher, the same model without one layer as student.""",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_STAGES = ("capture", "probe", "analyze", "figures", "report")

_Stage = Callable[[Path, Any, Reporter], dict[str, Any]]
_Together = Callable[[list[Path], Any], Path | None]
_Show = Callable[[dict[str, Any], Path], None]


def main() -> None:
    """Run the command line. Exit codes: 0 done, 2 the input is wrong (one sentence), 1 anything else."""
    try:
        app()
    except InputError as error:
        print(f"teachdiag: {error}", file=sys.stderr)
        sys.exit(2)


def _read_recipe(context: typer.Context, path: Path | None) -> Path | None:
    """Make the entries of a recipe the defaults of this command; options on the command line still win."""
    if path is None:
        return None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"recipe {path} is not TOML: {error}") from error
    name = str(context.info_name)
    strangers = [key for key, table in content.items() if key not in _STAGES or not isinstance(table, dict)]
    if strangers:
        raise SettingsError(
            f"recipe {path}: {', '.join(strangers)} is no table of a stage: put options under [{'], ['.join(_STAGES)}]"
        )
    entries = {key.replace("-", "_"): value for key, value in content.get(name, {}).items()}
    known = {str(option.name) for option in context.command.params} - {"recipe", "help"}
    unknown = entries.keys() - known
    if unknown:
        raise SettingsError(f"recipe {path}: [{name}] has no option {', '.join(sorted(unknown))}; see {name} --help")
    context.default_map = entries
    return path


_DEFAULT_RUN = Path("runs/demo")
_ONE_RUN: dict[str, tuple[Any, Any]] = {
    "run": (Annotated[Path, typer.Option(help="Run directory: every stage reads and writes here")], _DEFAULT_RUN)
}
_RUNS: dict[str, tuple[Any, Any]] = {
    "runs": (
        Annotated[
            list[Path] | None,
            typer.Argument(metavar="[RUN]...", help=f"Run directories (default: {_DEFAULT_RUN})", show_default=False),
        ],
        None,
    )
}
_COMMON: dict[str, tuple[Any, Any]] = {
    "recipe": (
        Annotated[
            Path | None,
            typer.Option(
                help="TOML file with any of these options, in a table named like the command",
                is_eager=True,
                callback=_read_recipe,
                show_default="none",
            ),
        ],
        None,
    ),
    "quiet": (
        Annotated[bool, typer.Option("--quiet", help="No progress bars, no messages", show_default="off")],
        False,
    ),
    "json": (
        Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout", show_default="off")],
        False,
    ),
}


def _stage_command(
    settings_class: type, show: _Show, *, many: bool = False, together: _Together | None = None
) -> Callable[[_Stage], _Stage]:
    """Register a stage as a command whose options are the fields of its settings class.

    Args:
        settings_class: the stage's settings.
        show: prints the summary of one run for people.
        many: whether it takes any number of runs as arguments, one after the other, or one as an option.
        together: what is written for several runs at once, after each by itself.
    """

    def register(stage: _Stage) -> _Stage:
        def command(**values: Any) -> None:  # noqa: ANN401
            common = {name: values.pop(name) for name in _COMMON}
            runs = (values.pop("runs") or [_DEFAULT_RUN]) if many else [values.pop("run")]
            settings, reporter = settings_class(**values), Reporter(quiet=common["quiet"])
            summaries = {}
            try:
                for run in runs:
                    summaries[str(run)] = stage(run, settings, reporter)
                    if not common["json"] and not common["quiet"]:
                        show(summaries[str(run)], run)
                if together and len(runs) > 1 and (folder := together(runs, settings)):
                    reporter.say(f"all runs in one table: {folder}")
            except KeyboardInterrupt:
                print("teachdiag: interrupted: the same command continues where this one stopped", file=sys.stderr)
                raise typer.Exit(1) from None
            if common["json"]:
                print(json.dumps(summaries if len(runs) > 1 else summaries[str(runs[0])], indent=2))

        options = (_RUNS if many else _ONE_RUN) | _COMMON | _settings_options(settings_class)
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in options.items()
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
        command.__doc__ = stage.__doc__
        app.command(stage.__name__)(command)
        return stage

    return register


def _settings_options(settings_class: type) -> dict[str, tuple[Any, Any]]:
    """Name, annotation and default of every option that a settings class declares."""
    hints = get_type_hints(settings_class)
    options: dict[str, tuple[Any, Any]] = {}
    for entry in fields(settings_class):
        shown = "none" if entry.default == "" else True
        option = typer.Option(help=help_text(entry), show_default=shown)
        options[entry.name] = (Annotated[hints[entry.name], option], entry.default)
    return options


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _version(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


@_stage_command(CaptureSettings, show_capture)
def capture(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Freeze student rollouts into a bank, and score student and teacher at every position of it."""
    _need_models()
    from teachdiag.diagnostics.capture import run_capture

    return run_capture(run, settings, reporter)


@_stage_command(ProbeSettings, show_probe)
def probe(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Take steps from theta0, and measure how far each position of the bank moves towards the teacher.

    By default one optimizer step with its placebos. --kind asks otherwise: one position's loss at a time, first-order
    predictions for all of them, many placebos, or what each way of selecting positions gains.
    """
    _need_models()
    from teachdiag.diagnostics.probe import run_probe

    return run_probe(run, settings, reporter)


def _compare(runs: list[Path], settings: Any) -> Path | None:  # noqa: ANN401
    from teachdiag.figures.comparison import compare_runs

    whole = settings.compat == "none" if isinstance(settings, AnalyzeSettings) else not settings.only
    return compare_runs(runs)[0].parent if whole else None


@_stage_command(AnalyzeSettings, show_analysis, many=True, together=_compare)
def analyze(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Ask whether teachability predicts the gains better than raw KL, beside the same numbers for every placebo."""
    from teachdiag.analysis.analyze import run_analysis
    from teachdiag.analysis.released.stage import run_released
    from teachdiag.figures.build import publish

    if settings.compat == "released":
        return run_released(run, settings, reporter)
    summary = run_analysis(run, settings, reporter)
    publish(run, reporter)
    return summary


@_stage_command(FiguresSettings, show_figures, many=True, together=_compare)
def figures(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Draw the figures and print the tables of an analysed run again, all or one."""
    from teachdiag.figures.build import publish

    return {"files": [str(file) for file in publish(run, reporter, settings.only)]}


@_stage_command(ReportSettings, show_report, many=True)
def report(run: Path, settings: Any, reporter: Reporter) -> dict[str, Any]:  # noqa: ANN401
    """Write a self-contained HTML page: the verdict, the evidence, and every token with what both models expected."""
    from teachdiag.figures.report.build import write_report

    return write_report(run, settings, reporter)


_importing = typer.Typer(help="Bring data from elsewhere into a run directory.", no_args_is_help=True)
app.add_typer(_importing, name="import")


@_importing.command()
def released(
    before: Annotated[Path, typer.Option(help="Scores of the untouched student: Parquet or CSV, its columns")],
    after: Annotated[Path, typer.Option(help="Scores after its update, of the same positions")],
    run: Annotated[Path, typer.Option(help="Run directory to write")],
    k: Annotated[int, typer.Option("--k", help="Support size K that they were scored with")] = 16,
) -> None:
    """Import a bank that the released code scored, for `teachdiag analyze RUN --compat released`."""
    from teachdiag.analysis.released.bank import import_bank

    found = import_bank(before, after, run, k)
    print(f"{run}: {found['positions']:,} positions of {found['contexts']} contexts, K={found['k']}")


def _need_models() -> None:
    """Say what to install before a missing torch can raise a traceback."""
    for package in ("torch", "transformers", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"this command needs {package}: pip install 'teachdiag[models,prompts]'")


if __name__ == "__main__":
    main()
