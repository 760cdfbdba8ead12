"""Mean gain over the percentiles of D^L and D^I, of the real step and of a placebo that learns, on one scale."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from teachdiag.figures.plots.grid import draw_grid, extremes
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.seen import TITLES
from teachdiag.figures.style import DIVERGING, Picture, add_colour_bar, blank_figure
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import raised

_SURFACE = "gain_by_learnable_incompatible"
_LEARNING = ("shuffled_teacher", "shuffled_rollouts")  # placebos: the others move the bank too little to be seen


def draw_gain_surface(cells: pd.DataFrame, ax: Axes, limit: float) -> QuadMesh:
    """Draw mean gain in each cell, colours from -limit to limit nats."""
    mesh = draw_grid(cells, ax, DIVERGING, -limit, limit)
    ax.set_xlabel(raised("percentile of D^L"))
    return mesh


def gain_surface_figure(step: StepTables) -> Picture:
    """Draw the real step, and a placebo that learns where there is one."""
    real, *placebos = step.updates
    shown = [real, *[name for name in _LEARNING if name in placebos][:1]]
    figure = blank_figure(2.55)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    cells = {update: step.surface(_SURFACE, HEADLINE_K, update) for update in shown}
    limit = float(step.scale(_SURFACE, step.probe_id)["high"]) or 1.0
    for ax, (update, content) in zip(panels, cells.items(), strict=True):
        mesh = draw_gain_surface(content, ax, limit)
        ax.set_title(f"{'placebo: ' if update in placebos else ''}{TITLES.get(update, update)}")
    panels[0].set_ylabel(raised("percentile of D^I"))
    add_colour_bar(figure, mesh, list(panels), "mean gain [nats]", extend="both")
    figure.tell(
        f"Mean gain (drop of KL(teacher || student)) in cells of ten by ten percentile bins, K={HEADLINE_K}; grey: too "
        f"few positions. {step.population}; probe {step.probe_id}. No intervals are drawn: a cell alone says little.",
        f"Real step: {extremes(cells[real], 'D^L', 'D^I', ' nats')}.",
    )
    return figure
