"""Inside Q3, gain at high support less gain at low support, by K, design and update (paper Table 1, Figures 3C, 5A)."""

import pandas as pd
from matplotlib.figure import Figure

from teachdiag.figures.plots.forest import draw_forest, shades
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import REAL, TITLES, add_caption, blank_figure
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.tables import rows_where

_DESIGNS = {"thirds": "upper less lower third", "matched": "matched pairs", "matched once": "matched, each used once"}


def q3_contrast_figure(step: StepTables) -> Figure:
    """Draw one panel a design, lines by K, real step beside placebos."""
    figure = blank_figure(2.5)
    panels = figure.subplots(1, len(_DESIGNS), sharey=True)
    rows = rows_where(step.contrasts, score="compatibility", outcome=OUTCOME)
    sizes = sorted(rows["k"].unique())
    labels = [f"K={k:g}" for k in sizes]
    colours = [REAL, *shades(len(step.updates) - 1)]
    for ax, (design, title) in zip(panels, _DESIGNS.items(), strict=True):
        series = [
            (TITLES.get(update, update).replace("\n", " "), colour, _of(rows, step.updates[update], design))
            for update, colour in zip(step.updates, colours, strict=True)
        ]
        draw_forest(ax, labels, series)
        ax.set_title(title)
        ax.set_xlabel("difference of mean gain [nats]")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(series))
    q3 = rows[rows["design"] == "thirds"].iloc[0]
    add_caption(
        figure,
        f"Inside Q3 (student entropy at or below its median, forward KL at or above; {q3['n_positions']:,} of "
        f"{step.population}), mean {OUTCOME} where C is high less where it is low; probe {step.probe_id}. "
        f"{step.intervals}; medians and thirds as in the table's method. No dot: the table's note says why.",
    )
    return figure


def _of(rows: pd.DataFrame, probe_id: str, design: str) -> pd.DataFrame:
    rows = rows_where(rows, probe_id=probe_id, design=design).dropna(subset="estimate")
    return rows.assign(label=[f"K={k:g}" for k in rows["k"]]).set_index("label")
