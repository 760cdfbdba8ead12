"""The placebo panel: every headline statistic of a real step beside what it prints when there is nothing to learn.

Each placebo was drawn several times, so that it has a distribution. The bank is the same for all draws: the panel says
whether a number is of the step or of the statistic, not whether it would hold on other prompts.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from teachdiag.analysis.bank.measurements import Bank, Outcome, Probe, load_draws, select_outcome
from teachdiag.analysis.bank.normalised import Scores, in_q3, key_at
from teachdiag.analysis.step.design import GAP
from teachdiag.analysis.step.rank_correlations import spearman
from teachdiag.analysis.step.regression import point_estimates
from teachdiag.analysis.step.released_gap import arms
from teachdiag.analysis.step.support_contrast import fixed_gaps
from teachdiag.analysis.step.validity import cross_validated, predictor_sets
from teachdiag.scores import Array, Codes, Mask
from teachdiag.settings import HEADLINE_K as K
from teachdiag.signals import BASE, PLACEBO_RANKS, set_label

MEAN_GAIN, _RELEASED = "mean gain", "released gap"
_REGRESSED = {  # statistic: its analysis and term in the regressions
    "beta_L": ("standardized_decomposition", "learnable"),
    "beta_I": ("standardized_decomposition", "incompatible"),
    "beta_L - beta_I": ("standardized_decomposition", GAP),
    "beta_L - beta_I beside H x D": ("standardized_nested", GAP),
    "beta_L per unit of norm": ("slope_decomposition", "learnable"),
    "beta_I per unit of norm": ("slope_decomposition", "incompatible"),
    "beta_L - beta_I per unit of norm": ("slope_decomposition", GAP),
    "beta_L - beta_I per unit of norm, beside H x D": ("slope_nested", GAP),
}
_VALIDITY = {"CV R2": "cv_r2", "CV rank": "cv_rank"}
_SETS = {set_label(BASE): (BASE, None), set_label("decomposition"): ("decomposition", K)}
_LESS = f"{set_label('decomposition')} less {set_label(BASE)}"
_RANKS = {f"Spearman with {name}": key_at(name, K) for name in PLACEBO_RANKS}
STATISTICS = {  # in the order of the panel: unit
    MEAN_GAIN: "nats",
    **{name: "nats" if analysis.startswith("slope") else "1" for name, (analysis, _) in _REGRESSED.items()},
    **dict.fromkeys(_RANKS, "1"),
    **{f"{name} of {told}": "1" for name in _VALIDITY for told in (*_SETS, _LESS)},
    _RELEASED: "1",
}
_POSITIVE = {f"{name} of {told}" for name in _VALIDITY for told in _SETS}  # what predicts nothing may be below 0
_LEVEL = 0.95


class Spread(NamedTuple):
    """What a placebo's draws say of one statistic; `low` to `high` is the 95% range for one more draw."""

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


# Shuffled rollouts learn from the true teacher: they show what needs no rollout of one's own, not what nothing teaches.
NULLS = ("theta0", "shuffled_teacher", "random_direction")
MIN_DRAWS = 3  # with fewer, no verdict


def panel_rows(
    run: Path, probe_id: str, bank: Bank, normalised: Scores, raw: Scores, folds: Codes
) -> list[dict[str, Any]]:
    """Return the rows of the placebo panel of one probe.

    Args:
        run: the run directory.
        probe_id: a probe of kind placebo.
        bank: the run's bank.
        normalised: normalised scores of the bank.
        raw: scores as measured.
        folds: shape (repeats, prompts), the assignments that cross-validation averages over.

    Raises:
        ArtefactError: gains are missing, or are not of this bank.
        EstimationError: a predictor of the regressions is constant.
    """
    real, placebos = load_draws(run, probe_id, bank)
    statistics_of = partial(headline, bank=bank, normalised=normalised, raw=raw, folds=folds)
    measured = statistics_of(real)
    drawn = {update: [statistics_of(probe) for probe in draws] for update, draws in placebos.items()}
    return [
        _row(probe_id, name, measured[name], update, [statistics.get(name) for statistics in draws])
        for name in STATISTICS
        if name in measured
        for update, draws in drawn.items()
    ]


def headline(probe: Probe, bank: Bank, normalised: Scores, raw: Scores, folds: Codes) -> dict[str, float]:
    """Return the headline statistics of one update, without uncertainty; those that it leaves undefined are missing."""
    outcome = select_outcome(probe, "gain", bank)
    statistics = {MEAN_GAIN: float(outcome.values.mean())}
    if not outcome.obstacle:
        fitted = point_estimates(outcome, bank, normalised, K)
        statistics |= {name: fitted[key] for name, key in _REGRESSED.items()}
        statistics |= {name: spearman(outcome.values, raw[key]) for name, key in _RANKS.items()}
        statistics |= _validity(outcome, bank, raw, folds)
    relative = select_outcome(probe, "gain_relative", bank)
    gap = _released_gap(relative.rows, probe.column("gain_relative"), bank)
    return {name: value for name, value in (statistics | {_RELEASED: gap}).items() if np.isfinite(value)}


def spread(draws: Sequence[float]) -> Spread:
    """Return mean, standard deviation, and the 95% range for one more draw: mean -+ t_{n-1} sd sqrt(1 + 1/n).

    The range takes draws as normal. There is none for fewer than two, nor where all are the same to the last digit:
    these are one draw that was repeated.
    """
    n = len(draws)
    if n == 0:
        return Spread(None, None, None, None)
    mean = float(np.mean(draws))
    if n == 1:
        return Spread(mean, None, None, None)
    sd = float(np.std(draws, ddof=1)) if min(draws) < max(draws) else 0.0
    if sd == 0:
        return Spread(mean, sd, None, None)
    reach = float(t.ppf((1 + _LEVEL) / 2, n - 1)) * sd * np.sqrt(1 + 1 / n)
    return Spread(mean, sd, mean - reach, mean + reach)


def survives(real: float, draws: Sequence[float], beside: Spread) -> bool | None:
    """Say whether the real number lies further out, on its own side of 0, than one more draw of the placebo would.

    It must lie beyond the range, or, without a range, beyond every draw. A placebo that shows more of the same is no
    comfort, so a number between 0 and the placebo's does not survive. None where too few draws have the statistic to
    judge: to lie beyond one or two is a toss of a coin.
    """
    if len(draws) < MIN_DRAWS:
        return None
    side = np.sign(real)
    edges = draws if beside.low is None or beside.high is None else (beside.low, beside.high)
    return bool(side != 0 and all(side * real > side * edge for edge in edges))


def panel_sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each statistic, in order, whether it survives all its placebos, or which show it too."""
    return [_verdict(list(group)) for _, group in groupby(rows, key=lambda row: row["statistic"])]


def _row(probe_id: str, name: str, real: float, update: str, drawn: Sequence[float | None]) -> dict[str, Any]:
    draws = [value for value in drawn if value is not None]
    spread_of_draws = spread(draws)
    row = {
        "probe_id": probe_id,
        "statistic": name,
        "unit": STATISTICS[name],
        "update": update,
        "estimate": real,
        "draws": draws,
        "n_draws": len(draws),
        "n_undefined": len(drawn) - len(draws),
        "draw_mean": spread_of_draws.mean,
        "draw_sd": spread_of_draws.sd,
        "range_low": spread_of_draws.low,
        "range_high": spread_of_draws.high,
        "survives": survives(max(real, 0) if name in _POSITIVE else real, draws, spread_of_draws)
        if update in NULLS
        else None,
    }
    return row | {"sentence": _sentence(row)}


def _sentence(row: Mapping[str, Any]) -> str:
    what = f"{row['statistic']} {row['estimate']:.3g}{_unit(row)}"
    if row["n_draws"] == 0:
        return f"{what}: no draw of {row['update']} has this statistic."
    if row["update"] not in NULLS:
        return f"{what}, where {_in_words(row)} learns from the true teacher too."
    if row["survives"] is None:
        return f"{what} is not judged against {_in_words(row)}: {MIN_DRAWS} draws are needed."
    verdict = "lies beyond" if row["survives"] else "does not lie beyond"
    aside = ": there is no range for one more draw" if pd.isna(row["range_low"]) else ""
    return f"{what} {verdict} {_in_words(row)}{aside}."


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
        return f"Not comparable: {opening}: no placebo has {MIN_DRAWS} draws with this statistic.{taught}"
    if not shown:
        listed = "; ".join(_in_words(row) for row in judged)
        return f"Survives: {opening} lies beyond every null placebo{aside}: {listed}.{taught}"
    listed = "; ".join(_in_words(row) for row in shown)
    return f"Does not survive: {opening} does not lie beyond {listed}{aside}.{taught}"


def _in_words(row: Mapping[str, Any]) -> str:
    if pd.isna(row["range_low"]):
        count = "one draw" if row["n_draws"] == 1 else f"{row['n_draws']} equal draws"
        return f"{row['update']} {row['draws'][0]:.3g} ({count})"
    return f"{row['update']} [{row['range_low']:.3g}, {row['range_high']:.3g}] ({row['n_draws']} draws)"


def _unit(row: Mapping[str, Any]) -> str:
    return " nats" if row["unit"] == "nats" else ""


def _validity(outcome: Outcome, bank: Bank, raw: Scores, folds: Codes) -> dict[str, float]:
    """Cross-validated R2 and rank correlation of raw KL, of {D^L, D^I}, and the difference."""
    members = {key: predictor_sets()[key] for key in _SETS.values()}
    (samples,) = cross_validated([outcome], bank, raw, members, folds, np.ones((1, bank.n_prompts)))
    statistics: dict[str, float] = {}
    for name, analysis in _VALIDITY.items():
        base, signal = (float(value) for value in samples[analysis][0])
        values = (base, signal, signal - base)
        statistics |= {f"{name} of {which}": value for which, value in zip((*_SETS, _LESS), values, strict=True)}
    return statistics


def _released_gap(measurable: Mask, relative: Array, bank: Bank) -> float:
    q3 = in_q3(bank)[0]
    cut = arms(q3, bank.column(f"compatibility_k{K}"), measurable)
    if not cut:
        return np.nan
    return float(fixed_gaps(relative[:, None], cut.high, cut.low, bank.prompts, np.ones((1, bank.n_prompts)))[0, 0])
