"""`analyze --compat released`: the released code's tables on an imported bank, each beside its departures."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from teachdiag.analysis.released.released_bank import load_released
from teachdiag.analysis.released.released_tables import TABLES
from teachdiag.markdown import bullets, markdown_table
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, writing
from teachdiag.settings import AnalyzeSettings
from teachdiag.tables import write_parquet_and_csv, write_text

_RELATIVE = (
    "gain is relative, (KL before - KL after) / KL before, where Eq. 1 has nats: it has no lower bound at small KL"
)
_FULL = "D is KL over the full vocabulary, where Eq. 3 renormalises on the union of the top K"
_POST = "C and student entropy are those of the updated student, where the paper speaks of signals before the update"
_POST_C = "C is that of the updated student"
_WHOLE = "scores are normalised over the whole bank, where the paper has batches"
_FIXED = "medians and cuts are made once, so that intervals leave their uncertainty out"
_MATCHING = "pairs are nearest in unscaled H, D and position, with replacement, without a caliper, and have no interval"
_NOT_NESTED = "the decomposition drops H x D, so that its R2 is not compared with a model that it contains"
DEPARTURES: dict[str, tuple[str, ...]] = {
    "builder_robust_gain_stats": (_RELATIVE,),
    "builder_bucket_gain_curves": (
        _RELATIVE,
        _FULL,
        _WHOLE,
        "equal scores that straddle a quantile share a bucket, and saturated scores have fewer buckets; no intervals",
    ),
    "builder_standardized_regression_coefficients": (
        _RELATIVE,
        _FULL,
        _WHOLE,
        _NOT_NESTED,
        "no intervals: the release has no code for those of Table 9",
    ),
    "builder_spline_sanity_bins": (_RELATIVE, _FULL, "the base model is linear, without a spline or an interaction"),
    "builder_within_q3_support_proxy_summary": (
        _RELATIVE,
        _FULL,
        _FIXED,
        _MATCHING,
        "overlap and Jaccard order alike; shared_teacher_topk_mass is a copy of C, shared_student_topk_mass always 1",
        "constant and nearly constant proxies give numbers although their arms overlap",
    ),
    "per_run_q3_bootstrap_matching_summary": (_RELATIVE, _FULL, _POST, _FIXED, _MATCHING),
    "per_run_regression_summary": (_RELATIVE, _FULL, _POST, _NOT_NESTED),
    "matched_fixed_context_topn_summary": (
        _RELATIVE,
        _FULL,
        _POST_C,
        "the budget is round(rho N), where the text has exact top-N by ceil",
        "ties at the clip are taken in the order of an unstable sort, which another version of numpy or another "
        "processor may change",
        "the release seeds with Python's hash(), which differs in every process: here `random` and all bounds have a "
        "fixed seed",
    ),
    "support_definition_robustness": (
        _RELATIVE,
        _FULL,
        "support proxies are those of the updated student, H and D those before",
        "scores are percentile ranks, where the other tables clip quantiles",
        _NOT_NESTED,
        "rows that need the top-K lists (shared masses, first choices) are left out; the release compares arbitrary "
        "set elements in its top1_match",
    ),
}


def run_released(run: Path, settings: AnalyzeSettings, reporter: Reporter) -> dict[str, Any]:
    """Write the released code's tables of an imported bank into `analysis/released/`, as Parquet, CSV and one page.

    Returns:
        `tables`: the files written, relative to the run.

    Raises:
        RunError: no bank was imported into this run.
        ArtefactError: the table is missing.
    """
    bank = load_released(run)
    stage = Stage(run, "analyze-released")
    folder = run / "analysis/released"
    files: list[Path] = []
    with writing(run):
        stage.note.unlink(missing_ok=True)
        stage.claim(settings.as_dict(), {})
        with stage.timed():
            parts = [_opening(bank.k, len(bank.rows))]
            for name, make in reporter.track(list(TABLES.items()), "Released tables"):
                table = pd.DataFrame(make(bank))
                files += write_parquet_and_csv(pa.Table.from_pandas(table, preserve_index=False), folder / name)
                parts += [f"## {name}", "Departures from the paper:", bullets(DEPARTURES[name]), _shown(table)]
            write_text("\n\n".join(parts) + "\n", folder / "released.md")
            written = [file.relative_to(run).as_posix() for file in (*files, folder / "released.md")]
            stage.complete({"tables": written})
    return {"tables": written}


def _opening(k: int, positions: int) -> str:
    return (
        "# What the released code prints on this bank\n\n"
        f"{positions:,} positions, K={k}. Point estimates are the released scripts', to the last digits; bootstrap "
        "bounds come from another random stream. Each table names where it departs from the paper (arXiv 2605.26844)."
    )


def _shown(table: pd.DataFrame) -> str:
    return markdown_table(table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else value))
