"""The tables of the paper, and those beyond it, as they are printed: with a caption, as Markdown, CSV and Parquet.

Everything stands in the analysis' long tables already; here it is laid out by the paper's numbers. Nothing is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from teachdiag.figures.run_tables import RunTables, steps_of
from teachdiag.figures.seen import interval_text, number_text
from teachdiag.markdown import markdown_table
from teachdiag.plots import BANK, STEP
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.tables import write_parquet_and_csv, write_text

_NUMBER = ["estimate", "ci_low", "ci_high"]
_COUNTS = ["n_positions", "n_prompts"]


@dataclass(frozen=True)
class Printed:
    """One table as it is printed: where it stands in the paper, what it shows, and its rows."""

    name: str
    paper: str
    what: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Layout:
    """How one table is laid out: of what (the bank, a step, or a kind of probe), and its rows from a run's analysis."""

    of: str
    paper: str
    what: str
    rows: Callable[[RunTables], pd.DataFrame]


def print_tables(run: Path, tables: RunTables, only: str = "") -> list[Path]:
    """Write every table that the run gives something to into `tables/` of the run; return the files.

    Args:
        run: the run directory.
        tables: its analysis.
        only: a table's name; all of them by default.
    """
    files: list[Path] = []
    for name, layout in TABLES.items():
        rows = layout.rows(tables) if only in ("", name) else pd.DataFrame()
        if len(rows):
            printed = Printed(name, layout.paper, layout.what, rows)
            files += write_printed(run / "tables", printed, f"Bank: {tables.population}")
    return files


def write_printed(folder: Path, printed: Printed, population: str) -> list[Path]:
    """Write one table as Parquet, CSV and Markdown; `population` says on whom it was measured."""
    page = folder / f"{printed.name}.md"
    files = write_parquet_and_csv(pa.Table.from_pandas(printed.rows, preserve_index=False), folder / printed.name)
    write_text(_markdown(printed, population), page)
    return [*files, page]


def _markdown(printed: Printed, population: str) -> str:
    """The caption, then the rows: estimate and interval share a cell, methods stand in the caption."""
    rows = printed.rows
    methods = "; ".join(dict.fromkeys(rows["method"])) if "method" in rows else ""
    shown = rows.drop(columns=[c for c in ("method", "ci_low", "ci_high") if c in rows])
    if "ci_low" in rows:
        shown["estimate"] = [interval_text(*row) for row in rows[_NUMBER].itertuples(index=False)]
    source = f"Paper: {printed.paper}." if printed.paper else "Beyond the paper."
    made = f" Intervals are 95%: {methods}." if methods else ""
    return f"# {printed.name}\n\n{printed.what} {source} {population}.{made}\n\n{markdown_table(shown.map(_cell))}\n"


def _cell(value: Any) -> str:  # noqa: ANN401 (what a table holds)
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "-"
    return number_text(value) if isinstance(value, float) else str(value)


def _of_gain(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["outcome"] == OUTCOME]


def _contrasts(tables: RunTables, of_c: bool) -> pd.DataFrame:
    rows = _of_gain(tables.contrasts)
    rows = rows[rows["score"] == "compatibility"] if of_c else rows
    columns = ["probe_id", "update", "score", "k", "design", *_NUMBER, "n_high", "n_low", "n_unmatched"]
    return rows[[*columns, *_COUNTS, "note", "method"]]


def _top(tables: RunTables) -> pd.DataFrame:
    drawn = _of_gain(tables.top_n)
    drawn = drawn[drawn["probe_id"].isin([step.probe_id for step in steps_of(tables)])]
    facts = ["q3_share", *(c for c in map(str, drawn) if c.startswith("mean_")), "tied"]
    return drawn[["probe_id", "selector", "k", "budget", *_NUMBER, "gain_per_keep", *facts, *_COUNTS, "method"]]


_SELECTED = ("mean_gain", "gain_per_kept", "mean_gain_vs_random", "gain_q3", "released_gap", "keep", "q3_share")
_MASKS = ("mean_learnable", "mean_incompatible", "mean_compatibility")


def _selection(tables: RunTables, statistics: Sequence[str], masks: bool) -> pd.DataFrame:
    rows = tables.selection
    if masks:
        rows = rows[rows["selector"].str.startswith("q3")]
    rows = rows[rows["statistic"].isin(statistics)]
    return rows[["probe_id", "selector", "budget", "match", "statistic", *_NUMBER, "n_seeds", *_COUNTS, "method"]]


def _efficiency(tables: RunTables) -> pd.DataFrame:
    columns = ["probe_id", "selector", "budget", "match", "statistic", "unit", *_NUMBER, "norm_error"]
    real = ["real_share", "real_low", "real_high", "real_first_order"]
    return tables.efficiency[[*columns, *real, "n_contexts", "n_prompts", "n_blocks", "method"]]


def _estimates(tables: RunTables, analyses: Sequence[str], every_outcome: bool = False) -> pd.DataFrame:
    rows = tables.estimates[tables.estimates["analysis"].isin(analyses)]
    rows = rows if every_outcome else rows[rows["outcome"].isin([OUTCOME, "fix_gain", "mean_gain"])]
    return rows[["probe_id", "update", "outcome", "k", "analysis", "term", *_NUMBER, *_COUNTS, "n_dropped", "method"]]


def _startswith(tables: RunTables, prefix: str) -> pd.DataFrame:
    names = [name for name in tables.estimates["analysis"].unique() if name.startswith(prefix)]
    return _estimates(tables, names, every_outcome=True)


def _buckets(tables: RunTables, score: str, statistics: Sequence[str]) -> pd.DataFrame:
    rows = _of_gain(tables.buckets)
    by_position = rows["score"] == "position"
    rows = rows[(by_position if score == "position" else ~by_position) & rows["statistic"].isin(statistics)]
    columns = ["probe_id", "update", "region", "score", "k", "statistic", "bucket", "score_low", "score_high"]
    return rows[[*columns, *_NUMBER, *_COUNTS, "method"]]


def _panel(tables: RunTables) -> pd.DataFrame:
    columns = ["probe_id", "statistic", "unit", "estimate", "update", "n_draws", "draw_mean", "draw_sd"]
    return tables.placebo_panel[[*columns, "range_low", "range_high", "survives"]]


_DECOMPOSED = (
    "standardized_decomposition",
    "standardized_nested",
    "fit_decomposition",
    "fit_nested",
    "fit_interaction",
)
TABLES = {
    "q3_contrast": Layout(
        STEP,
        "Table 1, Figures 3C and 5A",
        "Inside Q3, mean gain (nats) where C is high less where it is low, by thirds and by pairs of one prompt.",
        lambda t: _contrasts(t, of_c=True),
    ),
    "support_proxies": Layout(
        STEP,
        "Table 6, Figures 4C and 5B",
        "The same contrast with C's proxies in its place.",
        lambda t: _contrasts(t, of_c=False),
    ),
    "balance": Layout(STEP, "", "Covariates before and after matching, in standard deviations.", lambda t: t.balance),
    "selectors": Layout(
        "selectors",
        "Tables 2 and 10, Figure 3B",
        "Steps on the selected positions of the update batch: what each selector gains on the bank (nats).",
        lambda t: _selection(t, _SELECTED, masks=False),
    ),
    "efficiency": Layout(
        "efficiency",
        "",
        "Share of the whole batch's gain that a step keeps on what each selector chose, to first order.",
        _efficiency,
    ),
    "q3_masks": Layout(
        "selectors",
        "Table 7",
        "Masks inside Q3 of the update batch: what they gain, and what they keep.",
        lambda t: _selection(t, (*_SELECTED, *_MASKS), masks=True),
    ),
    "top_n": Layout(
        STEP,
        "Table 8, Figures 4A and 4B",
        "Exactly the best-scored ceil(budget N) positions of the bank: their mean gain (nats), and what they are.",
        _top,
    ),
    "decomposition": Layout(
        STEP,
        "Table 9, Figure 3A",
        "Standardised coefficients of gain on D^L and D^I, and what the models explain.",
        lambda t: _estimates(t, _DECOMPOSED),
    ),
    "inference": Layout(
        STEP,
        "Table 9, with other errors",
        "Cluster-robust errors and p-values of the coefficients.",
        lambda t: _of_gain(t.inference),
    ),
    "buckets": Layout(
        STEP,
        "Figures 4D and 5C",
        "Gain (nats) by quarter of each score, everywhere and inside Q3.",
        lambda t: _buckets(t, "", ("mean", "median", "trimmed mean")),
    ),
    "residual_bins": Layout(
        STEP,
        "Appendix F",
        "What is left of gain (nats) beside entropies, D and position, by tenth of each score.",
        lambda t: _buckets(t, "", ("residual mean",)),
    ),
    "robust_gains": Layout(
        STEP,
        "Appendix F",
        "Medians, trimmed and winsorised means of every outcome.",
        lambda t: _estimates(t, ("mean", "robust_gain"), every_outcome=True),
    ),
    "position_profile": Layout(
        STEP,
        "",
        "Gain (nats) by response position, and its share of the bank's total.",
        lambda t: _buckets(t, "position", ("mean", "share of total")),
    ),
    "validity": Layout(
        STEP,
        "",
        "How well each set of signals predicts gain on prompts not seen, and how much better than raw KL.",
        lambda t: _estimates(t, ("cv_r2", "cv_r2_difference", "cv_rank", "cv_rank_difference", "spearman")),
    ),
    "placebo_panel": Layout("placebo", "", "Headline statistics of a step beside their placebo draws.", _panel),
    "saturation": Layout(BANK, "", "What clipping and ties decide of every normalised score.", lambda t: t.saturation),
    "predicted": Layout(
        "predicted", "Equation 2", "First-order gain against measured gain.", lambda t: _startswith(t, "predicted")
    ),
    "isolated": Layout(
        "isolated",
        "Equation 2",
        "What single positions' steps do, and what predicts it.",
        lambda t: _startswith(t, "isolated"),
    ),
    "token_lds": Layout("lds", "", "Token-LDS of every predictor.", lambda t: _startswith(t, "token_lds")),
}
