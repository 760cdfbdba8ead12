"""`make adapters`: put into docs/adapters.md what steps on all weights and on an adapter say of the same banks."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pandas as pd

from teachdiag.artefacts import GAINS
from teachdiag.figures.paper_claims import answers, wide_table
from teachdiag.figures.run_tables import RunTables, load_tables
from teachdiag.figures.seen import interval_text
from teachdiag.markdown import markdown_table
from teachdiag.runs import Stage
from teachdiag.settings import HEADLINE_BUDGET, HEADLINE_OUTCOME, HEADLINE_SELECTORS
from teachdiag.tables import rows_where
from tools.readme_result import ROOT, put

PAGE = ROOT / "docs/adapters.md"
_KEY = ("context_id", "position")


def main(runs: Sequence[Path]) -> None:
    """Replace what stands between the page's marks."""
    loaded = {run.name: load_tables(run) for run in runs}
    put(PAGE, "claims", claims_table(loaded))
    put(PAGE, "kept", markdown_table(kept_table(loaded)))
    put(PAGE, "tokens", markdown_table(tokens_table(loaded)))


def moved(run: Path, probe_id: str) -> str:
    """Return which weights a probe's steps moved, in words."""
    train = Stage(run, f"probes/{probe_id}").record()["settings"]["train"]
    return "all weights" if train in ("auto", "all") else str(train)


def claims_table(loaded: dict[str, RunTables]) -> str:
    """Return the claims in Markdown, one a line: what each run says, in each space."""
    given = [
        replace(answer, run=f"{answer.run}, {moved(loaded[answer.run].run, answer.probe_id)}")
        for answer in answers(loaded)
    ]
    return wide_table(given, sorted({answer.run for answer in given}))


def kept_table(loaded: dict[str, RunTables]) -> pd.DataFrame:
    """Return the share of the whole batch's gain that selectors keep at one budget, at equal step length."""
    columns = {}
    for name, tables in loaded.items():
        at = rows_where(tables.efficiency, match="norm", budget=HEADLINE_BUDGET, statistic="share")
        for probe_id in tables.probes("efficiency"):
            of_probe = rows_where(at, probe_id=probe_id).set_index("selector")
            columns[f"{name}, {moved(tables.run, probe_id)}"] = [
                interval_text(*of_probe.loc[selector, ["estimate", "ci_low", "ci_high"]])
                if selector in of_probe.index
                else "-"
                for selector in HEADLINE_SELECTORS
            ]
    return pd.DataFrame({"selector": HEADLINE_SELECTORS} | columns)


def tokens_table(loaded: dict[str, RunTables]) -> pd.DataFrame:
    """Return how alike two steps rank a bank's positions by their gain: Spearman's correlation."""
    rows = []
    for name, tables in loaded.items():
        gains = {
            moved(tables.run, probe_id): GAINS.read(tables.run / "gains" / probe_id, [*_KEY, HEADLINE_OUTCOME])
            .set_index(list(_KEY))[HEADLINE_OUTCOME]
            .sort_index()
            for probe_id in tables.probes("one_step")
        }
        for one, other in combinations(gains, 2):
            alike = gains[one].corr(gains[other], method="spearman")
            rows.append({"run": name, "steps": f"{one} and {other}", "rank correlation of gains": f"{alike:.2f}"})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
