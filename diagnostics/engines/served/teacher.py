"""A teacher behind an address: the student is here, and every number of the teacher comes over HTTP."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from teachdiag.artefacts import POSITIONS
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.engines.in_process import StudentHere
from teachdiag.diagnostics.engines.protocol import Job
from teachdiag.diagnostics.engines.served.checks import REPEATS, check_answers, check_listed, check_tokens
from teachdiag.diagnostics.engines.served.servers import Listed, Server, connect
from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.models.pair import PairOutline, outlined, resolve_student
from teachdiag.diagnostics.models.sources import ModelSource, Outline, Sources, outline
from teachdiag.diagnostics.models.vocabulary import Known, known_ids
from teachdiag.diagnostics.processes.collectives import joined, on_first
from teachdiag.diagnostics.processes.devices import process_device
from teachdiag.diagnostics.scoring.positions_table import Measure
from teachdiag.diagnostics.scoring.tiles import Answer, score_listed
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings
from teachdiag.tables import is_intact, shard_path


@dataclass(frozen=True, kw_only=True)
class ServedSource(ModelSource):
    """A teacher that is known by its address alone: whoever serves there may change its weights at any time.

    Attributes:
        server: program and version that answered.
        limit: longest sequence there, in tokens.
        gives: 'logprobs', at ids of our choice, or 'top', its own top lists alone.
    """

    server: str
    limit: int
    gives: Literal["logprobs", "top"]


class ServedTeacher:
    """A teacher that somebody else runs."""

    def require(self, settings: CaptureSettings) -> None:
        """Refuse a device that the student cannot use."""
        process_device(settings.device)

    def resolve(self, settings: CaptureSettings, reporter: Reporter) -> tuple[Sources, PairOutline]:
        """Pin the student, and let the server show what it can."""
        student = on_first(resolve_student)(settings, reporter)
        with joined():
            ours = outline(student)
        known = known_ids(ours.tokenizer, ours.rows)
        teacher = on_first(_introduced)(settings, ours, known, reporter)
        theirs = Outline(teacher.name, ours.tokenizer, ours.end_ids, known.size, teacher.limit - 1)  # one is generated
        with joined():
            return (student, teacher), outlined(ours, theirs, student.end_of_text)

    @contextmanager
    def opened(self, job: Job) -> Iterator["TaughtOverHttp"]:
        """Return the student with a pool of requests."""
        with ThreadPoolExecutor(job.settings.teacher_requests) as pool:
            yield TaughtOverHttp(job, pool)


class TaughtOverHttp(StudentHere):
    """The student here; contexts of a batch are asked about together."""

    def __init__(self, job: Job, pool: Executor) -> None:
        """Choose the device; nothing is loaded or asked yet."""
        super().__init__(job)
        self.pool = pool

    def measure(self) -> Measure:
        """Load the student, and return what scores a batch with both."""
        job, source = self.job, self.job.sources[1]
        assert isinstance(source, ServedSource), "resolve() made it"
        server = connect(job.settings.teacher_url, source.name, job.settings.teacher_requests)
        refuse_another_teacher(job, server)
        by_id, known, tile = source.gives == "logprobs", job.pair.known, job.settings.tile_positions

        def answer(batch: Batch, support: np.ndarray) -> Answer:
            rows = [context.rows for context in batch.contexts]
            asked = np.split(support, np.cumsum(rows)[:-1]) if by_id else [None] * len(rows)
            listed = list(self.pool.map(partial(_scored, server), batch.contexts, asked))
            for part in listed:
                check_listed(server, part, known)
            return joined_answer(listed)

        return lambda batch: score_listed(self.student, answer, batch, tile)


def joined_answer(listed: list[Listed]) -> Answer:
    """Put together what a server says of the contexts of a batch."""
    asked = [part.asked for part in listed if part.asked is not None]
    realised, top_ids, top = (
        np.concatenate([getattr(part, name) for part in listed]) for name in ("realised", "top_ids", "top")
    )
    return Answer(realised, np.concatenate(asked) if asked else None, top_ids, top)


def refuse_another_teacher(job: Job, server: Server) -> None:
    """Ask again about a context that was scored before a stop: the answer must be what the run holds.

    Raises:
        ModelError: it is another, so that two teachers would be mixed.
    """
    shard = shard_path(job.run / "positions", 0)
    if not is_intact(shard):
        return
    context = next(read_contexts(job.run, Positions.of(job.settings)))
    before = POSITIONS.read(shard, ["context_id", "position", "teacher_logp"])
    before = before[before["context_id"] == context.context_id].sort_values("position")
    now = _scored(server, context, None).realised
    moved = float(np.abs(now - before["teacher_logp"].to_numpy()).mean())
    if moved > REPEATS:
        raise ModelError(
            f"{server.model} behind {server.http.root} is not what it was when {job.run} was begun: of context "
            f"{context.context_id} it says something else, by {moved:.2g} nats a token; serve the same weights again, "
            "or choose another --run"
        )


def _introduced(settings: CaptureSettings, student: Outline, known: Known, reporter: Reporter) -> ServedSource:
    """Let the server show what it can, and that it can be compared."""
    server = connect(settings.teacher_url, settings.teacher, settings.teacher_requests)
    reporter.say(f"Checking {server.model} behind {settings.teacher_url} ({server.program})")
    with ThreadPoolExecutor(settings.teacher_requests) as pool:
        check_tokens(server, student.tokenizer, known, pool)
    gives = _gives(settings, server, reporter)
    check_answers(server, student.tokenizer, known, by_id=gives == "logprobs")
    return ServedSource(server.model, "", "", "", server=server.program, limit=server.limit, gives=gives)


def _gives(settings: CaptureSettings, server: Server, reporter: Reporter) -> Literal["logprobs", "top"]:
    """Decide what is asked for: ids of our choice wherever they can be had, unless the user says otherwise."""
    if settings.teacher_gives == "top":
        return "top"
    lack = server.lack()
    if lack and settings.teacher_gives == "logprobs":
        raise ModelError(
            f"--teacher-gives logprobs: {server.http.root} ({server.program}) does not give them at ids of our choice "
            f"({lack}): use --teacher-gives top"
        )
    if lack:
        reporter.say(f"{server.model} gives its top lists alone, and so C and D within bounds: {lack}")
    return "top" if lack else "logprobs"


def _scored(server: Server, context: Context, asked: np.ndarray | None) -> Listed:
    sequence = (*context.teacher_prompt, *context.response[: context.last + 1])
    return server.score(sequence, context.places("teacher") + 1, asked)
