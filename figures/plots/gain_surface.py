"""Mean gain over the percentiles of D^L and D^I, real step and placebos on one colour scale."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from teachdiag.figures.plots.grid import draw_grid
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import DIVERGING, TITLES, add_caption, add_colour_bar, blank_figure
from teachdiag.settings import HEADLINE_K

_SURFACE = "gain_by_learnable_incompatible"


def draw_gain_surface(cells: pd.DataFrame, ax: Axes, limit: float) -> QuadMesh:
    """Draw mean gain in each cell, colours from -limit to limit nats."""
    mesh = draw_grid(cells, ax, DIVERGING, -limit, limit)
    ax.set_xlabel("percentile of $D^L$")
    return mesh


def gain_surface_figure(step: StepTables) -> Figure:
    """Draw the panels of one real step and its placebos."""
    figure = blank_figure(2.75)
    panels = figure.subplots(1, len(step.updates), sharey=True, squeeze=False)[0]
    cells = {update: step.surface(_SURFACE, HEADLINE_K, update) for update in step.updates}
    limit = float(step.scale(_SURFACE, step.probe_id)["high"]) or 1.0
    for ax, (update, content) in zip(panels, cells.items(), strict=True):
        mesh = draw_gain_surface(content, ax, limit)
        ax.set_title(TITLES.get(update, update))
    panels[0].set_ylabel("percentile of $D^I$")
    add_colour_bar(figure, mesh, list(panels), "mean gain [nats]", extend="both", shrink=0.7)
    add_caption(
        figure,
        f"Mean gain (drop of KL(teacher || student)) in cells of ten by ten percentile bins, K={HEADLINE_K}; grey: too "
        f"few positions. {step.population}; probe {step.probe_id}. No intervals are drawn.",
    )
    return figure
