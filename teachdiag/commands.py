"""How a stage becomes a command: options and recipes from its settings class, summaries for people or as JSON."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import typer

from teachdiag.errors import SettingsError
from teachdiag.help_pages import HelpPage
from teachdiag.preflight import need_tracker
from teachdiag.progress import Reporter
from teachdiag.settings.base import ALWAYS, fits, flag, in_words, shown
from teachdiag.sweeps import TABLES as SWEEP_TABLES
from teachdiag.sweeps import read_recipe
from teachdiag.tracking import TrackerName, tracking

_STAGES = ("capture", "probe", "analyze", "figures", "report", "train", "evaluate", "plan", "calibrate")

_Stage = Callable[[Path, Any, Reporter], dict[str, Any]]
_Together = Callable[[list[Path], Any], Path | None]
_Show = Callable[[dict[str, Any], Path], None]
_Work = Callable[[Any], dict[str, Any]]


def is_first() -> bool:
    """Whether this process speaks, of those that accelerate or torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _read_recipe(context: typer.Context, given: str | Path | None) -> Any:  # noqa: ANN401 (the value it was given)
    """Make the entries of a recipe the defaults of this command; options on the command line still win."""
    if not given:
        return given
    path = Path(given)
    content = read_recipe(path, "recipe")
    name = str(context.info_name)
    allowed = (*_STAGES, *SWEEP_TABLES)
    strangers = [key for key, table in content.items() if key not in allowed or not isinstance(table, dict)]
    if strangers:
        raise SettingsError(
            f"recipe {path}: {', '.join(strangers)} is no table of a stage: put options under [{'], ['.join(allowed)}]"
        )
    entries = {key.replace("-", "_") + "_" * iskeyword(key): value for key, value in content.get(name, {}).items()}
    known = {str(option.name) for option in context.command.params} - {"recipe", "help"}
    unknown = entries.keys() - known
    if unknown:
        raise SettingsError(f"recipe {path}: [{name}] has no option {', '.join(sorted(unknown))}; see {name} --help")
    callback: Any = context.command.callback
    hints = get_type_hints(callback) | get_type_hints(callback.settings_class)
    for key, value in entries.items():  # before the command line makes 1 of true, and 3 of 3.7
        if not fits(value, hints[key]):
            raise SettingsError(f"recipe {path}: {key} is {shown(value)}: it must be {in_words(hints[key])}")
    context.default_map = {**(context.default_map or {}), **entries}
    return given


_RECIPES = ("recipe", "sweep")  # options whose file holds defaults of the others


def run_folder(given: str | Path) -> Path:
    """Take the name of a run directory; what is a slip is none."""
    name = str(given)
    if name in ("", "-") or "\0" in name or any(len(os.fsencode(part)) > _NAME_BYTES for part in Path(name).parts):
        raise SettingsError(f"run {shown(name)} is no name of a folder: give one such as {DEFAULT_RUN}")
    return Path(name)


_NAME_BYTES = 255  # of one part of a path, on the usual file systems
DEFAULT_RUN = Path("runs/demo")
RunFolder = Annotated[
    Path,
    typer.Option(
        parser=run_folder,
        metavar="PATH",
        help=f"Run directory: every stage reads and writes here (default {DEFAULT_RUN})",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no messages", rich_help_panel=ALWAYS)]
_ONE_RUN: dict[str, tuple[Any, Any]] = {"run": (RunFolder, DEFAULT_RUN)}
_RUNS: dict[str, tuple[Any, Any]] = {
    "runs": (
        Annotated[
            list[Path] | None,
            typer.Argument(parser=run_folder, metavar="RUN", help=f"Run directories (default {DEFAULT_RUN})"),
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
                metavar="PATH",
                rich_help_panel=ALWAYS,
                is_eager=True,
                callback=_read_recipe,
            ),
        ],
        None,
    ),
    "quiet": (Quiet, False),
    "json": (
        Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout", rich_help_panel=ALWAYS)],
        False,
    ),
}
_TRACKED: dict[str, tuple[Any, Any]] = {
    "report_to": (
        Annotated[
            TrackerName,
            typer.Option(
                metavar="CHOICE",
                show_default=False,
                help="Where settings, progress and results are logged: none, trackio or wandb (default none)",
                rich_help_panel=ALWAYS,
            ),
        ],
        "none",
    )
}
_PLAIN = {name: _COMMON[name] for name in ("recipe", "json")}


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Say where work ended before its end, and exit with 1: what was interrupted is not done."""
    try:
        yield
    except KeyboardInterrupt:
        print("teachdiag: interrupted: the same command continues where this one stopped", file=sys.stderr)
        raise typer.Exit(1) from None
    except SystemExit as error:  # of a library or of a checkpoint's own code; its own exit code would say "done"
        print(f"teachdiag: code that was called ended the program (sys.exit: {error})", file=sys.stderr)
        raise typer.Exit(1) from error


def stage_command(
    app: typer.Typer,
    settings_class: type,
    show: _Show,
    *,
    many: bool = False,
    together: _Together | None = None,
    further: Mapping[str, tuple[Any, Any]] | None = None,
    tracked: bool = False,
) -> Callable[[_Stage], _Stage]:
    """Register a stage as a command whose options are the fields of its settings class.

    Args:
        app: the command line that the command joins.
        settings_class: the stage's settings.
        show: prints the summary of one run for people.
        many: whether it takes any number of runs as arguments, one after the other, or one as an option.
        together: what is written for several runs at once, after each by itself.
        further: annotation and default of options that are no settings, by name: their callbacks do what they ask for.
        tracked: whether settings, progress and summaries go to a tracker where --report-to names one.
    """
    shared = _COMMON | (_TRACKED if tracked else {}) | dict(further or {})

    def register(stage: _Stage) -> _Stage:
        def command(**values: Any) -> None:  # noqa: ANN401
            common = {name: values.pop(name) for name in shared}
            runs = (values.pop("runs") or [DEFAULT_RUN]) if many else [values.pop("run")]
            quiet = common["quiet"] or not is_first()
            settings, reporter = settings_class(**values), Reporter(quiet=quiet)
            tracker: TrackerName = common.get("report_to", "none") if is_first() else "none"
            need_tracker(tracker)
            summaries = {}
            with uninterrupted():
                for run in runs:
                    with tracking(tracker, stage.__name__, run, settings.as_dict()) as tracks:
                        summaries[str(run)] = stage(run, settings, replace(reporter, watch=tracks.progress))
                        tracks.results(summaries[str(run)])
                    if not common["json"] and not quiet:
                        show(summaries[str(run)], run)
                if together and len(runs) > 1 and (written := together(runs, settings)):
                    reporter.say(f"all runs together: {written}")
            if common["json"] and is_first():
                print(json.dumps(summaries if len(runs) > 1 else summaries[str(runs[0])], indent=2))

        _add(app, command, stage, settings_class, (_RUNS if many else _ONE_RUN) | shared)
        return stage

    return register


def plain_command(
    app: typer.Typer,
    settings_class: type,
    show: Callable[[dict[str, Any]], None],
    *,
    recipe: bool = True,
    code: Callable[[dict[str, Any]], int] = lambda _: 0,
) -> Callable[[_Work], _Work]:
    """Register a command that has no run directory: settings in, a summary out, for people or as JSON.

    Args:
        app: the command line that the command joins.
        settings_class: its settings.
        show: prints the summary for people.
        recipe: whether a recipe has a table for it.
        code: the exit code that a summary stands for.
    """
    shared = {name: option for name, option in _PLAIN.items() if recipe or name != "recipe"}

    def register(work: _Work) -> _Work:
        def command(**values: Any) -> None:  # noqa: ANN401
            common = {name: values.pop(name) for name in shared}
            with uninterrupted():
                summary = work(settings_class(**values))
            print(json.dumps(summary, indent=2)) if common["json"] else show(summary)
            if ended := code(summary):
                raise typer.Exit(ended)

        _add(app, command, work, settings_class, shared)
        return work

    return register


def _add(
    app: typer.Typer,
    command: Callable[..., None],
    named: Callable[..., Any],
    settings_class: type,
    shared: dict[str, tuple[Any, Any]],
) -> None:
    """Let a command join the command line under the name and help text of a function, with its settings' options."""
    options = shared | _settings_options(settings_class)
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    command.__doc__ = named.__doc__
    command.settings_class = settings_class  # type: ignore[attr-defined]
    app.command(named.__name__.replace("_", "-"), cls=HelpPage)(command)


# How help calls the value of an option, by its type.
_VALUES: dict[Any, str] = {int: "N", float: "NUMBER", float | None: "NUMBER"}


def _settings_options(settings_class: type) -> dict[str, tuple[Any, Any]]:
    """Name, annotation and default of every option that a settings class declares."""
    hints = get_type_hints(settings_class)
    options: dict[str, tuple[Any, Any]] = {}
    for entry in fields(settings_class):
        if entry.metadata["argument"]:
            argument = typer.Argument(metavar=entry.name[:-1].upper())
            options[entry.name] = (Annotated[hints[entry.name], argument], ...)
            continue
        hint = str if hints[entry.name] == float | str else hints[entry.name]  # Typer knows no unions
        reader = _read_recipe if entry.name in _RECIPES else None
        option = typer.Option(
            *([flag(entry.name)] if entry.name.endswith("_") else []),
            metavar="CHOICE" if get_origin(hint) is Literal else _VALUES.get(hint, "TEXT"),
            show_default=False,
            rich_help_panel=entry.metadata["panel"],
            is_eager=reader is not None,
            callback=reader,
        )
        options[entry.name] = (Annotated[hint, option], entry.default)
    return options
