"""Stage analyze: from the tables of capture and probe to every estimate, the verdict and `summary.md`."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv

from teachdiag.analysis.bootstrap import Resampling
from teachdiag.analysis.findings import CLAIMS, at_headline, finding_rows, lookup, obstacle_sentences
from teachdiag.analysis.frame import Bank, Outcome, Step, load_bank, load_steps, select_outcomes
from teachdiag.analysis.placebos import beyond_rows
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
from teachdiag.analysis.regression import GAP, regressions
from teachdiag.analysis.scaling import normalised_scores, raw_scores, saturation_rows
from teachdiag.analysis.summary import summary_markdown
from teachdiag.analysis.validity import draw_folds, validity
from teachdiag.artefacts import DECILES, ESTIMATES, FINDINGS, SATURATION, SURFACES
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, table_digest, writing
from teachdiag.settings import HEADLINE_K, AnalyzeSettings
from teachdiag.tables import Table, write_parquet, write_text

Rows = list[dict[str, Any]]


def run_analysis(run: Path, settings: AnalyzeSettings, reporter: Reporter) -> dict[str, Any]:
    """Compute every estimate of a run's probes and write them, the verdict and `summary.md`.

    The stage is cheap and derived, so it always recomputes, whatever an earlier analysis was made with.

    Returns:
        `verdict`: sentences at the headline K; `headline`: beta_L, beta_I and their gap, as [estimate, low, high], for
        each real step; `tables`: the files written, relative to the run. Also the `results` of `analyze.json`.

    Raises:
        RunError: capture or a probe is missing or unfinished.
        ArtefactError: a table is missing or does not match the bank.
        EstimationError: the tables do not carry the estimates: too few prompts, or a constant predictor.
    """
    Stage(run, "capture").require()
    stage = Stage(run, "analyze")
    with writing(run):
        bank = load_bank(run)
        steps = load_steps(run, bank)
        stage.note.unlink(missing_ok=True)
        stage.claim(settings.as_dict(), {name: table_digest(run / name) for name in ("positions", "gains")})
        with stage.timed():
            tables = _estimate(bank, steps, settings, reporter)
            tables[FINDINGS] = FINDINGS.build_rows(_findings(tables[ESTIMATES].to_pandas(), steps))
            files = [file for table, content in tables.items() for file in _write(run, table, content)]
            results = _summarise(run, bank, steps, tables) | {"tables": files}
            stage.complete(results)
    return results


def _estimate(
    bank: Bank, steps: Sequence[Step], settings: AnalyzeSettings, reporter: Reporter
) -> dict[Table, pa.Table]:
    """Compute every table but the findings."""
    normalised = normalised_scores(bank.positions)
    raw = raw_scores(bank.positions, normalised)
    resampling = Resampling(settings.seed, settings.draws, bank.n_prompts)
    folds = draw_folds(bank.n_prompts, settings.folds, settings.fold_repeats, settings.seed)
    bins = decile_bins(raw)
    outcomes = [outcome for step in steps for outcome in select_outcomes(step, bank)]
    defined, fitted = [o for o in outcomes if len(o.values)], [o for o in outcomes if not o.obstacle]
    tasks: list[Callable[[], Rows]] = [
        *(partial(mean_rows, outcome, bank, resampling) for outcome in defined),
        *(partial(regressions, outcome, bank, normalised, resampling) for outcome in fitted),
        *(partial(validity, group, bank, raw, folds, resampling) for group in _over_same_rows(fitted)),
    ]
    estimates = q3_rows(bank) + [noise_floor_row(probe, bank) for step in steps for probe in step.probes]
    estimates += [concentration_row(outcome) for outcome in fitted]
    for task in reporter.track(tasks, "Estimates"):
        estimates += task()
    estimates += beyond_rows(estimates, steps, {claim.analysis for claim in CLAIMS})
    surfaces = [row for step in steps for row in gain_surface_rows(step, normalised)] + plane_rows(bank, normalised)
    deciles = [row for outcome in defined for row in decile_rows(outcome, raw, bins, resampling)]
    saturation = saturation_rows(bank.positions, normalised)
    found = {ESTIMATES: estimates, DECILES: deciles, SURFACES: surfaces, SATURATION: saturation}
    return {table: table.build_rows(rows) for table, rows in found.items()}


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


def _summarise(run: Path, bank: Bank, steps: Sequence[Step], tables: dict[Table, pa.Table]) -> dict[str, Any]:
    """Write `summary.md` and return the verdict and the headline numbers."""
    estimates, findings, saturation = (tables[t].to_pandas() for t in (ESTIMATES, FINDINGS, SATURATION))
    sentences = {
        step.real.probe_id: list(at_headline(findings, step.real.probe_id)["sentence"])
        + obstacle_sentences(select_outcomes(step, bank))
        for step in steps
    }
    write_text(summary_markdown(run, sentences, estimates, findings, saturation), run / "summary.md")
    return {
        "verdict": [s if len(steps) == 1 else f"{probe}: {s}" for probe, group in sentences.items() for s in group],
        "headline": {probe: _headline(estimates, probe) for probe in sentences},
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
    pyarrow.csv.write_csv(content, text)
    write_text(text.getvalue().decode(), run / f"{place}.csv")
    return [f"{place}.parquet", f"{place}.csv"]
