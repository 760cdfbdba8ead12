"""The percentile grid that the map figures share."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from teachdiag.artefacts import MIN_CELL
from teachdiag.figures.seen import number_text
from teachdiag.figures.style import BLANK

BINS = 10


def shown_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that hold enough positions to be drawn."""
    return cells[cells["n_positions"] >= MIN_CELL]


def draw_grid(cells: pd.DataFrame, ax: Axes, colours: str, low: float, high: float) -> QuadMesh:
    """Draw one value a cell over percentiles 0 to 100; reads x_bin, y_bin, value and n_positions."""
    values = np.full((BINS, BINS), np.nan)
    shown = shown_cells(cells)
    values[shown["y_bin"], shown["x_bin"]] = shown["value"]
    edges = np.linspace(0, 100, BINS + 1)
    ax.set_facecolor(BLANK)
    drawn = np.ma.masked_invalid(values)
    mesh = ax.pcolormesh(edges, edges, drawn, cmap=colours, vmin=low, vmax=high, edgecolors="face", lw=0.3)
    ax.set_xticks([0, 50, 100])
    ax.set_yticks([0, 50, 100])
    ax.set_aspect("equal")
    return mesh


def extremes(cells: pd.DataFrame, x: str, y: str, unit: str) -> str:
    """Say which of the drawn cells is highest and which is lowest, and where."""
    shown = shown_cells(cells).sort_values("value", kind="stable")
    if shown.empty:
        return "no cell holds enough positions"
    named = []
    for name, cell in (("highest", shown.iloc[-1]), ("lowest", shown.iloc[0])):
        step = 100 // BINS
        at_x, at_y = (f"{step * int(cell[b])}-{step * (int(cell[b]) + 1)}" for b in ("x_bin", "y_bin"))
        named.append(f"{name} {number_text(cell['value'])}{unit} at percentiles {at_x} of {x} and {at_y} of {y}")
    return "; ".join(named)
