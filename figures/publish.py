"""Draw every figure and print every table of a run from its analysis: those that its probes give something to."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from teachdiag.errors import ArtefactError, SettingsError
from teachdiag.figures.captions import CAPTIONS, Caption, write_captions
from teachdiag.figures.printed_tables import print_tables
from teachdiag.figures.run_tables import RunTables, load_tables, steps_of
from teachdiag.figures.style import Picture, save, theme
from teachdiag.plots import BANK, PLOTS, STEP, Plot
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, joining

Make = Callable[[], Picture]


def publish(run: Path, reporter: Reporter, only: str = "") -> list[Path]:
    """Draw figures into `figures/` of the run and print tables into `tables/`; return the files.

    Args:
        run: the run directory.
        reporter: progress.
        only: the name of a figure or table; all of them by default.

    Raises:
        RunError: the run has not been analysed, was changed since, or is in use.
        ArtefactError: nothing in the run gives that figure or table.
    """
    Stage(run, "analyze").record()
    stage = Stage(run, "figures")
    with joining(run), stage.timed():
        earlier = (stage.read() or {}).get("tables", {}) if only else {}
        tables = load_tables(run)
        every = pictures(tables)
        jobs = {name: make for name, make in every.items() if only in ("", name) or name.startswith(f"{only}-")}
        files = print_tables(run, tables, only)
        if not jobs and not files:
            raise ArtefactError(f"{run} has neither figure nor table {only!r}: {_others(every)}")
        stage.note.unlink(missing_ok=True)
        stage.claim({"only": only}, {})
        drawn = _draw(run, jobs, reporter)
        held = [file for file in drawn if file.suffix == ".svg" or file.name == f"{CAPTIONS}.json"]
        stage.complete({}, [file.relative_to(run).as_posix() for file in held], earlier)  # what the report holds
    return files + drawn


def draw_figures(run: Path, reporter: Reporter) -> list[Path]:
    """Draw all figures of a run, as PNG, SVG and PDF; with several probes of a kind, each has a figure of its own.

    Raises:
        ArtefactError: the analysis has not been run.
    """
    return _draw(run, pictures(load_tables(run)), reporter)


def figure_names(run: Path) -> list[str]:
    """Return the names of all figures of a run.

    Raises:
        RunError: the run has not been analysed, or a table is no longer what the analysis wrote.
    """
    return list(pictures(load_tables(run)))


def draw_figure(run: Path, name: str) -> Picture:
    """Draw one figure of a run, and write nothing.

    Raises:
        RunError: as `figure_names`.
        ArtefactError: nothing in the run gives it.
    """
    every = pictures(load_tables(run))
    if name not in every:
        raise ArtefactError(f"{run} has no figure {name!r}: {_others(every)}")
    with theme():
        picture = every[name]()
        picture.draw_without_rendering()  # ticks take their style when they are first drawn
    return picture


def pictures(tables: RunTables) -> dict[str, Make]:
    """Return every figure that a run gives something to: what draws it, by the name of its file."""
    return {name: partial(_made, plot, *arguments) for name, plot, arguments in _subjects(tables)}


def _subjects(tables: RunTables) -> Iterator[tuple[str, Plot, tuple[RunTables | str, ...]]]:
    """Yield the name of every figure, what it is, and what it is drawn of."""
    steps = steps_of(tables)
    for plot in PLOTS.values():
        if plot.of == BANK:
            yield plot.name, plot, (tables,)
        elif plot.of == STEP:
            for step in steps:
                yield _file(plot, step.probe_id, len(steps)), plot, (step,)
        else:
            probes = tables.probes(plot.of)
            for probe_id in probes:
                yield _file(plot, probe_id, len(probes)), plot, (tables, probe_id)


def _others(names: Iterable[str]) -> str:
    return f"its figures are {', '.join(names)}; others need a probe of their kind, and then `teachdiag analyze`"


def _draw(run: Path, jobs: Mapping[str, Make], reporter: Reporter) -> list[Path]:
    """Draw and write figures, and their captions."""
    folder, files, captions = run / "figures", [], {}
    for name, make in reporter.track(list(jobs.items()), "Figures"):
        with theme():
            picture = make()
            files += save(picture, folder, name)
        captions[name] = Caption.of(picture)
    return files + (write_captions(folder, captions) if jobs else [])


def _made(plot: Plot, *arguments: RunTables | str) -> Picture:
    with theme():
        picture = plot.function()(*arguments)
        if not isinstance(picture, Picture):
            raise SettingsError(
                f"figure {plot.name}: {plot.drawn_by} returns {type(picture).__name__}: it must return a "
                "teachdiag.figures.style.Picture, as blank_figure() there gives one"
            )
        picture.ask(plot.title)
    return picture


def _file(plot: Plot, probe_id: str, n_probes: int) -> str:
    return plot.name if n_probes == 1 else f"{plot.name}-{probe_id}"
