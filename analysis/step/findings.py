"""The verdict: which claims hold on a real step, and which of them a placebo shows too.

A claim is one number of the estimates table, asked to lie above 0. It holds if its 95% interval does and the paired
difference from every placebo does too. It is an artefact if it does not exceed a placebo that shows the effect itself,
and unclear if it does not exceed one that does not. Nothing is computed here.

Where two sets of signals are compared, the better one must also predict at all, by its own interval: where there is
nothing to predict, a difference of two cross-validated numbers strays from 0 more often than its interval says, because
the folds share their data.

A step that took the student away from the teacher, or that first order does not explain, was too long: the verdict says
that, with the rate to use, and nothing else is judged on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from teachdiag.analysis.bank.lookup import row_dicts, row_interval
from teachdiag.analysis.bank.measurements import Outcome, Record
from teachdiag.analysis.resampling.bootstrap import CLEAR, Interval
from teachdiag.analysis.resampling.multiplicity import add_q_values
from teachdiag.analysis.step.claims import CLAIMS, Claim
from teachdiag.analysis.step.placebo_draws import beyond
from teachdiag.analysis.step.reach import reach_columns
from teachdiag.analysis.step.step_length import REVERSED, obstacle
from teachdiag.glossary import STATUSES
from teachdiag.settings import HEADLINE_K, SUPPORT_SIZES
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import BASE
from teachdiag.tables import rows_where

NOT_JUDGED = "not judged"
_KEY = ("probe_id", "outcome", "analysis", "term")
_ASKED = ["estimate", "ci_low", "ci_high", "draw_error", "placebo_error"]
_Estimates = dict[tuple[Any, ...], dict[str, Any]]
_RATE = 0.05  # of false discoveries among secondary claims


def finding_rows(estimates: pd.DataFrame, record: Record, placebos: Mapping[str, int]) -> list[dict[str, Any]]:
    """Test every claim on one real step.

    Args:
        estimates: the estimates table.
        record: the probe of the real step.
        placebos: the draws of each of its placebos, by their update.

    Returns:
        Rows of the findings table, that of `gain_claim` first; a claim whose number could not be estimated has none.
    """
    rows, probe_id, of = [], record.probe_id, _by_key(estimates)
    n_prompts = int(rows_where(estimates, probe_id=probe_id, outcome=CLAIMS[0].outcome)["n_prompts"].max())
    for claim in CLAIMS:
        for k in SUPPORT_SIZES if claim.per_k else (None,):
            real = _evidence(of, probe_id, claim, k)
            if real is not None:
                beside = [_placebo(of, probe_id, name, claim, k, draws) for name, draws in placebos.items()]
                primary = claim.primary and k == claim.headline_k
                told = {"probe_id": probe_id, "n_prompts": n_prompts, "primary": primary}
                rows.append(_finding(claim, k, real, beside) | told)
    _control_discoveries([row for row in rows if not row["primary"]])
    helps = _evidence(of, probe_id, CLAIMS[0], None)
    assert helps is not None, "every real step has a mean gain"
    clearly = _p_of(helps.interval, -1) < CLEAR
    if verdict := obstacle(record, str(helps.interval), harmed=helps.side < 0, clearly=clearly):
        status, sentence = verdict
        rows[0] |= {"status": status, "sentence": sentence}
        for row in rows[1:]:
            row |= {
                "status": NOT_JUDGED,
                "sentence": f"Not judged: {row['finding']}; see the first sentence on the step.",
            }
    return rows


def primary_rows(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the table of primary claims, from those of all findings."""
    return [{**row} | {"claim": row["finding"]} | reach_columns(row) for row in findings if row["primary"]]


def obstacle_sentences(outcomes: Sequence[Outcome]) -> list[str]:
    """Say which outcomes of which probes no model could be fitted to, and why."""
    affected: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.obstacle:
            affected.setdefault((outcome.probe_id, outcome.obstacle), []).append(outcome.name)
    return [
        f"Left out of regressions and prediction: {', '.join(names)} of {probe_id}, {obstacle}."
        for (probe_id, obstacle), names in affected.items()
    ]


def at_headline(findings: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return one real step's findings on gain at the headline K, and those without K, in the order of the claims."""
    judged = findings[(findings["probe_id"] == probe_id) & (findings["outcome"] == OUTCOME)]
    return judged[judged["k"].isna() | (judged["k"] == HEADLINE_K)]


def judged_sentences(findings: pd.DataFrame, probe_id: str, *, primary: bool) -> list[str]:
    """Return the sentences on one real step, of its primary or of its secondary claims at the headline K, if judged."""
    rows = at_headline(findings, probe_id)
    return list(rows.loc[(rows["status"] != NOT_JUDGED) & (rows["primary"] == primary), "sentence"])


def secondary_title(findings: pd.DataFrame, probe_id: str) -> str:
    """Count the secondary claims on one real step at the headline K by their status."""
    rows = at_headline(findings, probe_id)
    counts = rows.loc[~rows["primary"], "status"].value_counts()
    counted = ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)
    return f"Secondary claims, {counts.sum()}: {counted} (of those that hold, at most 5% are expected to be false)"


def _by_key(estimates: pd.DataFrame) -> _Estimates:
    """Return every estimate by what a claim asks for: probe, outcome, analysis, term and K."""
    keys = zip(*(estimates[name] for name in _KEY), estimates["k"].replace({np.nan: None}), strict=True)
    return dict(zip(keys, row_dicts(estimates[_ASKED]), strict=True))


@dataclass(frozen=True)
class _Evidence:
    """What one probe says about a claim.

    `side`: 1 for it, -1 for its reverse, 0 for neither; `reason`: why an interval without 0 counts for neither.
    `floor`: size up to which the number counts as 0.
    """

    interval: Interval
    side: int
    reason: str = ""
    floor: float = 0.0


@dataclass(frozen=True)
class _Placebo:
    """One placebo's evidence, and by how much the real step exceeds it; None where that could not be estimated.

    `error`: the part of the margin's standard error that is due to its draws.
    """

    name: str
    shown: _Evidence | None
    margin: Interval | None
    draws: int
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.shown.interval if self.shown else 'not estimable'}"


def _evidence(of: _Estimates, probe_id: str, claim: Claim, k: int | None) -> _Evidence | None:
    row = of.get((probe_id, claim.outcome, claim.analysis, claim.term, k))
    if row is None:
        return None
    interval = row_interval(row)
    floor = _noise_floor(of, probe_id) if claim.analysis == "mean" else 0.0
    side = interval.side(floor)
    if side and claim.rivals:
        better = claim.rivals[0] if side > 0 else claim.rivals[1]
        level = of.get((probe_id, claim.outcome, claim.level, better, None if better == BASE else k))
        if level is None or row_interval(level).side() <= 0:
            return _Evidence(interval, 0, "but neither predicts by itself")
    return _Evidence(interval, side, floor=floor)


def _placebo(of: _Estimates, probe_id: str, name: str, claim: Claim, k: int | None, draws: int) -> _Placebo:
    placebo_id = f"{probe_id}.{name}"
    row = of.get((placebo_id, claim.outcome, beyond(claim.analysis), claim.term, k))
    margin, error = (row_interval(row), row["placebo_error"]) if row else (None, None)
    return _Placebo(name, _evidence(of, placebo_id, claim, k), margin, draws, None if pd.isna(error) else error)


def _control_discoveries(rows: Sequence[dict[str, Any]]) -> None:
    """Let secondary claims hold, or their reverse, only if their false discovery rate allows it: q at most 5%."""
    add_q_values(rows, ("probe_id",))
    for row in rows:
        if row["status"] in ("holds", REVERSED) and row["q_value"] > _RATE:
            remark = f"; among {len(rows)} secondary claims its false discovery rate is {row['q_value']:.2f}"
            row |= {"status": "not shown", "sentence": _sentence("not shown", row, remark)}


def _p_value(real: _Evidence, placebos: Sequence[_Placebo]) -> float | None:
    """Return the p-value of a claim or its reverse, whose parts must all hold: the largest of theirs; None without any.

    Each is that of a normal number with its interval. Where neither of two compared sets predicts, nothing is claimed.
    """
    if not real.interval.known:
        return None
    if real.reason:
        return 1.0
    parts = [real.interval, *(p.margin for p in placebos if p.margin is not None and p.margin.known)]
    return max(_p_of(interval, np.sign(real.interval.estimate)) for interval in parts)


def _p_of(interval: Interval, sign: float) -> float:
    """Return the two-sided p-value of 0, or 1 where the estimate lies on the other side of it."""
    reach = interval.estimate - interval.low if sign > 0 else interval.high - interval.estimate
    if sign * interval.estimate <= 0 or reach <= 0:
        return float(sign * interval.estimate <= 0)
    return float(2 * norm.sf(norm.ppf(0.975) * sign * interval.estimate / reach))


def _finding(claim: Claim, k: int | None, real: _Evidence, placebos: Sequence[_Placebo]) -> dict[str, Any]:
    status, remark = _judged(real, placebos)
    said = {
        "k": k,
        "what": claim.below if real.side < 0 else claim.above,  # this and the number make the sentence; no columns
        "number": f"{claim.number}: {real.interval}{' nats' if claim.unit == 'nats' else ''}",
    }
    return said | {
        "finding": claim.finding,
        "outcome": claim.outcome,
        "p_value": _p_value(real, placebos),
        "q_value": None,
        "status": status,
        **real.interval.columns(),
        "std_error": real.interval.std_error,
        "noise_floor": real.floor,
        "unit": claim.unit,
        "placebos": ", ".join(map(str, placebos)) or "none run",
        "sentence": _sentence(status, said, remark),
        **_beside(_nearest(real.interval, placebos)),
    }


def _sentence(status: str, said: Mapping[str, Any], remark: str) -> str:
    opening = "The opposite holds" if status == REVERSED else status.capitalize()
    at = f" at K={said['k']}" if said["k"] else ""
    return f"{opening}{at}: {said['what']} ({said['number']}{remark})."


def _nearest(real: Interval, placebos: Sequence[_Placebo]) -> _Placebo | None:
    """Return the placebo that the real step is told from least, on its own side of 0; None where none has a margin."""
    sign = -1 if real.estimate < 0 else 1
    measured = [(min(sign * p.margin.low, sign * p.margin.high), p) for p in placebos if p.margin and p.margin.known]
    return min(measured, key=lambda m: m[0])[1] if measured else None


def _beside(nearest: _Placebo | None) -> dict[str, Any]:
    """Return the columns of `primary` on the nearest placebo."""
    of_margin = ("margin", "margin_low", "margin_high", "margin_error")
    names = ("nearest_placebo", "placebo_estimate", *of_margin, "placebo_draws", "placebo_error")
    if nearest is None or nearest.margin is None or nearest.shown is None:
        return dict.fromkeys(names)
    margin = nearest.margin.columns().values()
    values = (nearest.name, nearest.shown.interval.estimate, *margin, nearest.draws, nearest.error)
    return dict(zip(names, values, strict=True))


def _judged(real: _Evidence, placebos: Sequence[_Placebo]) -> tuple[str, str]:
    """Return the status of a claim, and what a sentence says of it beside the number."""
    if not real.side:
        return "not shown", f"; {real.reason}" if real.reason else ""
    level = [p for p in placebos if p.margin is not None and p.margin.side() != real.side]
    same = [p for p in level if p.shown is not None and p.shown.side == real.side]
    if same:
        return "artefact", f"; a placebo shows it too: {', '.join(map(str, same))}"
    if level:
        beside = ", ".join(f"{p}, difference {p.margin}" for p in level)
        return "unclear", f"; not told apart from a placebo: {beside}"
    status = "holds" if real.side > 0 else "reversed"
    nearest = _nearest(real.interval, placebos)
    if nearest is None:
        return status, "; no placebo was run"
    return status, f"; beyond every placebo, the nearest being {nearest}"


def _noise_floor(of: _Estimates, probe_id: str) -> float:
    """Return the mean gain, in nats, that rounding alone can reach; a mean inside it counts as 0."""
    return row_interval(of[probe_id, OUTCOME, "noise_floor", "bank", None]).estimate
