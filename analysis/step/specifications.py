"""The specification curve: each primary number of a step under every sensible choice, and the same for its placebos.

A conclusion that holds under one way of measuring alone is a conclusion about that way. Every combination of choices is
one specification (Simonsohn, Simmons and Nelson 2020, doi:10.1038/s41562-020-0912-z), estimated as the headline is: by
the same functions, from the same draws of prompts. Specifications share their data, so that shares of them describe,
and test nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import OUTCOMES, Bank, Outcome, Step, select_outcome
from teachdiag.analysis.bank.normalised import Key, Scores
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling, intervals, resampled_means
from teachdiag.analysis.step.design import CONTROLLED, make_sample
from teachdiag.analysis.step.inference import contrasts_of
from teachdiag.analysis.step.regression import draw, fit_fixed, follow_cuts
from teachdiag.analysis.step.validity import REFIT_EVERY, cross_validated, difference, predictor_sets
from teachdiag.artefacts import IN_SPREADS, QUANTITIES
from teachdiag.errors import EstimationError
from teachdiag.scores import Array, Codes, Mask
from teachdiag.settings import HEADLINE_K, HEADLINE_OUTCOME, SUPPORT_SIZES
from teachdiag.signals import BASE

Rows = list[dict[str, Any]]
Choices = dict[str, Any]  # by column of the table

MEAN, GAP = QUANTITIES[:2]
COMPARED = dict(zip(QUANTITIES[2:], ("decomposition", "compatibility"), strict=True))  # set of signals beside raw KL
AGREEMENT, COUNT, SAME_SIGN, SAME_SIDE = "specifications", "specifications", "same sign", "same side of 0"  # estimates
WINDOWS: Mapping[str, Callable[[Bank], Mask]] = {
    "all": lambda bank: np.ones(len(bank), bool),
    "first half": lambda bank: bank.column("pos_norm") <= 0.5,
    "second half": lambda bank: bank.column("pos_norm") > 0.5,
    "without the first three": lambda bank: bank.column("position") >= 3,
}
_WHOLE, _LARGEST_OUT, _WINSORISED = "none", "ten largest out", "winsorised at 1%"
_N_LARGEST, _WINSOR = 10, (0.01, 0.99)
_FEWER = 5  # times fewer fits anew: a rough spread is enough beside that of specifications
_SLOPES = {"per unit of norm": "slopes", "standardised": "standardized"}  # measure: field of a fit
_VALIDITY = {"rank correlation": "cv_rank", "R2": "cv_r2"}  # measure: analysis
_HEADLINE = {"k": HEADLINE_K, "outcome": HEADLINE_OUTCOME, "window": "all", "control": "linear", "trimming": _WHOLE}
_MEASURED = {MEAN: "mean", GAP: "per unit of norm"} | dict.fromkeys(COMPARED, "rank correlation")  # in the headline

_MEANS: list[Choices] = [{"quantity": MEAN, "measure": "mean"}]
_GAPS: list[Choices] = [
    {"quantity": GAP, "measure": measure, "k": k, "control": control, "cuts": cuts}
    for k, control, cuts, measure in product(SUPPORT_SIZES, CONTROLLED, ("redrawn", "fixed"), _SLOPES)
]
_COMPARISONS: list[Choices] = [
    {"quantity": quantity, "measure": measure, "k": k}
    for k, quantity, measure in product(SUPPORT_SIZES, COMPARED, _VALIDITY)
]


@dataclass(frozen=True)
class Trimmed:
    """An outcome at the positions of a window, and how its extremes were dealt with."""

    outcome: Outcome
    trimming: str

    @cached_property
    def spread(self) -> float | None:
        """Standard deviation of the outcome, in its unit."""
        return float(self.outcome.values.std()) if len(self.outcome.values) else None


@dataclass(frozen=True)
class Evidence:
    """What specifications are estimated from: the bank, its scores, folds of its prompts, and the draws."""

    bank: Bank
    normalised: Scores
    raw: Scores
    folds: Codes
    resampling: Resampling


class Estimates(NamedTuple):
    """Numbers of some choices for each outcome of a sample.

    `samples`: shape (1 + draws, outcomes, choices), the estimates first. `what`: how each choice's is made.
    """

    choices: Sequence[Choices]
    samples: Array
    what: Sequence[str]


Estimator = Callable[[Sequence[Outcome], Evidence], Iterator[Estimates]]


def specification_rows(step: Step, window: str, evidence: Evidence, cuts: str) -> Rows:
    """Return the rows of the specifications table for a step and its placebos at the positions of one window.

    Args:
        step: the step.
        window: one of `WINDOWS`.
        evidence: what they are estimated from.
        cuts: of the headline, 'redrawn' or 'fixed'.
    """
    rows: Rows = []
    for sample in _samples(step, window, evidence.bank):
        for estimator, choices in _ESTIMATORS.items():
            reasons = [_obstacle(trimmed.outcome, estimator) for trimmed in sample]
            able = [trimmed for trimmed, reason in zip(sample, reasons, strict=True) if not reason]
            rows += [
                _row(trimmed, choice, reason)
                for trimmed, reason in zip(sample, reasons, strict=True)
                if reason
                for choice in choices
            ]
            rows += _estimated(able, estimator, choices, evidence) if able else []
    for row in rows:
        row["window"] = window
        row["headline"] = _is_headline(row, cuts)
    return rows


def agreement_rows(rows: Rows, step: Step, bank: Bank) -> Rows:
    """Return rows of the estimates: how many specifications agree with the headline, for a step and its placebos.

    Those of placebos are compared with the real step's headline too. The side of an interval is above 0, below it, or
    neither. A quantity whose headline cannot be estimated has no rows.

    Args:
        rows: of the specifications table, the step's and its placebos'.
        step: the step.
        bank: the bank.
    """
    known = [row for row in rows if row["estimate"] is not None]
    agreements: Rows = []
    for headline in known:
        if not headline["headline"] or headline["probe_id"] != step.real.probe_id:
            continue
        quantity, sign, side = headline["quantity"], np.sign(headline["estimate"]), _side(headline)
        for probe in step.first_draws:
            of_probe = [row for row in known if (row["probe_id"], row["quantity"]) == (probe.probe_id, quantity)]
            if of_probe:
                signs = np.mean([np.sign(row["estimate"]) == sign for row in of_probe])
                sides = np.mean([_side(row) == side for row in of_probe])
                gain = select_outcome(probe, HEADLINE_OUTCOME, bank)
                agreements += [
                    gain.row(
                        AGREEMENT, f"{quantity}: {term}", None, "1", Interval(float(number), np.nan, np.nan), method
                    )
                    for term, number, method in (
                        (COUNT, len(of_probe), "specifications that can be estimated"),
                        (SAME_SIGN, signs, "share of specifications, against the real step's headline"),
                        (SAME_SIDE, sides, "share of specifications, against the real step's headline"),
                    )
                ]
    return agreements


def _side(row: Mapping[str, Any]) -> int:
    """Return on which side of 0 a row's interval lies; 0 where it holds 0, or where there is none."""
    return 0 if row["ci_low"] is None else Interval(row["estimate"], row["ci_low"], row["ci_high"]).side()


def _samples(step: Step, window: str, bank: Bank) -> Iterator[list[Trimmed]]:
    """Yield outcomes of the step and its placebos that are defined over the same positions of a window.

    The ten largest are those furthest from the mean of the step's gain; placebos are left without the same positions.
    """
    inside = WINDOWS[window](bank)
    gain = step.real.column(HEADLINE_OUTCOME)
    distance = np.where(inside, (gain - gain[inside].mean()) ** 2, -1.0) if inside.any() else np.zeros(len(bank))
    smaller = inside.copy()
    smaller[np.argsort(distance, kind="stable")[-_N_LARGEST:]] = False
    together = [[name] for name in OUTCOMES] if bank.large else [list(OUTCOMES)]
    for names, (rows, trimmings) in product(together, ((inside, (_WHOLE, _WINSORISED)), (smaller, (_LARGEST_OUT,)))):
        groups: dict[bytes, list[Outcome]] = {}
        for name, probe in product(names, step.first_draws):
            outcome = select_outcome(probe, name, bank).within(rows)
            groups.setdefault(outcome.rows.tobytes(), []).append(outcome)
        yield from (
            [Trimmed(_trimmed(outcome, trimming), trimming) for outcome in outcomes for trimming in trimmings]
            for outcomes in groups.values()
        )


def _obstacle(outcome: Outcome, estimator: Estimator) -> str:
    """Say why a number cannot be estimated of an outcome, or nothing."""
    if outcome.n_prompts < MIN_PROMPTS:
        return f"the outcome is there in {outcome.n_prompts} prompts of the {MIN_PROMPTS} needed"
    return "" if estimator is _mean_estimates else outcome.obstacle


def _trimmed(outcome: Outcome, trimming: str) -> Outcome:
    if trimming != _WINSORISED or not len(outcome.values):
        return outcome
    return replace(outcome, values=np.clip(outcome.values, *np.quantile(outcome.values, _WINSOR)))


def _estimated(sample: Sequence[Trimmed], estimator: Estimator, choices: Sequence[Choices], evidence: Evidence) -> Rows:
    """Return a row for each outcome and choice; where the sample does not carry the estimates, with the reason."""
    rows: Rows = []
    try:
        for found in estimator([trimmed.outcome for trimmed in sample], evidence):
            for index, trimmed in enumerate(sample):
                numbers = zip(
                    found.choices, intervals(found.samples[:, index], evidence.bank.n_prompts), found.what, strict=True
                )
                rows += [
                    _row(trimmed, choice, evidence.resampling.method(what), number) for choice, number, what in numbers
                ]
    except EstimationError as error:
        done = [{name: row[name] for name in choices[0]} for row in rows]
        rows += [_row(trimmed, c, str(error)) for c in choices if c not in done for trimmed in sample]
    return rows


def _mean_estimates(outcomes: Sequence[Outcome], evidence: Evidence) -> Iterator[Estimates]:
    values = np.column_stack([outcome.values for outcome in outcomes])
    means = resampled_means(values, outcomes[0].prompts, evidence.resampling.weights("mean"))
    yield Estimates(_MEANS, means[..., None], ["mean"])


def _gap_estimates(outcomes: Sequence[Outcome], evidence: Evidence) -> Iterator[Estimates]:
    """Yield beta_L - beta_I, one K after the other."""
    bank = evidence.bank
    for k in SUPPORT_SIZES:
        sample = make_sample(outcomes, evidence.normalised, k, bank.n_prompts, CONTROLLED)
        draws = draw(sample, bank, evidence.resampling, redraw=True)
        choices = [choice for choice in _GAPS if choice["k"] == k]
        fits = {(control, "fixed"): fit_fixed(sample, terms, draws) for control, terms in CONTROLLED.items()}
        fits |= {
            (control, "redrawn"): follow_cuts(fits[control, "fixed"], sample, terms, draws)
            for control, terms in CONTROLLED.items()
        }
        gaps = {control: contrasts_of(terms)[0][-1] for control, terms in CONTROLLED.items()}
        samples = [getattr(fits[c["control"], c["cuts"]], _SLOPES[c["measure"]]) @ gaps[c["control"]] for c in choices]
        what = [f"OLS, {choice['measure']}; cuts of norm {choice['cuts']}" for choice in choices]
        yield Estimates(choices, np.stack(samples, axis=2), what)


def _comparison_estimates(outcomes: Sequence[Outcome], evidence: Evidence) -> Iterator[Estimates]:
    """Yield what sets of signals predict on prompts not seen, less what raw KL predicts."""
    base = (BASE, None)
    names: Iterable[Key] = product(COMPARED.values(), SUPPORT_SIZES)
    sets = {key: predictor_sets()[key] for key in (base, *names)}
    weights = evidence.resampling.weights("validity")
    whole = outcomes[0].rows.all()  # as the headline has it
    refits = len(weights) // (REFIT_EVERY * (1 if whole else _FEWER))
    drawn = cross_validated(outcomes, evidence.raw, sets, evidence.folds, weights, refits)
    columns = {key: number for number, key in enumerate(sets)}
    samples = [
        [
            of_outcome[difference(_VALIDITY[c["measure"]])][:, columns[COMPARED[c["quantity"]], c["k"]]]
            for c in _COMPARISONS
        ]
        for of_outcome in drawn
    ]
    what = [f"prompt-grouped CV of cubic rank splines, {choice['measure']}" for choice in _COMPARISONS]
    yield Estimates(_COMPARISONS, np.moveaxis(np.array(samples), 2, 0), what)


def _row(trimmed: Trimmed, choice: Choices, method: str, number: Interval | None = None) -> dict[str, Any]:
    """Return one row, but for the window; without a number, `method` says why."""
    outcome = trimmed.outcome
    unit = outcome.unit if choice["measure"] in IN_SPREADS else "1"
    row = outcome.row("", "", None, unit, number or Interval(np.nan, np.nan, np.nan), method)
    return {
        **{"k": None, "control": None, "cuts": None},
        **choice,
        **{name: row[name] for name in _OF_ESTIMATES},
        "estimate": None if number is None or np.isnan(number.estimate) else number.estimate,
        "trimming": trimmed.trimming,
        "outcome_spread": trimmed.spread,
    }


def _is_headline(row: Mapping[str, Any], cuts: str) -> bool:
    chosen = _HEADLINE | {"measure": _MEASURED[row["quantity"]], "cuts": cuts}
    return all(row[name] in (None, value) for name, value in chosen.items())


_OF_ESTIMATES = (
    *("probe_id", "update", "outcome", "unit", "estimate", "ci_low", "ci_high", "method", "n_positions", "n_prompts"),
)
_ESTIMATORS: Mapping[Estimator, list[Choices]] = {
    _mean_estimates: _MEANS,
    _gap_estimates: _GAPS,
    _comparison_estimates: _COMPARISONS,
}
