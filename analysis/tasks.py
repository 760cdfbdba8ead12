"""Every table of the analysis from its inputs: one task for each group of estimates, with progress."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from teachdiag.analysis.bank.graded import Graded
from teachdiag.analysis.bank.measurements import OUTCOMES, Bank, Outcome, Probe, Step, select_outcome
from teachdiag.analysis.bank.normalised import in_q3, saturated, saturation_row
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
from teachdiag.analysis.step.support_contrast import contrast_estimates, contrast_rows, q3_in_any_draw
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
from teachdiag.scores import Codes, Mask
from teachdiag.settings import KINDS, SUPPORT_SIZES
from teachdiag.signals import Signal
from teachdiag.tables import Table

Task = Callable[[], Estimates]
Started = tuple[Future[Any], Callable[[], Any]]  # where its result goes, and a task
Group = Callable[[], list[Outcome]]  # makes outcomes that are defined over the same positions, when they are needed


class _Defined(NamedTuple):
    """An outcome of a probe: a digest of where it is defined, and whether models can be fitted to it."""

    probe: Probe
    name: str
    rows: bytes
    fitted: bool


_JUDGED = (FINDINGS, PRIMARY)  # made from the estimates
_TESTED_TOGETHER = "probe_id", "outcome", "design"  # a family of contrasts
_GATHERED = [table for table in TABLES if table.written_by == "analyze" and table not in (*_JUDGED, TOKENS)]


def estimate_tables(inputs: Inputs, reporter: Reporter) -> dict[Table, pa.Table]:
    """Compute every table but those of claims."""
    bank, steps = inputs.bank, inputs.steps
    gathered: Estimates = {table: [] for table in _GATHERED}
    gathered[ESTIMATES] += q3_rows(bank) + [
        noise_floor_row(probe, bank) for step in steps for probe in step.first_draws
    ]
    defined = _defined(inputs)
    long, tasks = _long_tasks(inputs, defined), _step_tasks(inputs, defined)
    probes = [analysis_of(record) for record in inputs.records if not KINDS[record.kind].step]
    tasks += [partial(probe.estimates, inputs) for probe in probes]
    tasks += [partial(_saturation, inputs, *key) for key in saturated()]
    tasks.append(partial(_scales, inputs))
    if inputs.graded is not None:
        tasks.append(partial(_by_grade, inputs, inputs.graded))
    with ThreadPoolExecutor(2 if bank.large else os.cpu_count()) as pool:
        of_tokens = partial(token_table, bank, inputs.normalised)
        *running, tokens = _started(pool, long, [*tasks, of_tokens], in_turn=bank.large)
        for done in reporter.track(running, "Estimates"):
            for table, rows in done.result().items():
                gathered[table] += rows
    for step in inputs.part.steps if gathered[SPECIFICATIONS] else []:
        gathered[ESTIMATES] += _of_part(inputs, agreement_rows(gathered[SPECIFICATIONS], step, inputs.part.bank))
    gathered[ESTIMATES] = pool_draws(gathered[ESTIMATES])
    gathered[ESTIMATES] += beyond_rows(gathered[ESTIMATES], steps, {claim.analysis for claim in CLAIMS})
    tables = {table: table.build_rows(rows) for table, rows in gathered.items()}
    return tables | {TOKENS: tokens.result()}


def _started(
    pool: ThreadPoolExecutor, long: Sequence[Task], others: Sequence[Callable[[], Any]], *, in_turn: bool
) -> list[Future[Any]]:
    """Start tasks, which overlap since numpy works outside the interpreter's lock; results stand in their order.

    Args:
        pool: what works on them.
        long: those that take much memory.
        others: those that take less.
        in_turn: whether only one of the long ones is worked on at a time, by the first worker, which then joins the
            second in what is left of the others.
    """
    if not in_turn:
        return [pool.submit(task) for task in (*long, *others)]
    results = [Future[Any]() for _ in (*long, *others)]
    waiting = [deque(zip(results, long, strict=False)), deque(zip(results[len(long) :], others, strict=True))]

    def work(*queues: deque[Started]) -> None:
        for result, task in (pair for queue in queues for pair in _taken(queue)):
            try:
                result.set_result(task())
            except BaseException as error:  # raised where the result is asked for
                result.set_exception(error)

    pool.submit(work, *waiting)
    pool.submit(work, waiting[1])
    return results


def _taken(queue: deque[Started]) -> Iterator[Started]:
    """Take what is left of a queue, one after the other, beside whoever else does."""
    with suppress(IndexError):
        while True:
            yield queue.popleft()


def _long_tasks(inputs: Inputs, defined: Sequence[_Defined]) -> list[Task]:
    """Return those estimates of real steps and their placebos that take longest, and most memory."""
    if not defined:
        return []
    measured = _groups(inputs, [each for each in defined if each.probe.draw == 0])
    tasks: list[Task] = [
        partial(_specifications, inputs, step, window) for step in inputs.part.steps for window in WINDOWS
    ]
    tasks.append(partial(_top, inputs, measured))
    return tasks + [
        partial(_validity, inputs, group, inputs.folds()) for group in _groups(inputs, defined, fitted=True)
    ]


def _step_tasks(inputs: Inputs, defined: Sequence[_Defined]) -> list[Task]:
    """Return the other estimates of real steps and their placebos, those that take longest first."""
    if not defined:
        return [partial(_plane, inputs)]
    bank, resampling = inputs.bank, inputs.resampling
    first_draws = [each for each in defined if each.probe.draw == 0]
    measured, fitted = _groups(inputs, first_draws), _groups(inputs, first_draws, fitted=True)
    every_measured, every_fitted = _groups(inputs, defined), _groups(inputs, defined, fitted=True)
    tasks: list[Task] = [partial(_contrasts, inputs, design) for design in ("matched", "thirds")]
    tasks += [partial(_buckets, inputs, group) for group in fitted]
    tasks += [partial(_regressions, inputs, group, k) for group in every_fitted for k in SUPPORT_SIZES]
    tasks += [_each(group, partial(mean_rows, bank=bank, resampling=resampling)) for group in every_measured]
    tasks += [_each(group, partial(robust_rows, resampling=resampling)) for group in fitted]
    tasks += [_each(group, lambda outcome: [concentration_row(outcome)]) for group in fitted]
    tasks += [partial(_deciles, inputs, group) for group in measured]
    return [*tasks, partial(_plane, inputs), *(partial(_gain_surfaces, inputs, step) for step in inputs.steps)]


def _defined(inputs: Inputs, within: Mask | None = None) -> list[_Defined]:
    """List the outcomes of every draw of every step that are defined anywhere; `within`, shape (N,), where is asked."""
    defined = []
    for probe in (probe for step in inputs.steps for probe in step.probes):
        for name in OUTCOMES:
            outcome = select_outcome(probe, name, inputs.bank)
            if len(outcome.values):
                rows = outcome.rows if within is None else outcome.rows[within]
                digest = blake2b(rows.tobytes()).digest()
                defined.append(_Defined(probe, name, digest, not outcome.obstacle))
    return defined


def _groups(
    inputs: Inputs, defined: Sequence[_Defined], *, fitted: bool = False, within: Mask | None = None
) -> list[Group]:
    """Group outcomes that are defined over the same positions, which are fitted together.

    Args:
        inputs: gives the bank.
        defined: the outcomes.
        fitted: only those that models can be fitted to.
        within: shape (N,), the only positions that are meant; by default all.
    """
    groups: dict[bytes, list[_Defined]] = {}
    for each in defined:
        if each.fitted or not fitted:
            groups.setdefault(each.rows, []).append(each)
    return [partial(_outcomes, members, inputs.bank, within) for members in groups.values()]


def _outcomes(members: Sequence[_Defined], bank: Bank, within: Mask | None) -> list[Outcome]:
    """Make outcomes that are defined over the same positions; they share what says so."""
    outcomes: list[Outcome] = []
    for member in members:
        outcome = select_outcome(member.probe, member.name, bank)
        outcome = outcome if within is None else outcome.within(within)
        first = outcomes[0] if outcomes else outcome
        outcomes.append(replace(outcome, rows=first.rows, prompts=first.prompts))
    return outcomes


def _each(group: Group, make: Callable[[Outcome], Rows]) -> Task:
    return lambda: {ESTIMATES: [row for outcome in group() for row in make(outcome)]}


def _validity(inputs: Inputs, group: Group, folds: Codes) -> Estimates:
    return {ESTIMATES: validity(group(), inputs.bank, inputs.raw, folds, inputs.resampling)}


def _contrasts(inputs: Inputs, design: str) -> Estimates:
    """Compare positions inside Q3: those of high and low support by thirds, or matched.

    Outcomes are grouped by where they are defined among the positions that are compared: others count for nothing.
    """
    bank, resampling, redraw = inputs.bank, inputs.resampling, inputs.settings.cuts == "redrawn"
    inside = q3_in_any_draw(bank, resampling) if design == "thirds" and redraw else in_q3(bank)[0]
    groups = _groups(inputs, _defined(inputs, inside), fitted=True, within=inside)
    if design == "matched":
        first = ([outcome for outcome in group() if outcome.draw == 0] for group in groups)
        found = [matched_rows(outcomes, bank, inputs.normalised, resampling) for outcomes in first if outcomes]
        rows = [row for contrasts, _ in found for row in contrasts]
        add_q_values(rows, _TESTED_TOGETHER)
        return {CONTRASTS: rows, BALANCE: [row for _, balance in found for row in balance]}
    rows = [row for group in groups for row in contrast_rows(group(), bank, resampling, redraw=redraw)]
    thirds = pool_draws(rows, ("probe_id", "outcome", "score", "k"))
    add_q_values(thirds, _TESTED_TOGETHER)
    return {CONTRASTS: thirds, ESTIMATES: contrast_estimates(thirds)}


def _buckets(inputs: Inputs, group: Group) -> Estimates:
    return {BUCKETS: bucket_rows(group(), inputs.bank, inputs.normalised, inputs.resampling)}


def _saturation(inputs: Inputs, signal: Signal, k: int | None) -> Estimates:
    return {SATURATION: [saturation_row(inputs.bank, inputs.normalised, signal, k)]}


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
    """Estimate those of a step at the positions of the inputs' part."""
    rows = specification_rows(step, window, _evidence(inputs.part), inputs.settings.cuts)
    facts = update_facts(next(record for record in inputs.records if record.probe_id == step.real.probe_id))
    return {SPECIFICATIONS: [row | facts for row in _of_part(inputs, rows)]}


def _of_part(inputs: Inputs, rows: Rows) -> Rows:
    """Say of rows that they are of a part of the bank, where it is not all of it."""
    if inputs.part is inputs:
        return rows
    whose = f"; of {inputs.part.bank.n_prompts:,} of {inputs.bank.n_prompts:,} prompts, evenly spaced"
    return [row | {"method": f"{row['method']}{whose}"} for row in rows]


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
