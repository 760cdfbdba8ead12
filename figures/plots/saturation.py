"""What the clip of every normalised score would leave to ties, and what the selectors leave to chance."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.style import PALETTE, SEQUENTIAL, add_caption, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.signals import signal_named

_BUDGETS = (1, 3, 5, 10, 30)
_PANELS = {
    "tied_by_clip": "ties, ordered by\nthe clipped score alone",
    "left_to_chance": "left to chance by\nthe selectors here",
}


def saturation_figure(tables: RunTables) -> Figure:
    """Draw shares at the clip on the left, and beside them shares of a budget that ties decide, before and after."""
    figure = blank_figure(2.9)
    left, *panels = figure.subplots(1, 1 + len(_PANELS), sharey=True, width_ratios=(1.1, 1, 1))
    rows = tables.saturation
    rows = rows[rows["k"].isna() | (rows["k"] == K)]
    names = [signal_named(name).title for name in rows["score"]]
    y = range(len(rows))
    left.barh(y, rows["share_at_lowest"], color=PALETTE[0], label="at the lowest value")
    left.barh(y, rows["share_at_highest"], left=1 - rows["share_at_highest"], color=PALETTE[1], label="at the highest")
    left.set_xlim(0, 1)
    left.set_yticks(y, names)
    left.invert_yaxis()
    left.set_xlabel("share of positions")
    for ax, (prefix, title) in zip(panels, _PANELS.items(), strict=True):
        draw_shares(rows[[f"{prefix}_at_{budget:02d}pct" for budget in _BUDGETS]], ax)
        ax.set_title(title)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    add_caption(
        figure,
        f"Normalised scores, K={K}: clip((z - Q05) / (Q95 - Q05), 0, 1) over the whole bank, and their combinations. "
        "Middle: the share of a budget that ties would decide, were the clipped score all there is. Right: the share "
        "that a selector here leaves to chance, which orders what the clip ties by unclipped values. "
        f"{tables.population}; no update enters.",
    )
    return figure


def draw_shares(shares: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one cell for each score and budget, with its share in it."""
    ax.imshow(shares.to_numpy(), cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    for row, values in enumerate(shares.to_numpy()):
        for column, value in enumerate(values):
            colour = "white" if value < 0.55 else "black"
            ax.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=6.5, color=colour)
    ax.set_xticks(range(len(_BUDGETS)), [f"{budget}%" for budget in _BUDGETS])
    ax.set_xlabel("budget")
    return ax
