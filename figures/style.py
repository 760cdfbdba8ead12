"""How every figure looks, and how it is saved: legible in print, colour-blind safe, the same bytes twice.

A figure is drawn at the width at which it is printed, so that its letters have the size that is set here. What explains
it is no part of the picture: `Picture` carries its question, its caption and what is seen on it.
"""

import base64
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from teachdiag.figures.seen import TITLES
from teachdiag.glossary import explain, legend
from teachdiag.signals import lowered, raised
from teachdiag.tables import whole, write_text

WIDTH, COLUMN = 7.2, 3.3  # inches: two columns of a paper, and one
_CAPTION = "max-width:50em;font-size:smaller"
_SCREEN_DPI = 144  # of a notebook: text as large as that around it
_PRINT_DPI = 200
_SMALL = 7.0  # points: ticks, legends and panels' titles; nothing is smaller than TINY
TINY = 6.5
_LINE = 15.0  # characters of a title that fit an inch

# Colours have one meaning each: signals' are in `signals.py`, greys are placebos', and these are the rest.
INK, REAL, PLACEBO = "#262626", "#aa3377", "0.55"
RANDOM, PREDICTED = "#d55e00", "#ca9161"
DIVERGING, SEQUENTIAL = "BrBG", "cividis"
BLANK = "0.88"  # cells that hold too few positions to show

# On a dark page greys are turned over, between its ink and its ground, and colours are lighter.
_DARK_GROUND, _DARK_INK = (0x14, 0x17, 0x1D), (0xE8, 0xEA, 0xF0)
_LIGHTER = {
    "#0173b2": "#4a9fe3",
    "#029e73": "#2cc495",
    "#56b4e9": "#9bd8ff",
    "#aa3377": "#e07ab5",
    "#d55e00": "#ff8340",
    "#de8f05": "#f5ad33",
}
_HEX = re.compile(r"#[0-9a-f]{6}\b")

# Formats: what draws each, and what keeps the date out of it, since the same tables give the same bytes.
_FORMATS: dict[str, tuple[type[FigureCanvasBase], dict[str, None]]] = {
    "png": (FigureCanvasAgg, {}),
    "svg": (FigureCanvasSVG, {"Date": None}),
    "pdf": (FigureCanvasPdf, {"CreationDate": None}),
}

_RC = {
    "font.family": "sans-serif",
    # The first comes with matplotlib, so that figures are the same everywhere; SVG keeps text, and names the others to
    # viewers that lack it: none of them is wider.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica", "sans-serif"],
    "font.size": 7.5,
    "figure.titlesize": 8.0,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.8,
    "xtick.labelsize": _SMALL,
    "ytick.labelsize": _SMALL,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.major.pad": 2.5,
    "ytick.major.pad": 2.5,
    "legend.fontsize": _SMALL,
    "legend.title_fontsize": _SMALL,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.6,
    "svg.hashsalt": "teachdiag",
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,  # text stays text that journals accept
}


class Picture(Figure):
    """A Matplotlib figure with what stands beside it.

    A notebook shows it by itself, over its caption; pyplot, which else sees to that, never holds it.

    Attributes:
        question: what it answers; its title.
        caption: what was measured, on whom and how, and what the words mean that are drawn.
        seen: what the picture shows, in a sentence with its numbers: its alternative text.
    """

    question = caption = seen = ""

    def ask(self, question: str) -> None:
        """Write the question above the axes, in lines as long as the figure is wide."""
        self.question = question
        lines = textwrap.wrap(question, int(_LINE * self.get_figwidth()))
        placed = isinstance(self.get_layout_engine(), ConstrainedLayoutEngine)  # which finds the height
        y = {} if placed else {"y": 1 - 0.06 / self.get_figheight()}
        self.suptitle(raised("\n".join(lines)), x=0.02, ha="left", linespacing=1.25, **y)

    def tell(self, caption: str, seen: str) -> None:
        """Keep caption and alternative text; the caption goes on with the meaning of the words that are drawn.

        Call it when everything is drawn.
        """
        drawn = [lowered(artist.get_text()) for artist in self.findobj(Text)]
        words = {TITLES.get(name, name): meaning for name, meaning in explain([*drawn, caption]).items()}
        self.caption = " ".join(filter(None, (caption, legend(words))))
        self.seen = seen

    def _repr_html_(self) -> str:
        """Return the picture over its caption, as a notebook shows it."""
        image, size = self._repr_png_()
        data = base64.b64encode(image).decode()
        shown = f'<img alt="{escape(self.seen)}" width="{size["width"]}" src="data:image/png;base64,{data}">'
        return f'<figure>{shown}<figcaption style="{_CAPTION}">{escape(self.caption)}</figcaption></figure>'

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return twice as many pixels as the notebook is to give it, so that text stays sharp."""
        drawn = BytesIO()
        with theme():
            self.savefig(drawn, format="png", dpi=2 * _SCREEN_DPI)
        width, height = self.get_size_inches() * _SCREEN_DPI
        return drawn.getvalue(), {"width": round(width), "height": round(height)}


@contextmanager
def theme() -> Iterator[None]:
    """Apply the house style to everything drawn inside, and to nothing else."""
    import seaborn as sns  # more than a second, for which a report of figures that are drawn does not wait

    with mpl.rc_context(sns.axes_style("ticks") | sns.plotting_context("paper") | _RC):
        yield


def blank_figure(height: float, width: float = COLUMN) -> Picture:
    """Return an empty figure of a height and a width in inches, on the Agg backend."""
    figure = Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def mark_missing(ax: Axes) -> None:
    """Say that a panel's numbers could not be estimated, where an empty panel would look like zeros."""
    ax.text(0.5, 0.5, "not estimable:\nconstant outcome", transform=ax.transAxes, ha="center", va="center", color="0.4")


def add_colour_bar(figure: Figure, mesh: QuadMesh, axes: list[Axes], label: str, extend: str = "neither") -> None:
    """Draw one colour bar below several panels."""
    bar = figure.colorbar(mesh, ax=axes, label=label, extend=extend, location="bottom", aspect=35, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.locator_params(nbins=5)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure in every format (images at 200 dpi), whole or not at all; return the files.

    Beside them, in the folder `dark`, stands an SVG for dark pages. The figure is left as it was.
    """
    files, dark = [folder / f"{name}.{kind}" for kind in _FORMATS], []
    with _laid_out(figure):
        for file, (kind, (canvas, undated)) in zip(files, _FORMATS.items(), strict=True):
            figure.set_dpi(_PRINT_DPI)  # which those of vectors change, and do not change back
            with whole(file) as part:
                getattr(canvas(figure), f"print_{kind}")(part, metadata=undated)
            if kind == "svg":
                dark.append(folder / "dark" / file.name)
                write_text(darkened(file.read_text(encoding="utf-8")), dark[0])
    return files + dark


@contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """Lay a figure out once, which `savefig` does for each format again, with a drawing of its own."""
    dpi, canvas, engine = figure.dpi, figure.canvas, figure.get_layout_engine()
    try:
        FigureCanvasAgg(figure)
        figure.set_dpi(_PRINT_DPI)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        yield
    finally:
        figure.set_layout_engine(engine or "none")
        figure.set_canvas(canvas)
        figure.set_dpi(dpi)


def darkened(svg: str) -> str:
    """Return an SVG for a dark page: greys turned over, the palette's colours lighter, and nothing else changed."""
    return _HEX.sub(lambda found: _dark(found.group()), svg)


def _dark(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    if not red == green == blue:
        return _LIGHTER.get(colour, colour)
    mixed = (round(ink + (ground - ink) * red / 255) for ground, ink in zip(_DARK_GROUND, _DARK_INK, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
