"""Mean gain of the best-scored positions, selector by selector (paper Table 8, Figure 4A)."""

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.plots.forest import draw_forest, key
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.seen import TITLES, interval_text, listed, plain
from teachdiag.figures.style import INK, RANDOM, Picture, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.settings import headline_budget
from teachdiag.signals import signal_named
from teachdiag.tables import rows_where

_RANDOM = "random"
_SHOWN = ("learnable", "incompatible", "forward_kl", "entropy", "tip", "learnable_entropy", "logit_alignment")


def draw_top(updates: list[pd.DataFrame], ax: Axes) -> Axes:
    """Draw the mean gain of what each selector takes, over the whole bank's; reads selector and the estimates.

    Args:
        updates: rows of one budget, indexed by selector, of the real step and of each placebo.
        ax: where.
    """
    real, *placebos = (rows.loc[list(_SHOWN)].rename(index=_title) for rows in updates)
    draw_forest(ax, [_title(name) for name in _SHOWN], real, [signal_named(n).colour for n in _SHOWN], placebos)
    bank = float(updates[0]["estimate"][_RANDOM])
    ax.axvline(bank, color=RANDOM, linestyle="--", linewidth=1, zorder=1, label="whole bank")
    ax.set_xlabel("mean gain of the taken [nats]")
    return ax


def top_n_figure(step: StepTables) -> Picture:
    """Draw what the selectors take at the budget that texts show."""
    rows = rows_where(step.top_n, outcome=OUTCOME)
    budget = headline_budget(rows["budget"])
    rows = rows[(rows["k"].isna() | (rows["k"] == K)) & (rows["budget"] == budget)]
    updates = [rows_where(rows, probe_id=probe_id).set_index("selector") for probe_id in step.updates.values()]
    updates = [of_update for of_update in updates if len(of_update)]
    figure = blank_figure(2.3)
    ax = draw_top(updates, figure.subplots())
    first = next(iter(step.updates))
    key(figure, TITLES.get(first, first), len(updates) > 1, INK, ax.get_legend_handles_labels()[0])
    real = updates[0].loc[list(_SHOWN)]
    of_bank = interval_text(*updates[0].loc[_RANDOM, ["estimate", "ci_low", "ci_high"]])
    figure.tell(
        f"Mean gain of exactly the {budget:.0%} of positions that score best; all went through the same update. What "
        f"else they are, and other budgets: in the table. A: logit_alignment. {step.placebos} {step.population}; probe "
        f"{step.probe_id}. {step.intervals}, selection fixed.",
        f"Mean gain in nats of the best-scored {budget:.0%}: {listed(real, map(_words, real.index))}; of the "
        f"whole bank: {of_bank}.",
    )
    return figure


def _title(name: str) -> str:
    return signal_named(name).title


def _words(name: str) -> str:
    return plain(signal_named(name).title)
