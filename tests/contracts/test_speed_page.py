"""The page of speed: of every goal what was measured last on each machine, and what was not."""

from pathlib import Path

import history
import pytest
from history import recorded

from tools.speed_page import GOALS, NOT_MEASURED, last_table, speed_table


def test_the_last_number_of_every_goal_stands_in_its_machines_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "HISTORY", tmp_path)
    monkeypatch.setattr(history, "_machine", lambda: "a-machine-2-threads")
    for ratio in ("1.20", "0.96"):
        recorded("scoring", [("exact scoring of the same batches, float32", "9 s", ratio)])
    recorded("estimates", [("  peak memory", "300 MB", "-"), ("  peak memory", "731 MB", "-")])
    column = speed_table(tmp_path).set_index("work")["a machine 2 threads"]
    assert column["exact scoring of both models, float32, files and all"] == "0.96"
    assert list(column["its peak memory"]) == [NOT_MEASURED, "731 MB", NOT_MEASURED]
    assert (column == NOT_MEASURED).sum() == len(GOALS) - 2


def test_what_a_part_measured_last_stands_beside_what_another_machine_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "HISTORY", tmp_path)
    for machine, part, rows in (
        ("a", "long", [("512 tokens", "10 tok/s", "1")]),
        ("b", "long", [("512 tokens", "20 tok/s", "1"), ("4096 tokens", "9 tok/s", "2")]),
        ("b", "longest", [("16384 tokens", "2 tok/s", "1")]),
        ("a", "long", [("512 tokens", "11 tok/s", "1")]),
    ):
        monkeypatch.setattr(history, "_machine", lambda machine=machine: machine)
        recorded(part, rows)
    monkeypatch.setattr(history, "_machine", lambda: "c")
    recorded("heads", [("bare", "1 s", "1")])
    expected = [
        ["512 tokens", "11 tok/s", "20 tok/s"],
        ["4096 tokens", NOT_MEASURED, "9 tok/s"],
        ["16384 tokens", NOT_MEASURED, "2 tok/s"],
    ]
    table = last_table(tmp_path, "long", "longest")
    assert table.columns.tolist() == ["work", "a", "b"]
    assert table.to_numpy().tolist() == expected
