"""Draw every figure and print every table of a run from its analysis: those that its probes give something to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from teachdiag.errors import ArtefactError
from teachdiag.figures.plots.buckets import buckets_figure
from teachdiag.figures.plots.budget_curve import budget_figure
from teachdiag.figures.plots.coefficients import coefficients_figure
from teachdiag.figures.plots.deciles import deciles_figure
from teachdiag.figures.plots.gain_surface import gain_surface_figure
from teachdiag.figures.plots.isolated import isolated_figure
from teachdiag.figures.plots.lds import lds_figure
from teachdiag.figures.plots.placebo_panel import panel_figure
from teachdiag.figures.plots.plane import plane_figure
from teachdiag.figures.plots.position_profile import position_profile_figure
from teachdiag.figures.plots.predicted import predicted_figure, read_points
from teachdiag.figures.plots.proxies import proxies_figure
from teachdiag.figures.plots.q3_contrast import q3_contrast_figure
from teachdiag.figures.plots.saturation import saturation_figure
from teachdiag.figures.plots.top_n import top_n_figure
from teachdiag.figures.plots.validity import validity_figure
from teachdiag.figures.printed_tables import print_tables
from teachdiag.figures.run_tables import RunTables, load_tables, steps_of
from teachdiag.figures.style import save, theme
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, joining

Make = Callable[[], Figure]

_OF_THE_BANK = {"plane": plane_figure, "saturation": saturation_figure}
_OF_A_STEP = {
    "coefficients": coefficients_figure,
    "q3_contrast": q3_contrast_figure,
    "proxies": proxies_figure,
    "validity": validity_figure,
    "gain_surface": gain_surface_figure,
    "deciles": deciles_figure,
    "buckets": buckets_figure,
    "top_n": top_n_figure,
    "position_profile": position_profile_figure,
}


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
        jobs = {name: make for name, make in _jobs(run, tables) if only in ("", name) or name.startswith(f"{only}-")}
        files = print_tables(run, tables, only)
        if not jobs and not files:
            raise ArtefactError(
                f"{run} has neither figure nor table {only!r}: its figures are "
                f"{', '.join(name for name, _ in _jobs(run, tables))}; others need a probe of their kind, and then "
                "`teachdiag analyze`"
            )
        stage.note.unlink(missing_ok=True)
        stage.claim({"only": only}, {})
        drawn = _draw(run, jobs, reporter)
        pictures = [file.relative_to(run).as_posix() for file in drawn if file.suffix == ".png"]
        stage.complete({}, pictures, earlier)  # the report holds them
    return files + drawn


def draw_figures(run: Path, reporter: Reporter) -> list[Path]:
    """Draw all figures of a run, as PNG, SVG and PDF; with several probes of a kind, each has a figure of its own.

    Raises:
        ArtefactError: the analysis has not been run.
    """
    return _draw(run, dict(_jobs(run, load_tables(run))), reporter)


def _jobs(run: Path, tables: RunTables) -> list[tuple[str, Make]]:
    of_bank: list[tuple[str, Make]] = [(name, partial(make, tables)) for name, make in _OF_THE_BANK.items()]
    return [*of_bank, *_of_steps(tables), *_of_probes(run, tables)]


def _draw(run: Path, jobs: Mapping[str, Make], reporter: Reporter) -> list[Path]:
    files: list[Path] = []
    for name, make in reporter.track(list(jobs.items()), "Figures"):
        with theme():
            files += save(make(), run / "figures", name)
    return files


def _of_steps(tables: RunTables) -> Iterator[tuple[str, Make]]:
    steps = steps_of(tables)
    for step in steps:
        for name, make in _OF_A_STEP.items():
            yield _file(name, step.probe_id, len(steps)), partial(make, step)


def _of_probes(run: Path, tables: RunTables) -> Iterator[tuple[str, Make]]:
    """Yield the figures of probes that are no real step."""

    def predicted(probe_id: str) -> Figure:
        Stage(run, f"probes/{probe_id}").require()
        return predicted_figure(tables.estimates, read_points(run, probe_id), probe_id)

    kinds: dict[str, tuple[Sequence[str], Callable[[str], Figure]]] = {
        "placebo_panel": (list(tables.panel["probe_id"].unique()), partial(panel_figure, tables)),
        "budget_curve": (list(tables.selection["probe_id"].unique()), partial(budget_figure, tables)),
        "lds": (tables.probes("lds"), partial(lds_figure, tables)),
        "isolated": (tables.probes("isolated"), partial(isolated_figure, tables.estimates)),
        "predicted": (tables.probes("predicted"), predicted),
    }
    for name, (probes, make) in kinds.items():
        for probe_id in probes:
            yield _file(name, probe_id, len(probes)), partial(make, probe_id)


def _file(name: str, probe_id: str, n_probes: int) -> str:
    return name if n_probes == 1 else f"{name}-{probe_id}"
