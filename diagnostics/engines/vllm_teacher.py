"""A teacher behind vLLM, exact in two ways: its last hidden states, or log-probabilities at ids that are asked for."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachdiag.artefacts import TOP
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.engines.in_process import StudentHere
from teachdiag.diagnostics.engines.protocol import Job, refuse_several_processes, resolve_here
from teachdiag.diagnostics.engines.vllm_launch import require_vllm, start, unchunked
from teachdiag.diagnostics.models.alignment import Batch, Context, Side
from teachdiag.diagnostics.models.head import Head, read_head
from teachdiag.diagnostics.models.language_model import check_head
from teachdiag.diagnostics.models.pair import PairOutline
from teachdiag.diagnostics.models.sources import ModelSource
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.diagnostics.processes.devices import process_device
from teachdiag.diagnostics.scoring.positions_table import Measure
from teachdiag.diagnostics.scoring.tiles import Answer, score, score_listed
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings


class VllmTeacher:
    """The teacher in an engine of its own, beside a student that is loaded here."""

    resolve = staticmethod(resolve_here)

    def require(self, settings: CaptureSettings) -> None:
        """Refuse several processes, a machine without vLLM, and what its vLLM cannot give."""
        refuse_several_processes()
        vllm = require_vllm()
        if settings.teacher_gives == "logprobs":
            refuse_without_logprobs(vllm)
        process_device(settings.device)

    def opened(self, job: Job) -> AbstractContextManager["TeacherServed"]:
        """Return the student with the engine, both to be started."""
        return nullcontext(TeacherServed(job))


class TeacherServed(StudentHere):
    """The student here, and a teacher that answers with its states or with log-probabilities."""

    def measure(self) -> Measure:
        """Load the student, start the engine, and return what scores a batch with both."""
        job, student = self.job, self.student
        length = max(len(c.inputs("teacher")) for c in read_contexts(job.run, Positions.of(job.settings)))
        tile, engine = job.settings.tile_positions, (job.sources[1], job.settings, length, job.pair.known)
        if gives(job.settings, job.pair) == "logprobs":
            listed = LogprobsTeacher(*engine, job.reporter)
            return lambda batch: score_listed(student, listed.answer, batch, tile)
        teacher = StatesTeacher(*engine, self.device, job.reporter)
        return lambda batch: score(student, teacher, batch, tile)


class StatesTeacher:
    """Hidden states from vLLM's pooling runner; logits of them by our own head, in our own tiles.

    It stands in for a `LanguageModel` wherever that only scores.
    """

    def __init__(
        self,
        source: ModelSource,
        settings: CaptureSettings,
        length: int,
        known: Known,
        device: str,
        reporter: Reporter,
    ) -> None:
        """Start the engine.

        Args:
            source: the teacher, pinned.
            settings: the engine's options.
            length: longest sequence, in tokens.
            known: the ids that the pair shares.
            device: where its head goes: that of the student.
            reporter: progress.

        Raises:
            ModelError: vLLM is not installed, does not take the model, or its head cannot be read.
        """
        check_head(source)
        require_vllm()
        from vllm.config import PoolerConfig  # a module that vLLM's own does not load

        config = PoolerConfig(task="token_embed", use_activation=False)
        # Every token's state is asked for: none may come from a cache, nor in several chunks.
        whole = {"enable_prefix_caching": False} | unchunked(settings, length)
        pooling = {"runner": "pooling", "convert": "embed", "pooler_config": config}
        self.engine = start(source, settings, length, reporter, **pooling, **whole)
        self.head: Head = read_head(source, known)
        self.head.to(torch.device(device))
        self.device = torch.device(device)

    def hidden_rows(self, batch: Batch, side: Side) -> Tensor:
        """Hidden states that feed the LM head at every kept position of a batch, shape (rows, width)."""
        prompts = [{"prompt_token_ids": list(context.inputs(side))} for context in batch.contexts]
        outputs = self.engine.encode(prompts, pooling_task="token_embed", use_tqdm=False)
        kept = [o.outputs.data[c.places(side)] for o, c in zip(outputs, batch.contexts, strict=True)]
        return torch.cat(kept).to(self.device)


class LogprobsTeacher:
    """Log-probabilities at ids of our choice, position by position: `SamplingParams(prompt_logprob_token_ids=...)`."""

    def __init__(
        self, source: ModelSource, settings: CaptureSettings, length: int, known: Known, reporter: Reporter
    ) -> None:
        """Start the engine; arguments as for `StatesTeacher`.

        Raises:
            ModelError: vLLM does not take the model, or its head has padding: vLLM's softmax is over all rows.
        """
        self.engine: Any = start(source, settings, length + 2, reporter, max_logprobs=2 * TOP)
        if not self.engine.llm_engine.vllm_config.use_v2_model_runner:
            raise ModelError("--teacher-gives logprobs needs vLLM's V2 model runner: set VLLM_USE_V2_MODEL_RUNNER=1")
        rows = int(self.engine.model_config.get_vocab_size())
        if rows != known.count:
            raise ModelError(
                f"the teacher {source.name!r} has an LM head of {rows} rows, of which its tokenizer knows "
                f"{known.count}: vLLM takes its softmax over all of them; use --teacher-gives states"
            )

    def answer(self, batch: Batch, support: np.ndarray) -> Answer:
        """Ask for log q at the student's top ids of every kept position, and for the teacher's own.

        Args:
            batch: R kept positions.
            support: shape (R, 32), int.
        """
        vllm = require_vllm()
        asked = np.split(support, np.cumsum([c.rows for c in batch.contexts])[:-1])
        prompts = [{"prompt_token_ids": [*c.teacher_prompt, *c.response[: c.last + 1]]} for c in batch.contexts]
        params = [
            vllm.SamplingParams(
                max_tokens=1,
                detokenize=False,
                prompt_logprobs=TOP,
                prompt_logprob_token_ids=at_every_position(c, rows),
                prompt_logprob_start=len(c.teacher_prompt) - 1,
            )
            for c, rows in zip(batch.contexts, asked, strict=True)
        ]
        outputs = self.engine.generate(prompts, params, use_tqdm=False)
        return collected(outputs, batch.contexts)


def gives(settings: CaptureSettings, pair: PairOutline) -> str:
    """What the teacher is asked for: 'states' or 'logprobs', by itself the latter where vLLM gives them exactly."""
    if settings.teacher_gives != "auto":
        return settings.teacher_gives
    padded = pair.teacher.rows > pair.known.count
    return "states" if padded or _lack(require_vllm()) else "logprobs"


def refuse_without_logprobs(vllm: Any) -> None:  # noqa: ANN401
    """Refuse a vLLM that cannot score ids of our choice.

    Raises:
        ModelError: it is older than 0.32, or runs where its V2 model runner does not.
    """
    if lack := _lack(vllm):
        raise ModelError(f"--teacher-gives logprobs: vLLM {vllm.__version__} {lack}, or use --teacher-gives states")


def _lack(vllm: Any) -> str:  # noqa: ANN401
    """Say why a vLLM cannot score ids of our choice; '' where it can."""
    if "prompt_logprob_token_ids" not in vllm.SamplingParams.__struct_fields__:
        return "lacks SamplingParams(prompt_logprob_token_ids): install vllm>=0.32"
    return "" if vllm.platforms.current_platform.is_cuda() else "gives them on CUDA only"


def at_every_position(context: Context, ids: np.ndarray) -> np.ndarray:
    """Spread ids of kept positions, shape (rows, ids), over all positions up to the last: shape (last + 1, ids), int32.

    What is asked for at the others, id 0, is not read.
    """
    everywhere = np.zeros((context.last + 1, ids.shape[1]), np.int32)
    everywhere[context.positions] = ids
    return everywhere


def collected(outputs: Sequence[Any], contexts: Sequence[Context]) -> Answer:
    """Put together what vLLM answered for some contexts, each at every response position up to its last kept one."""
    pairs = list(zip(outputs, contexts, strict=True))
    asked = [np.asarray(output.prompt_token_id_logprobs, np.float32)[c.positions] for output, c in pairs]
    kept = [(output.prompt_logprobs[t - c.last - 1], c.response[t]) for output, c in pairs for t in c.positions]
    ids, values = zip(*(_ranked(row) for row, _ in kept), strict=True)
    return Answer(
        np.array([row[token].logprob for row, token in kept], np.float32),
        np.concatenate(asked),
        np.array(ids, np.int64),
        np.array(values, np.float32),
    )


def _ranked(row: dict[int, Any]) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities of one position by rank; the realised token comes along whatever its rank, and goes."""
    best = sorted(row.items(), key=lambda item: item[1].rank)[:TOP]
    return [token for token, _ in best], [entry.logprob for _, entry in best]
