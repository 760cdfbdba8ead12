"""What `make bench` keeps from one time to the next: ratios stand beside those before, and what costs more is said."""

from pathlib import Path

import history
import pytest
from history import recorded
from workload import Row

PEAK = "  peak"  # a name that two rows have
FIRST: list[Row] = [("scoring", "8 s", "1.00"), (PEAK, "5 MB", "2.0"), ("draws", "1 s", "50x"), (PEAK, "6 MB", "")]
LATER: list[Row] = [("scoring", "9 s", "1.12"), (PEAK, "6 MB", "2.1"), ("draws", "1 s", "40x"), ("new", "1 s", "3")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(history, "HISTORY", tmp_path)
    monkeypatch.setattr(history, "_commit", lambda: "abc")
    return tmp_path


def test_ratios_stand_beside_the_last_ones() -> None:
    assert [row[3] for row in recorded("part", FIRST)] == ["", "", "", ""]
    assert [row[3] for row in recorded("other", FIRST)] == ["", "", "", ""]
    shown = recorded("part", LATER)
    assert [row[:3] for row in shown] == LATER
    assert [row[3] for row in shown] == ["1.00 (abc), worse", "2.0 (abc)", "50x (abc), worse", ""]
    assert [row[3] for row in recorded("part", FIRST)] == ["1.12 (abc)", "2.1 (abc)", "40x (abc)", " (abc)"]


def test_nothing_that_was_recorded_is_lost(folder: Path) -> None:
    for rows in (FIRST, LATER, FIRST):
        recorded("part", rows)
    (file,) = folder.rglob("part.parquet")
    kept = history.read_parquet(file).to_pylist()
    assert [row["measured"] for row in kept] == [row[1] for rows in (FIRST, LATER, FIRST) for row in rows]
    assert file.parent.name.endswith("-threads")
