"""A run's result in Markdown, short enough for a README: the verdict first, whichever way it falls, then few tables."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from teachdiag.analysis.bank.measurements import STEP_KINDS, Record, read_records
from teachdiag.analysis.kinds.comparison_text import lds_table, panel_table
from teachdiag.analysis.kinds.selectors_text import headline_budget, selection_sentences, selection_table
from teachdiag.analysis.kinds.single_token_text import isolated_table
from teachdiag.analysis.kinds.step_tables import at_headline_k, coefficient_table, outcome_table, validity_table
from teachdiag.analysis.report.sections import Results, pair_text, panel_obstacle, probe_text, read_results, verdict
from teachdiag.analysis.step.findings import STATUSES, at_headline
from teachdiag.markdown import bullets, markdown_table
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import BASE_LABEL

_TOP = 6  # selectors and predictors that are shown, beside those that are always
_FOLLOWED = ("learnable (", "incompatible (", BASE_LABEL, "logit_alignment", "random", "forward_kl", "tip", "all (")
_PANEL = ("mean gain", "beta_L", "beta_I", "beta_L - beta_I", "beta_L - beta_I per unit of norm", "released gap")
_ORDER = (*STEP_KINDS, "placebo", "selectors", "lds", "isolated", "predicted")


def result_block(run: Path) -> str:
    """Return what the run's real steps show at the headline K: tables, then the verdict.

    Raises:
        ArtefactError: the analysis has not been run.
    """
    results = read_results(run)
    steps = [record for record in read_records(run) if record.kind in STEP_KINDS]
    return "\n\n".join([pair_text(run, results), *(part for step in steps for part in _step_parts(step, results))])


def study_block(runs: Sequence[Path]) -> str:
    """Return what the other probes of each run show: selectors, token-LDS, placebo panel, and studies of single tokens.

    Raises:
        ArtefactError: the analysis of a run is missing.
    """
    return "\n\n".join(part for run in runs for part in _run_parts(run))


def _run_parts(run: Path) -> list[str]:
    records = sorted(read_records(run), key=lambda record: _ORDER.index(record.kind))
    studies = [record for record in records if record.kind not in STEP_KINDS]
    if not studies:
        return []
    results = read_results(run)
    pair = pair_text(run, results).split(" Brackets are")[0]
    return [f"**{run.name}.** {pair}", *(part for study in studies for part in _study_parts(study, results))]


def _study_parts(record: Record, results: Results) -> list[str]:
    """Return one probe's sentences, and its compact table folded away."""
    found = [f"**{_HEADINGS[record.kind]}** {probe_text(record)}", bullets(_headline_sentences(record, results))]
    title, table = _compact(record, results)
    return found if table.empty else [*found, _folded(title, markdown_table(table))]


def _headline_sentences(record: Record, results: Results) -> list[str]:
    if record.kind == "selectors":
        leaders_at = [headline_budget(results.selection, record.probe_id)]
        return selection_sentences(results.selection, results.estimates, record.probe_id, leaders_at)
    if record.kind == "placebo":
        return panel_obstacle(record, results) or _panel_sentences(results.panel, record.probe_id)
    return verdict(record, results)


def _panel_sentences(panel: pd.DataFrame, probe_id: str) -> list[str]:
    """Return which headline statistics survive all their placebos, and which placebos show the others too."""
    survivors, others = [], []
    for statistic, rows in panel[panel["probe_id"] == probe_id].groupby("statistic", sort=False):
        shown = rows[rows["survives"] == False]  # noqa: E712 (null where there is nothing to compare with)
        number = f"{statistic} {rows['estimate'].iloc[0]:.3g}"
        if len(shown):
            others.append(f"{number} ({', '.join(shown['update'])})")
        elif rows["survives"].notna().any():
            survivors.append(number)
    count = f"{len(survivors)} of {len(survivors) + len(others)}"
    told = [f"Beyond every null placebo, {count} headline statistics: {'; '.join(survivors) or 'none'}."]
    told += [f"Not beyond the placebos in brackets: {'; '.join(others)}."] * bool(others)
    means = panel[(panel["probe_id"] == probe_id) & (panel["statistic"] == "mean gain")]
    dealt = means[(means["update"] == "shuffled_rollouts") & (means["n_draws"] > 0)]
    return told + [
        f"No null: the true teacher on responses dealt to other prompts gains {row['draw_mean']:.3g} nats, where the "
        f"student's own rollouts gain {row['estimate']:.3g}."
        for row in dealt.to_dict("records")
    ]


def _compact(record: Record, results: Results) -> tuple[str, pd.DataFrame]:
    """Return the one table of a probe that a README shows, cut to its first rows and those under test."""
    probe_id = record.probe_id
    if record.kind == "placebo":
        table = panel_table(results.panel, probe_id)
        return "Headline statistics beside their placebos", table[table["statistic"].isin(_PANEL)]
    if record.kind == "selectors":
        budget = headline_budget(results.selection, probe_id)
        table = selection_table(results.selection, probe_id, budget)
        title = (
            f"Selectors at {100 * budget:g}% of the batch, gains in nats: the first {_TOP} of {len(table)}, and some"
        )
        return title, _cut(table, "selector")
    if record.kind == "lds":
        table = lds_table(results.estimates, probe_id)
        return f"Token-LDS: the first {_TOP} of {len(table)} predictors, and some", _cut(table, "predictor")
    if record.kind == "isolated":
        table = isolated_table(results.estimates, probe_id)
        wanted = [c for c in table.columns if c in ("predictor", "own gain", "drop of L_fix")]
        title = (
            f"Rank correlation with what one token's step does: the first {_TOP} of {len(table)} predictors, and some"
        )
        return title, _cut(table, "predictor")[wanted] if len(table) else table
    return "", pd.DataFrame()


def _cut(table: pd.DataFrame, column: str) -> pd.DataFrame:
    if table.empty:
        return table
    names = table[column]
    return table[(table.index < _TOP) | names.str.startswith(_FOLLOWED) | names.isin(("learnable", "incompatible"))]


def _step_parts(record: Record, results: Results) -> list[str]:
    estimates, probe_id = results.estimates, record.probe_id
    coefficients = at_headline_k(coefficient_table(estimates, probe_id))
    validity = validity_table(estimates, probe_id)
    alone = validity[~validity["signals"].str.contains(r"hidden|\+")]
    differences = [name for name in alone.columns if name.endswith(f" vs {BASE_LABEL}")]
    headline = at_headline(results.findings, probe_id)
    counts = headline["status"].value_counts()
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)
    return [
        probe_text(record),
        f"Standardised coefficients of gain on D^L (beta_L) and D^I (beta_I), K={HEADLINE_K}:",
        markdown_table(coefficients[["update", "beta_L", "beta_I", "beta_L - beta_I"]]),
        f"beta_L - beta_I for other measures of the gain, K={HEADLINE_K} (`gain_relative` is gain / KL before):",
        markdown_table(outcome_table(estimates, probe_id).drop(columns="theta0", errors="ignore")),
        f"Predicting gain on prompts not seen, K={HEADLINE_K}:",
        markdown_table(alone.drop(columns=["theta0", *differences], errors="ignore")),
        _folded(f"The verdict, {len(headline)} claims: {told}", bullets(verdict(record, results))),
    ]


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


_HEADINGS = {
    "placebo": "Is it the step, or the statistic?",
    "selectors": "Which positions should carry the loss?",
    "lds": "Do per-token scores add up?",
    "isolated": "What does a step on one token do?",
    "predicted": "Is first order enough?",
}
