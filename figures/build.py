"""Draw every figure of a run from its analysis tables."""

from pathlib import Path

from teachdiag.figures.coefficients import coefficients_figure
from teachdiag.figures.deciles import deciles_figure
from teachdiag.figures.gain_surface import gain_surface_figure
from teachdiag.figures.plane import plane_figure
from teachdiag.figures.style import save, theme
from teachdiag.figures.tables import load_tables
from teachdiag.progress import Reporter

_OF_A_STEP = {"coefficients": coefficients_figure, "gain_surface": gain_surface_figure, "deciles": deciles_figure}


def draw_figures(run: Path, reporter: Reporter) -> list[Path]:
    """Draw all figures into `figures/` of the run, PNG and SVG; with several real steps, one file a step.

    Raises:
        ArtefactError: the analysis has not been run.
    """
    steps = load_tables(run)
    jobs = [("plane", plane_figure, steps[0])] + [
        (name if len(steps) == 1 else f"{name}-{step.probe_id}", make, step)
        for step in steps
        for name, make in _OF_A_STEP.items()
    ]
    files: list[Path] = []
    for name, make, step in reporter.track(jobs, "Figures"):
        with theme():
            files += save(make(step), run / "figures", name)
    return files
