"""The bank and the primary numbers by grade of the response: right, wrong, unparseable; and right less wrong.

Right and wrong responses differ in their prompts as well, since easy prompts are answered right. Where prompts have
responses of both kinds, means are compared within the prompt too, every such prompt counting the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bank.graded import Graded
from teachdiag.analysis.bank.measurements import Bank, Outcome, Step, select_outcome
from teachdiag.analysis.bank.normalised import Key, Scores
from teachdiag.analysis.resampling.bootstrap import Resampling, prompt_sums, ratio, resampled_means
from teachdiag.analysis.step.design import MODELS, make_sample
from teachdiag.analysis.step.inference import contrasts_of
from teachdiag.analysis.step.regression import draw, fit_draws
from teachdiag.analysis.step.specifications import COMPARED, GAP, MEAN, Evidence
from teachdiag.analysis.step.validity import REFIT_EVERY, cross_validated, difference, predictor_sets
from teachdiag.artefacts import GRADE_NAMES, RIGHT_LESS_WRONG, SAME_PROMPT
from teachdiag.errors import EstimationError
from teachdiag.formulas import stored_name
from teachdiag.scores import Array, Mask
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME
from teachdiag.signals import BASE, SIGNALS

Rows = list[dict[str, Any]]
_RIGHT, _WRONG = GRADE_NAMES[:2]
_STORED = ("forward_kl", "disagreement", "compatibility")  # of the bank, as measured
_NORMALISED = ("learnable", "incompatible")
_ABSENT = "hold no response of the grade"
_FEWER = 5  # times fewer fits anew than the headline has, as for specifications


@dataclass(frozen=True)
class Quantity:
    """What is told by grade, as rows of the table name it; `values`: shape (N,), where it is a mean over positions."""

    name: str
    unit: str
    k: int | None = None
    probe_id: str = ""
    update: str = ""
    values: Array | None = None


class Group(NamedTuple):
    """Some of the bank's responses.

    `inside`: shape (N,), their positions. `n_prompts`: prompts that a number of theirs rests on: of a difference, those
    of the side that has fewer.
    """

    name: str
    inside: Mask
    n_prompts: int


def bank_quantities(bank: Bank, normalised: Scores) -> list[Quantity]:
    """Return what is told of the bank itself."""
    stored = [
        Quantity(name, SIGNALS[name].unit, K if SIGNALS[name].has_k else None, values=bank.column(stored_name(name, K)))
        for name in _STORED
    ]
    return stored + [Quantity(name, "1", K, values=normalised[name, K]) for name in _NORMALISED]


def gain_quantities(step: Step) -> list[Quantity]:
    """Return the gain of a real step and of a draw of each placebo."""
    return [
        Quantity(MEAN, "nats", None, probe.probe_id, probe.update, probe.column(HEADLINE_OUTCOME))
        for probe in step.first_draws
    ]


def groups_of(graded: Graded, bank: Bank) -> dict[str, Group]:
    """Return groups of responses by name: each grade, right and wrong ones, and those of prompts that have both."""
    masks = {grade: graded.of(grade) for grade in GRADE_NAMES}
    prompts = {grade: np.unique(bank.prompts[mask]) for grade, mask in masks.items()}
    either = masks[_RIGHT] | masks[_WRONG]
    both = np.intersect1d(prompts[_RIGHT], prompts[_WRONG])
    fewer = min(len(prompts[_RIGHT]), len(prompts[_WRONG]))
    groups = [
        *(Group(grade, masks[grade], len(prompts[grade])) for grade in GRADE_NAMES),
        Group(RIGHT_LESS_WRONG, either, fewer),
        Group(SAME_PROMPT, either & np.isin(bank.prompts, both), len(both)),
    ]
    return {group.name: group for group in groups if group.n_prompts}


def mean_rows(quantities: Sequence[Quantity], graded: Graded, evidence: Evidence) -> Rows:
    """Return the rows of some means: by grade, right less wrong, and the same within prompts."""
    bank, resampling, groups = evidence.bank, evidence.resampling, groups_of(graded, evidence.bank)
    values = np.column_stack([quantity.values for quantity in quantities if quantity.values is not None])
    weights = resampling.weights("mean")
    samples = {
        name: resampled_means(values[groups[name].inside], bank.prompts[groups[name].inside], weights)
        for name in GRADE_NAMES
        if name in groups
    }
    samples |= _less(samples)
    if SAME_PROMPT in groups:
        samples[SAME_PROMPT] = _within_prompts(values, graded, groups[SAME_PROMPT], bank, weights)
    return [
        row
        for name, drawn in samples.items()
        for row in _rows(groups[name], quantities, drawn, graded, resampling, "mean over positions")
    ]


def primary_rows(step: Step, graded: Graded, evidence: Evidence, cuts: str) -> Rows:
    """Return the rows of a step's further primary numbers and its placebos': by grade, and right less wrong.

    Args:
        step: the step.
        graded: the bank's grades.
        evidence: what they are estimated from.
        cuts: of the normalised scores, 'redrawn' or 'fixed'.
    """
    groups, rows = groups_of(graded, evidence.bank), Rows()
    gains = [select_outcome(probe, HEADLINE_OUTCOME, evidence.bank) for probe in step.first_draws]
    samples: dict[str, dict[str, Array]] = {gain.probe_id: {} for gain in gains}
    for group in (groups[name] for name in GRADE_NAMES if name in groups):
        inside = [gain.within(group.inside) for gain in gains]
        reasons = {gain.probe_id: f"the gain is {gain.obstacle}" for gain in inside if gain.obstacle}
        able = [gain for gain in inside if not gain.obstacle]
        try:
            for gain, drawn in zip(able, _primary(able, evidence, cuts) if able else (), strict=True):
                samples[gain.probe_id][group.name] = drawn
        except EstimationError as error:
            reasons |= {gain.probe_id: str(error) for gain in able}
        for gain in inside:
            if gain.probe_id in reasons:
                why = {"method": reasons[gain.probe_id]}
                rows += [_row(quantity, group, graded, why) for quantity in _numbers(gain)]
    for gain in gains:
        of_probe = samples[gain.probe_id]
        for name, drawn in (of_probe | _less(of_probe)).items():
            rows += _rows(groups[name], _numbers(gain), drawn, graded, evidence.resampling, "as the claim's, of these")
    return rows


def _numbers(gain: Outcome) -> list[Quantity]:
    """What the columns of `_primary` are."""
    named = [(GAP, gain.unit), *((name, "1") for name in COMPARED)]
    return [Quantity(name, unit, K, gain.probe_id, gain.update) for name, unit in named]


def _primary(gains: Sequence[Outcome], evidence: Evidence, cuts: str) -> list[Array]:
    """Return beta_L - beta_I per unit of norm, and by what sets of signals rank better than raw KL, (draws, 3) each.

    Args:
        gains: of the same positions.
        evidence: what they are estimated from.
        cuts: of the normalised scores, 'redrawn' or 'fixed'.

    Raises:
        EstimationError: the positions do not carry them.
    """
    bank, resampling, terms = evidence.bank, evidence.resampling, MODELS["decomposition"]
    sample = make_sample(gains, evidence.normalised, K, bank.n_prompts, {"decomposition": terms})
    fitted = fit_draws(sample, terms, draw(sample, bank, resampling, redraw=cuts == "redrawn"))
    gaps = fitted.slopes @ contrasts_of(terms)[0][-1]  # (draws, gains)
    keys: list[Key] = [(BASE, None), *((name, K) for name in COMPARED.values())]
    sets, weights = {key: predictor_sets()[key] for key in keys}, resampling.weights("validity")
    refits = len(weights) // (REFIT_EVERY * _FEWER)
    ranked = cross_validated(gains, evidence.raw, sets, evidence.folds, weights, refits)
    return [
        np.column_stack([gap, of_gain[difference("cv_rank")][:, 1:]])
        for gap, of_gain in zip(gaps.T, ranked, strict=True)
    ]


def _less(samples: Mapping[str, Array]) -> dict[str, Array]:
    """Return samples of right responses less those of wrong ones, whose draws of prompts are the same."""
    if not {_RIGHT, _WRONG} <= samples.keys():
        return {}
    return {RIGHT_LESS_WRONG: samples[_RIGHT] - samples[_WRONG]}


def _within_prompts(values: Array, graded: Graded, group: Group, bank: Bank, weights: Array) -> Array:
    """Return the mean over prompts, in every draw, of a prompt's mean in right responses less that in wrong ones."""
    means = {}
    for grade in (_RIGHT, _WRONG):
        rows = group.inside & graded.of(grade)
        counted = np.column_stack([np.ones(rows.sum()), values[rows]])
        sums = prompt_sums(counted, bank.prompts[rows], bank.n_prompts)
        means[grade] = ratio(sums[:, 1:], sums[:, :1])
    both = np.unique(bank.prompts[group.inside])
    return resampled_means((means[_RIGHT] - means[_WRONG])[both], both, weights)


def _rows(
    group: Group, quantities: Sequence[Quantity], samples: Array, graded: Graded, resampling: Resampling, what: str
) -> Rows:
    """Return a row for each quantity; `samples` has shape (1 + draws, quantities), the estimates first."""
    numbers = resampling.columns(samples, [group.n_prompts] * len(quantities), what, _ABSENT)
    return [_row(quantity, group, graded, number) for quantity, number in zip(quantities, numbers, strict=True)]


def _row(quantity: Quantity, group: Group, graded: Graded, number: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "probe_id": quantity.probe_id,
        "update": quantity.update,
        "quantity": quantity.name,
        "k": quantity.k,
        "group": group.name,
        "unit": quantity.unit,
        **dict.fromkeys(("estimate", "ci_low", "ci_high")),
        **number,
        "n_responses": graded.responses(group.inside),
        "n_positions": int(group.inside.sum()),
        "n_prompts": group.n_prompts,
    }
