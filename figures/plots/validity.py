"""How well each set of signals predicts gain on prompts not seen, and how much better than raw KL."""

import pandas as pd
from matplotlib.figure import Figure

from teachdiag.figures.plots.forest import draw_forest, shades
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import REAL, TITLES, add_caption, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME

_SETS = {
    "forward_kl": "raw KL",
    "compatibility": "C",
    "decomposition": "$D^L$, $D^I$",
    "logit_alignment": "A",
    "hidden x logit_alignment": "$|h|^2$ A",
    "forward_kl + compatibility": "raw KL + C",
    "forward_kl + decomposition": "raw KL + $D^L$, $D^I$",
    "forward_kl + logit_alignment": "raw KL + A",
}
_PANELS = {
    "cv_rank": "rank correlation",
    "cv_rank_difference": "... less raw KL's",
    "cv_r2": "$R^2$",
    "cv_r2_difference": "... less raw KL's",
}


def validity_figure(step: StepTables) -> Figure:
    """Draw measures side by side, one line a set of signals, real step over placebos."""
    figure = blank_figure(3.4)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    labels = list(_SETS.values())
    colours = [REAL, *shades(len(step.updates) - 1)]
    for ax, (analysis, title) in zip(panels, _PANELS.items(), strict=True):
        series = [
            (TITLES.get(update, update).replace("\n", " "), colour, _of(step, analysis, step.updates[update]))
            for update, colour in zip(step.updates, colours, strict=True)
        ]
        draw_forest(ax, labels, series)
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


def _of(step: StepTables, analysis: str, probe_id: str) -> pd.DataFrame:
    rows = step.estimates
    rows = rows[(rows["analysis"] == analysis) & (rows["probe_id"] == probe_id) & (rows["outcome"] == OUTCOME)]
    rows = rows[rows["k"].isna() | (rows["k"] == K)]
    labels = rows["term"].str.removesuffix(" vs forward_kl").map(_SETS)
    return rows.assign(label=labels).dropna(subset="label").set_index("label")
