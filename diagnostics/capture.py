"""Stage capture: prompts to frozen rollouts (`contexts`), and both models' distributions on them (`positions`)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from teachdiag.artefacts import CONTEXTS, POSITIONS
from teachdiag.diagnostics.alignment import Batch, Context, Side, batched, check_fits, in_shards
from teachdiag.diagnostics.models import LanguageModel, ModelSource, load, machine_facts, pick_device, resolve
from teachdiag.diagnostics.rollouts import check_prompts_fit, encode_prompt, sample
from teachdiag.diagnostics.scoring import Columns, score
from teachdiag.diagnostics.vocabulary import shared_vocabulary, vocabulary_table
from teachdiag.errors import ArtefactError, ModelError
from teachdiag.manifests import Manifest, Prompt, PromptSet, load_prompts, read_manifest
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, table_digest, writing
from teachdiag.seeds import derive_seed
from teachdiag.settings import CaptureSettings, PairSettings
from teachdiag.tables import shard_path, write_parquet

ROLLOUT_CONTEXTS = 32  # rollouts generated together, and contexts in one shard of the `contexts` table


@dataclass(frozen=True)
class Pair:
    """Student and teacher, loaded, with the number of leading ids that they share."""

    student: LanguageModel
    teacher: LanguageModel
    vocabulary: int


def run_capture(run: Path, settings: CaptureSettings, reporter: Reporter) -> dict[str, Any]:
    """Sample (or import) a bank of contexts and score it; continue where a killed run stopped.

    Returns:
        The stage's summary, which is also the `results` of `capture.json`.

    Raises:
        InputError: anything that the user can mend; nothing already computed is lost.
    """
    stage = Stage(run, "capture", tables=("contexts", "positions"))
    with writing(run):
        sources = resolve_pair(settings, reporter)
        prompts = None if settings.contexts else load_prompts(read_manifest(settings.prompts), settings.data_file)
        device = pick_device(settings.device)
        if stage.claim(settings.as_dict(), _inputs(settings, sources, prompts), machine_facts(device)):
            reporter.say(f"{run}: capture is complete")
            return dict(stage.require()["results"])
        with stage.timed():
            pair = load_pair(sources, settings.dtype, device, reporter)
            write_parquet(vocabulary_table(pair.student, pair.vocabulary), shard_path(run / "vocabulary", 0))
            if prompts is None:
                _import_contexts(run, settings, pair)
            else:
                _sample_contexts(run, settings, pair, prompts, reporter)
            score_contexts(run, settings, pair, reporter)
            results = {"shared_vocabulary": pair.vocabulary} | _summary(run)
            stage.complete(results)
    return results


def resolve_pair(settings: PairSettings, reporter: Reporter) -> tuple[ModelSource, ModelSource]:
    """Pin student and teacher.

    Raises:
        ModelError: one cannot be found, or both are the same model under the same prompt.
    """
    student = resolve(settings.student, settings.revision, settings.dropped_layers, reporter)
    teacher = resolve(settings.teacher, settings.teacher_revision or settings.revision, (), reporter)
    if student.digest == teacher.digest and not student.dropped_layers and settings.same_prompt:
        raise ModelError(
            f"student and teacher are both {student.name} with the same prompt, so there is nothing to learn: choose "
            "another teacher, --student-drop-layers, or --teacher-prompt privileged"
        )
    return student, teacher


def load_pair(
    sources: tuple[ModelSource, ModelSource], dtype: str, device: str, reporter: Reporter, *, master: bool = False
) -> Pair:
    """Load both models and cut their heads to the shared vocabulary.

    Args:
        sources: student and teacher. Loaded once where they have the same weights and the student stays at theta0.
        dtype: type of the weights, or of the student's forward computation with `master`.
        device: torch device.
        reporter: told where heads are cut.
        master: keep the student's weights in float32, to be updated.

    Raises:
        ModelError: one cannot be loaded, or they do not share a vocabulary.
    """
    student = load(sources[0], dtype, device, master=master)
    same = sources[0].path == sources[1].path and sources[0].revision == sources[1].revision
    shared = same and not sources[0].dropped_layers and not master
    teacher = student if shared else load(sources[1], dtype, device)
    vocabulary = shared_vocabulary(student, teacher, reporter)
    student.head.size = teacher.head.size = vocabulary
    return Pair(student, teacher, vocabulary)


def read_contexts(run: Path, positions: int) -> Iterator[Context]:
    """Yield the frozen contexts of a run, each cut to its kept positions; one shard is in memory at a time."""
    for file in sorted((run / "contexts").glob("part-*.parquet")):
        yield from _contexts(CONTEXTS.read_arrow(file), positions)


def score_contexts(run: Path, settings: CaptureSettings, pair: Pair, reporter: Reporter) -> None:
    """Write the `positions` table of a run's contexts, shard by shard; shards that are there stay as they are."""
    by_key = [(name, "ascending") for name in POSITIONS.key]
    total = CONTEXTS.read_arrow(run / "contexts", ["context_id"]).num_rows
    with reporter.bar("Scoring contexts", total=total) as advance:
        for index, shard in enumerate(in_shards(read_contexts(run, settings.positions), settings.shard_contexts)):
            path = shard_path(run / "positions", index)
            if path.exists():
                advance(len(shard))
                continue
            scored = []
            for batch in batched(shard, settings.batch_tokens):
                scored.append(_positions(batch, score(pair.student, pair.teacher, batch, settings.tile_positions)))
                advance(len(batch.contexts))
            write_parquet(pa.concat_tables(scored).sort_by(by_key), path)


def _contexts(table: pa.Table, positions: int) -> list[Context]:
    return [
        Context(
            context_id=row["context_id"],
            prompt_id=row["prompt_id"],
            split=row["split"],
            student_prompt=tuple(row["prompt_token_ids"]),
            teacher_prompt=tuple(row["teacher_prompt_token_ids"]),
            response=tuple(row["response_token_ids"][:positions]),
        )
        for row in table.to_pylist()
    ]


def _inputs(
    settings: CaptureSettings, sources: tuple[ModelSource, ModelSource], prompts: PromptSet | None
) -> dict[str, Any]:
    inputs: dict[str, Any] = {"student": pinned(sources[0]), "teacher": pinned(sources[1])}
    if prompts is None:
        CONTEXTS.read_arrow(Path(settings.contexts), ["context_id"])  # refuses what is no such table
        return inputs | {"contexts": table_digest(Path(settings.contexts))}
    manifest = prompts.manifest
    return inputs | {
        "prompts": {
            "manifest": manifest.id,
            "licence": manifest.licence,
            "content_sha256": prompts.content_sha256,
            "distinct": len(prompts.prompts),
            "duplicates_dropped": prompts.duplicates,
        }
    }


def pinned(source: ModelSource) -> dict[str, Any]:
    """What identifies the weights; where a local copy lies does not."""
    facts = asdict(source)
    del facts["path"]
    return facts


def _sample_contexts(run: Path, settings: CaptureSettings, pair: Pair, prompts: PromptSet, reporter: Reporter) -> None:
    rows = _planned_rows(settings, pair, prompts)
    groups = [rows[start : start + ROLLOUT_CONTEXTS] for start in range(0, len(rows), ROLLOUT_CONTEXTS)]
    done = [shard_path(run / "contexts", index).exists() for index in range(len(groups))]
    with reporter.bar("Rollouts", total=len(rows)) as advance:
        for index, group in enumerate(groups):
            if not done[index]:
                rollouts = sample(
                    pair.student,
                    [row["prompt_token_ids"] for row in group],
                    [row["sampling_seed"] for row in group],
                    settings.sampling,
                    pair.vocabulary,
                )
                sampled = [
                    row | {"response_token_ids": r.token_ids, "finish_reason": r.finish_reason}
                    for row, r in zip(group, rollouts, strict=True)
                ]
                write_parquet(CONTEXTS.build_rows(sampled), shard_path(run / "contexts", index))
            advance(len(group))


def _planned_rows(settings: CaptureSettings, pair: Pair, prompts: PromptSet) -> list[dict[str, Any]]:
    """Every column of `contexts` that is known before sampling, bank first."""
    bank, update = prompts.draw(settings.bank_prompts, settings.update_prompts, settings.seed)
    rows: list[dict[str, Any]] = []
    for split, drawn in (("bank", bank), ("update", update)):
        for prompt in drawn:
            row = {"prompt_id": prompt.prompt_id, "split": split, "source_row": prompt.source_row}
            row |= _prompt_tokens(settings, pair, prompts.manifest, prompt)
            for response in range(settings.responses):
                seed = derive_seed(settings.seed, "rollout", prompt.prompt_id, response)
                rows.append(row | {"context_id": len(rows), "sampling_seed": seed})
    for model, column in ((pair.student, "prompt_token_ids"), (pair.teacher, "teacher_prompt_token_ids")):
        check_prompts_fit([(row["prompt_id"], row[column]) for row in rows], model, settings.max_new_tokens)
    return rows


def _prompt_tokens(
    settings: CaptureSettings, pair: Pair, manifest: Manifest, prompt: Prompt
) -> dict[str, tuple[int, ...]]:
    student_text = manifest.student_text(prompt)
    privileged = settings.teacher_prompt == "privileged"
    teacher_text = manifest.privileged_text(prompt) if privileged else student_text
    # Both prompts go through the student's tokenizer and chat template: the teacher is to answer as the student would.
    return {
        "prompt_token_ids": encode_prompt(pair.student.tokenizer, student_text),
        "teacher_prompt_token_ids": encode_prompt(pair.student.tokenizer, teacher_text),
    }


def _import_contexts(run: Path, settings: CaptureSettings, pair: Pair) -> None:
    """Copy a foreign `contexts` table into the run, checked whole before anything is written.

    Raises:
        ArtefactError: it is not of the schema, repeats a context, has no bank, or one prompt is in both splits.
        ContextError: a context cannot be scored by this pair.
    """
    table = CONTEXTS.read_arrow(Path(settings.contexts)).sort_by("context_id")
    table = CONTEXTS.build({name: table[name] for name in CONTEXTS.schema.names})
    if table.num_rows == 0 or pc.count_distinct(table["context_id"]).as_py() != table.num_rows:
        raise ArtefactError(f"{settings.contexts}: context_id must be distinct, and there must be some contexts")
    splits: dict[str, str] = {}
    for prompt_id, split in zip(table["prompt_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        if split not in ("bank", "update"):
            raise ArtefactError(f"{settings.contexts}: split {split!r} of prompt {prompt_id}: use 'bank' or 'update'")
        if splits.setdefault(prompt_id, split) != split:
            raise ArtefactError(f"{settings.contexts}: prompt {prompt_id} is in both splits, which must not overlap")
    if "bank" not in splits.values():
        raise ArtefactError(f"{settings.contexts} has no context with split 'bank', on which gains are measured")
    limits: dict[Side, int] = {"student": pair.student.limit, "teacher": pair.teacher.limit}
    check_fits(_contexts(table, settings.positions), limits, pair.vocabulary)
    for index, start in enumerate(range(0, table.num_rows, ROLLOUT_CONTEXTS)):
        write_parquet(table.slice(start, ROLLOUT_CONTEXTS), shard_path(run / "contexts", index))


def _positions(batch: Batch, columns: Columns) -> pa.Table:
    """Rows of the `positions` table from the statistics of one batch."""
    lengths = np.array([len(c.response) for c in batch.contexts])
    kept = np.repeat(lengths, lengths)
    return POSITIONS.build(
        columns
        | {
            "context_id": batch.context_ids,
            "position": batch.positions,
            "prompt_id": np.repeat([c.prompt_id for c in batch.contexts], lengths),
            "split": np.repeat([c.split for c in batch.contexts], lengths),
            "token_id": batch.tokens,
            "pos_norm": batch.positions / np.maximum(kept - 1, 1),
        }
    )


def _summary(run: Path) -> dict[str, Any]:
    contexts = CONTEXTS.read(run / "contexts", ["context_id", "prompt_id", "split", "finish_reason"])
    positions = POSITIONS.read(run / "positions", ["split", "forward_kl", "compatibility_k16", "student_entropy"])
    bank = positions[positions["split"] == "bank"]
    counts = contexts.groupby("split").agg(contexts=("context_id", "size"), prompts=("prompt_id", "nunique"))
    return {
        "contexts": counts["contexts"].to_dict(),
        "prompts": counts["prompts"].to_dict(),
        "positions": positions["split"].value_counts().sort_index().to_dict(),
        "share_cut_at_max_new_tokens": float((contexts["finish_reason"] == "length").mean()),
        "bank_mean_forward_kl": float(bank["forward_kl"].mean()),
        "bank_mean_compatibility_k16": float(bank["compatibility_k16"].mean()),
        "bank_mean_student_entropy": float(bank["student_entropy"].mean()),
    }
