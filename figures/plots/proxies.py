"""The same contrast with C's proxies in its place (paper Table 6, Figures 4C, 5B)."""

import pandas as pd
from matplotlib.figure import Figure

from teachdiag.figures.plots.forest import draw_forest
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import REAL, SECOND, add_caption, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import SIGNALS, SUPPORT
from teachdiag.tables import rows_where


def proxies_figure(step: StepTables) -> Figure:
    """Draw one line a proxy: by thirds and by matched pairs."""
    figure = blank_figure(2.9)
    ax = figure.subplots()
    names = {name: SIGNALS[name].symbol for name in SUPPORT}
    rows = rows_where(step.contrasts, probe_id=step.probe_id, outcome=OUTCOME, k=K)
    rows = rows.assign(label=rows["score"].map(names)).set_index("label")
    labels = list(names.values())
    series = [
        (name, colour, rows[(rows["design"] == design) & rows["estimate"].notna()])
        for design, name, colour in (
            ("thirds", "upper less lower third", REAL),
            ("matched", "matched pairs", SECOND),
        )
    ]
    draw_forest(ax, labels, series)
    thirds = rows[rows["design"] == "thirds"]
    for line, label in enumerate(labels):
        note = str(thirds["note"][label])
        y = line - 0.3 * float(pd.notna(thirds["estimate"][label]))  # just above the numbers, or in their place
        ax.text(0.99, y, note, transform=ax.get_yaxis_transform(), ha="right", va="center", color="0.4", fontsize=7)
    ax.set_xlabel("difference of mean gain inside Q3 [nats]")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    add_caption(
        figure,
        f"Mean {OUTCOME} inside Q3 where a support score (K={K}) is high less where it is low. {step.population}; "
        f"probe {step.probe_id}. {step.intervals}.",
    )
    return figure
