"""Inside Q3, gain where support is high less where it is low: C at every K, and its proxies (paper Tables 1 and 6)."""

import pandas as pd

from teachdiag.figures.plots.forest import draw_forest, key
from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.seen import TITLES, listed, plain
from teachdiag.figures.style import REAL, Picture, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import SIGNALS, SUPPORT
from teachdiag.tables import rows_where

_C = "compatibility"
_DESIGNS = {"thirds": "upper less lower third", "matched": "matched pairs"}


def q3_contrast_figure(step: StepTables) -> Picture:
    """Draw one panel a design, a line for C at every K and for each of its proxies."""
    figure = blank_figure(3.9)
    panels = figure.subplots(2, 1)
    rows = rows_where(step.contrasts, outcome=OUTCOME)
    rows = rows[(rows["score"] == _C) | (rows["k"] == K)]
    rows = rows.assign(label=[_label(score, k) for score, k in zip(rows["score"], rows["k"], strict=True)])
    of_step = rows_where(rows, probe_id=step.probe_id)
    known = [
        name
        for name in dict.fromkeys(of_step["label"])
        if of_step.loc[of_step["label"] == name, "estimate"].notna().any()
    ]
    order = [_label(_C, k) for k in sorted(of_step["k"].unique())] + [_label(name, K) for name in SUPPORT if name != _C]
    labels = [label for label in order if label in known]
    for ax, (design, title) in zip(panels, _DESIGNS.items(), strict=True):
        real, *placebos = (
            rows_where(rows, probe_id=probe_id, design=design).dropna(subset="estimate").set_index("label")
            for probe_id in step.updates.values()
        )
        draw_forest(ax, labels, real, [REAL] * len(labels), placebos)
        ax.set_title(title, loc="left")
    panels[-1].set_xlabel("difference of mean gain [nats]")
    first = next(iter(step.updates))
    key(figure, TITLES.get(first, first), len(step.updates) > 1)
    thirds = rows_where(of_step, design="thirds", score=_C, k=K)
    figure.tell(_caption(step, of_step, thirds, set(order) - set(labels)), _seen(of_step))
    return figure


def _label(score: str, k: float) -> str:
    symbol = SIGNALS[score].symbol
    return f"{symbol}, K={k:g}" if score == _C else symbol


def _caption(step: StepTables, of_step: pd.DataFrame, thirds: pd.DataFrame, absent: set[str]) -> str:
    notes = of_step[(of_step["note"] != "") & of_step["design"].isin(list(_DESIGNS))]
    said = "; ".join(
        dict.fromkeys(
            f"{plain(label)} ({_DESIGNS[design]}): {note}"
            for label, design, note in notes[["label", "design", "note"]].itertuples(index=False)
        )
    )
    return (
        f"Mean {OUTCOME} inside Q3 ({thirds['n_positions'].iloc[0]:,} of {step.population}) where a support score is "
        f"high less where it is low, by thirds and by pairs of one prompt; proxies at K={K}. {step.placebos} "
        f"Probe {step.probe_id}. {step.intervals}; medians and thirds as in the table's method."
        + (f" Not drawn: {', '.join(sorted(map(plain, absent)))}." if absent else "")
        + (f" {said}." if said else "")
    )


def _seen(of_step: pd.DataFrame) -> str:
    parts = []
    for design, title in _DESIGNS.items():
        rows = rows_where(of_step, design=design, k=K).dropna(subset="estimate")
        parts.append(f"{title}: {listed(rows, map(plain, rows['label'])) or 'not estimable'}")
    return f"Difference of mean gain inside Q3 in nats, {'; '.join(parts)}."
