"""Every table of the analysis from its inputs: one task for each group of estimates, with progress."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from teachdiag.analysis.bootstrap import Codes, Resampling
from teachdiag.analysis.buckets import bucket_rows, robust_rows
from teachdiag.analysis.cells import load_cells
from teachdiag.analysis.crossval import draw_folds
from teachdiag.analysis.design import make_sample
from teachdiag.analysis.findings import CLAIMS
from teachdiag.analysis.frame import (
    STEP_KINDS,
    Bank,
    Outcome,
    Record,
    Step,
    select_outcomes,
)
from teachdiag.analysis.inference import inference_rows
from teachdiag.analysis.interventions import (
    agreement_rows,
    draw_seeds_and_prompts,
    gain_statistics,
    released_rows,
    selection_rows,
)
from teachdiag.analysis.isolated import isolated_rows
from teachdiag.analysis.lds import lds_rows
from teachdiag.analysis.matching import matched_rows
from teachdiag.analysis.multiplicity import add_q_values
from teachdiag.analysis.panel import panel_rows
from teachdiag.analysis.placebos import beyond_rows
from teachdiag.analysis.predicted import predicted_rows
from teachdiag.analysis.profiles import (
    concentration_row,
    decile_bins,
    decile_rows,
    gain_surface_rows,
    mean_rows,
    noise_floor_row,
    plane_rows,
    q3_rows,
)
from teachdiag.analysis.ranking import load_tokens
from teachdiag.analysis.regression import regressions
from teachdiag.analysis.scaling import Scores, saturation_rows
from teachdiag.analysis.support_contrast import contrast_rows
from teachdiag.analysis.top_n import top_rows
from teachdiag.analysis.validity import validity
from teachdiag.artefacts import (
    BALANCE,
    BUCKETS,
    CONTRASTS,
    DECILES,
    ESTIMATES,
    INFERENCE,
    PLACEBO_PANEL,
    SATURATION,
    SELECTION,
    SURFACES,
    TOP_N,
)
from teachdiag.progress import Reporter
from teachdiag.settings import SUPPORT_SIZES, AnalyzeSettings
from teachdiag.tables import Table

Rows = list[dict[str, Any]]
Found = dict[Table, Rows]
Task = Callable[[], Found]

_WRITTEN = (
    ESTIMATES,
    INFERENCE,
    CONTRASTS,
    BALANCE,
    TOP_N,
    BUCKETS,
    DECILES,
    SURFACES,
    SATURATION,
    SELECTION,
    PLACEBO_PANEL,
)


@dataclass(frozen=True)
class Inputs:
    """What the estimates are made from."""

    run: Path
    settings: AnalyzeSettings
    bank: Bank
    records: list[Record]
    steps: list[Step]
    normalised: Scores
    raw: Scores
    resampling: Resampling


def estimate_tables(inputs: Inputs, reporter: Reporter) -> dict[Table, pa.Table]:
    """Compute every table but the findings."""
    bank, steps, normalised = inputs.bank, inputs.steps, inputs.normalised
    outcomes = [outcome for step in steps for outcome in select_outcomes(step, bank)]
    found: Found = {table: [] for table in _WRITTEN}
    found[ESTIMATES] += q3_rows(bank) + [noise_floor_row(probe, bank) for step in steps for probe in step.probes]
    found[ESTIMATES] += [concentration_row(outcome) for outcome in outcomes if not outcome.obstacle]
    tasks = _step_tasks(inputs, outcomes)
    tasks += [_probe_task(inputs, record) for record in inputs.records if record.kind not in STEP_KINDS]
    # Numpy works outside the interpreter's lock, so that tasks overlap; rows are gathered in the tasks' order.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for running in reporter.track([pool.submit(task) for task in tasks], "Estimates"):
            for table, rows in running.result().items():
                found[table] += rows
    found[ESTIMATES] += beyond_rows(found[ESTIMATES], steps, {claim.analysis for claim in CLAIMS})
    found[SURFACES] += [row for step in steps for row in gain_surface_rows(step, normalised)]
    found[SURFACES] += plane_rows(bank, normalised)
    bins = decile_bins(inputs.raw)
    defined = [outcome for outcome in outcomes if len(outcome.values)]
    found[DECILES] += [row for o in defined for row in decile_rows(o, inputs.raw, bins, inputs.resampling)]
    found[SATURATION] += saturation_rows(bank.positions, normalised)
    return {table: table.build_rows(rows) for table, rows in found.items()}


def _step_tasks(inputs: Inputs, outcomes: Sequence[Outcome]) -> list[Task]:
    """Return the estimates of real steps and their placebos, each to be made in its turn."""
    bank, resampling = inputs.bank, inputs.resampling
    if not outcomes:
        return []
    folds = _folds(inputs)
    fitted = [outcome for outcome in outcomes if not outcome.obstacle]
    makers: list[Callable[[], Rows]] = [
        *(partial(mean_rows, outcome, bank, resampling) for outcome in outcomes if len(outcome.values)),
        *(partial(validity, group, bank, inputs.raw, folds, resampling) for group in _over_same_rows(fitted)),
    ]
    groups = _over_same_rows(fitted)
    makers += [partial(robust_rows, outcome, resampling) for outcome in fitted]
    tasks: list[Task] = [partial(_estimates_of, make) for make in makers]
    tasks += [partial(_regressions, inputs, group, k) for group in groups for k in SUPPORT_SIZES]
    tasks += [partial(_contrasts, inputs, group) for group in groups]
    measured = [outcome for outcome in outcomes if len(outcome.values)]
    return [*tasks, partial(_top, inputs, _over_same_rows(measured))]


def _contrasts(inputs: Inputs, outcomes: Sequence[Outcome]) -> Found:
    """Compare inside Q3, and bucket by bucket, outcomes that are defined over the same positions."""
    bank, scores, resampling = inputs.bank, inputs.normalised, inputs.resampling
    thirds = contrast_rows(outcomes, bank, resampling, redraw=inputs.settings.cuts == "redrawn")
    matched, balance = matched_rows(outcomes, bank, scores, resampling)
    add_q_values([*thirds, *matched], ("probe_id", "outcome", "design"))
    return {CONTRASTS: thirds + matched, BALANCE: balance, BUCKETS: bucket_rows(outcomes, bank, scores, resampling)}


def _top(inputs: Inputs, groups: Sequence[Sequence[Outcome]]) -> Found:
    tokens = load_tokens(inputs.run, "bank", SUPPORT_SIZES)
    return {TOP_N: top_rows(groups, inputs.bank, tokens, inputs.normalised, inputs.resampling)}


def _regressions(inputs: Inputs, outcomes: Sequence[Outcome], k: int) -> Found:
    """Fit the models of one K to outcomes that are defined over the same positions."""
    bank, redraw = inputs.bank, inputs.settings.cuts == "redrawn"
    sample = make_sample(outcomes, inputs.normalised, k, bank.n_prompts)
    tokens = bank.positions["token_id"].to_numpy(np.int64)[outcomes[0].rows]
    return {
        ESTIMATES: regressions(sample, bank, inputs.resampling, redraw=redraw),
        INFERENCE: inference_rows(sample, tokens, inputs.resampling),
    }


def _folds(inputs: Inputs) -> Codes:
    settings = inputs.settings
    return draw_folds(inputs.bank.n_prompts, settings.folds, settings.fold_repeats, settings.seed)


def _estimates_of(make: Callable[[], Rows]) -> Found:
    return {ESTIMATES: make()}


def _probe_task(inputs: Inputs, record: Record) -> Task:
    """Return what makes the estimates of one probe that is no step with the full analysis."""
    run, bank, resampling, probe_id = inputs.run, inputs.bank, inputs.resampling, record.probe_id
    if record.kind == "selectors":
        return partial(_selection, inputs, record)
    if record.kind == "placebo":
        folds = _folds(inputs)
        return lambda: {PLACEBO_PANEL: panel_rows(run, probe_id, bank, inputs.normalised, inputs.raw, folds)}
    if record.kind == "lds":
        return lambda: {ESTIMATES: lds_rows(run, probe_id, resampling)}
    rows = {"isolated": isolated_rows, "predicted": predicted_rows}[record.kind]
    return lambda: {ESTIMATES: rows(run, probe_id, bank, resampling)}


def _selection(inputs: Inputs, record: Record) -> Found:
    cells = load_cells(inputs.run, record.probe_id, inputs.bank)
    draws = draw_seeds_and_prompts(cells, inputs.resampling)
    floor = float(record.results["noise_floor"])
    gains = gain_statistics(cells, inputs.bank, floor, draws.prompts)
    agreement = agreement_rows(cells) + released_rows(cells, gains)
    return {SELECTION: selection_rows(cells, gains, draws), ESTIMATES: agreement}


def _over_same_rows(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Group outcomes that are defined over the same positions: cross-validation fits them together."""
    groups: dict[bytes, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.rows.tobytes(), []).append(outcome)
    return list(groups.values())
