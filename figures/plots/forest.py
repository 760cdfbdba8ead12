"""Estimates with intervals, one a line: what several figures share."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.style import PLACEBO

_APART = 0.22  # vertical distance of two estimates on one line
_MARKERS = ("o", "s", "D", "v", "^", "P")


def draw_forest(ax: Axes, labels: Sequence[str], series: Sequence[tuple[str, object, pd.DataFrame]]) -> None:
    """Draw a dot and a bar for every label of every series; the first label stands on top.

    Args:
        ax: where.
        labels: lines, from the top.
        series: name, colour, and rows indexed by label with estimate, ci_low and ci_high; labels may be missing.
    """
    for number, (name, colour, rows) in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * _APART
        y = [labels.index(label) + shift for label in rows.index]
        ax.hlines(y, rows["ci_low"], rows["ci_high"], color=colour, linewidth=1.3)
        ax.plot(rows["estimate"], y, _MARKERS[number % len(_MARKERS)], color=colour, markersize=4, label=name)
    ax.axvline(0, color="0.3", linewidth=0.7, zorder=0)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.spines[["top", "right"]].set_visible(False)


def shades(count: int) -> list[str]:
    """Return greys for so many placebos, dark enough to be told apart from the page."""
    return [str(round(float(PLACEBO) - 0.3 + 0.45 * number / max(count - 1, 1), 2)) for number in range(count)]
