"""Which predictor ranks an outcome best, in sentences and as a table: what kinds that look at single tokens share."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from teachdiag.analysis.bank.lookup import lookup, lookup_text, row_interval
from teachdiag.analysis.kinds.kind import CONTENDER
from teachdiag.analysis.step.rank_correlations import PREDICTED
from teachdiag.analysis.text.text_tables import named, readable
from teachdiag.signals import BASE, BASE_LABEL, versus_base

_TOP = 6  # selectors and predictors that are shown, beside those that are always
_FOLLOWED = ("learnable (", "incompatible (", BASE_LABEL, "logit_alignment", "random", "forward_kl", "tip", "all (")


def rank_sentences(of_probe: pd.DataFrame, analysis: str, outcomes: dict[str, str]) -> list[str]:
    """Say which predictor ranks each outcome best, and where TA-OPD's score and raw KL stand beside it."""
    sentences = []
    for outcome, what in outcomes.items():
        rows = _ranked(of_probe, analysis, outcome)
        is_form = (rows["term"] == PREDICTED) & outcome.startswith("fix")  # the derivative of that very outcome
        form, rows = rows[is_form], rows[~is_form]
        if rows.empty:
            sentences.append(f"No rank correlation with {what} can be estimated: it does not vary.")
            continue
        sentences.append(_order_sentence(rows, what))
        if len(form):
            sentences.append(
                f"`predicted`, the derivative of L_fix itself, has {row_interval(form.iloc[0])} with {what}."
            )
        best = str(rows.iloc[0]["term"])
        rivals = [CONTENDER] + [best] * (best not in (CONTENDER, BASE))
        compared = [text for rival in rivals if (text := _versus(of_probe, analysis, outcome, rival))]
        sentences += [f"For {what}, {'; '.join(compared)}."] if compared else []
    return sentences


def _order_sentence(rows: pd.DataFrame, what: str) -> str:
    """Name the best of the predictors, the places of TA-OPD's score and of raw KL, and a stronger negative one."""
    best, worst = rows.iloc[0], rows.iloc[-1]
    parts = [f"Of {len(rows)} predictors, {named(best)} ranks {what} best: Spearman {row_interval(best)}"]
    parts[0] += ", flattered by being picked as the best"
    for rank, (_, row) in enumerate(rows.iterrows(), 1):
        if rank > 1 and row["term"] in (CONTENDER, BASE):
            parts.append(f"{readable(row['term'])} is number {rank} with {row_interval(row)}")
    if -worst["estimate"] > best["estimate"]:
        parts.append(f"stronger, but against it: {named(worst)} {row_interval(worst)}")
    return "; ".join(parts) + "."


def _versus(of_probe: pd.DataFrame, analysis: str, outcome: str, rival: str) -> str:
    """Say whether one predictor's correlation can be told from raw KL's."""
    gap = lookup(of_probe, analysis=f"{analysis}_difference", outcome=outcome, term=versus_base(rival))
    if gap is None:
        return ""
    if np.isnan(gap.low):
        return f"{rival} less {BASE_LABEL} is {gap}, without an interval"
    verdict = {1: "ranks better than", -1: "ranks worse than", 0: "cannot be told from"}
    return f"{rival} {verdict[gap.side()]} {BASE_LABEL} (difference {gap})"


def rank_table(
    estimates: pd.DataFrame, probe_id: str, analysis: str, leading: str, headings: Mapping[str, str]
) -> pd.DataFrame:
    """Return every predictor's rank correlation with each outcome, as text with intervals.

    Args:
        estimates: the estimates table.
        probe_id: the probe.
        analysis: the estimates that are shown.
        leading: the outcome by which predictors fall; the last column is their difference from raw KL's with it.
        headings: of the outcomes that are shown where there are any, in their order.
    """
    of_probe = estimates[estimates["probe_id"] == probe_id]
    rows = of_probe[of_probe["analysis"] == analysis]
    outcomes = [name for name in headings if name in set(rows["outcome"])]
    order = _ranked(of_probe, analysis, leading)
    predictors = pd.concat([order, rows]).drop_duplicates(["term", "k"])
    return pd.DataFrame(
        [
            {"predictor": named(row)}
            | {
                headings[outcome]: lookup_text(of_probe, analysis=analysis, outcome=outcome, term=row["term"])
                for outcome in outcomes
            }
            | {
                f"{headings[leading]} vs {BASE_LABEL}": lookup_text(
                    of_probe, analysis=f"{analysis}_difference", outcome=leading, term=versus_base(row["term"])
                )
            }
            for _, row in predictors.iterrows()
        ]
    )


def _ranked(of_probe: pd.DataFrame, analysis: str, outcome: str) -> pd.DataFrame:
    """Return the correlations with one outcome, highest first."""
    rows = of_probe[(of_probe["analysis"] == analysis) & (of_probe["outcome"] == outcome)]
    return rows.sort_values("estimate", ascending=False, kind="stable")


def leading_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the first rows of a table whose first column names signals or selectors, and those under test."""
    if table.empty:
        return table
    names = table[table.columns[0]]
    return table[(table.index < _TOP) | names.str.startswith(_FOLLOWED) | names.isin(("learnable", "incompatible"))]


def extent(table: pd.DataFrame) -> str:
    """Say of how many rows `leading_rows` shows how many."""
    return f"the first {_TOP} of {len(table)}"
