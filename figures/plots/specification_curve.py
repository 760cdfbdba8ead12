"""Each primary number under every specification, sorted, over the matrix of choices and before its placebos' curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from teachdiag.artefacts import IN_SPREADS, QUANTITIES
from teachdiag.figures.plots.forest import shades
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import REAL, SECOND, TITLES, WIDTH, add_caption, blank_figure, mark_missing

Level = tuple[str, object]  # a column of the table, and one of its values

_MEAN, _GAP, _DECOMPOSED, _COMPATIBLE = QUANTITIES
_QUESTIONS = {  # quantity: its question, and what its axis shows
    _MEAN: ("Does the step help?", "SD of gain"),
    _GAP: ("Does gain rise more with $D^L$ than with $D^I$?", "SD of gain"),
    _DECOMPOSED: ("Do $D^L$, $D^I$ predict gain better than raw KL?", "difference"),
    _COMPATIBLE: ("Does C predict gain better than raw KL?", "difference"),
}
_COLUMNS = ((_MEAN, _GAP), (_DECOMPOSED, _COMPATIBLE))  # each as wide as one of a paper's
_CHOICES = {  # column of the table: how its values are shown, where not as they are
    "run": "{}",
    "probe": "{}",
    "loss": "{}",
    "optimizer": "{}",
    "learning_rate": "learning rate {:g}",
    "measure": "{}",
    "k": "K={:g}",
    "outcome": "{}",
    "window": "{}",
    "control": "entropies {}",
    "cuts": "cuts {}",
    "trimming": "{}",
}
_SHOWN: dict[Level, str] = {
    ("window", "all"): "all positions",
    ("window", "without the first three"): "without first three",
    ("control", "none"): "no entropies",
    ("trimming", "none"): "not trimmed",
}
_CURVE, _LINE = 1.0, 0.1  # inches: height of a curve, and of a line of a matrix
_TOP, _TITLE, _GAP_BELOW, _CAPTION = 0.35, 0.3, 0.06, 1.4  # inches: above all, above and below a curve, and below all
_LABELS, _RIGHT = 1.1, 0.1  # inches: to the left and to the right of a panel
_SHARP, _MANY = 8, 500
_AROUND = 0.3  # of the curves' height: what is shown beyond them, where intervals may run out


def specification_figure(step: StepTables) -> Figure:
    """Draw the curves of one real step and its placebos."""
    return curves_figure(step.own_specifications, f"Probe {step.probe_id}. {step.population}.")


def curves_figure(rows: pd.DataFrame, population: str) -> Figure:
    """Draw one curve for each primary number, of one real step or of many.

    Args:
        rows: of the specifications table, of real steps and placebos; columns `run` and `probe` where there are many.
        population: whose they are, for the caption.
    """
    known = rows[rows["estimate"].notna()]
    numbers = {quantity: known[known["quantity"] == quantity] for quantity in QUANTITIES}
    levels = {quantity: choice_levels(own) for quantity, own in numbers.items()}
    lines = {quantity: max(len(chosen), 1) for quantity, chosen in levels.items()}
    deepest = max(sum(_TITLE + _CURVE + _GAP_BELOW + _LINE * lines[name] for name in column) for column in _COLUMNS)
    figure = blank_figure(_TOP + deepest + _CAPTION)
    # Places are given: a layout that is solved for differs in its last digits from one time to the next.
    figure.set_layout_engine("none")
    for column, quantities in enumerate(_COLUMNS):
        top = figure.get_figheight() - _TOP
        for quantity in quantities:
            top -= _TITLE + _CURVE
            curve = _place(figure, column, top, _CURVE)
            top -= _GAP_BELOW + _LINE * lines[quantity]
            matrix = _place(figure, column, top, _LINE * lines[quantity])
            question, unit = _QUESTIONS[quantity]
            curve.set_title(question, loc="right", pad=3)
            curve.set_ylabel(unit, fontsize=6.5)
            draw_matrix(draw_curve(numbers[quantity], curve), levels[quantity], matrix)
    handles, names = next((found for ax in figure.axes if (found := ax.get_legend_handles_labels())[0]), ([], []))
    figure.legend(
        handles,
        names,
        loc="upper center",
        title="Does the conclusion hang on a choice?",
        title_fontsize=9.5,
        fontsize=6.5,
        ncols=max(len(names), 1),
        columnspacing=1.2,
        handlelength=1.6,
    )
    add_caption(
        figure,
        "Each point is one specification: one choice of every group of lines below it, marked where it was made. They "
        "are sorted, with 95% intervals, which may run out of the frame. Grey: the same for a draw of each placebo, in "
        "an order of its own. Circle: the choices of the primary claim. SD: standard deviations of the outcome, in "
        f"which numbers in its unit are drawn. {population}",
    )
    return figure


def _place(figure: Figure, column: int, bottom: float, height: float) -> Axes:
    """Add a panel to the left or to the right column, at so many inches from the bottom."""
    whole, half = figure.get_figheight(), WIDTH / len(_COLUMNS)
    left = (column * half + _LABELS) / WIDTH
    return figure.add_axes((left, bottom / whole, (half - _LABELS - _RIGHT) / WIDTH, height / whole))


def choice_levels(rows: pd.DataFrame) -> list[Level]:
    """Return the choices that differ between specifications, as (column, value), in the order of the matrix."""
    values = {column: rows[column].dropna().unique() for column in _CHOICES if column in rows}
    return [(column, value) for column, found in values.items() if len(found) > 1 for value in found]


def draw_curve(rows: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw a sorted curve with intervals over those of the placebos; return the real specifications in that order.

    Reads probe_id, update, measure, headline, outcome_spread, estimate, ci_low and ci_high of one quantity.
    """
    spread = rows["outcome_spread"].where(rows["measure"].isin(IN_SPREADS), 1.0)
    shown = rows.assign(**{name: rows[name] / spread for name in ("estimate", "ci_low", "ci_high")})
    shown = shown.sort_values("estimate", kind="stable")
    of_placebos = shown["probe_id"].str.contains(".", regex=False)  # a real step's name holds no dot
    real, placebos = shown[~of_placebos], shown[of_placebos]
    updates = sorted(placebos["update"].unique())
    for update, grey in zip(updates, shades(len(updates)), strict=True):
        own = placebos.loc[placebos["update"] == update, "estimate"]
        ax.plot(
            np.linspace(0, len(real) - 1, len(own)),
            own,
            color=grey,
            linewidth=1.1,
            label=TITLES.get(update, update).replace("\n", " "),
        )
    ax.set_xticks([])
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    if real.empty:
        mark_missing(ax)
        return real
    x = np.arange(len(real))
    ax.vlines(x, real["ci_low"], real["ci_high"], color=REAL, alpha=0.3, linewidth=max(0.25, 150 / len(real)))
    ax.plot(x, real["estimate"], color=REAL, linewidth=1.5, label="real step")
    claimed = np.flatnonzero(real["headline"])
    ax.plot(x[claimed], real["estimate"].iloc[claimed], "o", color=SECOND, markersize=4, label="the claim's choices")
    ax.axhline(0, color="0.3", linewidth=0.6, zorder=0)
    low, high = min(0.0, shown["estimate"].min()), max(0.0, shown["estimate"].max())
    ax.set_ylim(low - _AROUND * (high - low), high + _AROUND * (high - low))
    ax.set_xlim(-0.5, len(real) - 0.5)
    ax.locator_params(axis="y", nbins=4)
    ax.tick_params(labelsize=6.5, length=2)
    return real


def draw_matrix(rows: pd.DataFrame, levels: Sequence[Level], ax: Axes) -> Axes:
    """Mark, for each specification in its order, which choices were made."""
    if levels and len(rows):
        chosen = np.array([rows[column] == value for column, value in levels], float)
        sharp = np.repeat(chosen, _SHARP, axis=0)  # of many in few points the share shows, blurred sideways alone
        extent = (-0.5, len(rows) - 0.5, len(levels) - 0.5, -0.5)
        smooth = "antialiased" if len(rows) > _MANY else "nearest"
        ax.imshow(sharp, cmap="Greys", vmin=0, vmax=1.4, aspect="auto", interpolation=smooth, extent=extent)
    for line in range(1, len(levels)):
        if levels[line][0] != levels[line - 1][0]:
            ax.axhline(line - 0.5, color="white", linewidth=1.5)
    ax.set_yticks(range(len(levels)), [_SHOWN.get(level, _CHOICES[level[0]].format(level[1])) for level in levels])
    ax.set_xticks([])
    ax.tick_params(labelsize=6, length=0, pad=1)
    ax.spines[:].set_visible(False)
    return ax
