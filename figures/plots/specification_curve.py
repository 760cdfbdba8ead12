"""Each primary number under every specification, sorted, over the matrix of choices and before its placebos' curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from teachdiag.artefacts import IN_SPREADS, QUANTITIES
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.seen import number_text, plain
from teachdiag.figures.style import COLUMN, INK, PLACEBO, REAL, TINY, Picture, blank_figure, mark_missing
from teachdiag.signals import raised

Level = tuple[str, object]  # a column of the table, and one of its values

_MEAN, _GAP, _DECOMPOSED, _COMPATIBLE = QUANTITIES
_QUESTIONS = {  # quantity: its question, and what its axis shows
    _MEAN: ("Does the step\nhelp?", "SD of gain"),
    _GAP: (raised("More gain with\nD^L than D^I?"), "SD of gain"),
    _DECOMPOSED: (raised("D^L, D^I better\nthan raw KL?"), "difference"),
    _COMPATIBLE: ("C better\nthan raw KL?", "difference"),
}
_ROWS = ((_MEAN, _GAP), (_DECOMPOSED, _COMPATIBLE))  # which share the lines of their choices
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
_CURVE, _LINE = 0.8, 0.105  # inches: height of a curve, and of a line of a matrix
_TOP, _TITLE, _UNDER, _BOTTOM = 0.42, 0.32, 0.06, 0.05  # inches: above all, above and below a curve, and below all
_LABELS, _BETWEEN, _RIGHT = 1.13, 0.36, 0.04  # inches: left of the panels, between them, and right of them
_SHARP, _MANY = 8, 300
_LONGEST = 22  # characters of a choice
_AROUND = 0.3  # of the curves' height: what is shown beyond them, where intervals may run out


def specification_curve_figure(step: StepTables) -> Picture:
    """Draw the curves of one real step and its placebos."""
    return curves_figure(step.own_specifications, f"Probe {step.probe_id}. {step.specified_population}.")


def curves_figure(rows: pd.DataFrame, population: str) -> Picture:
    """Draw one curve for each primary number, of one real step or of many.

    Args:
        rows: of the specifications table, of real steps and placebos; columns `run` and `probe` where there are many.
        population: whose they are, for the caption.
    """
    known = rows[rows["estimate"].notna()]
    numbers = {quantity: known[known["quantity"] == quantity] for quantity in QUANTITIES}
    levels = [_together([choice_levels(numbers[quantity]) for quantity in pair]) for pair in _ROWS]
    depths = [_TITLE + _CURVE + _UNDER + _LINE * max(len(chosen), 1) for chosen in levels]
    figure = blank_figure(_TOP + sum(depths) + _BOTTOM)
    # Places are given: a layout that is solved for differs in its last digits from one time to the next.
    figure.set_layout_engine("none")
    top, seen = figure.get_figheight() - _TOP, []
    for pair, chosen, depth in zip(_ROWS, levels, depths, strict=True):
        for column, quantity in enumerate(pair):
            curve = _place(figure, column, top - _TITLE - _CURVE, _CURVE)
            matrix = _place(figure, column, top - depth, depth - _TITLE - _CURVE - _UNDER)
            question, unit = _QUESTIONS[quantity]
            curve.set_title(question, pad=3)
            if column == 0:
                curve.set_ylabel(unit)
            drawn = draw_curve(numbers[quantity], curve)
            draw_matrix(drawn, chosen, matrix)
            if column:
                matrix.set_yticks([])
            seen.append(f"{plain(question)} {_seen(drawn)}")
        top -= depth
    handles, names = next((legend for ax in figure.axes if (legend := ax.get_legend_handles_labels())[0]), ([], []))
    corner = (0, 1 - 0.2 / figure.get_figheight())
    figure.legend(handles, names, loc="upper left", bbox_to_anchor=corner, ncols=3, borderaxespad=0)
    figure.tell(
        "Each point is one specification: one choice of every group of lines below it, marked where it was made. They "
        "are sorted, with 95% intervals, which may run out of the frame. Grey: the same for a draw of each placebo, in "
        "an order of its own. Circle: the choices of the primary claim. SD: standard deviations of the outcome, in "
        f"which numbers in its unit are drawn. {population}",
        " ".join(seen),
    )
    return figure


def _seen(drawn: pd.DataFrame) -> str:
    """Say how a sorted curve runs."""
    if drawn.empty:
        return "Not estimable."
    low, high = number_text(drawn["estimate"].iloc[0]), number_text(drawn["estimate"].iloc[-1])
    positive = int((drawn["estimate"] > 0).sum())
    return f"From {low} to {high}, {positive} of {len(drawn)} specifications above 0."


def _place(figure: Picture, column: int, bottom: float, height: float) -> Axes:
    """Add a panel to the left or to the right column, at so many inches from the bottom."""
    whole, panel = figure.get_figheight(), (COLUMN - _LABELS - _BETWEEN - _RIGHT) / 2
    left = _LABELS + column * (panel + _BETWEEN)
    return figure.add_axes((left / COLUMN, bottom / whole, panel / COLUMN, height / whole))


def choice_levels(rows: pd.DataFrame) -> list[Level]:
    """Return the choices that differ between specifications, as (column, value), in the order of the matrix."""
    values = {column: rows[column].dropna().unique() for column in _CHOICES if column in rows}
    return [(column, value) for column, differing in values.items() if len(differing) > 1 for value in differing]


def _together(several: Sequence[Sequence[Level]]) -> list[Level]:
    """Return all levels of several curves, in the order of the matrix."""
    return list(
        dict.fromkeys(level for column in _CHOICES for levels in several for level in levels if level[0] == column)
    )


def draw_curve(rows: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw a sorted curve with intervals over those of the placebos; return the real specifications in that order.

    Reads probe_id, update, measure, headline, outcome_spread, estimate, ci_low and ci_high of one quantity.
    """
    spread = rows["outcome_spread"].where(rows["measure"].isin(IN_SPREADS), 1.0)
    shown = rows.assign(**{name: rows[name] / spread for name in ("estimate", "ci_low", "ci_high")})
    shown = shown.sort_values("estimate", kind="stable")
    of_placebos = shown["probe_id"].str.contains(".", regex=False)  # a real step's name holds no dot
    real, placebos = shown[~of_placebos], shown[of_placebos]
    for number, (_, estimates) in enumerate(placebos.groupby("update")["estimate"]):
        places = np.linspace(0, len(real) - 1, len(estimates))
        ax.plot(places, estimates, color=PLACEBO, linewidth=0.9, label="" if number else "placebos")
    ax.set_xticks([])
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    if real.empty:
        mark_missing(ax)
        return real
    x = np.arange(len(real))
    ends = real[["ci_low", "ci_high"]].astype(float).to_numpy().T
    # As pixels: thousands of lines make a large SVG.
    ax.vlines(x, *ends, color=REAL, alpha=0.3, linewidth=max(0.25, 60 / len(real)), rasterized=True)
    ax.plot(x, real["estimate"], color=REAL, linewidth=1.3, label="real step")
    claimed = np.flatnonzero(real["headline"])
    (circle,) = ax.plot(x[claimed], real["estimate"].iloc[claimed], "o", color=INK, markersize=4)
    circle.set(markerfacecolor="white", markeredgewidth=1.1, label="the claim's choices")
    ax.axhline(0, color="0.3", linewidth=0.6, zorder=0)
    low, high = min(0.0, shown["estimate"].min()), max(0.0, shown["estimate"].max())
    ax.set_ylim(low - _AROUND * (high - low), high + _AROUND * (high - low))
    ax.set_xlim(-0.5, len(real) - 0.5)
    ax.locator_params(axis="y", nbins=4)
    ax.tick_params(length=2, pad=1.5)
    return real


def _label(level: Level) -> str:
    """Return how a choice is written; the middle of a long name is left out."""
    text = _SHOWN.get(level, _CHOICES[level[0]].format(level[1]))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[3 - _LONGEST // 2 :]}"


def draw_matrix(rows: pd.DataFrame, levels: Sequence[Level], ax: Axes) -> Axes:
    """Mark, for each specification in its order, which choices were made."""
    if levels and len(rows):
        chosen = np.array([rows[column] == value for column, value in levels], float)
        sharp = np.repeat(chosen, _SHARP, axis=0)  # of many in few points the share shows, blurred sideways alone
        extent = (-0.5, len(rows) - 0.5, len(levels) - 0.5, -0.5)
        smooth = "antialiased" if len(rows) > _MANY else "nearest"
        grey = np.dstack([np.full((*sharp.shape, 3), 0.5), sharp])  # which stands out from light and dark pages
        ax.imshow(grey, aspect="auto", interpolation=smooth, interpolation_stage="rgba", extent=extent)
    for line in range(1, len(levels)):
        if levels[line][0] != levels[line - 1][0]:
            ax.axhline(line - 0.5, color="0.8", linewidth=0.6)
    ax.set_yticks(range(len(levels)), list(map(_label, levels)))
    ax.set_xticks([])
    ax.tick_params(labelsize=TINY, length=0, pad=1.5)
    ax.spines[:].set_visible(False)
    return ax
