"""Token-LDS of every predictor with intervals, best at the top, and its difference from raw KL's."""

import pandas as pd

from teachdiag.figures.plots.isolated import ROW, draw_correlations, seen_correlations
from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.style import Picture, blank_figure, mark_missing
from teachdiag.signals import BASE_LABEL, versus_base
from teachdiag.tables import rows_where

_PANELS = {"token_lds": "token-LDS", "token_lds_difference": f"less that\nof {BASE_LABEL}"}


def lds_figure(tables: RunTables, probe_id: str) -> Picture:
    """Draw both panels of one probe of kind lds."""
    estimates = rows_where(tables.estimates, probe_id=probe_id)
    alone = estimates[estimates["analysis"] == "token_lds"].sort_values("estimate", ascending=False, kind="stable")
    order = list(alone["term"])
    figure = blank_figure(1.0 + ROW * max(len(order), 8))
    for ax, (analysis, title) in zip(figure.subplots(1, 2, sharey=True), _PANELS.items(), strict=True):
        rows = estimates[estimates["analysis"] == analysis]
        if rows.empty:
            mark_missing(ax)
        else:
            draw_correlations(_without_rival(rows), order, ax)
        ax.set_title(title)
        ax.spines[["top", "right"]].set_visible(False)
    if len(alone):
        figure.tell(_caption(alone.iloc[0], probe_id), f"Token-LDS. {seen_correlations(alone, order)}")
    return figure


def _without_rival(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(
        term=rows["term"].str.removesuffix(versus_base("")),
        ci_low=rows["ci_low"].astype(float),
        ci_high=rows["ci_high"].astype(float),
    )


def _caption(row: pd.Series, probe_id: str) -> str:
    return (
        f"{row['method']}, so that intervals speak of this update batch ({row['n_positions']} positions of "
        f"{row['n_prompts']} prompts) and this bank alone; probe {probe_id}. K=16 where a predictor has one."
    )
