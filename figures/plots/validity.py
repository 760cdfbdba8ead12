"""How well each set of signals predicts gain on prompts not seen, and how much better than raw KL."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from teachdiag.figures.plots.forest import draw_forest, shades
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import REAL, TITLES, add_caption, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import BASE, BASE_LABEL, added_signals, on_top_of_base, set_symbol, versus_base
from teachdiag.tables import rows_where

_ALONE = (BASE, "compatibility", "decomposition", "logit_alignment", "hidden x logit_alignment")
_ON_TOP = ("compatibility", "decomposition", "logit_alignment")
_PANELS = {
    "cv_rank": "rank correlation",
    "cv_rank_difference": f"... less {BASE_LABEL}'s",
    "cv_r2": "$R^2$",
    "cv_r2_difference": f"... less {BASE_LABEL}'s",
}


def validity_figure(step: StepTables) -> Figure:
    """Draw measures side by side, one line a set of signals, real step over placebos."""
    figure = blank_figure(3.4)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    labels = {name: set_symbol(name) for name in _sets(step)}
    colours = [REAL, *shades(len(step.updates) - 1)]
    for ax, (analysis, title) in zip(panels, _PANELS.items(), strict=True):
        series = [
            (TITLES.get(update, update).replace("\n", " "), colour, _of(step, analysis, step.updates[update], labels))
            for update, colour in zip(step.updates, colours, strict=True)
        ]
        draw_forest(ax, list(labels.values()), series)
        ax.set_title(title)
        ax.tick_params(axis="x", labelrotation=0)
        ax.locator_params(axis="x", nbins=4)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(step.updates))
    add_caption(
        figure,
        f"Cross-validated prediction of {OUTCOME} on held-out prompts from cubic rank splines of each set of signals, "
        f"K={K}. {step.population}; probe {step.probe_id}. {step.intervals}, predictions fixed.",
    )
    return figure


def _sets(step: StepTables) -> list[str]:
    """Return the sets that are drawn, those of signals of installed packages included where the tables have them."""
    added = [name for name in added_signals() if (step.estimates["term"] == name).any()]
    return [*_ALONE, *added, *(on_top_of_base(name) for name in (*_ON_TOP, *added))]


def _of(step: StepTables, analysis: str, probe_id: str, labels: Mapping[str, str]) -> pd.DataFrame:
    rows = rows_where(step.estimates, analysis=analysis, probe_id=probe_id, outcome=OUTCOME)
    rows = rows[rows["k"].isna() | (rows["k"] == K)]
    return (
        rows.assign(label=rows["term"].str.removesuffix(versus_base("")).map(labels))
        .dropna(subset="label")
        .set_index("label")
    )
