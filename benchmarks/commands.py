"""How long a user waits for a first line, and for the figures and the report of the demo's size."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workload import REPEATS, Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/worlds"))
from planted import World, plant

from teachdiag.analysis.analyze import run_analysis
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings

_TEACHDIAG = Path(sys.executable).with_name("teachdiag")
_STARTS = {
    "first line of `teachdiag --help`": ("--help",),
    "`teachdiag probe --help`": ("probe", "--help"),
    "a setting that is refused": ("capture", "--positions", "-1"),
    "a run that is not there": ("analyze", "runs/nowhere"),
    "`teachdiag figures --list`": ("figures", "--list"),
}
_GOAL = 0.6  # s
_DEMO = World(prompts=28, positions=64)


def command_rows() -> list[Row]:
    """CPU seconds of commands that compute nothing, over 0.6 s; then of figures and report of a run like the demo's."""
    rows: list[Row] = []
    for what, words in _STARTS.items():
        cpu = min(_spent(*words)[0] for _ in range(REPEATS))
        rows.append((f"{what}, CPU", f"{cpu:.2f} s", f"{cpu / _GOAL:.2f}"))
    with tempfile.TemporaryDirectory() as folder:
        run = plant(Path(folder) / "run", _DEMO)
        run_analysis(run, AnalyzeSettings(), Reporter(quiet=True))
        took = sum(_spent(command, str(run))[1] for command in ("figures", "report"))
    return [
        *rows,
        ("every figure, table and the report of a run of the demo's size", f"{took:.1f} s", f"{took / 10:.2f}"),
    ]


def _spent(*words: str) -> tuple[float, float]:
    """CPU seconds and seconds of a command."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([_TEACHDIAG, *words], capture_output=True, check=False)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, took
