"""Both models in this process, by transformers; and what any teacher elsewhere shares with that: the student here."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial

from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.contexts.sampling import Group, Rollout, sample_group
from teachdiag.diagnostics.engines.protocol import Job, Scoring, resolve_here
from teachdiag.diagnostics.models.alignment import Batch
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.models.sharding import load_over_processes
from teachdiag.diagnostics.processes.collectives import in_step, joined
from teachdiag.diagnostics.processes.devices import machine_facts, process_device
from teachdiag.diagnostics.processes.group import in_share, refuse_sharding_alone
from teachdiag.diagnostics.scoring.positions_table import Measure, by_models, score_contexts
from teachdiag.diagnostics.scoring.tiles import Columns
from teachdiag.settings import CaptureSettings


class StudentHere(ABC):
    """Scores with the student in this process; `measure` says what answers as its teacher."""

    def __init__(self, job: Job) -> None:
        """Choose the device; nothing is loaded yet.

        Raises:
            SettingsError: it cannot be used here.
        """
        self.job = job
        self.device = process_device(job.settings.device)
        self.facts = machine_facts(self.device)

    @cached_property
    def student(self) -> LanguageModel:
        """The student alone."""
        student = load(self.job.sources[0], self.job.settings.dtype, self.device)
        student.end_with(self.job.pair.student.end_ids)
        return student

    @abstractmethod
    def measure(self) -> Measure:
        """Start the teacher; return what scores a batch with it."""

    def score(self) -> None:
        """Score this process's shards of the contexts."""
        job, measure = self.job, self.measure()

        def idle() -> Columns:
            return measure(Batch((next(read_contexts(job.run, Positions.of(job.settings))),)))

        with joined(), in_step(idle, job.settings.shard_model) as step:
            score_contexts(job.run, job.settings, lambda batch: step(partial(measure, batch)), job.reporter)


class PairHere(StudentHere):
    """Both models in this process, or sharded over several."""

    @cached_property
    def pair(self) -> Pair:
        """Both models."""
        settings = self.job.settings
        return load_over_processes(self.job.sources, settings.dtype, self.device, shard=settings.shard_model)

    @cached_property
    def student(self) -> LanguageModel:
        """The pair's student."""
        return self.pair.student

    def measure(self) -> Measure:
        """Return what scores a batch with both."""
        return by_models(self.pair, self.job.settings)


class TransformersTeacher:
    """The teacher beside the student."""

    resolve = staticmethod(resolve_here)

    def require(self, settings: CaptureSettings) -> None:
        """Refuse a device that cannot be used, and sharding in one process."""
        if settings.shard_model:
            refuse_sharding_alone("capture")
        process_device(settings.device)

    def opened(self, job: Job) -> AbstractContextManager[PairHere]:
        """Return the pair, to be loaded."""
        return nullcontext(PairHere(job))


class TransformersRollouts:
    """Rollouts by the very student that scores."""

    def require(self, settings: CaptureSettings) -> None:
        """Nothing is needed beside the student."""

    def sample(
        self, job: Job, scoring: Scoring, groups: list[Group], write: Callable[[Group, list[Rollout]], None]
    ) -> None:
        """Sample group by group."""
        assert isinstance(scoring, StudentHere), "settings let a cluster sample itself where it scores"
        settings, student = job.settings, scoring.student

        def rollouts(group: Group) -> list[Rollout]:
            return sample_group(student, group, settings.sampling, sharded=settings.shard_model)

        with joined(), in_step(lambda: rollouts(groups[0]), settings.shard_model) as step:
            for group in groups:
                if in_share(group.index):
                    write(group, step(partial(rollouts, group)))
