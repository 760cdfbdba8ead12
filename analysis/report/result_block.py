"""Runs' results in Markdown: a headline, a first page, and what all probes show for the page of the study."""

from collections.abc import Sequence
from pathlib import Path

from teachdiag.analysis.bank.measurements import Record, read_records
from teachdiag.analysis.kinds.kind import Results, analysis_of, read_results
from teachdiag.analysis.kinds.steps import at_headline_k, coefficient_table, outcome_table, validity_table
from teachdiag.analysis.report.front_page import FrontPage, first_page
from teachdiag.analysis.report.sections import pair_text
from teachdiag.analysis.step.findings import secondary_title
from teachdiag.markdown import bullets, folded, markdown_table
from teachdiag.runs import Stage
from teachdiag.settings import HEADLINE_K, KINDS
from teachdiag.signals import BASE_LABEL


def headline_block(run: Path) -> str:
    """Return a run's headline, a sentence a line, and what to do next: a few lines.

    Raises:
        ArtefactError: the analysis has not been run.
    """
    page = _page(run, read_results(run))
    return "\n\n".join([bullets(page.headline.sentences), *page.next_step()])


def result_block(run: Path) -> str:
    """Return a run's first page: headline, primary claims, what selectors keep, caveats; and which pair it is of.

    Raises:
        ArtefactError: the analysis has not been run.
    """
    results = read_results(run)
    return "\n\n".join([*_page(run, results).markdown(), pair_text(run, results)])


def _page(run: Path, results: Results) -> FrontPage:
    capture = Stage(run, "capture").record("settings.max_new_tokens")
    return first_page(run, capture, read_records(run), results)


def study_block(runs: Sequence[Path]) -> str:
    """Return what every probe of each run shows, the real steps with their tables first.

    Raises:
        ArtefactError: the analysis of a run is missing.
    """
    return "\n\n".join(part for run in runs for part in _run_parts(run))


def _run_parts(run: Path) -> list[str]:
    order = list(KINDS)
    records = sorted(read_records(run), key=lambda record: order.index(record.kind))
    results = read_results(run)
    pair = pair_text(run, results).split(" Brackets are")[0]
    parts = [_step_parts if KINDS[record.kind].step else _study_parts for record in records]
    return [
        f"**{run.name}.** {pair}",
        *(part for record, make in zip(records, parts, strict=True) for part in make(record, results)),
    ]


def _study_parts(record: Record, results: Results) -> list[str]:
    """Return one probe's sentences, and its compact tables folded away."""
    probe = analysis_of(record)
    tables = [
        folded(title, markdown_table(table))
        for title, table in probe.compact_tables(results).items()
        if not table.empty
    ]
    return [f"**{probe.question}** {probe.text()}", bullets(probe.headlines(results)), *tables]


def _step_parts(record: Record, results: Results) -> list[str]:
    estimates, probe_id, probe = results.estimates, record.probe_id, analysis_of(record)
    coefficients = at_headline_k(coefficient_table(estimates, probe_id))
    validity = validity_table(estimates, probe_id)
    alone = validity[~validity["signals"].str.contains(r"hidden|\+")]
    differences = [name for name in alone.columns if name.endswith(f" vs {BASE_LABEL}")]
    return [
        probe.text(),
        f"Standardised coefficients of gain on D^L (beta_L) and D^I (beta_I), K={HEADLINE_K}:",
        markdown_table(coefficients[["update", "beta_L", "beta_I", "beta_L - beta_I"]]),
        f"beta_L - beta_I for other measures of the gain, K={HEADLINE_K} (`gain_relative` is gain / KL before):",
        markdown_table(outcome_table(estimates, probe_id).drop(columns="theta0", errors="ignore")),
        f"Predicting gain on prompts not seen, K={HEADLINE_K}:",
        markdown_table(alone.drop(columns=["theta0", *differences], errors="ignore")),
        bullets(probe.sentences(results)),
        folded(secondary_title(results.findings, probe_id), bullets(probe.secondary(results))),
    ]
