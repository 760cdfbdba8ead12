"""Gain by response position, and where in the response the bank's gain comes from."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from teachdiag.figures.plots.forest import shades
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import REAL, TITLES, add_caption, blank_figure
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.tables import rows_where

_MARKERS = "oDv^s"


def position_profile_figure(step: StepTables) -> Figure:
    """Draw mean gain by position for every update, and the real step's share of the total."""
    figure = blank_figure(2.7)
    left, right = figure.subplots(1, 2)
    for number, (update, probe_id) in enumerate(step.updates.items()):
        colour = REAL if number == 0 else shades(len(step.updates) - 1)[number - 1]
        _draw(left, step, probe_id, "mean", colour, number, TITLES.get(update, update).replace("\n", " "))
    shares = _draw(right, step, step.probe_id, "share of total", REAL, 0, "")
    positions = shares["n_positions"] / shares["n_positions"].sum()
    right.plot(shares["bucket"] - 1, positions, "_", color="0.4", markersize=12, markeredgewidth=1.5)
    left.set_ylabel("mean gain [nats]")
    right.set_ylabel("share of the bank's whole gain")
    for ax in (left, right):
        ax.axhline(0, color="0.3", linewidth=0.7, zorder=0)
        ax.set_xlabel("response position")
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(step.updates))
    add_caption(
        figure,
        f"{OUTCOME.capitalize()} by response position (0 is the first token); grey bars: the share of positions there. "
        f"{step.population}; probe {step.probe_id}. {step.intervals}.",
    )
    return figure


def _draw(
    ax: Axes, step: StepTables, probe_id: str, statistic: str, colour: object, number: int, label: str
) -> pd.DataFrame:
    rows = rows_where(step.buckets, probe_id=probe_id, outcome=OUTCOME, score="position", statistic=statistic)
    rows = rows.sort_values("bucket")
    x = rows["bucket"] - 1
    ax.vlines(x, rows["ci_low"], rows["ci_high"], color=colour, linewidth=1.2)
    ax.plot(x, rows["estimate"], marker=_MARKERS[number % 5], color=colour, markersize=4, lw=1, label=label)
    names = [
        f"{low:g}" if low == high else f"{low:g}-{high:g}"
        for low, high in rows[["score_low", "score_high"]].itertuples(index=False)
    ]
    if names:  # an update without gain has no rows, and takes no ticks away
        ax.set_xticks(x, names)
    return rows
