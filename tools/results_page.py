"""`make results`: put what was measured on several pairs, whichever way it falls, into docs/results.md."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from teachdiag.analysis.kinds.efficiency import real_table
from teachdiag.figures.run_tables import load_tables
from teachdiag.markdown import markdown_table
from teachdiag.runs import Stage
from tools.off_support import off_support_table
from tools.readme_result import ROOT, put

PAGE = ROOT / "docs/results.md"


def main(runs: Sequence[Path]) -> None:
    """Replace what stands between the page's marks; `teachdiag figures RUN RUN ...` has compared these very runs."""
    put(PAGE, "claims", (runs[0].parent / "comparison/claims.md").read_text().rstrip())
    put(PAGE, "steps", markdown_table(real_steps_table(runs)))
    put(PAGE, "support", markdown_table(off_support_table(runs)))
    put(PAGE, "minutes", markdown_table(minutes_table(runs)))


def real_steps_table(runs: Sequence[Path]) -> pd.DataFrame:
    """Return what masked steps that were really taken kept, beside what first order says of the same batches."""
    tables = []
    for run in runs:
        table = real_table(load_tables(run).efficiency)
        table.insert(0, "run", run.name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def minutes_table(runs: Sequence[Path]) -> pd.DataFrame:
    """Return the minutes that every stage of every run took, as the runs recorded them."""
    return pd.DataFrame([{"run": run.name} | dict(_minutes(run)) for run in runs]).fillna("-")


def _minutes(run: Path) -> Iterator[tuple[str, str]]:
    for stage in ("capture", "probes/one_step", "probes/efficiency", "analyze"):
        seconds = Stage(run, stage).seconds()
        if seconds is not None:
            yield stage.removeprefix("probes/"), f"{seconds / 60:.1f}"


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
