"""Rollouts and scoring over a Ray cluster: vLLM as a processor of Ray Data, our scorer as a pool of its actors.

A rollout and a shard of positions are the pieces of work. What a worker that dies had in hand is done again, by the one
that takes its place; as pieces are known by their numbers, none is lost and none is there twice.
"""

import hashlib
import math
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from teachdiag.artefacts import CONTEXTS
from teachdiag.diagnostics.contexts.contexts_table import ROLLOUT_CONTEXTS, read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.contexts.sampling import Group, Rollout, ended
from teachdiag.diagnostics.engines.protocol import Job, Scoring, refuse_several_processes, resolve_here
from teachdiag.diagnostics.engines.ray_cluster import Cluster, connected, keep_to, require_ray, same_models
from teachdiag.diagnostics.engines.shard_store import Store
from teachdiag.diagnostics.engines.vllm_launch import ENVIRONMENT, ON_CPU, engine_arguments, require_vllm
from teachdiag.diagnostics.engines.vllm_rollouts import longest, refuse_padding, sampling_options, whole_groups
from teachdiag.diagnostics.models.alignment import in_shards
from teachdiag.diagnostics.models.pair import PairOutline, load_pair, pinned
from teachdiag.diagnostics.models.sources import ModelSource, Sources
from teachdiag.diagnostics.processes.devices import pick_device
from teachdiag.diagnostics.scoring.positions_table import Measure, by_models, score_shard
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.runs import table_digest
from teachdiag.settings import CaptureSettings
from teachdiag.tables import file_digest, shard_files, shard_path, write_shard

_BLOCKS = 10_000  # pieces that Ray hands out at most; a worker that dies takes some with it, to be done again
_BATCHES = 32  # of 32 rollouts, that wait in one engine
_TRANSFERS = 16  # files that travel to the store at the same time


class RayTeacher:
    """Both models in each worker of a cluster."""

    resolve = staticmethod(resolve_here)

    def require(self, settings: CaptureSettings) -> None:
        """Refuse several processes, and a machine without Ray."""
        refuse_several_processes()
        require_ray()

    @contextmanager
    def opened(self, job: Job) -> Iterator["WorkersOfCluster"]:
        """Connect to the cluster, or start one here meanwhile."""
        with connected(job.settings, job.sources, job.reporter) as cluster:
            yield WorkersOfCluster(job, cluster)


class WorkersOfCluster:
    """The workers of a cluster that is connected, which score shard by shard."""

    def __init__(self, job: Job, cluster: Cluster) -> None:
        """Take note; models are loaded by the workers."""
        self.job, self.cluster, self.facts = job, cluster, cluster.facts

    def score(self) -> None:
        """Let the workers score all contexts."""
        score_contexts(self.cluster, self.job.run, self.job.settings, self.job.sources, self.job.reporter)


class RayRollouts:
    """Rollouts by vLLM engines among the workers that score."""

    def require(self, settings: CaptureSettings) -> None:
        """Refuse a machine without vLLM."""
        require_vllm()

    def sample(
        self, job: Job, scoring: Scoring, groups: list[Group], write: Callable[[Group, list[Rollout]], None]
    ) -> None:
        """Sample all groups over the cluster."""
        assert isinstance(scoring, WorkersOfCluster), "settings let Ray sample only where it scores"
        for group, rollouts in roll_out(scoring.cluster, job.sources[0], job.pair, job.settings, groups):
            write(group, rollouts)


def roll_out(
    cluster: Cluster, source: ModelSource, pair: PairOutline, settings: CaptureSettings, groups: list[Group]
) -> Iterator[tuple[Group, list[Rollout]]]:
    """Yield each group with its rollouts, in the order in which the groups finish.

    Args:
        cluster: the workers.
        source: the student.
        pair: its end-of-text ids, and the ids that may be sampled.
        settings: sampling, and the engines' options.
        groups: what is still to be sampled.

    Raises:
        ModelError: vLLM does not take the model.
    """
    import ray
    from ray.data.llm import build_processor

    refuse_padding(pair)
    engines = min(cluster.engines, len(groups))
    # The engines may have all the processors that there are.
    between = {"num_cpus": 0, "compute": ray.data.TaskPoolStrategy(size=engines)}
    options = sampling_options(pair, settings)
    processor = build_processor(
        _engine(cluster, source, settings, longest(groups, settings), engines),
        # No functions of this module, which would be imported, and torch with it, wherever they are called.
        preprocess=lambda row: {"sampling_params": options | {"seed": row["seed"]}},
        postprocess=lambda row: {name: row[name] for name in ("group", "row", "generated_tokens")},
        preprocess_map_kwargs=between,
        postprocess_map_kwargs=between,
    )
    blocks = in_shards(groups, math.ceil(len(groups) / _BLOCKS))
    asked = ray.data.from_arrow_refs([ray.put(_requests(block)) for block in blocks])
    by_index = {group.index: group for group in groups}
    yield from whole_groups(
        (by_index[row["group"]], row["row"], ended(list(map(int, row["generated_tokens"])), pair.student.end_ids))
        for row in processor(asked).iter_rows()
    )


def score_contexts(
    cluster: Cluster, run: Path, settings: CaptureSettings, sources: Sources, reporter: Reporter
) -> None:
    """Write the shards of the `positions` table; those that are there, undamaged, stay as they are.

    Args:
        cluster: the workers.
        run: the run directory, whose `contexts` are complete.
        settings: sizes of shards and batches, and the place through which shards go.
        sources: student and teacher, pinned.
        reporter: progress.

    Raises:
        InputError: as `positions.score_contexts`, whichever worker met with it.
    """
    import ray

    store = Store(place_of(run, settings))
    names = [file.relative_to(run).as_posix() for file in shard_files(run / "contexts")]
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        list(pool.map(partial(store.send, run), names))
    total = CONTEXTS.read_arrow(run / "contexts", ["context_id"]).num_rows
    sizes = [min(settings.shard_contexts, total - at) for at in range(0, total, settings.shard_contexts)]
    missing = [number for number in range(len(sizes)) if not store.fetch(run, _name("positions", number))]
    if not missing:
        return
    numbers = ray.data.from_items([{"shard": n} for n in missing], override_num_blocks=min(len(missing), _BLOCKS))
    scored = numbers.map_batches(
        Scorer,
        fn_constructor_args=(settings, [pinned(source) for source in sources], total, store.path, cluster.share),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(cluster.workers, len(missing))),
        **cluster.share,
    )
    with reporter.bar("Scoring contexts", total=total) as advance:
        advance(total - sum(sizes[number] for number in missing))
        for row in scored.iter_rows():
            if not store.await_shard(run, _name("positions", row["shard"])):
                raise ModelError(
                    f"a worker has scored shard {row['shard']}, and it is not in {store.path}: give a --store that "
                    "all machines reach"
                )
            advance(sizes[row["shard"]])


def place_of(run: Path, settings: CaptureSettings) -> str:
    """Where workers exchange shards: the run directory, or in a store what this very run has to itself."""
    if not settings.store:
        return str(run.absolute())
    made = file_digest(run / "capture.json") + table_digest(run / "contexts")
    return f"{settings.store.rstrip('/')}/{hashlib.sha256(made.encode()).hexdigest()[:16]}"


class Scorer:
    """One worker's copy of the pair: takes numbers of shards, leaves the shards in the store."""

    def __init__(
        self, settings: CaptureSettings, pins: list[dict[str, Any]], contexts: int, store: str, share: dict[str, int]
    ) -> None:
        """Take note; the pair is loaded with the first shard, whose errors Ray hands on as they are.

        Args:
            settings: which pair, and how it scores.
            pins: what identifies its weights.
            contexts: how many contexts the run has.
            store: where contexts are and shards go.
            share: what it may take of its machine.
        """
        keep_to(share)
        self.settings, self.pins, self.contexts, self.store_path = settings, pins, contexts, store

    @cached_property
    def store(self) -> Store:
        """Where contexts are and shards go."""
        return Store(self.store_path)

    @cached_property
    def measure(self) -> Measure:
        """What scores a batch."""
        sources = same_models(self.settings, self.pins)
        return by_models(load_pair(sources, self.settings.dtype, pick_device(self.settings.device)), self.settings)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score the contexts of some shards, shape (shards,), int64; return the same numbers when they are written."""
        for number in batch["shard"].tolist():
            with tempfile.TemporaryDirectory() as scratch:
                self._score(number, Path(scratch))
        return batch

    def _score(self, number: int, scratch: Path) -> None:
        start = number * self.settings.shard_contexts
        stop = min(start + self.settings.shard_contexts, self.contexts)
        for group in range(start // ROLLOUT_CONTEXTS, (stop - 1) // ROLLOUT_CONTEXTS + 1):
            if not self.store.await_shard(scratch, _name("contexts", group)):
                raise ModelError(
                    f"machine {socket.gethostname()} does not find all contexts, undamaged, in {self.store.path}: give "
                    "a --store that all machines reach, or start the same command again"
                )
        skipped = start % ROLLOUT_CONTEXTS
        contexts = islice(read_contexts(scratch, Positions.of(self.settings)), skipped, skipped + stop - start)
        write_shard(score_shard(list(contexts), self.settings, self.measure), scratch / _name("positions", number))
        self.store.send(scratch, _name("positions", number))


def _engine(cluster: Cluster, source: ModelSource, settings: CaptureSettings, length: int, engines: int) -> Any:  # noqa: ANN401
    """How Ray starts so many engines, each for sequences of at most this length."""
    from ray.data.llm import vLLMEngineProcessorConfig

    environment = ENVIRONMENT | (ON_CPU if cluster.on_cpu else {})
    theirs = {name: os.environ.get(name, value) for name, value in environment.items()}
    if cluster.on_cpu:  # which several engines may share
        theirs |= {"OMP_NUM_THREADS": str(cluster.share["num_cpus"]), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # Several GPUs of one machine, by processes: those that Ray would start keep their GPUs when the engine is gone.
    parallel = {"distributed_executor_backend": "mp"} if settings.tensor_parallel > 1 else {}
    given = engine_arguments(source, settings, length, cluster.on_cpu) | parallel | {"disable_log_stats": True}
    return vLLMEngineProcessorConfig(
        model_source=cluster.model,
        engine_kwargs=given,
        placement_group_config={"bundles": [{"CPU": cluster.share["num_cpus"]}]} if cluster.on_cpu else None,
        runtime_env={"env_vars": theirs},
        concurrency=(engines, engines),
        batch_size=ROLLOUT_CONTEXTS,
        max_concurrent_batches=_BATCHES,
        log_engine_metrics=False,
        **dict.fromkeys(("chat_template_stage", "tokenize_stage", "detokenize_stage"), False),
    )


def _requests(groups: Iterable[Group]) -> pa.Table:
    """What engines are asked for: a row a rollout, compact, since those of a whole run wait in Ray's memory."""
    rows = [
        {"group": group.index, "row": row, "seed": seed, "tokenized_prompt": prompt}
        for group in groups
        for row, (seed, prompt) in enumerate(zip(group.seeds, group.prompts, strict=True))
    ]
    numbers = [("group", pa.int64()), ("row", pa.int32()), ("seed", pa.int64())]
    return pa.Table.from_pylist(rows, pa.schema([*numbers, ("tokenized_prompt", pa.list_(pa.int32()))]))


def _name(table: str, number: int) -> str:
    """Return a shard's path in a run directory."""
    return shard_path(Path(table), number).as_posix()
