"""How much of every normalised score clipping and ties decide."""

from matplotlib.figure import Figure

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.style import PALETTE, SEQUENTIAL, add_caption, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.signals import signal_named

_BUDGETS = (1, 3, 5, 10, 30)


def saturation_figure(tables: RunTables) -> Figure:
    """Draw shares at the clip on the left, and shares of a budget that a tie decides on the right."""
    figure = blank_figure(2.9)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = tables.saturation
    rows = rows[rows["k"].isna() | (rows["k"] == K)]
    names = [signal_named(name).title for name in rows["score"]]
    y = range(len(rows))
    left.barh(y, rows["share_at_lowest"], color=PALETTE[0], label="at the lowest value")
    left.barh(y, rows["share_at_highest"], left=1 - rows["share_at_highest"], color=PALETTE[1], label="at the highest")
    left.set_xlim(0, 1)
    left.set_yticks(y, names)
    left.invert_yaxis()
    left.set_xlabel("share of positions")
    shares = rows[[f"tied_at_{budget:02d}pct" for budget in _BUDGETS]].to_numpy()
    right.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    for row in y:
        for column in range(len(_BUDGETS)):
            value = float(shares[row, column])
            colour = "white" if value < 0.55 else "black"
            right.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=6.5, color=colour)
    right.set_xticks(range(len(_BUDGETS)), [f"{budget}%" for budget in _BUDGETS])
    right.set_xlabel("budget: share of it that a tie decides")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    add_caption(
        figure,
        f"Normalised scores, K={K}: clip((z - Q05) / (Q95 - Q05), 0, 1) over the whole bank, and their combinations. "
        f"Where a tie decides a budget, selection is arbitrary. {tables.population}; no update enters.",
    )
    return figure
