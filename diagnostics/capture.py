"""Stage capture: prompts to frozen rollouts (`contexts`), and both models' distributions on them (`positions`).

With `--grade`, whether each response is right as well (`grades`).
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachdiag.artefacts import CONTEXTS, IMPORTED, POSITIONS
from teachdiag.diagnostics.contexts.contexts_table import (
    ROLLOUT_CONTEXTS,
    import_contexts,
    lay_out,
    own_lengths,
    unsampled,
    write_group,
)
from teachdiag.diagnostics.contexts.doubts import doubts, of_import, of_server
from teachdiag.diagnostics.contexts.recorded import compare_recorded, recorded_doubts
from teachdiag.diagnostics.contexts.sampling import Group, Rollout, check_candidates
from teachdiag.diagnostics.contexts.templates import ids_digest, recorded_options, resolve_options
from teachdiag.diagnostics.engines.protocol import Job, RolloutEngine, Scoring, TeacherEngine
from teachdiag.diagnostics.engines.table import engines
from teachdiag.diagnostics.grading.grader import grader_of
from teachdiag.diagnostics.grading.grades import AnswerKey, answer_key, grade_responses
from teachdiag.diagnostics.models.pair import PairOutline, pinned, refuse_nothing_to_learn
from teachdiag.diagnostics.models.vocabulary import vocabulary_table
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.processes.group import in_share
from teachdiag.diagnostics.processes.shared_stage import SharedStage, agree
from teachdiag.errors import ModelError
from teachdiag.foreign import how_imported
from teachdiag.manifests import read_manifest
from teachdiag.progress import Reporter
from teachdiag.prompts import PromptSet, load_prompts, say_contradictory
from teachdiag.runs import Stage, table_digest
from teachdiag.settings import CaptureSettings
from teachdiag.signals import recorded_columns
from teachdiag.tables import refuse_strays, shard_paths, write_table

_PROMPTS = ("prompt_token_ids", "teacher_prompt_token_ids")  # columns of what student and teacher read


@dataclass(frozen=True)
class Plan:
    """The contexts of a run before anything is sampled.

    Attributes:
        groups: rollouts to be sampled; none where contexts are brought.
        inputs: what the stage records of where they come from.
        same_prompts: whether both models read the same prompts.
        asked: token ids of the student's prompts, by prompt_id.
    """

    groups: list[Group]
    inputs: dict[str, Any]
    same_prompts: bool
    asked: dict[str, Sequence[int]]


def run_capture(run: Path, settings: CaptureSettings, reporter: Reporter) -> dict[str, Any]:
    """Sample (or import) a bank of contexts, score it, and grade it if asked to; continue where a killed run stopped.

    Works under `torchrun` and `accelerate launch`: the processes share the shards out.

    Returns:
        The stage's summary, which is also the `results` of `capture.json`; with `--grade` also `grades`, those of
        `grade.json`.

    Raises:
        InputError: anything that the user can mend; nothing already computed is lost.
    """
    agree(settings.as_dict())
    rollouts, teacher = engines(settings)
    stage = SharedStage(run, "capture", tables=("contexts", "positions", "vocabulary"))
    with stage.held():
        prompts = _load_prompts(settings)  # before models, which may be fetched or made: a typo costs nothing
        sources, pair = teacher.resolve(settings, reporter)
        plan = _plan(stage, settings, pair, prompts, reporter)
        refuse_nothing_to_learn(sources, settings.teacher_prompt, plan.same_prompts)
        key = on_first(_answer_key)(settings, pair, prompts, plan)
        results = _captured(stage, Job(run, settings, sources, pair, reporter), plan, (rollouts, teacher))
        if key is not None:
            results["grades"] = grade_responses(run, key, settings, pair.student.tokenizer, reporter)
    return results


def _captured(stage: SharedStage, job: Job, plan: Plan, used: tuple[RolloutEngine, TeacherEngine]) -> dict[str, Any]:
    """Sample and score, unless that is done; return the stage's summary."""
    inputs = {"student": pinned(job.sources[0]), "teacher": pinned(job.sources[1])} | plan.inputs | recorded_columns()
    rollouts, teacher = used
    with teacher.opened(job) as scoring:
        settings, defaults = job.settings.of_capture(), CaptureSettings().of_capture()
        if stage.claim(settings, inputs, scoring.facts, defaults):
            job.reporter.say(f"{job.run}: capture is complete")
            return dict(stage.require()["results"])
        with stage.timed():
            _sample_and_score(job, _prepare(job, plan.groups), rollouts, scoring)
            known, tokenizer = job.pair.known, job.pair.student.tokenizer
            results = {"shared_vocabulary": known.count, "same_prompts": plan.same_prompts} | _summary(job.run)
            results |= on_first(compare_recorded)(job.run, job.reporter)
            results["warnings"] = doubts(results, not (job.settings.contexts or tokenizer.chat_template))
            results["warnings"] += of_import(inputs.get(IMPORTED, {})) + of_server(inputs["teacher"])
            results["warnings"] += recorded_doubts(results.get("recorded", {}))
            on_first(_say_unscored)(job)
            stage.complete(results)
            for doubt in results["warnings"]:
                job.reporter.say(f"Beware: {doubt}")
    return results


@on_first
def _load_prompts(settings: CaptureSettings) -> PromptSet | None:
    if settings.contexts and not settings.grade:
        return None
    manifest = read_manifest(settings.prompts)
    if settings.grade:
        grader_of(manifest)  # which refuses a source that has no answers
    return load_prompts(manifest, settings.data_file)


def _answer_key(
    settings: CaptureSettings, pair: PairOutline, prompts: PromptSet | None, plan: Plan
) -> AnswerKey | None:
    """Return what responses are graded by, or None where that is not asked for."""
    if not settings.grade or prompts is None:
        return None
    return answer_key(prompts, plan.asked, pair.student.tokenizer)


@on_first
def _plan(
    stage: Stage, settings: CaptureSettings, pair: PairOutline, prompts: PromptSet | None, reporter: Reporter
) -> Plan:
    if settings.contexts or prompts is None:
        return _plan_import(settings)
    return _plan_rollouts(stage, settings, pair, prompts, reporter)


def _plan_import(settings: CaptureSettings) -> Plan:
    """Take the contexts that are brought."""
    path = Path(settings.contexts)
    inputs = {"contexts": table_digest(path)} | how_imported(path)
    table = CONTEXTS.read_arrow(path, ("context_id", "prompt_id", *_PROMPTS))
    names, ours, theirs = (table[name] for name in ("prompt_id", *_PROMPTS))
    return Plan([], inputs, bool(ours.equals(theirs)), dict(zip(names.to_pylist(), ours.to_pylist(), strict=True)))


def _plan_rollouts(
    stage: Stage, settings: CaptureSettings, pair: PairOutline, prompts: PromptSet, reporter: Reporter
) -> Plan:
    """Lay out what is to be sampled, rendered at the date that was recorded."""
    check_candidates(settings.top_k, pair.known.count)
    say_contradictory(prompts, reporter)
    manifest, tokenizers = prompts.manifest, {pair.student.name: pair.student.tokenizer}
    given, defaults = settings.options_given, manifest.template_options
    ours = resolve_options(given[0], tokenizers, defaults, recorded_options(stage, settings), reporter)
    theirs = ours if given[0] == given[1] else resolve_options(given[1], tokenizers, defaults, ours, reporter)
    groups, longer = lay_out(settings, pair, prompts, (ours, theirs), reporter)
    too_long = {"too_long_left_out": longer} if settings.max_prompt_tokens else {}
    if longer:
        reporter.say(f"{longer} prompts of more than {settings.max_prompt_tokens} tokens were passed over")
    rows = [row for group in groups for row in group.rows]
    recorded = (
        prompts.left_out
        | too_long
        | {
            "manifest": manifest.id,
            "licence": manifest.licence,
            "content_sha256": prompts.content_sha256,
            "distinct": len(prompts.prompts),
            "duplicates_dropped": prompts.duplicates,
            "template_options": ours,
            "teacher_template_options": theirs,
            "token_ids_sha256": ids_digest(row[column] for row in rows for column in _PROMPTS),
        }
    )
    same = all(row[_PROMPTS[0]] == row[_PROMPTS[1]] for row in rows)
    return Plan(groups, {"prompts": recorded}, same, {row["prompt_id"]: row[_PROMPTS[0]] for row in rows})


@on_first
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


def _sample_and_score(job: Job, groups: list[Group], engine: RolloutEngine, scoring: Scoring) -> None:
    if groups:
        _sample(job, groups, engine, scoring)
    scoring.score()


def _sample(job: Job, groups: list[Group], engine: RolloutEngine, scoring: Scoring) -> None:
    """Sample this process's share of the groups, and write each when it is done.

    Raises:
        ModelError: the engine ended before it had sampled them all.
    """
    share = [group for group in groups if in_share(group.index)]
    written = 0
    with job.reporter.bar("Rollouts", total=sum(len(group.rows) for group in share)) as advance:

        def write(group: Group, rollouts: list[Rollout]) -> None:
            nonlocal written
            write_group(job.run, group, rollouts)
            written += 1
            advance(len(group.rows))

        engine.sample(job, scoring, groups, write)
    if written < len(share):
        raise ModelError(f"only {written} of {len(share)} groups of rollouts came back: start the same command again")


def _say_unscored(job: Job) -> None:
    settings = job.settings
    longer = int((own_lengths(job.run) > settings.positions).sum()) if settings.positions_from == "first" else 0
    if longer:
        job.reporter.say(
            f"{longer} responses have more than --positions {settings.positions} tokens of the student's, of which the "
            "first were scored: --positions-from spread draws them from the whole response"
        )


@on_first
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
