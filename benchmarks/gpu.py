"""`make gpu`: ten minutes on a machine with one NVIDIA GPU: is it right, how fast is it, and what should `plan` say?

Needs no network, and neither TRL nor vLLM: models are random weights at real sizes, prompts are random ids. Every piece
is a process of its own with a limit in time; what it had measured when it failed or was stopped stays. `gpu.json` and
`gpu.md` are written again, whole, after each piece; `calibration.json` is what `teachdiag plan --calibration` reads.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.calibration import write_calibration
from teachdiag.errors import SettingsError
from teachdiag.markdown import markdown_table
from teachdiag.runs import environment
from teachdiag.tables import write_text

ROOT = Path(__file__).parents[1]
KINDS = ("efficiency", "interventions", "isolated", "predictions")
TESTS = (  # where tests are marked `device`
    *("tests/device", "tests/diagnostics/test_exactness.py"),
    *(f"tests/diagnostics/test_{kind}.py" for kind in KINDS),
)
REFERENCE = "a pair of random weights with the shapes of Qwen3 1.7B and 4B, measured by `make gpu`"
Row = dict[str, Any]


def pieces(tiny: bool) -> dict[str, int]:
    """Every piece, and the seconds after which it is stopped."""
    if tiny:
        return dict.fromkeys(("right", "fast tiny/small", "calibration"), 600)
    return {"right": 180, "fast 0.6B/1.7B": 90, "fast 1.7B/4B": 120, "fast 4B/8B": 150, "calibration": 60}


def main() -> None:
    """Measure every piece, or those that are named, each in a process of its own; exit code 1 if something failed."""
    asked = _arguments()
    if asked.piece:
        measure(asked.piece, asked.device, asked.tiny, Path(asked.to))
        return
    from teachdiag.diagnostics.processes.devices import machine_facts, pick_device

    limits = pieces(asked.tiny)
    if unknown := set(asked.only) - limits.keys():
        sys.exit(f"gpu.py: no piece {', '.join(unknown)}: choose from {', '.join(limits)}")
    try:
        facts = machine_facts(pick_device(asked.device)) | environment()
    except SettingsError as error:
        sys.exit(f"gpu.py: {error}")
    folder, done = Path(asked.to), dict[str, Any]()
    for name in asked.only or limits:
        print(f"{name}: at most {limits[name]} s", flush=True)
        done[name] = _apart(name, limits[name], asked)
        write_text(json.dumps({"made_with": facts, "pieces": done}, indent=2) + "\n", folder / "gpu.json")
        write_text(page(facts, done), folder / "gpu.md")
    print((folder / "gpu.md").read_text(encoding="utf-8"))
    sys.exit(any(piece["error"] or any("error" in row for row in piece["rows"]) for piece in done.values()))


def measure(piece: str, device: str, tiny: bool, to: Path) -> None:
    """Measure one piece in this process; its rows are written to a file after each of its parts.

    Raises:
        SettingsError: the device cannot be used here.
    """

    def save(rows: list[Row]) -> None:
        write_text(json.dumps(rows), to)

    kind, _, pair = piece.partition(" ")
    if kind == "right":
        tests(device, TESTS if not tiny else (f"{TESTS[0]}/test_head.py",), save)
        return
    import torch
    from gpu_rows import calibrated, measure_pair

    from teachdiag.diagnostics.processes.devices import pick_device

    place = torch.device(pick_device(device))
    if kind == "fast":
        student, teacher = pair.split("/")
        measure_pair(student, teacher, place, save)
        return
    found = calibrated(*(("tiny", "small") if tiny else ("1.7B", "4B")), place)
    found = replace(found, made_with={"reference": REFERENCE} | dict(found.made_with))
    write_calibration(found, to.with_name("calibration.json"))
    names = "scoring_tokens_per_second", "rollout_tokens_per_second", "scoring_peak_bytes"
    save([{"what": name.replace("_", " "), "value": f"{getattr(found.measured, name):.4g}"} for name in names])


def tests(device: str, where: tuple[str, ...], save: Callable[[list[Row]], None]) -> None:
    """Run the tests that are marked `device`, in this process, which may be stopped: it leaves no other at work.

    Saves, after each test, one row that counts all so far, and one a test that did not pass.
    """
    import pytest

    told = Told(save)
    # Warnings of versions that nobody has run here yet are no failures.
    options = ["-q", "-m", "device", "--device", device, "-o", "filterwarnings=default"]
    ended = pytest.main([*options, *(str(ROOT / place) for place in where)], plugins=[told])
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        told.faults.append({"what": "tests", "error": f"pytest ended with {ended!r}"})
    told.save()


class Told:
    """What pytest tells of each test, as rows."""

    def __init__(self, save: Callable[[list[Row]], None]) -> None:
        """Take what is called with all rows after each test."""
        self._save, self.counts, self.faults = save, Counter[str](), list[Row]()

    def save(self) -> None:
        """Save what was told so far."""
        passed, failed, skipped = (self.counts[name] for name in ("passed", "failed", "skipped"))
        counted = {"what": f"{passed} tests passed, {failed} failed, {skipped} were skipped", "seconds": None}
        self._save([counted, *self.faults])

    def pytest_collectreport(self, report: Any) -> None:  # noqa: ANN401 (of pytest)
        """Note a file whose tests cannot be read."""
        if report.failed:
            self._fault(report)

    def pytest_runtest_logreport(self, report: Any) -> None:  # noqa: ANN401
        """Count a test, and note one that failed."""
        if report.failed:
            self._fault(report)
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1
            self.save()

    def _fault(self, report: Any) -> None:  # noqa: ANN401
        crash = getattr(report.longrepr, "reprcrash", None)
        self.faults.append({"what": report.nodeid, "error": str(crash.message if crash else report.longrepr)[:500]})


def page(facts: Mapping[str, Any], done: Mapping[str, Any]) -> str:
    """Return everything that was measured, as Markdown."""
    torch = facts["packages"]["torch"]
    text = [f"# {facts['device_name']}, torch {torch}\n"]
    for name, piece in done.items():
        text.append(f"## {name}\n\nTook {piece['seconds']:.0f} s.{' ' + piece['error'] if piece['error'] else ''}\n")
        if piece["rows"]:
            text.append(markdown_table(pd.DataFrame([_cells(row) for row in piece["rows"]])) + "\n")
    return "\n".join(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda", help="torch device; one that is not there is an error")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, which take seconds on any machine")
    parser.add_argument("--only", nargs="+", default=[], help="pieces to measure, by name; all by default")
    parser.add_argument("--to", default="runs/gpu", help="folder of what is written")
    parser.add_argument("--piece", help=argparse.SUPPRESS)  # of the process that measures one
    return parser.parse_args()


def _apart(name: str, limit: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure a piece in a process of its own: its rows, the seconds that it took, and why it ended early if it did."""
    to = Path(asked.to) / "piece.json"
    to.unlink(missing_ok=True)
    options = ["--device", asked.device, "--to", str(to), *(["--tiny"] if asked.tiny else [])]
    start, error = time.perf_counter(), ""
    try:
        ended = subprocess.run(
            [sys.executable, __file__, "--piece", name, *options],
            stderr=subprocess.PIPE, text=True, timeout=limit, check=False,
        )  # fmt: skip
        if ended.returncode:
            error = f"It failed: {_last_line(ended.stderr)}"
    except subprocess.TimeoutExpired:
        error = f"It was stopped after {limit} s."
    rows = json.loads(to.read_text(encoding="utf-8")) if to.exists() else []
    to.unlink(missing_ok=True)
    return {"rows": rows, "seconds": time.perf_counter() - start, "error": error}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def _cells(row: Row) -> dict[str, str]:
    """One measurement for people; what was not measured is a dash."""

    def cell(name: str, form: str, unit: str = "") -> str:
        return format(row[name], form) + unit if row.get(name) is not None else "–"

    return {
        "what": row["what"] + (f" ({row['note']})" if row.get("note") else ""),
        "took": row.get("error") or row.get("value") or cell("milliseconds", ".4g", " ms"),
        "tokens/s": cell("tokens_per_second", ",.0f"),
        "peak memory": cell("peak_gb", ".3g", " GB"),
        "ratio": cell("ratio", ".2f"),
        "goal": row.get("goal") or "–",
        "share of roofline": cell("roofline", ".0%"),
    }


if __name__ == "__main__":
    main()
