"""Gain by decile of each score, with intervals; placebos faint."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import PLACEBO, REAL, TITLES, add_caption, blank_figure
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import DECILES, added_signals, with_role

_COLUMNS = 3
Line = str | tuple[int, tuple[int, ...]]
# Placebos differ in line and marker, not in colour.
_LINES: tuple[tuple[Line, str], ...] = (("--", "v"), (":", "^"), ("-.", "D"), ((0, (1, 4)), "s"))


def draw_profile(rows: pd.DataFrame, ax: Axes, colour: object, line: Line, marker: str, label: str) -> Axes:
    """Draw mean gain by decile and its interval; reads decile, estimate, ci_low and ci_high."""
    rows = rows.sort_values("decile")
    ax.fill_between(rows["decile"], rows["ci_low"], rows["ci_high"], color=colour, alpha=0.18, linewidth=0)
    ax.plot(
        rows["decile"],
        rows["estimate"],
        linestyle=line,
        marker=marker,
        color=colour,
        markersize=3,
        label=label.replace("\n", " "),
        lw=1.2,
    )
    return ax


def deciles_figure(step: StepTables) -> Figure:
    """Draw one panel a score, real step over placebos."""
    scores = with_role("deciles", DECILES, added_signals().values())
    scores = [signal for signal in scores if (step.deciles["score"] == signal.name).any()]
    n_rows = -(-(len(scores) + 1) // _COLUMNS)  # the legend has a place of its own
    figure = blank_figure(2.15 * n_rows)
    panels = figure.subplots(n_rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    real, *placebos = step.updates
    for ax, signal in zip(panels, scores, strict=False):
        ax.axhline(0, color="0.3", linewidth=0.7, zorder=0)
        for update, (line, marker) in zip(placebos, _LINES, strict=False):
            profile = step.profile(update, signal.name, HEADLINE_K)
            draw_profile(profile, ax, PLACEBO, line, marker, TITLES.get(update, update))
        draw_profile(step.profile(real, signal.name, HEADLINE_K), ax, REAL, "-", "o", TITLES.get(real, real))
        ax.set_title(signal.title)
        ax.set_xticks([1, 4, 7, 10])
        ax.tick_params(labelbottom=True)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[::_COLUMNS]:
        ax.set_ylabel("mean gain [nats]")
    for ax in panels[max(len(scores) - _COLUMNS, 0) : len(scores)]:
        ax.set_xlabel("decile of the score")
    for ax in panels[len(scores) :]:
        ax.axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", title="update")
    add_caption(
        figure,
        f"Mean gain (drop of KL(teacher || student)) by decile of each score before the update, K={HEADLINE_K}. "
        f"{step.population}; probe {step.probe_id}. {step.intervals}.",
    )
    return figure
