"""Share of the whole batch's gain that each selector keeps against its budget, real steps on top."""

from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.seen import listed
from teachdiag.figures.style import INK, PLACEBO, RANDOM, Picture, blank_figure
from teachdiag.glossary import DROPS
from teachdiag.settings import HEADLINE_SELECTORS, MATCHES, headline_budget
from teachdiag.settings.base import Match
from teachdiag.signals import BASE, BASE_LABEL, signal_named
from teachdiag.tables import rows_where

_RANDOM, _ORACLE, _OTHERS = "random", "oracle", "0.72"
_EXPECTED = {_RANDOM: ("--", RANDOM, "random, expected"), _ORACLE: (":", INK, "oracle: ranks by the gain")}
_FOLLOWED = [name for name in HEADLINE_SELECTORS if name not in _EXPECTED]
_BANDED = _FOLLOWED[:2]  # raw KL and TA-OPD's score; more bands cannot be told from one another
_MARKERS = ("s", "o", "D", "v")
_ROOM = 1.55  # ratio of neighbouring budgets from which there is room to write both
_APART = 1.04  # ratio by which neighbouring intervals of real steps are moved apart


def draw_efficiency(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one match: a line a selector, bands of those that are followed; reads the columns of the table."""
    shares = rows_where(rows, statistic="share")
    others = [name for name in shares["selector"].unique() if name not in HEADLINE_SELECTORS]
    for number, name in enumerate(others):
        curve, label = _curve(shares, name), "_" if number else "other selectors"  # '_': not in the legend
        ax.plot(curve["budget"], curve["estimate"], color=_OTHERS, linewidth=0.6, zorder=1, label=label)
    _draw_placebo(rows, ax)
    for name, (style, colour, label) in _EXPECTED.items():
        curve = _curve(shares, name)
        ax.plot(curve["budget"], curve["estimate"], style, color=colour, linewidth=1.1, label=label, zorder=3)
        _draw_real_steps(rows_where(shares, selector=name), ax, colour, "^", len(_FOLLOWED))
    for number, name in enumerate(_FOLLOWED):
        curve, colour = _curve(shares, name), signal_named(name).colour
        if name in _BANDED:
            low, high = (curve[end].astype(float) for end in ("ci_low", "ci_high"))
            ax.fill_between(curve["budget"], low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
        ax.plot(curve["budget"], curve["estimate"], color=colour, linewidth=1.3, label=_label(name), zorder=4)
        _draw_real_steps(rows_where(shares, selector=name), ax, colour, _MARKERS[number % len(_MARKERS)], number)
    if shares["real_share"].notna().any():
        ax.plot([], [], "o", color="0.3", markerfacecolor="white", markersize=4, label="real step, one batch")
    ax.axhline(1, color="0.5", linewidth=0.6, zorder=0)
    ax.axhline(0, color="0.5", linewidth=0.6, zorder=0)
    _label_axes(sorted(shares["budget"].unique()), ax)
    return ax


def efficiency_figure(tables: RunTables, probe_id: str) -> Picture:
    """Draw the panels of one probe: equal length of the step, and equal learning rate."""
    rows = rows_where(tables.efficiency, probe_id=probe_id)
    matches = [match for match in MATCHES if (rows_where(rows, statistic="share")["match"] == match).any()]
    figure = blank_figure(1.0 + 1.75 * len(matches))
    gain = rows_where(rows, statistic="gain").iloc[0]
    if not matches:
        ax = figure.subplots()
        ax.axis("off")
        why = "not judged: the whole batch's own gain\nis not clearly told from 0"
        ax.text(0.5, 0.5, why, ha="center", va="center")
    else:
        panels = figure.subplots(len(matches), 1, sharex=True, squeeze=False)[:, 0]
        for ax, match in zip(panels, matches, strict=True):
            draw_efficiency(rows_where(rows, match=match), ax)
            ax.set_title(f"at {MATCHES[match]}", loc="left")
            if match == "rate":  # where large gradients alone keep many times the gain
                _scale_ratios(ax)
            ax.set_ylabel("share of gain kept")
        panels[-1].set_xlabel("budget: share of the update batch's tokens")
        figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    figure.tell(
        f"Held-out gain ({DROPS[gain['outcome']]}) to first order; {gain['n_contexts']:,} update contexts, "
        f"{gain['n_prompts']:,} bank prompts. Bands, of {' and '.join(map(_label, _BANDED))}: 95%, update prompts and "
        "bank blocks resampled. "
        f"Markers: real steps, bank prompts resampled. Grey lines: other selectors{_best(rows)}. Probe {probe_id}.",
        _seen(rows, matches[0]) if matches else "Nothing is drawn: the whole batch's own gain is not told from 0.",
    )
    return figure


def _seen(rows: pd.DataFrame, match: Match) -> str:
    shares = rows_where(rows, match=match, statistic="share")
    shares = shares[shares["selector"].isin(HEADLINE_SELECTORS)]
    budget = headline_budget(shares["budget"])
    at = rows_where(shares, budget=budget).set_index("selector")
    at = at.loc[[name for name in HEADLINE_SELECTORS if name in at.index]]
    kept = listed(at, map(_label, at.index))
    return f"Share of the gain kept by {budget:.0%} of the tokens at {MATCHES[match]}: {kept}."


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
    label = f"{BASE_LABEL}, shuffled teacher"
    ax.plot(placebo["budget"], placebo["estimate"], "-.", color=PLACEBO, linewidth=1.1, label=label, zorder=3)


def _draw_real_steps(shares: pd.DataFrame, ax: Axes, colour: object, marker: str, number: int) -> None:
    taken = shares[shares["real_share"].notna()]
    x = taken["budget"] * _APART ** (number - 1)
    ax.vlines(x, taken["real_low"].astype(float), taken["real_high"].astype(float), color=colour, linewidth=1, zorder=5)
    ax.plot(x, taken["real_share"], marker, color=colour, markerfacecolor="white", markersize=4, zorder=6)


def _best(rows: pd.DataFrame) -> str:
    """Name the best of the other selectors at the budget that texts show, at every match."""
    shares = rows_where(rows, statistic="share")
    others = shares[~shares["selector"].isin(HEADLINE_SELECTORS)]
    if others.empty:
        return ""
    at = rows_where(others, budget=headline_budget(others["budget"])).sort_values("estimate", ascending=False)
    best = [
        f"{name} at {where}"
        for match, where in MATCHES.items()
        for name in rows_where(at, match=match)["selector"].iloc[:1]
    ]
    return f" (best at {at['budget'].iloc[0]:.0%}: {', '.join(best)})"


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
    ticks = [*budgets, 1.0]
    roomy = [tick for before, tick in pairwise([0.0, *ticks]) if tick > _ROOM * before]
    ax.set_xticks(ticks, [f"{100 * tick:g}%" if tick in roomy else "" for tick in ticks])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)


def _label(name: str) -> str:
    return {"learnable": "learnable (TA-OPD)"}.get(name, signal_named(name).words or signal_named(name).label)
