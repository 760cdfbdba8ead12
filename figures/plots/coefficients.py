"""Standardised coefficients of D^L and D^I, and their difference, by K, beside what placebos print."""

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.plots.forest import draw_forest, key
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.seen import TITLES, listed, plain
from teachdiag.figures.style import INK, Picture, blank_figure
from teachdiag.settings import HEADLINE_K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import SIGNALS

_TERMS = {  # of the table: how it is drawn
    "learnable": (f"on {SIGNALS['learnable'].symbol}", SIGNALS["learnable"].colour),
    "incompatible": (f"on {SIGNALS['incompatible'].symbol}", SIGNALS["incompatible"].colour),
    "learnable - incompatible": ("difference", INK),
}


def draw_coefficients(updates: list[pd.DataFrame], ax: Axes) -> Axes:
    """Draw the coefficients of the first update over those of its placebos; reads term, k and the estimates."""
    real, *placebos = (_labelled(rows) for rows in updates)
    sizes = sorted(real["k"].unique())
    labels = [f"{name}, K={k:g}" for name, _ in _TERMS.values() for k in sizes]
    colours = [colour for _, colour in _TERMS.values() for _ in sizes]
    draw_forest(ax, labels, real, colours, placebos)
    ax.set_xlabel("standardised coefficient")
    return ax


def coefficients_figure(step: StepTables) -> Picture:
    """Draw the coefficients of one real step and its placebos."""
    figure = blank_figure(2.3)
    updates = {update: step.coefficients(update) for update in step.updates}
    real, *placebos = updates
    draw_coefficients(list(updates.values()), figure.subplots())
    key(figure, TITLES.get(real, real), bool(placebos), INK)
    idle = [TITLES.get(update, update) for update, rows in updates.items() if rows.empty]
    said = f" Not estimable under {', '.join(idle)}: the outcome is constant." if idle else ""
    shown = _labelled(updates[real])
    shown = shown[shown["k"] == HEADLINE_K]
    figure.tell(
        f"OLS of {OUTCOME} (drop of KL(teacher || student)) on D^L and D^I beside student entropy, teacher entropy "
        f"and position. {step.placebos}{said} {step.population}; probe {step.probe_id}. {step.intervals}.",
        f"Standardised coefficients of gain: {listed(shown, map(plain, shown.index))}.",
    )
    return figure


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows[rows["term"].isin(list(_TERMS))]
    labels = [f"{_TERMS[term][0]}, K={k:g}" for term, k in zip(rows["term"], rows["k"], strict=True)]
    return rows.assign(label=labels).set_index("label")
