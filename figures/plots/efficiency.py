"""Share of the whole batch's gain that each selector keeps against its budget, real steps on top; for one column."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.style import COLUMN, PALETTE, PLACEBO, add_caption, blank_figure
from teachdiag.settings import HEADLINE_SELECTORS, MATCHES, headline_budget
from teachdiag.signals import BASE, BASE_LABEL, signal_named
from teachdiag.tables import rows_where

_RANDOM, _ORACLE, _OTHERS = "random", "oracle", "0.72"
_EXPECTED = {_RANDOM: ("--", PALETTE[3], "random, expected"), _ORACLE: (":", "0.2", "oracle: ceiling")}
_FOLLOWED = [name for name in HEADLINE_SELECTORS if name not in _EXPECTED]
_MARKERS = ("s", "o", "D", "v")
_FONT = 6.5  # of a figure that is one column wide
_APART = 1.04  # ratio by which neighbouring intervals of real steps are moved apart


def draw_efficiency(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one match: a line a selector, bands of those that are followed; reads the columns of the table."""
    shares = rows_where(rows, statistic="share")
    for name in shares["selector"].unique():
        if name not in HEADLINE_SELECTORS:
            curve = _curve(shares, name)
            ax.plot(curve["budget"], curve["estimate"], color=_OTHERS, linewidth=0.6, zorder=1)
    _name_best(shares, ax)
    _draw_placebo(rows, ax)
    for name, (style, colour, label) in _EXPECTED.items():
        curve = _curve(shares, name)
        ax.plot(curve["budget"], curve["estimate"], style, color=colour, linewidth=1.1, label=label, zorder=3)
        _draw_real_steps(rows_where(shares, selector=name), ax, colour, "^", len(_FOLLOWED))
    for number, name in enumerate(_FOLLOWED):
        curve, colour = _curve(shares, name), signal_named(name).colour
        low, high = (curve[end].astype(float) for end in ("ci_low", "ci_high"))
        ax.fill_between(curve["budget"], low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
        ax.plot(curve["budget"], curve["estimate"], color=colour, linewidth=1.3, label=_label(name), zorder=4)
        _draw_real_steps(rows_where(shares, selector=name), ax, colour, _MARKERS[number % len(_MARKERS)], number)
    ax.axhline(1, color="0.5", linewidth=0.6, zorder=0)
    ax.axhline(0, color="0.5", linewidth=0.6, zorder=0)
    _label_axes(sorted(shares["budget"].unique()), ax)
    return ax


def efficiency_figure(tables: RunTables, probe_id: str) -> Figure:
    """Draw the panels of one probe: equal length of the step, and equal learning rate."""
    rows = rows_where(tables.efficiency, probe_id=probe_id)
    matches = [match for match in MATCHES if (rows_where(rows, statistic="share")["match"] == match).any()]
    figure = blank_figure(1.5 + 1.9 * max(len(matches), 1), COLUMN)
    figure.suptitle("How much of the whole batch's gain\ndo a few of its tokens keep?", fontsize=8)
    gain = rows_where(rows, statistic="gain").iloc[0]
    if not matches:
        ax = figure.subplots()
        ax.axis("off")
        why = "not judged: the whole batch's own gain\nis not clearly told from 0"
        ax.text(0.5, 0.5, why, ha="center", va="center")
    else:
        key, *panels = figure.subplots(1 + len(matches), 1, sharex=True, height_ratios=[0.3, *[1] * len(matches)])
        for ax, match in zip(panels, matches, strict=True):
            draw_efficiency(rows_where(rows, match=match), ax)
            ax.set_title(f"at {MATCHES[match]}", fontsize=7.5)
            if match == "rate":  # where large gradients alone keep many times the gain
                _scale_ratios(ax)
            ax.set_ylabel("share of gain kept", fontsize=7)
        panels[-1].set_xlabel("budget: share of the update batch's tokens", fontsize=7)
        key.axis("off")
        key.legend(*panels[-1].get_legend_handles_labels(), loc="center", ncols=2, fontsize=_FONT)
    add_caption(
        figure,
        f"Held-out gain (drop of KL) to first order; {gain['n_contexts']:,} update contexts, {gain['n_prompts']:,} "
        "bank prompts. Bands: 95%, update prompts and bank blocks resampled. Markers: real steps, bank prompts "
        f"resampled. Grey lines: other selectors. Probe {probe_id}.",
    )
    return figure


def _curve(shares: pd.DataFrame, selector: str) -> pd.DataFrame:
    """Return one selector's rows by rising budget, up to the whole batch, which keeps everything."""
    rows = rows_where(shares, selector=selector).sort_values("budget")
    whole = {"budget": 1.0, "estimate": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    return pd.concat([rows[list(whole)], pd.DataFrame([whole])]) if len(rows) else rows


def _draw_placebo(rows: pd.DataFrame, ax: Axes) -> None:
    """Draw what the positions of raw KL keep under a shuffled teacher, where that was measured."""
    placebo = rows_where(rows, statistic="share_shuffled", selector=BASE).sort_values("budget")
    if placebo.empty:
        return
    low, high = (placebo[end].astype(float) for end in ("ci_low", "ci_high"))
    ax.fill_between(placebo["budget"], low, high, color=PLACEBO, alpha=0.25, linewidth=0, zorder=2)
    label = f"{BASE_LABEL}, shuffled teacher"
    ax.plot(placebo["budget"], placebo["estimate"], "-.", color=PLACEBO, linewidth=1.1, label=label, zorder=3)


def _draw_real_steps(shares: pd.DataFrame, ax: Axes, colour: object, marker: str, number: int) -> None:
    taken = shares[shares["real_share"].notna()]
    x = taken["budget"] * _APART ** (number - 1)
    ax.vlines(x, taken["real_low"].astype(float), taken["real_high"].astype(float), color=colour, linewidth=1, zorder=5)
    ax.plot(x, taken["real_share"], marker, color=colour, markerfacecolor="white", markersize=4, zorder=6)


def _name_best(shares: pd.DataFrame, ax: Axes) -> None:
    """Write the name of the best of the other selectors at the budget that texts show."""
    others = shares[~shares["selector"].isin(HEADLINE_SELECTORS)]
    if others.empty:
        return
    at = rows_where(others, budget=headline_budget(others["budget"])).sort_values("estimate").iloc[-1]
    ax.annotate(
        f"{at['selector']}",
        (at["budget"], at["estimate"]),
        (4, 4),
        textcoords="offset points",
        fontsize=6,
        color="0.45",
        zorder=7,
    )


def _scale_ratios(ax: Axes) -> None:
    """Scale what lies above 1 by its logarithm."""
    ax.set_yscale("symlog", linthresh=1, linscale=0.6)
    ax.set_ylim(bottom=ax.dataLim.y0 - 0.1)
    low, high = ax.get_ylim()
    ticks = [tick for tick in (-1, 0, 1, 2, 5, 10, 20, 50, 100) if low <= tick <= high]
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()


def _label_axes(budgets: list[float], ax: Axes) -> None:
    ax.set_xscale("log")
    ax.set_xticks([*budgets, 1.0], [f"{100 * budget:g}%" for budget in (*budgets, 1.0)])
    ax.minorticks_off()
    ax.tick_params(labelsize=_FONT)
    ax.spines[["top", "right"]].set_visible(False)


def _label(name: str) -> str:
    return {"learnable": "learnable (TA-OPD)"}.get(name, signal_named(name).words or signal_named(name).label)
