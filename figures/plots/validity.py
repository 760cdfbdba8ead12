"""How well each set of signals ranks gain on prompts not seen, and how much better than raw KL."""

from collections.abc import Mapping

import pandas as pd

from teachdiag.figures.plots.forest import draw_forest, key
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.seen import TITLES, listed, plain
from teachdiag.figures.style import REAL, Picture, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import BASE, BASE_LABEL, added_signals, on_top_of_base, set_symbol, versus_base
from teachdiag.tables import rows_where

_ALONE = (BASE, "compatibility", "decomposition", "logit_alignment", "hidden x logit_alignment")
_ON_TOP = ("compatibility", "decomposition", "logit_alignment")
_PANELS = {"cv_rank": "rank correlation\nwith gain", "cv_rank_difference": f"less that of\n{BASE_LABEL}"}


def validity_figure(step: StepTables) -> Picture:
    """Draw the rank correlation, and beside it the difference from raw KL's, one line a set of signals."""
    labels = {name: set_symbol(name) for name in _sets(step)}
    figure = blank_figure(0.95 + 0.185 * len(labels))
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for ax, (analysis, title) in zip(panels, _PANELS.items(), strict=True):
        real, *placebos = (_of(step, analysis, probe_id, labels) for probe_id in step.updates.values())
        draw_forest(ax, list(labels.values()), real, [REAL] * len(labels), placebos, bins=3)
        ax.set_title(title)
    first = next(iter(step.updates))
    key(figure, TITLES.get(first, first), len(step.updates) > 1)
    gaps = _of(step, "cv_rank_difference", step.probe_id, labels)
    figure.tell(
        f"Cross-validated prediction of {OUTCOME} on held-out prompts from cubic rank splines of each set of signals, "
        f"K={K}; A: logit_alignment; R2 in the table. {step.placebos} {step.population}; probe {step.probe_id}. "
        f"{step.intervals}, predictions fixed.",
        f"Rank correlation with gain less that of {BASE_LABEL}: {listed(gaps, map(plain, gaps.index))}.",
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
