"""Draw every figure of a run from its analysis tables: those that its probes give something to."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from teachdiag.errors import ArtefactError
from teachdiag.figures.budget_curve import budget_figure
from teachdiag.figures.coefficients import coefficients_figure
from teachdiag.figures.deciles import deciles_figure
from teachdiag.figures.gain_surface import gain_surface_figure
from teachdiag.figures.isolated import isolated_figure
from teachdiag.figures.lds import lds_figure
from teachdiag.figures.placebo_panel import panel_figure
from teachdiag.figures.plane import plane_figure
from teachdiag.figures.predicted import predicted_figure, read_points
from teachdiag.figures.style import save, theme
from teachdiag.figures.tables import RunTables, load_tables, steps_of
from teachdiag.progress import Reporter

Make = Callable[[], Figure]

_OF_A_STEP = {"coefficients": coefficients_figure, "gain_surface": gain_surface_figure, "deciles": deciles_figure}


def draw_figures(run: Path, reporter: Reporter, only: str = "") -> list[Path]:
    """Draw figures into `figures/` of the run, as PNG, SVG and PDF; with several probes of a kind, one file each.

    Args:
        run: the run directory.
        reporter: progress.
        only: a figure's name; all of them by default.

    Raises:
        ArtefactError: the analysis has not been run, or nothing in the run gives that figure.
    """
    tables = load_tables(run)
    jobs: list[tuple[str, Make]] = [("plane", partial(plane_figure, tables))]
    jobs += [*_of_steps(tables), *_of_probes(run, tables)]
    if only:
        wanted = [job for job in jobs if job[0] == only or job[0].startswith(f"{only}-")]
        if not wanted:
            raise ArtefactError(
                f"{run} has no figure {only!r}: it has {', '.join(name for name, _ in jobs)}; others need a probe of "
                "their kind, and then `teachdiag analyze`"
            )
        jobs = wanted
    files: list[Path] = []
    for name, make in reporter.track(jobs, "Figures"):
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
