"""Mean gain against budget for every selector, with intervals; equal norm and equal learning rate side by side."""

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.seen import listed
from teachdiag.figures.style import PREDICTED, RANDOM, Picture, blank_figure
from teachdiag.settings import MATCHES, headline_budget
from teachdiag.signals import BASE, signal_named
from teachdiag.tables import rows_where

_FOLLOWED = {"learnable": "o", BASE: "s", "predicted": "D", "random": "v"}  # selectors in colour: marker
_COLOURS = {"predicted": PREDICTED, "random": RANDOM}  # of those that are no signals
_OTHERS, _ALL = "0.75", "all"
_APART = 1.035  # ratio by which the intervals of neighbouring curves are moved apart


def draw_budgets(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one curve a selector, ending at the whole batch; reads selector, budget, estimate, ci_low and ci_high."""
    whole = rows[rows["selector"] == _ALL]
    others = [name for name in rows["selector"].unique() if name not in (*_FOLLOWED, _ALL)]
    for index, name in enumerate(others):
        curve = _curve(rows, name, whole)
        label = "other selectors" if index == 0 else None
        ax.plot(curve["budget"], curve["estimate"], "-", color=_OTHERS, linewidth=0.8, label=label, zorder=1)
    for index, (name, marker) in enumerate(_FOLLOWED.items()):
        curve, signal = _curve(rows, name, whole), signal_named(name)
        colour, label = _COLOURS.get(name, signal.colour), signal.title
        if (curve["selector"] == name).any():
            x = curve["budget"] * _APART ** (index - 1.5)
            ax.vlines(x, curve["ci_low"].astype(float), curve["ci_high"].astype(float), color=colour, linewidth=1.2)
            ax.plot(x, curve["estimate"], "-", marker=marker, color=colour, markersize=4, linewidth=1.2, label=label)
    ax.axhline(0, color="0.3", linewidth=0.7, zorder=0)
    budgets = sorted(rows["budget"].unique())
    ax.set_xscale("log")
    ax.set_xticks(budgets, [f"{100 * budget:g}%" for budget in budgets])
    ax.minorticks_off()
    ax.set_xlabel("budget: share of the update batch's positions")
    return ax


def budget_curve_figure(tables: RunTables, probe_id: str) -> Picture:
    """Draw the panels of one selector experiment."""
    rows = rows_where(tables.selection, probe_id=probe_id, statistic="mean_gain")
    matches = [match for match in MATCHES if match in set(rows["match"])]
    figure = blank_figure(0.9 + 1.75 * len(matches))
    panels = figure.subplots(len(matches), 1, sharex=True, squeeze=False)[:, 0]  # scales: equal rates can overshoot
    for ax, match in zip(panels, matches, strict=True):
        draw_budgets(rows[rows["match"] == match], ax)
        ax.set_title(f"at {MATCHES[match]}", loc="left")
        ax.set_ylabel("mean gain [nats]")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[:-1]:
        ax.set_xlabel("")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    row = rows.iloc[0]
    figure.tell(
        "Mean gain (drop of KL(teacher || student)) of a step on the selected positions of the update batch, over "
        f"{row['n_positions']:,} bank positions of {row['n_prompts']} prompts; probe {probe_id}. "
        f"95% intervals, for the selectors in colour: {row['method'].partition('mean gain')[2].lstrip(',; ')}.",
        f"{seen_at(rows[rows['match'] == matches[0]], 'Mean gain in nats')}, {MATCHES[matches[0]]}.",
    )
    return figure


def seen_at(rows: pd.DataFrame, what: str) -> str:
    """Say what the followed selectors, and the whole batch, reach at the budget that texts show."""
    parts = rows[rows["selector"] != _ALL]["budget"]
    budget = headline_budget(parts if len(parts) else rows["budget"])
    at = rows[rows["selector"].isin([*_FOLLOWED]) & (rows["budget"] == budget) | (rows["selector"] == _ALL)]
    return f"{what} at {budget:.0%} of the positions: {listed(at, (signal_named(n).label for n in at['selector']))}"


def _curve(rows: pd.DataFrame, selector: str, whole: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows[rows["selector"] == selector], whole]).sort_values("budget")
