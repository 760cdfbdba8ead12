"""The analysis for people: `summary.md`, and what the terminal shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from teachdiag.analysis.bank.measurements import Record, read_records
from teachdiag.analysis.bank.normalised import label
from teachdiag.analysis.kinds.kind import Results, analysis_of, read_results
from teachdiag.analysis.report.by_grade import ByGrade
from teachdiag.analysis.report.front_page import FrontPage, first_page
from teachdiag.analysis.report.sections import Section, figure_group, section
from teachdiag.analysis.text.text_tables import rich_table
from teachdiag.markdown import markdown_table
from teachdiag.plots import BANK, plots_of
from teachdiag.runs import Stage

_TIES = (
    "In the column of a budget: the share of it that ties would decide, were the clipped score all there is, as the "
    "paper writes it; then the share that a selector here leaves to chance, which orders what the clip ties by "
    "unclipped values."
)


def sections(records: Sequence[Record], sentences: Mapping[str, Sequence[str]], results: Results) -> list[Section]:
    """Return what every probe has to say, in their order.

    Args:
        records: the run's probes.
        sentences: each probe's verdict.
        results: the tables of the analysis.
    """
    groups = [figure_group(record) for record in records]
    return [
        section(r, sentences[r.probe_id], results, "" if groups.count(group) == 1 else f"-{r.probe_id}")
        for r, group in zip(records, groups, strict=True)
    ]


def summary_markdown(
    page: FrontPage, pair: str, probes: Sequence[Section], grades: ByGrade | None, results: Results
) -> str:
    """Write `summary.md` from its first page, the sentence on the pair, what every probe has to say, and grades."""
    parts = ["# What this student can learn from this teacher", *page.markdown(), "## Everything else", pair]
    parts += [paragraph for probe in probes for paragraph in probe.markdown()]
    parts += grades.markdown() if grades else []
    ties = markdown_table(saturation_table(results.saturation))
    parts += ["## Ties and saturation of the normalised scores", ties, _TIES]
    parts += [
        " ".join(f"![{plot.title}](figures/{plot.name}.png)" for plot in plots_of(BANK)),
        "What each figure asks and shows: `figures/captions.md`. Tables by the paper's numbers, with captions: "
        "`tables/`. Every number, for all outcomes and K: "
        "`analysis/estimates.csv`.",
    ]
    return "\n\n".join(parts) + "\n"


def summary_json(
    page: FrontPage,
    pair: str,
    probes: Sequence[Section],
    grades: ByGrade | None,
    results: Results,
    caveats: Sequence[tuple[str, str]],
) -> str:
    """Write the same as data, for whoever lays it out, and the caveats, each with a heading."""
    ties = saturation_table(results.saturation)
    saturation = {"columns": list(ties.columns), "rows": ties.to_numpy().tolist(), "note": _TIES}
    content = {
        "front": page.laid_out(),
        "pair": pair,
        "sections": [probe.as_dict() for probe in probes],
        "saturation": saturation,
        "caveats": caveats,
    } | ({"grades": grades.as_dict()} if grades else {})
    return json.dumps(content, indent=1) + "\n"


def first_lines(run: Path) -> list[str]:
    """Return the first page of an analysed run, as a terminal shows it."""
    capture = Stage(run, "capture").record("settings.max_new_tokens")
    return first_page(run, capture, read_records(run), read_results(run)).terminal()


def terminal_tables(run: Path) -> list[Table]:
    """Return the central tables of the probes that the first page does not tell of, cut to the width of a terminal.

    `summary.md` has those of all, at every K and budget.
    """
    results = read_results(run)
    return [
        rich_table(title, table)
        for record in read_records(run)
        for title, table in analysis_of(record).central_tables(results).items()
        if len(table)
    ]


def saturation_table(saturation: pd.DataFrame) -> pd.DataFrame:
    """Return the saturation table as text: in the column of a budget, ties by the clip, and what is left to chance."""
    scores = [
        label((name, None if np.isnan(k) else int(k)))
        for name, k in zip(saturation["score"], saturation["k"].astype(float), strict=True)
    ]
    ends = {f"at the {end}": saturation[f"share_at_{end}"].map("{:.1%}".format) for end in ("lowest", "highest")}
    tied, left = (saturation.filter(regex=name) for name in ("^tied_by_clip_at_", "^left_to_chance_at_"))
    budgets = {
        f"budget {int(name[-5:-3])}%": [f"{a:.1%} / {b:.1%}" for a, b in zip(tied[name], left[other], strict=True)]
        for name, other in zip(tied.columns, left.columns, strict=True)
    }
    return pd.DataFrame({"score": scores} | ends | budgets)
