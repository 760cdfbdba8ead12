"""The page of results: minutes as the runs recorded them, and tables over runs that were measured at other times."""

import json
from pathlib import Path

import pandas as pd

from tools.results_page import by_outcome, minutes_table, page_tables, yardsticks_table


def test_minutes_are_summed_over_starts_and_unknown_where_one_did_not_end(tmp_path: Path) -> None:
    events = [
        {"stage": "capture", "event": "begin"},
        {"stage": "capture", "event": "end", "seconds": 90.0},
        {"stage": "capture", "event": "begin"},
        {"stage": "capture", "event": "end", "seconds": 30.0},
        {"stage": "probes/one_step", "event": "begin"},
        {"stage": "analyze", "event": "begin"},
        {"stage": "analyze", "event": "end", "seconds": 12.0},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert minutes_table(tmp_path).to_dict("records") == [{"capture": "2.0", "analyze": "0.2"}]


def test_runs_stand_beside_one_another() -> None:
    def of(run: str, status: str, minutes: dict[str, str]) -> dict:
        claim = {"claim": "the step helps", "run": run, "probe_id": "one_step", "status": status, "unit": "nats"}
        numbers = {"estimate": 0.5, "ci_low": 0.25, "ci_high": 0.75}
        rest = [{"what": "x", "run": run}]
        return {
            "claims": [claim | numbers],
            **dict.fromkeys(("yardsticks", "kept", "steps", "places", "support"), rest),
            "minutes": [minutes | {"run": run}],
        }

    pages = page_tables([of("a", "holds", {"capture": "1.0"}), of("b", "not shown", {"capture": "2.0", "lds": "3.0"})])
    numbers = "0.5 [0.25, 0.75] nats"
    claim = f"| the step helps | {numbers}: holds | {numbers}: not shown | some: 1 of 2 |"
    assert pages["claims"].splitlines()[2:] == [claim]
    assert pages["minutes"].splitlines()[2:] == ["| a | 1.0 | - |", "| b | 2.0 | 3.0 |"]


def test_gains_stand_in_either_kl_beside_those_towards_shuffled_rows() -> None:
    gains = {("one_step", "gain"): 0.5, ("one_step", "gain_reverse"): 2.0, ("shuffled_teacher", "gain"): -1.0}
    means = [
        {"analysis": "mean", "term": "bank", "update": update, "outcome": outcome}
        | {"estimate": value, "ci_low": value - 0.25, "ci_high": value + 0.25}
        for (update, outcome), value in gains.items()
    ]
    others = [means[0] | {"analysis": "median", "estimate": 9.0}, means[1] | {"term": "q3", "estimate": 1.0}]
    table = yardsticks_table(pd.DataFrame([*others, *means]))
    assert table.to_numpy().tolist() == [
        ["the true ones", "all", "0.5 [0.25, 0.75]", "2 [1.75, 2.25]"],
        ["the true ones", "Q3", "-", "1 [1.75, 2.25]"],
        ["shuffled", "all", "-1 [-1.25, -0.75]", "-"],
        ["shuffled", "Q3", "-", "-"],
    ]
    assert yardsticks_table(pd.DataFrame(means[2:]))["teacher rows"].tolist() == ["shuffled", "shuffled"]


def test_each_kl_has_rows_of_its_own() -> None:
    efficiency = pd.DataFrame({"outcome": ["gain", "gain_reverse", "gain"], "share": [1, 2, 3]})
    table = by_outcome(lambda rows: rows[["share"]], efficiency)
    assert table.to_numpy().tolist() == [
        [1, "KL(teacher to student)"],
        [3, "KL(teacher to student)"],
        [2, "KL(student to teacher)"],
    ]
