"""How every figure looks, and how it is saved: legible in print, colour-blind safe, the same bytes twice."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

from teachdiag.glossary import explain, legend
from teachdiag.tables import whole

WIDTH, COLUMN = 7.2, 3.3  # inches: two columns of a paper, and one
_SCREEN_DPI = 96  # of a notebook, in which an inch is so many pixels
_CAPTION_CHARACTERS = 140 / WIDTH  # what fits an inch

PALETTE = sns.color_palette("colorblind")
REAL, SECOND, PLACEBO = PALETTE[0], PALETTE[1], "0.55"
DIVERGING, SEQUENTIAL = "PuOr", "cividis"
BLANK = "0.88"  # cells that hold too few positions to show

# Formats, and what keeps the date out of each: the same tables give the same bytes.
_UNDATED: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}

_OF_PLACEBO = "placebo:\n"
TITLES = {
    "one_step": "real step\n",
    "multi_step": "real steps\n",
    "checkpoint": "trained student\n",
    "theta0": f"{_OF_PLACEBO}no step",
    "shuffled_teacher": f"{_OF_PLACEBO}shuffled teacher",
    "shuffled_rollouts": f"{_OF_PLACEBO}shuffled rollouts",
    "random_direction": f"{_OF_PLACEBO}random direction",
}
_RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are the same everywhere
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
    "legend.frameon": False,
    "svg.hashsalt": "teachdiag",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # text stays text that journals accept
}


@contextmanager
def theme() -> Iterator[None]:
    """Apply the house style to everything drawn inside, and to nothing else."""
    with mpl.rc_context(sns.axes_style("ticks") | sns.plotting_context("paper") | _RC):
        yield


class ShownFigure(Figure):
    """A figure that a notebook shows by itself; pyplot, which else sees to that, never holds it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return twice as many pixels as the notebook is to give it, so that text stays sharp."""
        drawn = BytesIO()
        with theme():
            self.savefig(drawn, format="png", dpi=2 * _SCREEN_DPI)
        width, height = self.get_size_inches() * _SCREEN_DPI
        return drawn.getvalue(), {"width": round(width), "height": round(height)}


def blank_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of a height and a width in inches, on the Agg backend."""
    figure = ShownFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_caption(figure: Figure, text: str) -> None:
    """Write what was measured, on whom and how, below the axes, and what the words mean that are drawn there."""
    drawn = [artist.get_text() for artist in figure.findobj(Text)]
    words = {TITLES.get(name, name).removeprefix(_OF_PLACEBO): meaning for name, meaning in explain(drawn).items()}
    text = " ".join(filter(None, (text, legend(words))))
    lines = "\n".join(textwrap.wrap(text, int(_CAPTION_CHARACTERS * figure.get_figwidth())))
    figure.supxlabel(lines, x=0.01, ha="left", linespacing=1.3, fontsize=7, color="0.3")


def mark_missing(ax: Axes) -> None:
    """Say that a panel's numbers could not be estimated, where an empty panel would look like zeros."""
    ax.text(0.5, 0.5, "not estimable:\nconstant outcome", transform=ax.transAxes, ha="center", va="center", color="0.4")


def add_colour_bar(
    figure: Figure, mesh: QuadMesh, axes: list[Axes], label: str, extend: str = "neither", shrink: float = 1.0
) -> None:
    """Draw one colour bar for several panels."""
    bar = figure.colorbar(mesh, ax=axes, label=label, extend=extend, shrink=shrink, aspect=25 * shrink, pad=0.02)
    bar.outline.set_visible(False)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure in every format (PNG at 200 dpi), whole or not at all; return the files."""
    files = [folder / f"{name}.{kind}" for kind in _UNDATED]
    for file, undated in zip(files, _UNDATED.values(), strict=True):
        with whole(file) as part:
            figure.savefig(part, format=file.suffix[1:], dpi=200, metadata=undated)
    return files
