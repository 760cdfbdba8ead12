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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from teachdiag.analysis.bank.lookup import lookup
from teachdiag.analysis.bank.measurements import OUTCOMES, Outcome, Record
from teachdiag.analysis.resampling.bootstrap import Interval
from teachdiag.analysis.step.beyond_placebos import beyond
from teachdiag.analysis.step.design import GAP
from teachdiag.analysis.step.step_length import REVERSED, TOO_LONG, obstacle
from teachdiag.settings import HEADLINE_K, SUPPORT_SIZES
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import BASE, BASE_LABEL, JUDGED, members_of, on_top_of_base, set_label, versus_base
from teachdiag.tables import rows_where

NOT_JUDGED = "not judged"
STATUSES = ("holds", REVERSED, "artefact", "unclear", "not shown", TOO_LONG, NOT_JUDGED)
_MEASURES = (("cv_r2", "cross-validated R2"), ("cv_rank", "out-of-fold rank correlation"))


@dataclass(frozen=True)
class Claim:
    """One question put to the estimates: where its number stands, and what either sign of it says.

    An empty `below` makes the claim one-sided: a signal of no use costs out-of-sample fit, so that a negative number
    says no more than that. `level` is the analysis that holds what either of two `rivals` achieves by itself, where the
    number is the first's less the second's.
    """

    finding: str
    analysis: str
    term: str
    number: str
    above: str
    below: str
    unit: str = "1"
    per_k: bool = True
    level: str = ""
    rivals: tuple[str, ...] = ()
    outcome: str = OUTCOME


def gain_claim() -> Claim:
    """Return the claim that everything else presupposes: that the step taught the student something."""
    above = "the step brings the student closer to the teacher on the bank"
    below = "the step takes the student further from the teacher on the bank"
    return Claim("the step helps", "mean", "bank", "mean gain", above, below, "nats", per_k=False)


def slope_claims(outcome: str, scales: Sequence[tuple[str, str]]) -> list[Claim]:
    """Return the claims about beta_L - beta_I on one outcome, with and without H x D, at the given scales."""
    return [
        Claim(
            f"beta_L > beta_I ({model}, {scale_name})",
            f"{scale}_{model}",
            GAP,
            f"beta_L - beta_I, {scale_name}",
            f"{outcome} rises more with learnable than with incompatible disagreement{beside}",
            f"{outcome} rises more with incompatible than with learnable disagreement{beside}",
            "1" if scale == "standardized" else OUTCOMES[outcome],
            outcome=outcome,
        )
        for model, beside in (("decomposition", ""), ("nested", ", beside entropy x disagreement"))
        for scale, scale_name in scales
    ]


def validity_claims() -> list[Claim]:
    """Return the claims about what predicts gain on prompts not seen, beyond raw KL."""
    sides = (
        (str, "{} predicts gain better than {} alone", "{} predicts gain worse than {} alone"),
        (on_top_of_base, "{} improves on {} when added to it", ""),
    )
    return [
        Claim(
            f"{above.format(set_label(name), BASE_LABEL)} ({measure})",
            f"{analysis}_difference",
            versus_base(of(name)),
            f"difference in {measure}",
            above.format(set_label(name), BASE_LABEL),
            below.format(set_label(name), BASE_LABEL),
            per_k=members_of(name)[0].has_k,
            level=analysis,
            rivals=(of(name), BASE),
        )
        for name in JUDGED
        for of, above, below in sides
        for analysis, measure in _MEASURES
    ]


_STANDARDISED, _PER_UNIT = ("standardized", "standardised"), ("slope", "per unit of norm")
CLAIMS = (
    gain_claim(),
    *slope_claims(OUTCOME, (_STANDARDISED, _PER_UNIT)),
    *validity_claims(),
    *(claim for outcome in OUTCOMES if outcome != OUTCOME for claim in slope_claims(outcome, (_STANDARDISED,))),
)


def finding_rows(estimates: pd.DataFrame, record: Record, placebos: Sequence[str]) -> list[dict[str, Any]]:
    """Test every claim on one real step.

    Args:
        estimates: the estimates table.
        record: the probe of the real step.
        placebos: the updates of its placebos.

    Returns:
        Rows of the findings table, that of `gain_claim` first; a claim whose number could not be estimated has none.
    """
    rows, probe_id = [], record.probe_id
    for claim in CLAIMS:
        for k in SUPPORT_SIZES if claim.per_k else (None,):
            real = _evidence(estimates, probe_id, claim, k)
            if real is not None:
                beside = [_placebo(estimates, probe_id, name, claim, k) for name in placebos]
                rows.append(_finding(claim, k, real, beside) | {"probe_id": probe_id})
    helps = _evidence(estimates, probe_id, CLAIMS[0], None)
    assert helps is not None, "every real step has a mean gain"
    if verdict := obstacle(record, str(helps.interval), harmed=helps.side < 0):
        status, sentence = verdict
        rows[0] |= {"status": status, "sentence": sentence}
        for row in rows[1:]:
            row |= {
                "status": NOT_JUDGED,
                "sentence": f"Not judged: {row['finding']}; see the first sentence on the step.",
            }
    return rows


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


def judged_sentences(findings: pd.DataFrame, probe_id: str) -> list[str]:
    """Return the verdict on one real step: the sentences of its findings at the headline K that were judged."""
    rows = at_headline(findings, probe_id)
    return list(rows.loc[rows["status"] != NOT_JUDGED, "sentence"])


@dataclass(frozen=True)
class _Evidence:
    """What one probe says about a claim.

    `side`: 1 for it, -1 for its reverse, 0 for neither; `reason`: why an interval without 0 counts for neither.
    """

    interval: Interval
    side: int
    reason: str = ""


@dataclass(frozen=True)
class _Placebo:
    """One placebo's evidence, and by how much the real step exceeds it; None where that could not be estimated."""

    name: str
    shown: _Evidence | None
    margin: Interval | None

    def __str__(self) -> str:
        return f"{self.name} {self.shown.interval if self.shown else 'not estimable'}"


def _evidence(estimates: pd.DataFrame, probe_id: str, claim: Claim, k: int | None) -> _Evidence | None:
    interval = lookup(_of(estimates, probe_id, claim), analysis=claim.analysis, term=claim.term, k=k)
    if interval is None:
        return None
    side = interval.side(_noise_floor(estimates, probe_id) if claim.analysis == "mean" else 0.0)
    if side < 0 and not claim.below:
        return _Evidence(interval, 0, "it costs fit")
    if side and claim.rivals:
        better = claim.rivals[0] if side > 0 else claim.rivals[1]
        level = lookup(
            _of(estimates, probe_id, claim), analysis=claim.level, term=better, k=None if better == BASE else k
        )
        if level is None or level.side() <= 0:
            return _Evidence(interval, 0, "but neither predicts by itself")
    return _Evidence(interval, side)


def _of(estimates: pd.DataFrame, probe_id: str, claim: Claim) -> pd.DataFrame:
    return rows_where(estimates, probe_id=probe_id, outcome=claim.outcome)


def _placebo(estimates: pd.DataFrame, probe_id: str, name: str, claim: Claim, k: int | None) -> _Placebo:
    placebo_id = f"{probe_id}.{name}"
    margin = lookup(_of(estimates, placebo_id, claim), analysis=beyond(claim.analysis), term=claim.term, k=k)
    return _Placebo(name, _evidence(estimates, placebo_id, claim, k), margin)


def _finding(claim: Claim, k: int | None, real: _Evidence, placebos: Sequence[_Placebo]) -> dict[str, Any]:
    status, remark = _judged(real, placebos)
    what = claim.below if real.side < 0 else claim.above
    number = f"{claim.number}: {real.interval}{' nats' if claim.unit == 'nats' else ''}"
    opening = "The opposite holds" if status == "reversed" else status.capitalize()
    return {
        "finding": claim.finding,
        "outcome": claim.outcome,
        "k": k,
        "status": status,
        **real.interval.columns(),
        "unit": claim.unit,
        "placebos": ", ".join(map(str, placebos)) or "none run",
        "sentence": f"{opening}{f' at K={k}' if k else ''}: {what} ({number}{remark}).",
    }


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
    measured = [(p.shown.interval.estimate * real.side, p) for p in placebos if p.shown is not None]
    if not measured:
        return status, "; no placebo was run"
    return status, f"; beyond every placebo, the nearest being {max(measured, key=lambda m: m[0])[1]}"


def _noise_floor(estimates: pd.DataFrame, probe_id: str) -> float:
    """Return the mean gain, in nats, that rounding alone can reach; a mean inside it counts as 0."""
    floor = lookup(estimates, probe_id=probe_id, analysis="noise_floor", outcome=OUTCOME)
    assert floor is not None, "every probe has a noise floor"
    return floor.estimate
