"""`make gpu`: ten minutes on a machine with one NVIDIA GPU: is it right, how fast is it, and what should `plan` say?

Needs no network, and neither TRL nor vLLM: models are random weights at real sizes, prompts are random ids. Every piece
is a process of its own with a limit in time; what it had measured when it failed or was stopped stays. `gpu.json` and
`gpu.md` are written again, whole, after each piece; `calibration.json` is what `teachdiag plan --calibration` reads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
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
TESTS = ("tests/device", "tests/diagnostics/test_exactness.py")  # where tests are marked `device`
REFERENCE = "a pair of random weights with the shapes of Qwen3 1.7B and 4B, measured by `make gpu`"
Row = dict[str, Any]


def pieces(tiny: bool) -> dict[str, int]:
    """Every piece, and the seconds after which it is stopped."""
    if tiny:
        return dict.fromkeys(("right", "fast tiny/small", "calibration"), 600)
    return {"right": 150, "fast 0.6B/1.7B": 90, "fast 1.7B/4B": 120, "fast 4B/8B": 150, "calibration": 60}


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
        save(list(tests(device, TESTS if not tiny else (f"{TESTS[0]}/test_head.py",))))
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


def tests(device: str, where: tuple[str, ...]) -> Iterator[Row]:
    """Run the tests that are marked `device`, and yield one row a test that did not pass, and one that counts all."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        # Warnings of versions that nobody has run here yet are no failures.
        options = ["-q", "-m", "device", "--device", device, "-o", "filterwarnings=default", f"--junitxml={report}"]
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *where], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if not report.exists():
            yield {"what": "tests", "error": _last_line(ended.stdout + ended.stderr)}
            return
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    yield {"what": f"{passed} tests passed, {len(failed)} failed, {len(skipped)} were skipped", "seconds": None}
    for case in failed:
        fault = case.find("failure") if case.find("failure") is not None else case.find("error")
        assert fault is not None
        yield {"what": f"{case.get('classname')}::{case.get('name')}", "error": fault.get("message", "")[:500]}


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
