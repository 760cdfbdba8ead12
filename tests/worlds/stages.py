"""Stages as tests run them: settings as a command line, several processes, a kill, and what a run holds afterwards."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from teachdiag.notes import write_note
from teachdiag.runs import table_digest
from teachdiag.settings import (
    AnalyzeSettings,
    CalibrateSettings,
    CaptureSettings,
    EvaluateSettings,
    FiguresSettings,
    PlanSettings,
    ProbeSettings,
    ReportSettings,
    TrainSettings,
)
from teachdiag.settings.base import Checked

ROOT = Path(__file__).parents[2]
WORLDS = Path(__file__).parent
STAGES: dict[str, type[Checked]] = {
    "capture": CaptureSettings,
    "probe": ProbeSettings,
    "analyze": AnalyzeSettings,
    "figures": FiguresSettings,
    "report": ReportSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "plan": PlanSettings,
    "calibrate": CalibrateSettings,
}


def tables(run: Path) -> dict[str, str]:
    return {str(f.relative_to(run)): table_digest(f) for f in sorted(run.rglob("*.parquet"))}


def amend(note: Path, change: Callable[[dict], object]) -> None:
    """Change a note as its writer would have written it."""
    content = json.loads(note.read_text())
    del content["sha256"]
    change(content)
    write_note(content, note)


class Killed(Exception):
    """Stands for a kill signal."""


def dying(function: Callable, after: int) -> Callable:
    calls = 0

    def wrapper(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Killed
        return function(*args, **kwargs)

    return wrapper


def options(settings: CaptureSettings | ProbeSettings) -> list[str]:
    """The command line of some settings."""
    words: list[str] = []
    for name, value in settings.as_dict().items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option if value else f"--no-{name.replace('_', '-')}"]
        elif value not in ("", None):
            words += [option, str(value)]
    return words


def torchrun(processes: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes, as a user starts them."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *command]
    return subprocess.run([sys.executable, *start], capture_output=True, text=True, timeout=300)
