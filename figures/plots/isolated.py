"""Which predictor foresees what a step on one token does: rank correlations with intervals, best at the top."""

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.seen import listed, plain
from teachdiag.figures.style import Picture, blank_figure, mark_missing
from teachdiag.signals import signal_named
from teachdiag.tables import rows_where

_PANELS = {"gain": "gain at its\nown context", "fix_gain": "drop of L_fix,\non other prompts"}
_LEADING = "fix_gain"  # predictors are sorted by their correlation with this
ROW = 0.15  # inches a predictor


def draw_correlations(rows: pd.DataFrame, order: list[str], ax: Axes) -> Axes:
    """Draw a dot and a bar for each predictor, the first at the top; reads term, estimate, ci_low and ci_high."""
    shown = rows.set_index("term").reindex(order).dropna(subset="estimate")
    y = [-order.index(term) for term in shown.index]
    colours = [signal_named(term).colour for term in shown.index]
    ax.hlines(y, shown["ci_low"], shown["ci_high"], colors=colours, linewidth=1.4)
    ax.scatter(shown["estimate"], y, c=colours, s=14, zorder=3)
    ax.axvline(0, color="0.3", linewidth=0.7, zorder=0)
    ax.set_ylim(-len(order) + 0.4, 0.6)
    ax.set_yticks([-row for row in range(len(order))], [signal_named(term).title for term in order])
    ax.locator_params(axis="x", nbins=3)
    ax.set_xlabel("Spearman\ncorrelation")
    return ax


def isolated_figure(tables: RunTables, probe_id: str) -> Picture:
    """Draw both panels of one isolated probe."""
    rows = rows_where(tables.estimates, probe_id=probe_id, analysis="isolated_spearman")
    order = _order(rows)
    figure = blank_figure(1.0 + ROW * max(len(order), 8))
    for ax, (outcome, title) in zip(figure.subplots(1, 2, sharex=True, sharey=True), _PANELS.items(), strict=True):
        part = rows[rows["outcome"] == outcome]
        if part.empty:
            mark_missing(ax)
        else:
            draw_correlations(part, order, ax)
        ax.set_title(title)
        ax.spines[["top", "right"]].set_visible(False)
    figure.tell(_caption(rows, probe_id), seen_correlations(rows_where(rows, outcome=_LEADING), order))
    return figure


def seen_correlations(rows: pd.DataFrame, order: list[str]) -> str:
    """Say how the best three and the worst of the predictors do, of those in an order."""
    best = rows.set_index("term").reindex(order).dropna(subset="estimate")
    ends = best if len(best) < 5 else pd.concat([best[:3], best[-1:]])
    return f"Best to worst: {listed(ends, (plain(signal_named(term).title) for term in ends.index)) or 'none'}."


def _order(rows: pd.DataFrame) -> list[str]:
    """Return the predictors, by falling correlation with the leading outcome; those without it last."""
    leading = rows[rows["outcome"] == _LEADING].sort_values("estimate", ascending=False, kind="stable")
    drawn = rows[rows["outcome"].isin(list(_PANELS))]
    return list(dict.fromkeys([*leading["term"], *drawn["term"]]))


def _caption(rows: pd.DataFrame, probe_id: str) -> str:
    opening = "One step on one position's loss at a time: what its own forward KL, and that of other prompts, falls by."
    if rows.empty:
        return f"{opening} Probe {probe_id}."
    row = rows.iloc[0]
    sizes = rows["k"].dropna()
    return (
        f"{opening} {row['n_positions']:,} positions of {row['n_prompts']} prompts, weighted to stand for their split; "
        f"probe {probe_id}{f'; K={sizes.iloc[0]:.0f}' if len(sizes) else ''}. Sorted by the right panel. "
        f"95% intervals: {row['method'].rpartition('; ')[2]}."
    )
