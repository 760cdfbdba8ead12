"""What isolated and predicted probes show, in plain sentences and tables: from the estimates table alone."""

import numpy as np
import pandas as pd

from teachdiag.analysis.kinds.isolated import FIRST_ORDER, LOWERS, PER_STEP, WITHIN_NOISE, WITHOUT_LARGEST
from teachdiag.analysis.kinds.predicted import CLEAN, share_name
from teachdiag.analysis.kinds.selectors_text import CONTENDER
from teachdiag.analysis.resampling.bootstrap import Interval
from teachdiag.analysis.step.rank_correlations import PREDICTED
from teachdiag.analysis.text.text_tables import named, readable, row_interval
from teachdiag.settings import SHRINKS
from teachdiag.signals import BASE, BASE_LABEL, versus_base

GAINS = {"gain": "the gain at its own context", "fix_gain": "the drop of L_fix"}
_INNER = {"fix_inner": "the inner product with the gradient of L_fix"}
_HEADINGS = {
    "gain": "own gain",
    "fix_gain": "drop of L_fix",
    PER_STEP.format("gain"): "own gain per unit of step",
    PER_STEP.format("fix_gain"): "drop of L_fix per unit of step",
    "own_inner": "own_inner",
    "fix_inner": "fix_inner",
}
_SHARE_COLUMNS = {
    "predicted_r2": "R2",
    "predicted_correlation": "squared correlation",
    "predicted_spearman": "Spearman",
    "predicted_remainder": "rms remainder [nats]",
    "predicted_mean_remainder": "mean absolute remainder [nats]",
}


def study_sentences(estimates: pd.DataFrame, probe_id: str) -> list[str]:
    """Say what one isolated or predicted probe shows; nothing for a probe of another kind.

    Args:
        estimates: the estimates table.
        probe_id: the probe.
    """
    mine = estimates[estimates["probe_id"] == probe_id]
    kinds = set(mine["update"])
    if "isolated" in kinds:
        return [*_effect_sentences(mine), *_rank_sentences(mine, "isolated_spearman", GAINS), *_linear_sentences(mine)]
    if "predicted" in kinds:
        return [
            *_fit_sentences(mine),
            *_exponent_sentences(mine),
            *_rank_sentences(mine, "fix_inner_spearman", _INNER),
        ]
    return []


def isolated_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return every predictor's rank correlation with every isolated outcome, as text with intervals.

    Predictors fall by their correlation with the drop of L_fix; 'vs raw KL' is the difference of that from raw KL's.
    """
    return _rank_table(estimates, probe_id, "isolated_spearman", "fix_gain")


def inner_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return every predictor's rank correlation with fix_inner over the bank, and its difference from raw KL's."""
    return _rank_table(estimates, probe_id, "fix_inner_spearman", "fix_inner")


def first_order_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return mean, share above 0, R2 of the first order and relative remainder of both isolated gains, as text."""
    mine = estimates[estimates["probe_id"] == probe_id]
    columns = {
        "mean [nats]": ("isolated_mean", None),
        "share above 0": ("isolated_share", LOWERS),
        "R2 of first order": ("isolated_r2", None),
        "mean absolute remainder / gain": ("isolated_remainder", None),
    }
    return pd.DataFrame(
        [
            {"outcome": _HEADINGS[outcome]}
            | {heading: _shown(mine, analysis, outcome, term) for heading, (analysis, term) in columns.items()}
            for outcome in FIRST_ORDER
        ]
    )


def predicted_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return how the first-order prediction fares at each share of the step, as text with intervals."""
    mine = estimates[estimates["probe_id"] == probe_id]
    return pd.DataFrame(
        [
            {"share of the step": share_name(share)}
            | {
                heading: _shown(mine, analysis, "gain", share_name(share))
                for analysis, heading in _SHARE_COLUMNS.items()
            }
            for share in SHRINKS
        ]
    )


def _effect_sentences(mine: pd.DataFrame) -> list[str]:
    """Say how many isolated steps help, and by how much on average."""
    facts = []
    for outcome, what in (("gain", "the KL at its own context"), ("fix_gain", "L_fix")):
        share, mean = _one(mine, "isolated_share", outcome, LOWERS), _one(mine, "isolated_mean", outcome)
        if share is not None and mean is not None:
            facts.append(f"lowers {what} in {_percent(share)} of positions (mean gain {mean} nats)")
    if not facts:
        return []
    row = mine[mine["analysis"] == "isolated_mean"].iloc[0]
    told = [
        f"A step on one position's loss alone {' and '.join(facts)}: {row['n_positions']} probed positions of "
        f"{row['n_prompts']} prompts, weighted to stand for the whole {row['term']} split."
    ]
    noise = {name: _one(mine, "isolated_share", outcome, WITHIN_NOISE) for outcome, name in GAINS.items()}
    within = [
        f"{name} is within the noise floor in {_percent(x)} of positions" for name, x in noise.items() if x is not None
    ]
    return told + ([f"Rounding: {'; '.join(within)}."] if within else [])


def _rank_sentences(mine: pd.DataFrame, analysis: str, outcomes: dict[str, str]) -> list[str]:
    """Say which predictor ranks each outcome best, and where TA-OPD's score and raw KL stand beside it."""
    sentences = []
    for outcome, what in outcomes.items():
        rows = _ranked(mine, analysis, outcome)
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
        compared = [text for rival in rivals if (text := _versus(mine, analysis, outcome, rival))]
        sentences += [f"For {what}, {'; '.join(compared)}."] if compared else []
    return sentences


def _order_sentence(rows: pd.DataFrame, what: str) -> str:
    """Name the best of the predictors, the places of TA-OPD's score and of raw KL, and a stronger negative one."""
    best, worst = rows.iloc[0], rows.iloc[-1]
    told = [f"Of {len(rows)} predictors, {named(best)} ranks {what} best: Spearman {row_interval(best)}"]
    told[0] += ", flattered by being picked as the best"
    for place, (_, row) in enumerate(rows.iterrows(), 1):
        if place > 1 and row["term"] in (CONTENDER, BASE):
            told.append(f"{readable(row['term'])} is number {place} with {row_interval(row)}")
    if -worst["estimate"] > best["estimate"]:
        told.append(f"stronger, but against it: {named(worst)} {row_interval(worst)}")
    return "; ".join(told) + "."


def _versus(mine: pd.DataFrame, analysis: str, outcome: str, rival: str) -> str:
    """Say whether one predictor's correlation can be told from raw KL's."""
    gap = _one(mine, f"{analysis}_difference", outcome, versus_base(rival))
    if gap is None:
        return ""
    if np.isnan(gap.low):
        return f"{rival} less {BASE_LABEL} is {gap}, without an interval"
    verdict = {1: "ranks better than", -1: "ranks worse than", 0: "cannot be told from"}
    return f"{rival} {verdict[gap.side()]} {BASE_LABEL} (difference {gap})"


def _linear_sentences(mine: pd.DataFrame) -> list[str]:
    """Say how far first order explains the isolated gains."""
    parts = []
    for outcome, what in GAINS.items():
        r2, remainder = _one(mine, "isolated_r2", outcome), _one(mine, "isolated_remainder", outcome)
        if r2 is not None:
            size = "" if remainder is None else f", mean absolute remainder {remainder} of the mean absolute gain"
            rest = _one(mine, "isolated_r2", outcome, WITHOUT_LARGEST)
            parts.append(f"{what}: R2 {r2} ({rest} without the position that it misses most){size}")
    return [f"What first order (step size times inner product) explains of {'; of '.join(parts)}."] if parts else []


def _fit_sentences(mine: pd.DataFrame) -> list[str]:
    """Say how far the first-order prediction explains the measured gain at each share of the step."""
    found = {share: _one(mine, "predicted_r2", "gain", share_name(share)) for share in SHRINKS}
    known = {share: r2 for share, r2 in found.items() if r2 is not None}
    if not known:
        return ["The step changes no position, so that there is nothing for the first order to explain."]
    told = ", ".join(f"{r2} at {share_name(share)}" for share, r2 in known.items())
    held = _one(mine, "concentration", "gain")
    aside = "" if held is None else f" Ten positions hold {held.estimate:.0%} of the whole step's sum of squares."
    return [f"First order explains of the measured gain, by share of the step: R2 {told}.{aside}"]


def _exponent_sentences(mine: pd.DataFrame) -> list[str]:
    """Say by which power of the share the remainder falls, with and without what rounding makes of it."""
    found = {term: _one(mine, "predicted_exponent", "gain", term) for term in ("above noise", "all shares")}
    told = [f"{slope} ({term})" for term, slope in found.items() if slope is not None]
    if not told:
        return ["Too few shares of the step leave a remainder above the noise to say by which power it falls."]
    beta = mine[mine["analysis"] == "predicted_beta"]
    size = "" if beta.empty else f"; beta {row_interval(beta.iloc[0])} nats, read at share {beta['term'].iloc[0]}"
    return [
        f"The rms remainder falls as the share of the step to the power {', '.join(told)}; second order would give 2"
        f"{size}. 'Above noise' leaves out shares whose rms remainder is under {CLEAN:g} noise floors."
    ]


def _rank_table(estimates: pd.DataFrame, probe_id: str, analysis: str, leading: str) -> pd.DataFrame:
    mine = estimates[estimates["probe_id"] == probe_id]
    rows = mine[mine["analysis"] == analysis]
    outcomes = [name for name in _HEADINGS if name in set(rows["outcome"])]
    order = _ranked(mine, analysis, leading)
    predictors = pd.concat([order, rows]).drop_duplicates(["term", "k"])
    return pd.DataFrame(
        [
            {"predictor": named(row)}
            | {_HEADINGS[outcome]: _shown(mine, analysis, outcome, row["term"]) for outcome in outcomes}
            | {
                f"{_HEADINGS[leading]} vs {BASE_LABEL}": _shown(
                    mine, f"{analysis}_difference", leading, versus_base(row["term"])
                )
            }
            for _, row in predictors.iterrows()
        ]
    )


def _ranked(mine: pd.DataFrame, analysis: str, outcome: str) -> pd.DataFrame:
    """Return the correlations with one outcome, highest first."""
    rows = mine[(mine["analysis"] == analysis) & (mine["outcome"] == outcome)]
    return rows.sort_values("estimate", ascending=False, kind="stable")


def _one(mine: pd.DataFrame, analysis: str, outcome: str, term: str | None = None) -> Interval | None:
    """Return one number of one probe, or None where it could not be estimated; without term, the first there is."""
    rows = mine[(mine["analysis"] == analysis) & (mine["outcome"] == outcome)]
    rows = rows if term is None else rows[rows["term"] == term]
    return None if rows.empty else row_interval(rows.iloc[0])


def _shown(mine: pd.DataFrame, analysis: str, outcome: str, term: str | None = None) -> str:
    interval = _one(mine, analysis, outcome, term)
    return "-" if interval is None else str(interval)


def _percent(share: Interval) -> str:
    if np.isnan(share.low):
        return f"{share.estimate:.1%}"
    return f"{share.estimate:.1%} [{share.low:.1%}, {share.high:.1%}]"
