"""The percentile grid that the map figures share."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh

from teachdiag.artefacts import MIN_CELL
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
    mesh = ax.pcolormesh(edges, edges, np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high)
    ax.set_xticks([0, 50, 100])
    ax.set_yticks([0, 50, 100])
    ax.set_aspect("equal")
    return mesh
