"""What samples rollouts, and what answers as the teacher: the two protocols behind --engine and --teacher-engine."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from teachdiag.diagnostics.contexts.sampling import Group, Rollout
from teachdiag.diagnostics.models.pair import PairOutline, outline_pair, resolve_pair
from teachdiag.diagnostics.models.sources import Sources
from teachdiag.diagnostics.processes.collectives import joined, on_first
from teachdiag.diagnostics.processes.group import many
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings


@dataclass(frozen=True)
class Job:
    """What every engine works with.

    Attributes:
        run: the run directory.
        settings: of the capture.
        sources: student and teacher, pinned.
        pair: both in outline.
        reporter: progress.
    """

    run: Path
    settings: CaptureSettings
    sources: Sources
    pair: PairOutline
    reporter: Reporter


class Scoring(Protocol):
    """A student and its teacher, ready to score the contexts of a run. Models are loaded when they are first needed.

    Attributes:
        facts: what of the machine decides the last digits of the numbers.
    """

    facts: dict[str, Any]

    def score(self) -> None:
        """Write the shards of the `positions` table that are not there; the `contexts` are complete.

        Raises:
            InputError: a model or an engine cannot be loaded, or gives what cannot be scored.
        """


class TeacherEngine(Protocol):
    """What answers as the teacher while contexts are scored."""

    def require(self, settings: CaptureSettings) -> None:
        """Refuse at once, before any model is fetched, what the engine needs and is not here.

        Raises:
            InputError: it is not installed, cannot do what is asked, or does not work in several processes.
        """

    def resolve(self, settings: CaptureSettings, reporter: Reporter) -> tuple[Sources, PairOutline]:
        """Pin student and teacher, and read what is needed to lay rollouts out; `resolve_here` does for models here.

        Raises:
            InputError: a model cannot be found or reached, or they cannot be compared.
        """

    def opened(self, job: Job) -> AbstractContextManager[Scoring]:
        """Connect to where it scores.

        Raises:
            InputError: that cannot be reached.
        """


class RolloutEngine(Protocol):
    """What samples rollouts from the student."""

    def require(self, settings: CaptureSettings) -> None:
        """Refuse at once, as a `TeacherEngine` does."""

    def sample(
        self, job: Job, scoring: Scoring, groups: list[Group], write: Callable[[Group, list[Rollout]], None]
    ) -> None:
        """Sample this process's share of some groups, and write each when it is done.

        Args:
            job: models and settings.
            scoring: what scores afterwards, whose models or machines may do the sampling.
            groups: what all processes have to sample, at least one.
            write: takes a group with its rollouts.

        Raises:
            InputError: the student cannot be loaded or served, or gives what cannot be sampled from.
        """


def resolve_here(settings: CaptureSettings, reporter: Reporter) -> tuple[Sources, PairOutline]:
    """Pin two models that are on this machine or on the Hub, and read both in outline.

    Raises:
        ModelError: one cannot be found, or they do not share a vocabulary.
    """
    sources = on_first(resolve_pair)(settings, reporter)
    with joined():
        return sources, outline_pair(sources, reporter)


def refuse_several_processes() -> None:
    """Refuse several processes, each of which would start an engine.

    Raises:
        SettingsError: there are several.
    """
    if many():
        raise SettingsError(
            "vLLM and Ray start from one process: leave torchrun or accelerate out (--tensor-parallel shares a model "
            "over devices), or score the rollouts in several processes with --contexts"
        )
