"""Stage analyze: from the tables of capture and probe to every estimate, the verdict and `summary.md`."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from threadpoolctl import threadpool_limits

from teachdiag.analysis.bootstrap import Codes, Resampling
from teachdiag.analysis.cells import load_cells
from teachdiag.analysis.design import GAP, make_sample
from teachdiag.analysis.findings import CLAIMS, finding_rows, lookup, obstacle_sentences
from teachdiag.analysis.frame import (
    STEP_KINDS,
    Bank,
    Outcome,
    Record,
    Step,
    finished_probes,
    load_bank,
    load_step,
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
from teachdiag.analysis.regression import regressions
from teachdiag.analysis.report import Results, verdict
from teachdiag.analysis.scaling import Scores, normalised_scores, raw_scores, saturation_rows
from teachdiag.analysis.summary import summary_markdown
from teachdiag.analysis.validity import draw_folds, validity
from teachdiag.artefacts import DECILES, ESTIMATES, FINDINGS, INFERENCE, PLACEBO_PANEL, SATURATION, SELECTION, SURFACES
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, table_digest, writing
from teachdiag.settings import HEADLINE_K, SUPPORT_SIZES, AnalyzeSettings
from teachdiag.tables import Table, write_parquet, write_text

Rows = list[dict[str, Any]]
Found = dict[Table, Rows]
Task = Callable[[], Found]

_READ = ("positions", "gains", "isolated", "predictions", "interventions", "intervention_gains")
_WRITTEN = (ESTIMATES, INFERENCE, DECILES, SURFACES, SATURATION, SELECTION, PLACEBO_PANEL)


@dataclass(frozen=True)
class _Inputs:
    """What the estimates are made from."""

    run: Path
    settings: AnalyzeSettings
    bank: Bank
    records: list[Record]
    steps: list[Step]
    normalised: Scores
    raw: Scores
    resampling: Resampling


def run_analysis(run: Path, settings: AnalyzeSettings, reporter: Reporter) -> dict[str, Any]:
    """Compute every estimate of a run's probes and write them, the verdict and `summary.md`.

    The stage is cheap and derived, so it always recomputes, whatever an earlier analysis was made with.

    Returns:
        `verdict`: sentences at the headline K, probe by probe; `headline`: beta_L, beta_I and their gap, as [estimate,
        low, high], for each real step; `tables`: the files written, relative to the run. Also the `results` of
        `analyze.json`.

    Raises:
        RunError: capture or a probe is missing or unfinished.
        ArtefactError: a table is missing or does not match the bank.
        EstimationError: the tables do not carry the estimates: too few prompts, or a constant predictor.
    """
    Stage(run, "capture").require()
    stage = Stage(run, "analyze")
    with writing(run):
        inputs = _load(run, settings)
        stage.note.unlink(missing_ok=True)
        stage.claim(settings.as_dict(), {name: table_digest(run / name) for name in _READ})
        with stage.timed(), threadpool_limits(1, "blas"):
            tables = _estimate(inputs, reporter)
            tables[FINDINGS] = FINDINGS.build_rows(_findings(tables[ESTIMATES].to_pandas(), inputs.steps))
            files = [file for table, content in tables.items() for file in _write(run, table, content)]
            results = _summarise(inputs, tables) | {"tables": files}
            stage.complete(results)
    return results


def _load(run: Path, settings: AnalyzeSettings) -> _Inputs:
    bank = load_bank(run)
    records = finished_probes(run)
    steps = [load_step(run, record.probe_id, bank) for record in records if record.kind in STEP_KINDS]
    resampling = Resampling(settings.seed, settings.draws, bank.n_prompts)
    normalised = normalised_scores(bank.positions)
    return _Inputs(run, settings, bank, records, steps, normalised, raw_scores(bank.positions, normalised), resampling)


def _estimate(inputs: _Inputs, reporter: Reporter) -> dict[Table, pa.Table]:
    """Compute every table but the findings."""
    bank, steps, normalised = inputs.bank, inputs.steps, inputs.normalised
    outcomes = [outcome for step in steps for outcome in select_outcomes(step, bank)]
    found: Found = {table: [] for table in _WRITTEN}
    found[ESTIMATES] += q3_rows(bank) + [noise_floor_row(probe, bank) for step in steps for probe in step.probes]
    found[ESTIMATES] += [concentration_row(outcome) for outcome in outcomes if not outcome.obstacle]
    tasks = _step_tasks(inputs, outcomes)
    tasks += [_probe_task(inputs, record) for record in inputs.records if record.kind not in STEP_KINDS]
    for task in reporter.track(tasks, "Estimates"):
        for table, rows in task().items():
            found[table] += rows
    found[ESTIMATES] += beyond_rows(found[ESTIMATES], steps, {claim.analysis for claim in CLAIMS})
    found[SURFACES] += [row for step in steps for row in gain_surface_rows(step, normalised)]
    found[SURFACES] += plane_rows(bank, normalised)
    bins = decile_bins(inputs.raw)
    defined = [outcome for outcome in outcomes if len(outcome.values)]
    found[DECILES] += [row for o in defined for row in decile_rows(o, inputs.raw, bins, inputs.resampling)]
    found[SATURATION] += saturation_rows(bank.positions, normalised)
    return {table: table.build_rows(rows) for table, rows in found.items()}


def _step_tasks(inputs: _Inputs, outcomes: Sequence[Outcome]) -> list[Task]:
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
    tasks: list[Task] = [partial(_estimates_of, make) for make in makers]
    return tasks + [partial(_regressions, inputs, group, k) for group in _over_same_rows(fitted) for k in SUPPORT_SIZES]


def _regressions(inputs: _Inputs, outcomes: Sequence[Outcome], k: int) -> Found:
    """Fit the models of one K to outcomes that are defined over the same positions."""
    bank, redraw = inputs.bank, inputs.settings.cuts == "redrawn"
    sample = make_sample(outcomes, inputs.normalised, k, bank.n_prompts)
    tokens = bank.positions["token_id"].to_numpy(np.int64)[outcomes[0].rows]
    return {
        ESTIMATES: regressions(sample, bank, inputs.resampling, redraw=redraw),
        INFERENCE: inference_rows(sample, tokens, inputs.resampling),
    }


def _folds(inputs: _Inputs) -> Codes:
    settings = inputs.settings
    return draw_folds(inputs.bank.n_prompts, settings.folds, settings.fold_repeats, settings.seed)


def _estimates_of(make: Callable[[], Rows]) -> Found:
    return {ESTIMATES: make()}


def _probe_task(inputs: _Inputs, record: Record) -> Task:
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


def _selection(inputs: _Inputs, record: Record) -> Found:
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


def _findings(estimates: pd.DataFrame, steps: Sequence[Step]) -> Rows:
    return [
        row
        for step in steps
        for row in finding_rows(estimates, step.real.probe_id, [probe.update for probe in step.placebos])
    ]


def _summarise(inputs: _Inputs, tables: dict[Table, pa.Table]) -> dict[str, Any]:
    """Write `summary.md` and return the verdict and the headline numbers."""
    read = (ESTIMATES, FINDINGS, SATURATION, SELECTION, PLACEBO_PANEL)
    results = Results(*(tables[table].to_pandas() for table in read))
    left_out = {s.real.probe_id: obstacle_sentences(select_outcomes(s, inputs.bank)) for s in inputs.steps}
    sentences = {r.probe_id: verdict(r, results) + left_out.get(r.probe_id, []) for r in inputs.records}
    write_text(summary_markdown(inputs.run, inputs.records, sentences, results), inputs.run / "summary.md")
    alone = len(sentences) == 1
    return {
        "verdict": [s if alone else f"{probe}: {s}" for probe, group in sentences.items() for s in group],
        "headline": {s.real.probe_id: _headline(results.estimates, s.real.probe_id) for s in inputs.steps},
    }


def _headline(estimates: pd.DataFrame, probe_id: str) -> dict[str, list[float | None]]:
    terms = {"beta_L": "learnable", "beta_I": "incompatible", "gap": GAP}
    found = {
        name: lookup(estimates, probe_id, "standardized_decomposition", term, HEADLINE_K)
        for name, term in terms.items()
    }
    return {name: list(interval.columns().values()) for name, interval in found.items() if interval is not None}


def _write(run: Path, table: Table, content: pa.Table) -> list[str]:
    """Write one table as Parquet and as CSV; return both places, relative to the run."""
    place = Path(table.place) / table.name
    write_parquet(content, run / f"{place}.parquet")
    text = io.BytesIO()
    pyarrow.csv.write_csv(_flat(content), text)
    write_text(text.getvalue().decode(), run / f"{place}.csv")
    return [f"{place}.parquet", f"{place}.csv"]


def _flat(content: pa.Table) -> pa.Table:
    """Write lists as text, which CSV has no other place for."""
    for place, field in enumerate(content.schema):
        if pa.types.is_list(field.type):
            texts = [" ".join(map(repr, row)) for row in content[place].to_pylist()]
            content = content.set_column(place, field.name, pa.array(texts, pa.string()))
    return content
