"""The paper's claims over several runs: counted by hand."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from teachdiag.artefacts import TABLES
from teachdiag.figures.paper_claims import Answer, answers, holds_on, long_table, wide_table
from teachdiag.figures.run_tables import RunTables

SAID = ("claim", "status", "estimate", "ci_low", "ci_high", "unit")
LEARNABLE = "TA-OPD's learnable score keeps more of the gain than"
KEPT = ("selector", "statistic", "estimate", "ci_low", "ci_high")


def run_tables(primary: list[tuple], kept: list[tuple] | None = None, outcome: str = "gain") -> RunTables:
    """Give the tables of a run of which `paper_claims` reads only a few columns; all else is empty."""
    named = {table.name: pd.DataFrame(columns=[column.name for column in table.columns]) for table in TABLES}
    frames: dict[str, Any] = {entry.name: named[entry.name] for entry in fields(RunTables) if entry.name in named}
    frames["primary"] = pd.DataFrame([dict(zip(SAID, row, strict=True)) | {"probe_id": "one_step"} for row in primary])
    if kept is not None:
        facts = {"probe_id": "efficiency", "outcome": outcome, "match": "norm", "budget": 0.1, "unit": "1"}
        whole = facts | {"selector": "all", "statistic": "gain", "budget": 1.0}
        frames["efficiency"] = pd.DataFrame([whole, *(facts | dict(zip(KEPT, row, strict=True)) for row in kept)])
    return RunTables(run=Path("run"), kinds={}, **frames)


def test_claims_over_runs() -> None:
    runs = {
        "a": run_tables(
            [("the step helps", "holds", 0.01, 0.005, 0.02, "nats"), ("L > I", "artefact", 0.2, 0.1, 0.3, "1")],
            [("learnable", "share_vs_base", -0.1, -0.2, -0.05), ("forward_kl", "share_vs_random", 0.5, 0.3, 0.7)],
        ),
        "b": run_tables(
            [("the step helps", "too long", 0.1, 0.0, 0.2, "nats"), ("L > I", "not judged", 0.2, 0.1, 0.3, "1")]
        ),
        "c": run_tables(
            [("the step helps", "holds", 0.02, None, None, "nats"), ("L > I", "reversed", -1, -2, -0.5, "1")], []
        ),
    }
    given = answers(runs)
    table = long_table(given)
    assert dict(zip(table["claim"], table["holds_on"], strict=True)) == {
        "the step helps": "all: 2 of 2",
        "L > I": "none: 0 of 2; the opposite on 1",
        f"{LEARNABLE} raw KL, at 10% of tokens": "none: 0 of 1; the opposite on 1",
        f"{LEARNABLE} random tokens, at 10% of tokens": "not judged",
        "raw KL keeps more of the gain than random tokens, at 10% of tokens": "all: 1 of 1",
    }
    lines = wide_table(given, list(runs)).splitlines()
    assert lines[0] == "| claim | a | b | c | holds on |"
    cells = ("0.01 [0.005, 0.02] nats: holds", "0.1 [0, 0.2] nats: too long", "0.02 nats: holds", "all: 2 of 2")
    assert lines[2] == f"| the step helps | {' | '.join(cells)} |"
    assert lines[4].endswith("| -0.1 [-0.2, -0.05]: reversed | - | not judged | none: 0 of 1; the opposite on 1 |")


def test_gains_in_different_kls_are_different_claims() -> None:
    kept = [("learnable", "share_vs_base", 0.1, 0.05, 0.2)]
    given = answers({"a": run_tables([], kept), "b": run_tables([], kept, "gain_reverse")})
    assert {(answer.run, answer.claim) for answer in given if answer.status == "holds"} == {
        ("a", f"{LEARNABLE} raw KL, at 10% of tokens"),
        ("b", f"{LEARNABLE.replace('gain', 'gain in KL(student || teacher)')} raw KL, at 10% of tokens"),
    }


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        (["holds", "holds"], "all: 2 of 2"),
        (["holds", "unclear", "reversed"], "some: 1 of 3; the opposite on 1"),
        (["not shown", "too long"], "none: 0 of 1"),
        (["too long", "not judged"], "not judged"),
    ],
)
def test_on_how_many_it_holds(statuses: list[str], said: str) -> None:
    assert holds_on([Answer("claim", str(n), "p", status) for n, status in enumerate(statuses)]) == said
