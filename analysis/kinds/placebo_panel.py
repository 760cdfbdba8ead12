"""The placebo panel: every headline statistic of a real step beside what it prints when there is nothing to learn.

Estimates, draws of placebos and the rule for what lies beyond them are those of every real step.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.analysis.bank.lookup import row_interval
from teachdiag.analysis.bank.measurements import Bank, Probe, Step, load_step, select_outcome
from teachdiag.analysis.bank.normalised import in_q3, key_at
from teachdiag.analysis.kinds.kind import Inputs
from teachdiag.analysis.resampling.bootstrap import Interval, Resampling, intervals
from teachdiag.analysis.step.design import GAP, make_sample
from teachdiag.analysis.step.placebo_draws import beyond, beyond_rows, pool_draws
from teachdiag.analysis.step.profiles import mean_rows
from teachdiag.analysis.step.regression import regressions
from teachdiag.analysis.step.released_gap import arms
from teachdiag.analysis.step.support_contrast import fixed_gaps
from teachdiag.analysis.step.validity import validity
from teachdiag.settings import HEADLINE_K as K
from teachdiag.signals import BASE, PLACEBO_RANKS, set_label, versus_base

Rows = list[dict[str, Any]]
Number = tuple[str, str, int | None]  # analysis, term and K of an estimate

MEAN_GAIN, _RELEASED = "mean gain", "released gap"
_REGRESSED = {
    "beta_L": ("standardized_decomposition", "learnable", K),
    "beta_I": ("standardized_decomposition", "incompatible", K),
    "beta_L - beta_I": ("standardized_decomposition", GAP, K),
    "beta_L - beta_I beside H x D": ("standardized_nested", GAP, K),
    "beta_L per unit of norm": ("slope_decomposition", "learnable", K),
    "beta_I per unit of norm": ("slope_decomposition", "incompatible", K),
    "beta_L - beta_I per unit of norm": ("slope_decomposition", GAP, K),
    "beta_L - beta_I per unit of norm, beside H x D": ("slope_nested", GAP, K),
}
_VALIDITY = {"CV R2": "cv_r2", "CV rank": "cv_rank"}
_SETS = {set_label(BASE): (BASE, None), set_label("decomposition"): ("decomposition", K)}
_LESS = f"{set_label('decomposition')} less {set_label(BASE)}"
STATISTICS: Mapping[str, Number] = {  # in the order of the panel
    MEAN_GAIN: ("mean", "bank", None),
    **_REGRESSED,
    **{f"Spearman with {name}": ("spearman", *key_at(name, K)) for name in PLACEBO_RANKS},
    **{f"{name} of {told}": (analysis, *key) for name, analysis in _VALIDITY.items() for told, key in _SETS.items()},
    **{f"{name} of {_LESS}": (f"{a}_difference", versus_base("decomposition"), K) for name, a in _VALIDITY.items()},
    _RELEASED: ("released_gap", "compatibility", K),
}
DRAWN, _MARGIN = ("draw_mean", "range_low", "range_high"), ("margin", "margin_low", "margin_high")  # as intervals
_ENDS = ("estimate", "ci_low", "ci_high")
_POSITIVE = {f"{name} of {told}" for name in _VALIDITY for told in _SETS}  # what predicts nothing may be below 0

# Shuffled rollouts learn from the true teacher: they show what needs no rollout of one's own, not what nothing teaches.
NULLS = ("theta0", "shuffled_teacher", "random_direction")


def panel_rows(inputs: Inputs, probe_id: str) -> Rows:
    """Return the rows of the placebo panel of one probe of kind placebo.

    Raises:
        ArtefactError: gains are missing, or are not of this bank.
        EstimationError: a predictor of the regressions is constant.
    """
    step = load_step(inputs.run, probe_id, inputs.bank)
    by_draw = _estimates(step, inputs)
    pooled = pool_draws(by_draw)
    margins = beyond_rows(pooled, [step], {analysis for analysis, _, _ in STATISTICS.values()})
    by_statistic = {(row["probe_id"], row["analysis"], row["term"], row["k"]): row for row in [*pooled, *margins]}
    return [
        _row(step, name, update, by_statistic)
        for name, number in STATISTICS.items()
        if (probe_id, *number) in by_statistic
        for update in step.placebo_ids
    ]


def _estimates(step: Step, inputs: Inputs) -> Rows:
    """Return the estimates of gain at the headline K, those of every draw, where they are defined."""
    bank, resampling = inputs.bank, inputs.resampling
    outcomes = [select_outcome(probe, "gain", bank) for probe in step.probes]
    rows = [row for outcome in outcomes for row in mean_rows(outcome, bank, resampling)]
    if fitted := [outcome for outcome in outcomes if not outcome.obstacle]:
        sample = make_sample(fitted, inputs.normalised, K, bank.n_prompts)
        rows += regressions(sample, bank, resampling, redraw=inputs.settings.cuts == "redrawn")
        rows += validity(fitted, bank, inputs.raw, inputs.folds(), resampling)
    return rows + [row for probe in step.probes for row in _released_rows(probe, bank, resampling)]


def _released_rows(probe: Probe, bank: Bank, resampling: Resampling) -> Rows:
    relative = select_outcome(probe, "gain_relative", bank)
    cut = arms(in_q3(bank)[0], bank.column(f"compatibility_k{K}"), relative.rows)
    if not cut:
        return []
    values, weights = probe.column("gain_relative")[:, None], resampling.weights("released gap")
    (interval,) = intervals(fixed_gaps(values, cut.high, cut.low, bank.prompts, weights), bank.n_prompts)
    analysis, term, k = STATISTICS[_RELEASED]
    return [relative.row(analysis, term, k, "1", interval, resampling.method("released statistic, cuts fixed"))]


def panel_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each statistic, in order, whether it survives all its placebos, or which show it too."""
    return [_verdict(list(group)) for _, group in groupby(rows, key=lambda row: row["statistic"])]


def _row(step: Step, name: str, update: str, by_statistic: Mapping[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    analysis, term, k = STATISTICS[name]
    placebo_id, real = step.placebo_ids[update], by_statistic[step.real.probe_id, analysis, term, k]
    placebo, margin = (
        by_statistic.get((placebo_id, analysis, term, k)),
        by_statistic.get((placebo_id, beyond(analysis), term, k)),
    )
    draws = [] if placebo is None else placebo.get("by_draw", [placebo["estimate"]])
    row = {
        "probe_id": step.real.probe_id,
        "statistic": name,
        "unit": real["unit"],
        "update": update,
        **{end: real[end] for end in _ENDS},
        "draws": draws,
        "n_draws": len(draws),
        "n_undefined": step.draws_of(update) - len(draws),
        "draw_mean": placebo and placebo["estimate"],
        "draw_sd": float(np.std(draws, ddof=1)) if len(draws) > 1 else None,
        "range_low": placebo and placebo["ci_low"],
        "range_high": placebo and placebo["ci_high"],
        **dict(zip(_MARGIN, (margin and margin[end] for end in _ENDS), strict=True)),
        "survives": _survives(name, real["estimate"], row_interval(margin)) if margin and update in NULLS else None,
    }
    return row | {"sentence": _sentence(row)}


def _survives(name: str, real: float, margin: Interval) -> bool | None:
    """Say whether a number is beyond a placebo on its own side of 0; None where the difference has no interval."""
    if not margin.known:
        return None
    return bool(margin.side() == np.sign(real) != 0 and not (name in _POSITIVE and real < 0))


def _sentence(row: Mapping[str, Any]) -> str:
    what = f"{row['statistic']} {row['estimate']:.3g}{_unit(row)}"
    if row["n_draws"] == 0:
        return f"{what}: no draw of {row['update']} has this statistic."
    if row["update"] not in NULLS:
        return f"{what}, where {_in_words(row)} learns from the true teacher too."
    if row["survives"] is None:
        return f"{what} is not judged against {_in_words(row)}: their difference has no interval."
    verdict = "lies beyond" if row["survives"] else "does not lie beyond"
    return f"{what} {verdict} {_in_words(row)}, difference {row_interval(row, _MARGIN)}."


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one sentence on one statistic over all its placebos."""
    judged = [row for row in rows if not pd.isna(row["survives"])]
    shown = [row for row in judged if not row["survives"]]
    opening = f"{rows[0]['statistic']} {rows[0]['estimate']:.3g}{_unit(rows[0])}"
    unknown = [row["update"] for row in rows if pd.isna(row["survives"]) and row["update"] in NULLS]
    aside = f" (not judged against {', '.join(unknown)})" if unknown else ""
    others = [_in_words(row) for row in rows if row["update"] not in NULLS and row["n_draws"]]
    taught = f" The true teacher on dealt responses: {'; '.join(others)}." if others else ""
    if not judged:
        return f"Not comparable: {opening}: no null placebo has this statistic.{taught}"
    if not shown:
        listed = "; ".join(_in_words(row) for row in judged)
        return f"Survives: {opening} lies beyond every null placebo{aside}: {listed}.{taught}"
    listed = "; ".join(_in_words(row) for row in shown)
    return f"Does not survive: {opening} does not lie beyond {listed}{aside}.{taught}"


def _in_words(row: Mapping[str, Any]) -> str:
    count = "one draw" if row["n_draws"] == 1 else f"{row['n_draws']} draws"
    return f"{row['update']} {row_interval(row, DRAWN)} ({count})"


def _unit(row: Mapping[str, Any]) -> str:
    return " nats" if row["unit"] == "nats" else ""
