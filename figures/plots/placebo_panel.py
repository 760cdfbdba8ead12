"""Every headline statistic of a real step beside the draws of its placebos and their 95% range for one more."""

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.seen import TITLES, number_text
from teachdiag.figures.style import INK, PLACEBO, REAL, TINY, WIDTH, Picture, blank_figure
from teachdiag.signals import BASE, BASE_LABEL, raised
from teachdiag.tables import rows_where

_COLUMNS = 4
_ROW = 1.05  # inches
_LABELS = {"beta_L": "\N{GREEK SMALL LETTER BETA}_L", "beta_I": "\N{GREEK SMALL LETTER BETA}_I", BASE: BASE_LABEL}


def draw_statistic(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the real number as a line, and each placebo's draws and range; reads the columns of one statistic."""
    y = range(len(rows), 0, -1)
    ax.axvline(0, color="0.85", linewidth=0.7, zorder=0)
    ax.axvline(rows["estimate"].iloc[0], color=REAL, linewidth=1.4, label="real step", zorder=3)
    for height, (_, row) in zip(y, rows.iterrows(), strict=True):
        if not pd.isna(row["range_low"]):
            ax.hlines(height, row["range_low"], row["range_high"], color=PLACEBO, linewidth=4, alpha=0.35)
        ax.plot(row["draws"], [height] * len(row["draws"]), "|", color=INK, markersize=6, markeredgewidth=0.9)
    ax.set_yticks(list(y), [TITLES.get(u, u).split(", ")[0] for u in rows["update"]])
    ax.set_ylim(0.4, len(rows) + 0.6)
    ax.locator_params(axis="x", nbins=3)
    ax.ticklabel_format(axis="x", scilimits=(-2, 3))
    return ax


def placebo_panel_figure(tables: RunTables, probe_id: str) -> Picture:
    """Draw one panel a statistic of one probe of kind placebo; shaded are those that survive every null placebo."""
    statistics = rows_where(tables.placebo_panel, probe_id=probe_id)
    names, beyond = list(statistics["statistic"].unique()), []
    n_rows = -(-len(names) // _COLUMNS)
    figure = blank_figure(0.4 + _ROW * n_rows, WIDTH)
    panels = figure.subplots(n_rows, _COLUMNS, squeeze=False, sharey=True).ravel()
    for ax, name in zip(panels, names, strict=False):
        rows = statistics[statistics["statistic"] == name]
        draw_statistic(rows, ax)
        known = rows["survives"].dropna().astype(bool)
        survives = len(known) > 0 and bool(known.all())
        beyond += [name] if survives else []
        ax.set_title(_title(name, str(rows["unit"].iloc[0])), fontsize=TINY)
        ax.patch.set(facecolor=REAL, alpha=0.12 if survives else 0)
        ax.tick_params(labelsize=TINY)
        ax.xaxis.get_offset_text().set_fontsize(TINY)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[len(names) :]:
        ax.axis("off")
    numbers = statistics.drop_duplicates("statistic")[["statistic", "estimate"]].itertuples(index=False)
    figure.tell(
        "Line: the real step. Ticks: draws of each placebo; bars: 95% range for one more, on other prompts. Shaded: "
        "beyond every null placebo on its own side of 0, over draws and prompts together (shuffled rollouts have their "
        f"true teacher, so they are none). K=16. {tables.population}; probe {probe_id}.",
        f"Beyond every null placebo: {', '.join(beyond) or 'none'}. The real step's numbers: "
        f"{', '.join(f'{name} {number_text(value)}' for name, value in numbers)}.",
    )
    return figure


def _title(name: str, unit: str) -> str:
    """Return a statistic's name on lines short enough for its panel."""
    for technical, shown in _LABELS.items():
        name = raised(name.replace(technical, shown))
    for word in ("beside", "per unit", "less raw", "with"):
        name = name.replace(f" {word}", f"\n{word}")
    return f"{name} [nats]" if unit == "nats" else name
