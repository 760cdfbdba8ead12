"""`make gpu` with tiny shapes on the CPU: every piece leaves its rows, what fails says why, `plan` reads the result."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu
import gpu_rows
import pytest
import torch
from stages import ROOT

from teachdiag.calibration import read_calibration
from teachdiag.planning import plan
from teachdiag.settings import PlanSettings


@pytest.mark.slow
def test_a_pair_is_measured_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: gpu_rows.Bench) -> list[gpu_rows.Row]:
        raise RuntimeError("out of luck\nand a trace")

    monkeypatch.setitem(gpu_rows.GROUPS, "what breaks", broken)
    gpu.measure("fast tiny/small", "cpu", True, tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows.pop() == {"what": "what breaks", "error": "RuntimeError: out of luck"}
    assert not [row for row in rows if "error" in row]
    assert {row["goal"] for row in rows if row.get("goal")} == {"2.0", "1.00", "2.3", "0.8"}
    measured = [row for row in rows if "milliseconds" in row]
    assert all(row["milliseconds"] > 0 and row["peak_gb"] is None for row in measured)
    assert all(row["roofline"] > 0 for row in measured if row["roofline"])
    text = gpu.page(
        {"device_name": "a CPU", "packages": {"torch": "1"}}, {"fast": {"rows": rows, "seconds": 1, "error": ""}}
    )
    assert text.count("\n| ") == len(rows) + 2


@pytest.mark.slow
def test_a_piece_is_measured_apart_and_tests_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["gpu.py", "--device", "cpu", "--tiny", "--only", "right", "--to", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert not ended.value.code
    piece = json.loads((tmp_path / "gpu.json").read_text())["pieces"]["right"]
    assert piece["error"] == ""
    assert [row["what"] for row in piece["rows"]] == ["14 tests passed, 0 failed, 0 were skipped"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


def test_what_tests_said_before_a_session_was_stopped_is_kept() -> None:
    saved: list[list[gpu.Row]] = []
    told = gpu.Told(saved.append)
    for name, when, outcome in (
        ("a", "setup", "passed"),
        ("a", "call", "passed"),
        ("b", "setup", "skipped"),
        ("c", "setup", "failed"),
        ("d", "setup", "passed"),
        ("d", "call", "failed"),
    ):
        facts = {name: name == outcome for name in ("passed", "skipped", "failed")}
        told.pytest_runtest_logreport(
            SimpleNamespace(nodeid=name, when=when, outcome=outcome, longrepr=f"why {name}", **facts)
        )
    counts = [(rows[0]["what"], len(rows) - 1) for rows in saved]
    assert counts == [
        ("1 tests passed, 0 failed, 0 were skipped", 0),
        ("1 tests passed, 0 failed, 1 were skipped", 0),
        ("1 tests passed, 1 failed, 1 were skipped", 1),
        ("1 tests passed, 2 failed, 1 were skipped", 2),
    ]
    assert saved[-1][1:] == [{"what": "c", "error": "why c"}, {"what": "d", "error": "why d"}]


def test_plan_reads_the_calibration(tmp_path: Path) -> None:
    gpu.measure("calibration", "cpu", True, tmp_path / "rows.json")
    found = read_calibration(tmp_path / "calibration.json")
    assert gpu.REFERENCE in found.made_with["reference"]
    assert plan(PlanSettings(positions=1000), found)["time_seconds"]["scoring"] > 0


def test_a_checkout_is_imported_where_it_is_not_installed() -> None:
    """A stand-in for a machine on which nothing can be installed."""
    hidden = (
        "import importlib.metadata as m; m.version = lambda name: (_ for _ in ()).throw(m.PackageNotFoundError(name))"
    )
    asked = f"{hidden}; import teachdiag; print(teachdiag.__version__)"
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "not installed\n"


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--to", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"gpu\.py: --device 'cuda' cannot be used here"):
        gpu.main()
    assert not list(tmp_path.iterdir())


def test_every_test_of_the_device_is_among_those_that_a_session_runs() -> None:
    marked = [file for file in (ROOT / "tests").rglob("test_*.py") if "mark.device" in file.read_text()]
    places = [ROOT / place for place in gpu.TESTS]
    assert len(marked) > 2
    assert all(any(place == file or place in file.parents for place in places) for file in marked)
