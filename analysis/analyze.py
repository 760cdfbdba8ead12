"""Stage analyze: from the tables of capture and probe to every estimate, the verdict and `summary.md`."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits

from teachdiag.analysis.bank.graded import load_grades
from teachdiag.analysis.bank.measurements import finished_probes, left_out_probes, load_bank, load_step, select_outcomes
from teachdiag.analysis.bank.normalised import normalised_scores, raw_scores
from teachdiag.analysis.kinds.kind import RESULT_TABLES, Inputs, Results, analysis_of
from teachdiag.analysis.report.by_grade import by_grade
from teachdiag.analysis.report.caveats import caveats
from teachdiag.analysis.report.front_page import first_page
from teachdiag.analysis.report.sections import pair_text
from teachdiag.analysis.report.summary import sections, summary_json, summary_markdown
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.findings import finding_rows, obstacle_sentences, primary_rows
from teachdiag.analysis.tasks import estimate_tables
from teachdiag.artefacts import ESTIMATES, FINDINGS, PRIMARY, TOKENS
from teachdiag.progress import Reporter
from teachdiag.runs import SUMMARY, Stage, joining, table_digest
from teachdiag.settings import KINDS, AnalyzeSettings
from teachdiag.tables import Table, write_parquet_and_csv, write_table, write_text

Rows = list[dict[str, Any]]


def run_analysis(run: Path, settings: AnalyzeSettings, reporter: Reporter) -> dict[str, Any]:
    """Compute every estimate of a run's probes and write them, the verdict and `summary.md`.

    The stage is cheap and derived, so it always recomputes, whatever an earlier analysis was made with.

    Returns:
        `headline`: sentences, the recommended action with its command, and caveats; `verdict`: sentences at the
        headline K, probe by probe; `tables`: the files written, relative to the run; `left_out`: a sentence on
        each probe that is. Also the `results` of `analyze.json`.

    Raises:
        RunError: capture is missing or unfinished, or no probe has ended.
        ArtefactError: a table is missing or does not match the bank.
        EstimationError: the tables do not carry the estimates: too few prompts, or a constant predictor.
    """
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps what it has freed, up to as much again
    capture = Stage(run, "capture")
    capture.record()
    stage = Stage(run, "analyze")
    with joining(run):
        digests = capture.require().get("tables", {})
        inputs = _load(run, settings)
        measured = dict.fromkeys(folder for kind in KINDS.values() for folder in kind.folders)
        read = {name: digests.get(name) or table_digest(run / name) for name in ("positions", "grades", *measured)}
        with stage.timed(), threadpool_limits(1, "blas"):
            tables = estimate_tables(inputs, reporter)
            findings = _findings(tables[ESTIMATES].to_pandas(), inputs)
            tables |= {FINDINGS: FINDINGS.build_rows(findings), PRIMARY: PRIMARY.build_rows(primary_rows(findings))}
            stage.note.unlink(missing_ok=True)  # not before: an analysis that is refused leaves the earlier one
            stage.claim(settings.as_dict(), read)
            files = [file for table, content in tables.items() for file in _write(run, table, content)]
            results = _summarise(inputs, tables) | {"tables": files, "left_out": left_out_probes(run)}
            for sentence in results["left_out"]:
                reporter.say(f"{run}: {sentence}")
            stage.complete(results, [file for file in files if not file.endswith(".csv")] + [SUMMARY])
    return results


def _load(run: Path, settings: AnalyzeSettings) -> Inputs:
    bank = load_bank(run)
    records = finished_probes(run)
    steps = [load_step(run, record.probe_id, bank) for record in records if KINDS[record.kind].step]
    resampling = Resampling(settings.seed, settings.draws, bank.n_prompts)
    normalised = normalised_scores(bank)
    raw, graded = raw_scores(bank, normalised), load_grades(run, bank)
    return Inputs(run, settings, bank, records, steps, normalised, raw, resampling, graded)


def _findings(estimates: pd.DataFrame, inputs: Inputs) -> Rows:
    records = {record.probe_id: record for record in inputs.records}
    return [
        row
        for step in inputs.steps
        for row in finding_rows(
            estimates, records[step.real.probe_id], {update: step.draws_of(update) for update in step.placebo_ids}
        )
    ]


def _summarise(inputs: Inputs, tables: dict[Table, pa.Table]) -> dict[str, Any]:
    """Write `summary.md` and return the verdict and the headline numbers."""
    capture = Stage(inputs.run, "capture").record("settings.max_new_tokens")
    results = Results(*(tables[table].to_pandas() for table in RESULT_TABLES))
    left_out = {s.real.probe_id: obstacle_sentences(select_outcomes(s, inputs.bank)) for s in inputs.steps}
    sentences = {
        r.probe_id: [*r.results.get("doubts", []), *analysis_of(r).sentences(results), *left_out.get(r.probe_id, [])]
        for r in inputs.records
    }
    probes, pair = sections(inputs.records, sentences, results), pair_text(inputs.run, results)
    grades = by_grade(inputs.run, results)
    page = first_page(inputs.run, capture, inputs.records, results)
    write_text(summary_markdown(page, pair, probes, grades, results), inputs.run / "summary.md")
    doubts = caveats(inputs.run, capture, results)
    write_text(summary_json(page, pair, probes, grades, results, doubts), inputs.run / SUMMARY)
    alone = len(sentences) == 1
    said = {r.probe_id: [*sentences[r.probe_id], *analysis_of(r).secondary(results)] for r in inputs.records}
    return {
        "warnings": capture["results"].get("warnings", []),
        "verdict": [s if alone else f"{probe}: {s}" for probe, group in said.items() for s in group],
        "headline": page.as_dict(),
    }


def _write(run: Path, table: Table, content: pa.Table) -> list[str]:
    """Write one table; return its files, or its folder, relative to the run."""
    if table is TOKENS:  # as long as the bank, which no CSV is for
        write_table(content, run / table.folder)
        return [table.name]
    return [
        file.relative_to(run).as_posix() for file in write_parquet_and_csv(content, run / table.folder / table.name)
    ]
