"""The verdict: which claims hold on a real step, and which of them a placebo shows too.

A claim is one number of the estimates table, asked to lie above 0. It holds if its 95% interval does and no placebo's
does; it is an artefact as soon as one placebo's interval lies on the same side. Nothing is computed here.

Where two sets of signals are compared, the better one must also predict at all, by its own interval. Where there is
nothing to predict, a difference of two cross-validated numbers strays from 0 more often than its interval says, because
the folds share their data; in simulated worlds without any effect this rule brings false findings back to the nominal
rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from teachdiag.analysis.bootstrap import Interval
from teachdiag.analysis.frame import Outcome
from teachdiag.analysis.regression import GAP
from teachdiag.analysis.validity import BASE, on_top_of_base, versus_base
from teachdiag.settings import SUPPORT_SIZES

HEADLINE_K = 16
OUTCOME = "gain"
STATUSES = ("holds", "reversed", "artefact", "not shown")
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


def gain_claim() -> Claim:
    """Return the claim that everything else presupposes: that the step taught the student something."""
    above = "the step brings the student closer to the teacher on the bank"
    below = "the step takes the student further from the teacher on the bank"
    return Claim("the step helps", "mean", "bank", "mean gain", above, below, "nats", per_k=False)


def slope_claims() -> list[Claim]:
    """Return the claims about beta_L - beta_I: with and without H x D, standardised and per unit of norm."""
    return [
        Claim(
            f"beta_L > beta_I ({model}, {scale_name})",
            f"{scale}_{model}",
            GAP,
            f"beta_L - beta_I, {scale_name}",
            f"gain rises more with learnable than with incompatible disagreement{beside}",
            f"gain rises more with incompatible than with learnable disagreement{beside}",
            unit,
        )
        for model, beside in (("decomposition", ""), ("nested", ", beside entropy x disagreement"))
        for scale, scale_name, unit in (("standardized", "standardised", "1"), ("slope", "per unit of norm", "nats"))
    ]


def validity_claims() -> list[Claim]:
    """Return the claims about what predicts gain on prompts not seen, beyond raw KL."""
    signals = (("decomposition", "{D^L, D^I}", True), ("logit_alignment", "logit_alignment", False))
    sides = (
        (str, "{} predicts gain better than raw KL alone", "{} predicts gain worse than raw KL alone"),
        (on_top_of_base, "{} improves on raw KL when added to it", ""),
    )
    return [
        Claim(
            f"{above.format(signal)} ({measure})",
            f"{analysis}_difference",
            versus_base(of(name)),
            f"difference in {measure}",
            above.format(signal),
            below.format(signal),
            per_k=per_k,
            level=analysis,
            rivals=(of(name), BASE),
        )
        for name, signal, per_k in signals
        for of, above, below in sides
        for analysis, measure in _MEASURES
    ]


CLAIMS = (gain_claim(), *slope_claims(), *validity_claims())


def finding_rows(estimates: pd.DataFrame, probe_id: str, placebos: Sequence[str]) -> list[dict[str, Any]]:
    """Test every claim on one real step.

    Args:
        estimates: the estimates table.
        probe_id: the real step.
        placebos: the updates of its placebos.

    Returns:
        Rows of the findings table; a claim whose number could not be estimated has none.
    """
    rows = []
    for claim in CLAIMS:
        for k in SUPPORT_SIZES if claim.per_k else (None,):
            real = _evidence(estimates, probe_id, claim, k)
            if real is not None:
                beside = {p: _evidence(estimates, f"{probe_id}.{p}", claim, k) for p in placebos}
                rows.append(_finding(claim, k, real, beside) | {"probe_id": probe_id})
    return rows


def lookup(estimates: pd.DataFrame, probe_id: str, analysis: str, term: str, k: int | None) -> Interval | None:
    """Return one number about gain from the estimates table, or None where it could not be estimated."""
    wanted = (
        (estimates["probe_id"] == probe_id)
        & (estimates["analysis"] == analysis)
        & (estimates["term"] == term)
        & (estimates["outcome"] == OUTCOME)
        & (estimates["k"].isna() if k is None else estimates["k"] == k)
    )
    found = estimates.loc[wanted, ["estimate", "ci_low", "ci_high"]]
    return None if found.empty else Interval(*(float(x) for x in found.iloc[0]))


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
    """Return one real step's findings at the headline K, and those that have no K, in the order of the claims."""
    mine = findings[findings["probe_id"] == probe_id]
    return mine[mine["k"].isna() | (mine["k"] == HEADLINE_K)]


@dataclass(frozen=True)
class _Evidence:
    """What one probe says about a claim. `side`: 1 for it, -1 for its reverse, 0 for neither."""

    interval: Interval
    side: int


def _evidence(estimates: pd.DataFrame, probe_id: str, claim: Claim, k: int | None) -> _Evidence | None:
    interval = lookup(estimates, probe_id, claim.analysis, claim.term, k)
    if interval is None:
        return None
    side = interval.side(_noise_floor(estimates, probe_id) if claim.analysis == "mean" else 0.0)
    if side < 0 and not claim.below:
        side = 0
    if side and claim.rivals:
        better = claim.rivals[0] if side > 0 else claim.rivals[1]
        level = lookup(estimates, probe_id, claim.level, better, None if better == BASE else k)
        side = side if level is not None and level.side() > 0 else 0
    return _Evidence(interval, side)


def _finding(claim: Claim, k: int | None, real: _Evidence, placebos: Mapping[str, _Evidence | None]) -> dict[str, Any]:
    same = {name: shown for name, shown in placebos.items() if real.side and shown and shown.side == real.side}
    if not real.side:
        status, remark = "not shown", ""
    elif same:
        status, remark = "artefact", f"; a placebo shows it too: {_listed(same)}"
    else:
        status = "holds" if real.side > 0 else "reversed"
        remark = "; no placebo shows it" if placebos else "; no placebo was run"
    what = claim.above if real.side >= 0 else claim.below
    number = f"{claim.number}: {real.interval}{' nats' if claim.unit == 'nats' else ''}"
    return {
        "finding": claim.finding,
        "k": k,
        "status": status,
        **real.interval.columns(),
        "unit": claim.unit,
        "placebos": _listed(placebos) or "none run",
        "sentence": f"{status.capitalize()}{f' at K={k}' if k else ''}: {what} ({number}{remark}).",
    }


def _listed(placebos: Mapping[str, _Evidence | None]) -> str:
    return ", ".join(f"{name} {shown.interval if shown else 'not estimable'}" for name, shown in placebos.items())


def _noise_floor(estimates: pd.DataFrame, probe_id: str) -> float:
    """Return the mean gain, in nats, that rounding alone can reach; a mean inside it counts as 0."""
    floor = lookup(estimates, probe_id, "noise_floor", "bank", None)
    assert floor is not None, "every probe has a noise floor"
    return floor.estimate
