"""Token-LDS and the placebo panel for people: their tables and what they say."""

import numpy as np
import pandas as pd

from teachdiag.analysis.kinds.lds import ENOUGH_MASKS, FIRST_ORDER
from teachdiag.analysis.resampling.bootstrap import Interval
from teachdiag.analysis.text.text_tables import named, readable, row_interval
from teachdiag.signals import BASE, BASE_LABEL, versus_base

_FOLLOWED = ("learnable", "logit_alignment", BASE)


def lds_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return every predictor's token-LDS, highest first, and its difference from raw KL's, as text with intervals."""
    rows = _lds(estimates, probe_id)
    return pd.DataFrame(
        [
            {"predictor": named(row), "token-LDS": str(row_interval(row))}
            | {f"less {BASE_LABEL}'s": _shown_difference(estimates, probe_id, str(row["term"]))}
            for _, row in rows.iterrows()
        ]
    )


def lds_sentences(estimates: pd.DataFrame, probe_id: str, n_masks: int) -> list[str]:
    """Say whose sums rank the masks best, and where TA-OPD's score, logit alignment and raw KL stand.

    Args:
        estimates: the estimates table.
        probe_id: a probe of kind lds.
        n_masks: its masks.
    """
    everyone = _lds(estimates, probe_id)
    if everyone.empty:
        return ["No token-LDS can be estimated: the masks' gains do not vary."]
    form, rows = everyone[everyone["term"] == FIRST_ORDER], everyone[everyone["term"] != FIRST_ORDER]
    best, terms = rows.iloc[0], list(rows["term"])
    told = "".join(
        f"; {readable(name)} {row_interval(rows.iloc[place])} is number {place + 1}"
        for name in _FOLLOWED
        if name in terms and (place := terms.index(name))
    )
    ceiling = f" The first-order form for this very bank reaches {row_interval(form.iloc[0])}." if len(form) else ""
    rough = f" Fewer than {ENOUGH_MASKS} masks: take these as rough." if n_masks < ENOUGH_MASKS else ""
    sentences = [
        f"Over {n_masks} random masks of one update batch, sums of {named(best)} rank the measured gains best of "
        f"{len(rows)} predictors (token-LDS {row_interval(best)}; the best of many flatters itself){told}."
        f"{ceiling}{rough}"
    ]
    compared = [_against_base(estimates, probe_id, name) for name in ("learnable", "logit_alignment", "predicted")]
    return sentences + [f"Token-LDS less {BASE_LABEL}'s: {'; '.join(filter(None, compared))}."] * any(compared)


def panel_table(panel: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return each headline statistic beside the 95% range of every placebo for one more draw, as text.

    A star marks placebos that the real number does not lie beyond.
    """
    mine = panel[panel["probe_id"] == probe_id]
    return pd.DataFrame(
        [
            {"statistic": statistic, "real step": _value(rows.iloc[0])}
            | {row["update"]: _range(row) for _, row in rows.iterrows()}
            | {"survives": _status(rows)}
            for statistic, rows in mine.groupby("statistic", sort=False)
        ]
    ).fillna("-")


def panel_overview(panel: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return each headline statistic and the placebos that it does not lie beyond, as text."""
    mine = panel[panel["probe_id"] == probe_id]
    return pd.DataFrame(
        [
            {"statistic": statistic, "real step": _value(rows.iloc[0]), "survives": _status(rows)}
            | {"not beyond": ", ".join(rows[rows["survives"] == False]["update"]) or "-"}  # noqa: E712 (nulls)
            for statistic, rows in mine.groupby("statistic", sort=False)
        ]
    )


def _lds(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    rows = estimates[(estimates["probe_id"] == probe_id) & (estimates["analysis"] == "token_lds")]
    return rows.sort_values("estimate", ascending=False, kind="stable")


def _difference(estimates: pd.DataFrame, probe_id: str, term: str) -> Interval | None:
    rows = estimates[
        (estimates["probe_id"] == probe_id)
        & (estimates["analysis"] == "token_lds_difference")
        & (estimates["term"] == versus_base(term))
    ]
    return None if rows.empty else row_interval(rows.iloc[0])


def _shown_difference(estimates: pd.DataFrame, probe_id: str, term: str) -> str:
    found = _difference(estimates, probe_id, term)
    return "-" if found is None else str(found)


def _against_base(estimates: pd.DataFrame, probe_id: str, term: str) -> str:
    found = _difference(estimates, probe_id, term)
    if found is None:
        return ""
    verdict = {1: "higher", -1: "lower", 0: "not told apart"}[found.side()]
    return f"{term} {found} ({'no interval' if np.isnan(found.low) else verdict})"


def _status(rows: pd.DataFrame) -> str:
    known = rows["survives"].dropna()
    if known.empty:
        return "not comparable"
    return "yes" if known.astype(bool).all() else "no"


def _value(row: pd.Series) -> str:
    return f"{row['estimate']:.3g}{' nats' if row['unit'] == 'nats' else ''}"


def _range(row: pd.Series) -> str:
    if row["n_draws"] == 0:
        return "-"
    if pd.isna(row["range_low"]):
        told = f"{row['draw_mean']:.3g} (no range)"
    else:
        told = f"{row['draw_mean']:.3g} [{row['range_low']:.3g}, {row['range_high']:.3g}]"
    return told if pd.isna(row["survives"]) or row["survives"] else f"{told} *"
