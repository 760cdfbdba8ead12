"""Trackers: a stage's settings, progress and results go to trackio or wandb, which have the same functions.

One run of the tracker is one command on one run directory. Settings go there as they were given, paths included.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

TrackerName = Literal["none", "trackio", "wandb"]
PROJECT = "teachdiag"  # unless TRACKIO_PROJECT or WANDB_PROJECT names another
_PATIENCE = 1.0  # seconds between two numbers of one bar


class Tracker:
    """One run of a tracker; without a package one that keeps nothing."""

    def __init__(self, log: Callable[[dict[str, Any]], object] | None = None) -> None:
        self._log, self._told = log, -math.inf

    def progress(self, label: str, done: float, total: float) -> None:
        """Log how far a bar has come, of so many units; at most one number a second, and the last one."""
        now = time.monotonic()
        if self._log and (done >= total or now - self._told >= _PATIENCE):
            self._told = now
            self._log({f"progress/{label}": done})

    def results(self, summary: Mapping[str, Any]) -> None:
        """Log a stage's summary: numbers and sentences, each by its place in the summary."""
        if self._log:
            self._log(dict(_flat("results", summary)))


@contextmanager
def tracking(package: TrackerName, stage: str, run: Path, settings: Mapping[str, Any]) -> Iterator[Tracker]:
    """Open a run of a tracker, and end it with the stage, however that ends.

    Args:
        package: what tracks; 'none' for nothing.
        stage: the command.
        run: its run directory.
        settings: its settings, plain values.
    """
    if package == "none":
        yield Tracker()
        return
    module, project = import_module(package), os.environ.get(f"{package.upper()}_PROJECT", PROJECT)
    with redirect_stdout(sys.stderr):  # they greet there, where --json alone speaks
        module.init(project=project, name=f"{run.name} {stage}", config={"stage": stage, "run": str(run), **settings})
    try:
        yield Tracker(module.log)
    finally:
        with redirect_stdout(sys.stderr):
            module.finish()


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (whatever a summary holds)
    """Yield the numbers and texts of a summary by their path in it; sentences of a list are one text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}", inner)
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        if value:
            yield name, "\n".join(value)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _flat(f"{name}/{number}", inner)
    elif value is not None:
        yield name, value
