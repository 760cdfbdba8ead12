"""Every headline statistic of a real step beside the draws of its placebos and their 95% range for one more."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.style import PLACEBO, REAL, TITLES, add_caption, blank_figure
from teachdiag.signals import BASE, BASE_LABEL
from teachdiag.tables import rows_where

_COLUMNS = 4
_ROW = 1.05  # inches
_LABELS = {"beta_L": "$\\beta_L$", "beta_I": "$\\beta_I$", BASE: BASE_LABEL}


def draw_statistic(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the real number as a line, and each placebo's draws and range; reads the columns of one statistic."""
    y = range(len(rows), 0, -1)
    ax.axvline(0, color="0.85", linewidth=0.7, zorder=0)
    ax.axvline(rows["estimate"].iloc[0], color=REAL, linewidth=1.4, label="real step", zorder=3)
    for height, (_, row) in zip(y, rows.iterrows(), strict=True):
        if not pd.isna(row["range_low"]):
            ax.hlines(height, row["range_low"], row["range_high"], color=PLACEBO, linewidth=4, alpha=0.35)
        ax.plot(row["draws"], [height] * len(row["draws"]), "|", color="0.2", markersize=6, markeredgewidth=0.9)
    ax.set_yticks(list(y), [TITLES.get(u, u).removeprefix("placebo:\n") for u in rows["update"]])
    ax.set_ylim(0.4, len(rows) + 0.6)
    ax.locator_params(axis="x", nbins=3)
    ax.ticklabel_format(axis="x", scilimits=(-2, 3))
    return ax


def panel_figure(tables: RunTables, probe_id: str) -> Figure:
    """Draw one panel a statistic of one probe of kind placebo; shaded are those that survive every null placebo."""
    statistics = rows_where(tables.placebo_panel, probe_id=probe_id)
    names = list(statistics["statistic"].unique())
    n_rows = -(-len(names) // _COLUMNS)
    figure = blank_figure(0.9 + _ROW * n_rows)
    panels = figure.subplots(n_rows, _COLUMNS, squeeze=False, sharey=True).ravel()
    for ax, name in zip(panels, names, strict=False):
        rows = statistics[statistics["statistic"] == name]
        draw_statistic(rows, ax)
        known = rows["survives"].dropna().astype(bool)
        survives = len(known) > 0 and bool(known.all())
        ax.set_title(_title(name, str(rows["unit"].iloc[0])), fontsize=7)
        ax.set_facecolor("honeydew" if survives else "white")
        ax.tick_params(labelsize=6.5)
        ax.xaxis.get_offset_text().set_fontsize(6)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[len(names) :]:
        ax.axis("off")
    add_caption(
        figure,
        "Blue: the real step. Ticks: draws of each placebo; bars: 95% range for one more, on other prompts. Shaded: "
        "beyond every null placebo on its own side of 0, over draws and prompts together (shuffled rollouts have their "
        f"true teacher, so they are none). K=16. {tables.population}; probe {probe_id}.",
    )
    return figure


def _title(name: str, unit: str) -> str:
    """Return a statistic's name on lines short enough for its panel."""
    for technical, shown in _LABELS.items():
        name = name.replace(technical, shown)
    for last_word in (" - $\\beta_I$", " with", ","):
        name = name.replace(f"{last_word} ", f"{last_word}\n")
    return f"{name} [nats]" if unit == "nats" else name
