"""Standardised coefficients of D^L and D^I by K, real step and placebos in panels side by side."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import TITLES, add_caption, blank_figure, mark_missing
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import SIGNALS

_TERMS = {"learnable": "o", "incompatible": "s"}  # marker
_APART = 0.24  # horizontal distance of the two coefficients of one K


def draw_coefficients(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw a dot and a bar for each coefficient; reads term, k, estimate, ci_low and ci_high."""
    sizes = sorted(rows["k"].unique())
    for side, (term, marker) in zip((-0.5, 0.5), _TERMS.items(), strict=True):
        signal = SIGNALS[term]
        part = rows[rows["term"] == term].sort_values("k")
        x = [sizes.index(k) + side * _APART for k in part["k"]]
        ax.vlines(x, part["ci_low"], part["ci_high"], color=signal.colour, linewidth=1.4)
        ax.plot(x, part["estimate"], marker, color=signal.colour, markersize=4.5, label=signal.title)
    ax.axhline(0, color="0.3", linewidth=0.7, zorder=0)
    ax.set_xticks(range(len(sizes)), [f"{k:g}" for k in sizes])
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.set_xlabel("support size K")
    return ax


def coefficients_figure(step: StepTables) -> Figure:
    """Draw the panels of one real step and its placebos."""
    figure = blank_figure(2.7)
    panels = figure.subplots(1, len(step.updates), sharey=True, squeeze=False)[0]
    for ax, update in zip(panels, step.updates, strict=True):
        rows = step.coefficients(update)
        if rows.empty:
            mark_missing(ax)
            ax.set_xticks([])
        else:
            draw_coefficients(rows, ax)
        ax.set_title(TITLES.get(update, update))
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("standardised coefficient")
    handles, names = next((legend for ax in panels if (legend := ax.get_legend_handles_labels())[0]), ([], []))
    figure.legend(handles, names, loc="outside upper center", ncols=2)
    add_caption(
        figure,
        f"OLS of {OUTCOME} (drop of KL(teacher || student)) on $D^L$ and $D^I$ beside student entropy, teacher entropy "
        f"and position. {step.population}; probe {step.probe_id}. {step.intervals}.",
    )
    return figure
