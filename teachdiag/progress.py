"""What the user sees while a stage runs: one line a fact, one bar a loop, all on standard error."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


@dataclass(frozen=True)
class Reporter:
    """Speaks to the user on standard error, so that standard output stays free for `--json`.

    `bars`: whether loops show their progress; off inside a loop that shows its own. `about` opens every line. `watch`
    is told how far each loop that shows its progress has come: its label, the units done, and those in all.
    """

    quiet: bool = False
    bars: bool = True
    about: str = ""
    watch: Callable[[str, float, float], None] | None = None

    def inside(self, about: str) -> "Reporter":
        """Return one for work inside a loop that shows its own progress: it only says things, each about that work."""
        return replace(self, bars=False, about=f"{about}: ")

    def say(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            _console().print(f"{self.about}{text}", markup=False, highlight=False)

    def track(self, items: Sequence[T], label: str, done: int = 0) -> Iterator[T]:
        """Yield the items with a progress bar; `done` counts the units an earlier process finished."""
        with self.bar(label, total=done + len(items), done=done) as advance:
            for item in items:
                yield item
                advance()

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0) -> Iterator["Advance"]:
        """Open a progress bar and yield the function that advances it."""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, *times, console=_console(), disable=self.quiet or not self.bars) as progress:
            progress.add_task(label, total=total, completed=done)
            yield Advance(progress, self.watch if self.bars else None)


@dataclass(frozen=True)
class Advance:
    """Moves one bar forward, and tells who watches."""

    progress: Progress
    watch: Callable[[str, float, float], None] | None = None

    def __call__(self, steps: int = 1) -> None:
        """Advance by that many units."""
        (bar,) = self.progress.tasks
        self.progress.advance(bar.id, steps)
        if self.watch:
            self.watch(bar.description, bar.completed, bar.total or 0)


def _console() -> Console:
    return Console(stderr=True)
