"""Stage capture: prompts to frozen rollouts (`contexts`), and both models' distributions on them (`positions`)."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachdiag.artefacts import CONTEXTS, IMPORTED, POSITIONS
from teachdiag.diagnostics.contexts.contexts_table import (
    ROLLOUT_CONTEXTS,
    import_contexts,
    lay_out,
    read_contexts,
    unsampled,
    write_group,
)
from teachdiag.diagnostics.contexts.doubts import doubts, of_import
from teachdiag.diagnostics.contexts.sampling import Group, Rollout, check_candidates, sample_group
from teachdiag.diagnostics.contexts.templates import ids_digest, recorded_options, resolve_options
from teachdiag.diagnostics.models.alignment import Batch
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.pair import PairOutline, outline_pair, pinned, refuse_nothing_to_learn, resolve_pair
from teachdiag.diagnostics.models.sharding import load_over_processes
from teachdiag.diagnostics.models.sources import Sources
from teachdiag.diagnostics.models.vocabulary import vocabulary_table
from teachdiag.diagnostics.processes.collectives import in_step, joined, on_first
from teachdiag.diagnostics.processes.devices import machine_facts, process_device
from teachdiag.diagnostics.processes.group import in_share, many, refuse_sharding_alone
from teachdiag.diagnostics.processes.shared_stage import SharedStage, agree
from teachdiag.diagnostics.scoring.positions_table import Measure, by_models, score_contexts
from teachdiag.diagnostics.scoring.tiles import Columns, score, score_listed
from teachdiag.errors import ModelError, SettingsError
from teachdiag.foreign import how_imported
from teachdiag.manifests import read_manifest
from teachdiag.progress import Reporter
from teachdiag.prompts import PromptSet, load_prompts, say_contradictory
from teachdiag.runs import Stage, table_digest
from teachdiag.settings import CaptureSettings
from teachdiag.signals import recorded_columns
from teachdiag.tables import refuse_strays, shard_paths, write_table

if TYPE_CHECKING:
    from teachdiag.diagnostics.engines.ray_cluster import Cluster

_PROMPTS = ("prompt_token_ids", "teacher_prompt_token_ids")  # columns of what student and teacher read

RollOut = Callable[[list[Group]], Iterator[tuple[Group, list[Rollout]]]]


@dataclass(frozen=True)
class Job:
    """What every part of a capture works with."""

    run: Path
    settings: CaptureSettings
    sources: Sources
    pair: PairOutline
    device: str
    reporter: Reporter
    cluster: "Cluster | None" = None


def run_capture(run: Path, settings: CaptureSettings, reporter: Reporter) -> dict[str, Any]:
    """Sample (or import) a bank of contexts and score it; continue where a killed run stopped.

    Works under `torchrun` and `accelerate launch`: the processes share the shards out.

    Returns:
        The stage's summary, which is also the `results` of `capture.json`.

    Raises:
        InputError: anything that the user can mend; nothing already computed is lost.
    """
    agree(settings.as_dict())
    _refuse_what_is_missing(settings)
    stage = SharedStage(run, "capture", tables=("contexts", "positions", "vocabulary"))
    with stage.held():
        # Prompts and devices before models, which may be fetched or made: a typo costs nothing.
        prompts = on_first(_prompts)(settings)
        device = settings.device if settings.engine == "ray" else process_device(settings.device)
        sources = on_first(resolve_pair)(settings, reporter)
        with joined():
            pair = outline_pair(sources, reporter)
        groups, prompted = on_first(_planned)(stage, settings, pair, prompts, reporter)
        same = on_first(_same_prompts)(settings, groups)
        refuse_nothing_to_learn(sources, settings.teacher_prompt, same)
        inputs = {"student": pinned(sources[0]), "teacher": pinned(sources[1])} | prompted | recorded_columns()
        with _cluster(settings, sources, reporter) as cluster:
            facts = cluster.facts if cluster else machine_facts(device)
            if stage.claim(settings.as_dict(), inputs, facts, settings.defaults()):
                reporter.say(f"{run}: capture is complete")
                return dict(stage.require()["results"])
            with stage.timed():
                job = Job(run, settings, sources, pair, device, reporter, cluster)
                _sample_and_score(job, on_first(_prepare)(job, groups))
                results: dict[str, Any] = {"shared_vocabulary": job.pair.known.count, "same_prompts": same}
                results |= on_first(_summary)(run)
                results["warnings"] = doubts(results, prompts is not None and not pair.student.tokenizer.chat_template)
                results["warnings"] += of_import(inputs.get(IMPORTED, {}))
                stage.complete(results)
                for doubt in results["warnings"]:
                    reporter.say(f"Beware: {doubt}")
    return results


def _refuse_what_is_missing(settings: CaptureSettings) -> None:
    """Say at once what the settings need and is not here, before anything is computed."""
    if settings.shard_model:
        refuse_sharding_alone("capture")
    if settings.engine == "transformers" and settings.teacher_engine == "transformers":
        return
    if many():
        raise SettingsError(
            "vLLM and Ray start from one process: leave torchrun or accelerate out (--tensor-parallel shares a model "
            "over devices), or score the rollouts in several processes with --contexts"
        )
    if settings.engine == "ray":
        from teachdiag.diagnostics.engines.ray_cluster import require_ray

        require_ray()
        if settings.contexts:  # so that nothing is sampled
            return
    from teachdiag.diagnostics.engines.vllm_launch import require_vllm
    from teachdiag.diagnostics.engines.vllm_teacher import refuse_without_logprobs

    vllm = require_vllm()
    if settings.teacher_gives == "logprobs":
        refuse_without_logprobs(vllm)


def _prompts(settings: CaptureSettings) -> PromptSet | None:
    return None if settings.contexts else load_prompts(read_manifest(settings.prompts), settings.data_file)


def _same_prompts(settings: CaptureSettings, groups: list[Group]) -> bool:
    """Whether both models read the same prompts: those of the contexts that are brought, or as they are laid out."""
    ours, theirs = _PROMPTS
    if settings.contexts:
        table = CONTEXTS.read_arrow(Path(settings.contexts), _PROMPTS)
        return bool(table[ours].equals(table[theirs]))
    return all(row[ours] == row[theirs] for group in groups for row in group.rows)


def _planned(
    stage: Stage, settings: CaptureSettings, pair: PairOutline, prompts: PromptSet | None, reporter: Reporter
) -> tuple[list[Group], dict[str, Any]]:
    """Lay out what is to be sampled, rendered at the date that was recorded; with what the run records of it."""
    if prompts is None:
        imported = how_imported(Path(settings.contexts))
        return [], {"contexts": table_digest(Path(settings.contexts))} | imported
    check_candidates(settings.top_k, pair.known.count)
    say_contradictory(prompts, reporter)
    manifest, named = prompts.manifest, {pair.student.name: pair.student.tokenizer}
    given, defaults = settings.options_given, manifest.template_options
    ours = resolve_options(given[0], named, defaults, recorded_options(stage, settings), reporter)
    theirs = ours if given[0] == given[1] else resolve_options(given[1], named, defaults, ours, reporter)
    groups = lay_out(settings, pair, prompts, (ours, theirs), reporter)
    recorded = prompts.left_out | {
        "manifest": manifest.id,
        "licence": manifest.licence,
        "content_sha256": prompts.content_sha256,
        "distinct": len(prompts.prompts),
        "duplicates_dropped": prompts.duplicates,
        "template_options": ours,
        "teacher_template_options": theirs,
        "token_ids_sha256": ids_digest(row[side] for group in groups for row in group.rows for side in _PROMPTS),
    }
    return groups, {"prompts": recorded}


def _prepare(job: Job, groups: list[Group]) -> list[Group]:
    """Write what needs no weights; return the groups of rollouts that are still to be sampled."""
    contexts = job.settings.contexts
    total = import_contexts(job.run, job.settings, job.pair) if contexts else sum(len(group.rows) for group in groups)
    write_table(vocabulary_table(job.pair.student), job.run / "vocabulary")
    for table, size in (("contexts", ROLLOUT_CONTEXTS), ("positions", job.settings.shard_contexts)):
        refuse_strays(job.run / table, shard_paths(job.run / table, -(-total // size)))
    missing = unsampled(job.run, groups)
    if missing:  # what was scored of responses that are sampled again is no longer theirs
        shutil.rmtree(job.run / "positions", ignore_errors=True)
    return missing


def _cluster(
    settings: CaptureSettings, sources: Sources, reporter: Reporter
) -> AbstractContextManager["Cluster | None"]:
    if settings.engine != "ray":
        return nullcontext()
    from teachdiag.diagnostics.engines.ray_cluster import connected

    return connected(settings, sources, reporter)


def _sample_and_score(job: Job, groups: list[Group]) -> None:
    settings = job.settings
    if job.cluster:
        from teachdiag.diagnostics.engines import ray_pipeline

        if groups:
            _write_rollouts(
                job, groups, partial(ray_pipeline.roll_out, job.cluster, job.sources[0], job.pair, settings)
            )
        ray_pipeline.score_contexts(job.cluster, job.run, settings, job.sources, job.reporter)
        return
    if groups and settings.engine == "vllm":  # before any other model takes memory
        from teachdiag.diagnostics.engines import vllm_rollouts as engine

        serve = partial(engine.roll_out, job.sources[0], job.pair, settings, reporter=job.reporter)
        _write_rollouts(job, groups, serve)
    student, begin = _teacher_behind_engine(job) if settings.teacher_engine == "vllm" else _both_here(job)
    if groups and settings.engine == "transformers":
        _sample(job, student, groups)
    measure = begin()

    def idle() -> Columns:
        return measure(Batch((next(read_contexts(job.run, settings.positions)),)))

    with joined(), in_step(idle, settings.shard_model) as step:
        score_contexts(job.run, settings, lambda batch: step(lambda: measure(batch)), job.reporter)


def _both_here(job: Job) -> tuple[LanguageModel, Callable[[], Measure]]:
    """Load the pair; return the student, and what begins to score once there are rollouts."""
    settings = job.settings
    pair = load_over_processes(job.sources, settings.dtype, job.device, shard=settings.shard_model)
    return pair.student, lambda: by_models(pair, settings)


def _teacher_behind_engine(job: Job) -> tuple[LanguageModel, Callable[[], Measure]]:
    """Load the student alone; return it, and what starts its teacher's engine once there are rollouts."""
    student = load(job.sources[0], job.settings.dtype, job.device)
    student.end_with(job.pair.student.end_ids)
    return student, lambda: _by_engine(job, student)


def _sample(job: Job, student: LanguageModel, groups: list[Group]) -> None:
    """Sample with the student itself."""
    settings = job.settings

    def rollouts(group: Group) -> list[Rollout]:
        return sample_group(student, group, settings.sampling, sharded=settings.shard_model)

    with joined(), in_step(lambda: rollouts(groups[0]), settings.shard_model) as step:
        _write_rollouts(job, groups, lambda mine: ((group, step(partial(rollouts, group))) for group in mine))


def _by_engine(job: Job, student: LanguageModel) -> Measure:
    """Start the teacher's engine; return what scores a batch with it."""
    from teachdiag.diagnostics.engines.vllm_teacher import LogprobsTeacher, StatesTeacher, gives

    tile = job.settings.tile_positions
    engine = job.sources[1], job.settings, _longest(job), job.pair.known
    if gives(job.settings, job.pair) == "logprobs":
        listed = LogprobsTeacher(*engine, job.reporter)
        return lambda batch: score_listed(student, listed.answer, batch, tile)
    teacher = StatesTeacher(*engine, job.device, job.reporter)
    return lambda batch: score(student, teacher, batch, tile)


def _longest(job: Job) -> int:
    """Longest sequence that the teacher has to read, in tokens."""
    return max(len(c.inputs("teacher")) for c in read_contexts(job.run, job.settings.positions))


def _write_rollouts(job: Job, groups: list[Group], sampled: RollOut) -> None:
    """Sample this process's groups, and write each when it is done.

    Raises:
        ModelError: the engine ended before it had sampled them all.
    """
    mine = [group for group in groups if in_share(group.index)]
    written = 0
    with job.reporter.bar("Rollouts", total=sum(len(group.rows) for group in mine)) as advance:
        for group, rollouts in sampled(mine):
            write_group(job.run, group, rollouts)
            written += 1
            advance(len(group.rows))
    if written < len(mine):
        raise ModelError(f"only {written} of {len(mine)} groups of rollouts came back: start the same command again")


def _summary(run: Path) -> dict[str, Any]:
    contexts = CONTEXTS.read(run / "contexts", ["context_id", "prompt_id", "split", "finish_reason"])
    ends = contexts["finish_reason"][contexts["finish_reason"] != "unknown"]
    averaged = POSITIONS.present(run / "positions", ("forward_kl", "compatibility_k16", "student_entropy"))
    positions = POSITIONS.read(run / "positions", ["split", *averaged])
    bank = positions[positions["split"] == "bank"]
    counts = contexts.groupby("split").agg(contexts=("context_id", "size"), prompts=("prompt_id", "nunique"))
    return {
        "contexts": counts["contexts"].to_dict(),
        "prompts": counts["prompts"].to_dict(),
        "positions": positions["split"].value_counts().sort_index().to_dict(),
        "share_cut_at_max_new_tokens": float((ends == "length").mean()) if len(ends) else None,
    } | {f"bank_mean_{name}": float(bank[name].mean()) for name in averaged}
