"""Estimates with intervals, one a line, over what placebos print: what several figures share."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from teachdiag.figures.style import PLACEBO, REAL


def draw_forest(
    ax: Axes,
    labels: Sequence[str],
    rows: pd.DataFrame,
    colours: Sequence[str],
    placebos: Sequence[pd.DataFrame] = (),
    bins: int = 4,
) -> Axes:
    """Draw a dot and a bar for every label, over grey ticks where placebos lie; the first label stands on top.

    Args:
        ax: where.
        labels: lines, from the top.
        rows: indexed by label, with estimate, ci_low and ci_high; labels may be missing, or hold no number.
        colours: of each label.
        placebos: the same rows of each placebo, of which estimates are drawn.
        bins: how many intervals between ticks there are at most.
    """
    for placebo in placebos:
        ax.plot(placebo["estimate"], _lines(labels, placebo), "|", color=PLACEBO, markersize=7, markeredgewidth=1.2)
    y, drawn = _lines(labels, rows), [colours[labels.index(label)] for label in rows.index]
    ax.hlines(y, rows["ci_low"].astype(float), rows["ci_high"].astype(float), colors=drawn, linewidth=1.3)
    ax.scatter(rows["estimate"], y, c=drawn, s=13, zorder=3)
    ax.axvline(0, color="0.3", linewidth=0.7, zorder=0)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.locator_params(axis="x", nbins=bins)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def key(figure: Figure, real: str, placebos: bool, colour: str = REAL, further: Sequence[Artist] = ()) -> None:
    """Write below the panels what a dot is, what grey is where there are placebos, and what further marks are."""
    handles = [Line2D([], [], color=colour, marker="o", markersize=3.5, linewidth=1.3, label=f"{real}, 95%")]
    if placebos:
        handles.append(Line2D([], [], color=PLACEBO, marker="|", linestyle="", markeredgewidth=1.2, label="placebos"))
    figure.legend(handles=[*handles, *further], loc="outside lower left", ncols=3)


def _lines(labels: Sequence[str], rows: pd.DataFrame) -> list[int]:
    return [labels.index(label) for label in rows.index]
