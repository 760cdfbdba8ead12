"""D^L and D^I over the plane of student entropy and raw KL, with Q3 marked."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle

from teachdiag.figures.plots.grid import draw_grid, extremes, shown_cells
from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.style import SEQUENTIAL, Picture, add_colour_bar, blank_figure
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import BASE_LABEL, SIGNALS

_MAPS = ("learnable", "incompatible")


def draw_plane(cells: pd.DataFrame, ax: Axes, highest: float) -> QuadMesh:
    """Draw a mean score in each cell, colours from 0 to `highest`, and a frame around Q3: confident, yet far off."""
    mesh = draw_grid(cells, ax, SEQUENTIAL, 0, highest)
    ax.add_patch(Rectangle((0, 50), 50, 50, fill=False, edgecolor="white", linewidth=2.5, clip_on=False))
    ax.add_patch(Rectangle((0, 50), 50, 50, fill=False, edgecolor="0.1", linewidth=1.2, clip_on=False))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    ax.text(5, 95, "Q3", ha="left", va="top", weight="bold", bbox=box)
    ax.set_xlabel("percentile of\nstudent entropy")
    return mesh


def plane_figure(tables: RunTables) -> Picture:
    """Draw both maps of the bank; every step of a run shares them."""
    figure = blank_figure(2.9)
    panels = figure.subplots(1, 2, sharey=True)
    maps = [tables.bank_surface(f"{name}_on_plane", HEADLINE_K) for name in _MAPS]
    highest = max(float(shown_cells(cells)["value"].max()) for cells in maps)
    for ax, cells, name in zip(panels, maps, _MAPS, strict=True):
        mesh = draw_plane(cells, ax, highest)
        ax.set_title(SIGNALS[name].title)
    panels[0].set_ylabel(f"percentile of {BASE_LABEL}")
    add_colour_bar(figure, mesh, list(panels), "mean score")
    seen = (f"{SIGNALS[n].heading}: {extremes(c, 'entropy', BASE_LABEL, '')}" for n, c in zip(_MAPS, maps, strict=True))
    figure.tell(
        f"Before any update, K={HEADLINE_K}; grey: too few positions. Q3: student entropy at most "
        f"{tables.q3('median_student_entropy'):.3g} nats and KL(teacher || student) at least "
        f"{tables.q3('median_forward_kl'):.3g} nats, their medians; {tables.q3('share'):.0%} of {tables.population}. "
        "No intervals are drawn.",
        f"Mean scores. {'. '.join(seen)}.",
    )
    return figure
