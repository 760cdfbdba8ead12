"""Every table of the analysis from its inputs: one task for each group of estimates, with progress."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from teachdiag.analysis.bank.graded import Graded
from teachdiag.analysis.bank.measurements import OUTCOMES, Bank, Outcome, Probe, Step, select_outcome
from teachdiag.analysis.bank.normalised import saturation_rows
from teachdiag.analysis.bank.token_scores import scale_rows, token_table
from teachdiag.analysis.kinds.kind import Estimates, Inputs, Rows, analysis_of
from teachdiag.analysis.resampling.multiplicity import add_q_values
from teachdiag.analysis.step.buckets import bucket_rows, robust_rows
from teachdiag.analysis.step.by_grade import bank_quantities, gain_quantities, primary_rows
from teachdiag.analysis.step.by_grade import mean_rows as means_by_grade
from teachdiag.analysis.step.claims import CLAIMS
from teachdiag.analysis.step.design import make_sample
from teachdiag.analysis.step.inference import inference_rows
from teachdiag.analysis.step.matching import matched_rows
from teachdiag.analysis.step.placebo_draws import beyond_rows, pool_draws
from teachdiag.analysis.step.profiles import (
    concentration_row,
    decile_bins,
    decile_rows,
    gain_surface_rows,
    gain_surface_scale,
    mean_rows,
    noise_floor_row,
    plane_rows,
    q3_rows,
)
from teachdiag.analysis.step.regression import regressions
from teachdiag.analysis.step.specifications import WINDOWS, Evidence, agreement_rows, specification_rows
from teachdiag.analysis.step.step_length import update_facts
from teachdiag.analysis.step.support_contrast import contrast_estimates, contrast_rows
from teachdiag.analysis.step.top_n import top_rows
from teachdiag.analysis.step.validity import validity
from teachdiag.artefacts import (
    BALANCE,
    BUCKETS,
    BY_GRADE,
    CONTRASTS,
    DECILES,
    ESTIMATES,
    FINDINGS,
    INFERENCE,
    PRIMARY,
    SATURATION,
    SCALES,
    SPECIFICATIONS,
    SURFACES,
    TABLES,
    TOKENS,
    TOP_N,
)
from teachdiag.progress import Reporter
from teachdiag.scores import Codes
from teachdiag.settings import KINDS, SUPPORT_SIZES
from teachdiag.tables import Table

Task = Callable[[], Estimates]
Group = Callable[[], list[Outcome]]  # makes outcomes that are defined over the same positions, when they are needed

_JUDGED = (FINDINGS, PRIMARY)  # made from the estimates
_GATHERED = [table for table in TABLES if table.written_by == "analyze" and table not in (*_JUDGED, TOKENS)]


def estimate_tables(inputs: Inputs, reporter: Reporter) -> dict[Table, pa.Table]:
    """Compute every table but those of claims."""
    bank, steps = inputs.bank, inputs.steps
    gathered: Estimates = {table: [] for table in _GATHERED}
    gathered[ESTIMATES] += q3_rows(bank) + [
        noise_floor_row(probe, bank) for step in steps for probe in step.first_draws
    ]
    gathered[SATURATION] += saturation_rows(bank, inputs.normalised)
    tasks = _step_tasks(inputs)
    probes = [analysis_of(record) for record in inputs.records if not KINDS[record.kind].step]
    tasks += [partial(probe.estimates, inputs) for probe in probes]
    tasks.append(partial(_scales, inputs))
    if inputs.graded is not None:
        tasks.append(partial(_by_grade, inputs, inputs.graded))
    # Numpy works outside the interpreter's lock, so that tasks overlap; rows are gathered in the tasks' order. Memory
    # holds one task at a time of a large bank.
    with ThreadPoolExecutor(1 if bank.large else os.cpu_count()) as pool:
        for running in reporter.track([pool.submit(task) for task in tasks], "Estimates"):
            for table, rows in running.result().items():
                gathered[table] += rows
    for step in steps:
        gathered[ESTIMATES] += agreement_rows(gathered[SPECIFICATIONS], step, bank)
    gathered[ESTIMATES] = pool_draws(gathered[ESTIMATES])
    gathered[ESTIMATES] += beyond_rows(gathered[ESTIMATES], steps, {claim.analysis for claim in CLAIMS})
    tables = {table: table.build_rows(rows) for table, rows in gathered.items()}
    return tables | {TOKENS: token_table(bank, inputs.normalised)}


def _step_tasks(inputs: Inputs) -> list[Task]:
    """Return the estimates of real steps and their placebos, those that take longest first."""
    bank, resampling = inputs.bank, inputs.resampling
    measured, fitted = _groups(inputs, fitted=False), _groups(inputs, fitted=True)
    every_measured, every_fitted = _groups(inputs, fitted=False, draws=True), _groups(inputs, fitted=True, draws=True)
    if not measured:
        return [partial(_plane, inputs)]
    tasks: list[Task] = [partial(_specifications, inputs, step, window) for step in inputs.steps for window in WINDOWS]
    tasks.append(partial(_top, inputs, measured))
    tasks += [partial(_validity, inputs, group, inputs.folds()) for group in every_fitted]
    tasks += [partial(_contrasts, inputs, group) for group in every_fitted]
    tasks += [partial(_buckets, inputs, group) for group in fitted]
    tasks += [partial(_regressions, inputs, group, k) for group in every_fitted for k in SUPPORT_SIZES]
    tasks += [_each(group, partial(mean_rows, bank=bank, resampling=resampling)) for group in every_measured]
    tasks += [_each(group, partial(robust_rows, resampling=resampling)) for group in fitted]
    tasks += [_each(group, lambda outcome: [concentration_row(outcome)]) for group in fitted]
    tasks += [partial(_deciles, inputs, group) for group in measured]
    return [*tasks, partial(_plane, inputs), *(partial(_gain_surfaces, inputs, step) for step in inputs.steps)]


def _groups(inputs: Inputs, *, fitted: bool, draws: bool = False) -> list[Group]:
    """Group outcomes that are defined over the same positions, which are fitted together: those that are anywhere.

    Args:
        inputs: gives the steps.
        fitted: only outcomes that models can be fitted to.
        draws: every draw of a placebo, not the first alone.
    """
    bank = inputs.bank
    groups: dict[bytes, list[tuple[Probe, str]]] = {}
    for probe in (probe for step in inputs.steps for probe in (step.probes if draws else step.first_draws)):
        for name in OUTCOMES:
            outcome = select_outcome(probe, name, bank)
            if len(outcome.values) and not (fitted and outcome.obstacle):
                groups.setdefault(blake2b(outcome.rows.tobytes()).digest(), []).append((probe, name))
    return [partial(_outcomes, members, bank) for members in groups.values()]


def _outcomes(members: Sequence[tuple[Probe, str]], bank: Bank) -> list[Outcome]:
    """Make outcomes that are defined over the same positions; they share what says so."""
    first = select_outcome(*members[0], bank)
    outcomes = [first]
    for probe, name in members[1:]:
        outcome = select_outcome(probe, name, bank)
        outcomes.append(replace(outcome, rows=first.rows, prompts=first.prompts))
    return outcomes


def _each(group: Group, make: Callable[[Outcome], Rows]) -> Task:
    return lambda: {ESTIMATES: [row for outcome in group() for row in make(outcome)]}


def _validity(inputs: Inputs, group: Group, folds: Codes) -> Estimates:
    return {ESTIMATES: validity(group(), inputs.bank, inputs.raw, folds, inputs.resampling)}


def _contrasts(inputs: Inputs, group: Group) -> Estimates:
    bank, scores, resampling, outcomes = inputs.bank, inputs.normalised, inputs.resampling, group()
    thirds = contrast_rows(outcomes, bank, resampling, redraw=inputs.settings.cuts == "redrawn")
    thirds = pool_draws(thirds, ("probe_id", "outcome", "score", "k"))
    matched, balance = matched_rows([o for o in outcomes if o.draw == 0], bank, scores, resampling)
    add_q_values([*thirds, *matched], ("probe_id", "outcome", "design"))
    return {CONTRASTS: thirds + matched, BALANCE: balance, ESTIMATES: contrast_estimates(thirds)}


def _buckets(inputs: Inputs, group: Group) -> Estimates:
    return {BUCKETS: bucket_rows(group(), inputs.bank, inputs.normalised, inputs.resampling)}


def _deciles(inputs: Inputs, group: Group) -> Estimates:
    bins = decile_bins(inputs.raw, inputs.bank.added)
    return {DECILES: [row for outcome in group() for row in decile_rows(outcome, inputs.raw, bins, inputs.resampling)]}


def _plane(inputs: Inputs) -> Estimates:
    return {SURFACES: plane_rows(inputs.bank, inputs.normalised)}


def _gain_surfaces(inputs: Inputs, step: Step) -> Estimates:
    cells = gain_surface_rows(step, inputs.normalised)
    return {SURFACES: cells, SCALES: [gain_surface_scale(step, cells)]}


def _by_grade(inputs: Inputs, graded: Graded) -> Estimates:
    evidence = _evidence(inputs)
    quantities = bank_quantities(inputs.bank, inputs.normalised)
    rows = means_by_grade(quantities + [q for step in inputs.steps for q in gain_quantities(step)], graded, evidence)
    return {
        BY_GRADE: rows
        + [row for step in inputs.steps for row in primary_rows(step, graded, evidence, inputs.settings.cuts)]
    }


def _evidence(inputs: Inputs) -> Evidence:
    return Evidence(inputs.bank, inputs.normalised, inputs.raw, inputs.folds(), inputs.resampling)


def _specifications(inputs: Inputs, step: Step, window: str) -> Estimates:
    rows = specification_rows(step, window, _evidence(inputs), inputs.settings.cuts)
    facts = update_facts(next(record for record in inputs.records if record.probe_id == step.real.probe_id))
    return {SPECIFICATIONS: [row | facts for row in rows]}


def _scales(inputs: Inputs) -> Estimates:
    predicted = [record.probe_id for record in inputs.records if record.kind == "predicted"]
    return {SCALES: scale_rows(inputs.run, inputs.bank, inputs.normalised, inputs.steps, predicted)}


def _top(inputs: Inputs, groups: Sequence[Group]) -> Estimates:
    return {TOP_N: top_rows(groups, inputs.bank, inputs.bank.positions, inputs.normalised, inputs.resampling)}


def _regressions(inputs: Inputs, group: Group, k: int) -> Estimates:
    bank, redraw, outcomes = inputs.bank, inputs.settings.cuts == "redrawn", group()
    sample = make_sample(outcomes, inputs.normalised, k, bank.n_prompts)
    tokens = outcomes[0].of(np.asarray(bank.positions["token_id"], np.int64))
    return {
        ESTIMATES: regressions(sample, bank, inputs.resampling, redraw=redraw),
        INFERENCE: inference_rows(sample, tokens, inputs.resampling),
    }
