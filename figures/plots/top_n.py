"""Mean gain of the best-scored positions by budget, and what these positions are (paper Table 8, Figures 4A, 4B)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import add_caption, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import COMPOSITION, SIGNALS, signal_named
from teachdiag.tables import rows_where

_SHOWN = (  # selectors
    *("learnable", "incompatible", "forward_kl", "entropy", "tip", "learnable_entropy", "logit_alignment"),
    "random",
)
_FACTS = {f"mean_{name}": SIGNALS[name].symbol for name in COMPOSITION} | {"q3_share": "Q3"}
_MARKERS = "osDv^P*X"
_BUDGET = 0.05
_APART = 1.045  # ratio by which the intervals of neighbouring selectors are moved apart


def top_n_figure(step: StepTables) -> Figure:
    """Draw gain by budget on the left, and the composition at 5% on the right."""
    figure = blank_figure(3.0)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    rows = rows_where(step.top_n, probe_id=step.probe_id, outcome=OUTCOME)
    rows = rows[rows["k"].isna() | (rows["k"] == K)].set_index("selector")
    for index, name in enumerate(_SHOWN):
        curve, signal = rows.loc[[name]].sort_values("budget"), signal_named(name)
        x = 100 * curve["budget"] * _APART ** (index - (len(_SHOWN) - 1) / 2)
        left.vlines(x, curve["ci_low"], curve["ci_high"], color=signal.colour, linewidth=1.2)
        style = {"color": signal.colour, "marker": _MARKERS[index], "markersize": 3.5, "lw": 0.9}
        left.plot(x, curve["estimate"], label=signal.title, **style)
    left.axhline(0, color="0.3", linewidth=0.7, zorder=0)
    left.set_xlabel("positions taken [% of the bank]")
    left.set_ylabel("mean gain of the taken [nats]")
    left.set_xscale("log")
    left.set_xticks([1, 3, 5, 10], ["1", "3", "5", "10"])
    left.minorticks_off()
    left.spines[["top", "right"]].set_visible(False)
    _draw_composition(right, rows[rows["budget"] == _BUDGET])
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    add_caption(
        figure,
        "Left: mean gain of exactly the best-scored ceil(budget N) positions; all went through the same update, and "
        f"random is the mean of all. Right: mean of each normalised statistic over the taken at {100 * _BUDGET:g}%. "
        f"{step.population}; probe {step.probe_id}. {step.intervals}, selection fixed.",
    )
    return figure


def _draw_composition(ax: Axes, rows: pd.DataFrame) -> None:
    shown = rows.loc[list(_SHOWN), list(_FACTS)]
    ax.imshow(shown.to_numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(shown.to_numpy()):
        for x, value in enumerate(row):
            colour = "white" if value < 0.55 else "black"
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    ax.set_xticks(range(len(_FACTS)), list(_FACTS.values()))
    ax.set_yticks(range(len(_SHOWN)), [signal_named(name).symbol for name in _SHOWN])
    ax.tick_params(length=0)
