"""The `contexts` table: rollouts laid out before sampling, written group by group, imported, read."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from teachdiag.artefacts import BROUGHT, CONTEXTS
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.contexts.sampling import Group, Rollout, check_prompts_fit
from teachdiag.diagnostics.contexts.templates import Options, encode_prompts
from teachdiag.diagnostics.models.alignment import Context, Side, check_fits, in_shards
from teachdiag.diagnostics.models.pair import PairOutline
from teachdiag.errors import ArtefactError, ContextError
from teachdiag.manifests import Prompt
from teachdiag.progress import Reporter
from teachdiag.prompts import PromptSet
from teachdiag.seeds import derive_seed
from teachdiag.settings import CaptureSettings
from teachdiag.tables import is_intact, shard_files, shard_path, write_shard

ROLLOUT_CONTEXTS = 32  # rollouts in one group, which is one shard of the table


def lay_out(
    settings: CaptureSettings,
    pair: PairOutline,
    prompts: PromptSet,
    options: tuple[Options, Options],
    reporter: Reporter,
) -> tuple[list[Group], int]:
    """Lay out every rollout of a run, in groups: every column of `contexts` that is known before sampling, bank first.

    Args:
        settings: how many prompts and responses, drawn from which seed.
        pair: both models in outline.
        prompts: the source.
        options: of the chat template, for the student's prompts and the teacher's.
        reporter: told of control tokens in the prompts' own text.

    Returns:
        The groups, and the number of prompts that were passed over, as they are longer than is asked for.

    Raises:
        ContextError: a prompt leaves no room for its response.
        ManifestError: there are too few prompts.
    """
    bank, update, longer = _drawn(settings, pair, prompts, options[0])
    drawn, manifest, privileged = [*bank, *update], prompts.manifest, settings.teacher_prompt == "privileged"
    asked = [(prompt.prompt_id, manifest.student_messages(prompt)) for prompt in drawn]
    for_teacher = [(p.prompt_id, manifest.privileged_messages(p)) for p in drawn] if privileged else asked
    # Both go through the student's tokenizer and chat template: the teacher is to answer as the student would.
    ids, teacher_ids = (
        encode_prompts(pair.student.tokenizer, conversations, rendered_with, heard)
        for conversations, rendered_with, heard in zip((asked, for_teacher), options, (reporter, None), strict=True)
    )
    rows: list[dict[str, Any]] = []
    for index, prompt in enumerate(drawn):
        row = {
            "prompt_id": prompt.prompt_id,
            "split": "bank" if index < len(bank) else "update",
            "source_row": prompt.source_row,
            "prompt_token_ids": ids[index],
            "teacher_prompt_token_ids": teacher_ids[index],
        } | dict.fromkeys(BROUGHT)
        for response in range(settings.responses):
            seed = derive_seed(settings.seed, "rollout", prompt.prompt_id, response)
            rows.append(row | {"context_id": len(rows), "sampling_seed": seed})
    for model, column in ((pair.student, "prompt_token_ids"), (pair.teacher, "teacher_prompt_token_ids")):
        check_prompts_fit([(row["prompt_id"], row[column]) for row in rows], model, settings.max_new_tokens)
    return [Group(index, group) for index, group in enumerate(in_shards(rows, ROLLOUT_CONTEXTS))], longer


def _drawn(
    settings: CaptureSettings, pair: PairOutline, prompts: PromptSet, options: Options
) -> tuple[list[Prompt], list[Prompt], int]:
    """Draw the prompts of bank and updates, and count those that were passed over as too long."""
    counts = settings.bank_prompts, settings.update_prompts
    if not settings.max_prompt_tokens:
        return *prompts.draw(*counts, settings.seed), 0
    lengths: list[int] = []

    def fits(prompt: Prompt) -> bool:
        named = [(prompt.prompt_id, prompts.manifest.student_messages(prompt))]
        lengths.append(len(encode_prompts(pair.student.tokenizer, named, options)[0]))
        return lengths[-1] <= settings.max_prompt_tokens

    return *prompts.draw(*counts, settings.seed, fits), sum(n > settings.max_prompt_tokens for n in lengths)


def unsampled(run: Path, groups: Iterable[Group]) -> list[Group]:
    """Return the groups whose shard is still to be written, or is damaged."""
    return [group for group in groups if not is_intact(shard_path(run / "contexts", group.index))]


def write_group(run: Path, group: Group, rollouts: Sequence[Rollout]) -> None:
    """Write the shard of one group."""
    sampled = [
        row | {"response_token_ids": r.token_ids, "finish_reason": r.finish_reason}
        for row, r in zip(group.rows, rollouts, strict=True)
    ]
    write_shard(CONTEXTS.build_rows(sampled), shard_path(run / "contexts", group.index))


def read_contexts(run: Path, positions: Positions) -> Iterator[Context]:
    """Yield the frozen contexts of a run, with the positions that are kept; one shard is in memory at a time."""
    for file in shard_files(run / "contexts"):
        yield from _contexts(CONTEXTS.read_arrow(file), positions)


def own_lengths(run: Path) -> np.ndarray:
    """How many tokens of each response of a run are the student's, shape (contexts,), int64."""
    table = CONTEXTS.read_arrow(run / "contexts", ["response_token_ids", "response_mask"]).combine_chunks()
    masks = table["response_mask"].combine_chunks()
    masked = np.bincount(pc.list_parent_indices(masks), pc.list_flatten(masks), minlength=table.num_rows)
    lengths = pc.list_value_length(table["response_token_ids"])
    return np.where(masks.is_valid(), masked, lengths).astype(np.int64)


def import_contexts(run: Path, settings: CaptureSettings, pair: PairOutline) -> int:
    """Copy a foreign `contexts` table into the run, checked whole before anything is written; return its rows.

    Raises:
        ArtefactError: it is not of the schema, repeats a context, has no bank, or one prompt is in both splits or has
            two names.
        ContextError: a context cannot be scored by this pair, or its mask is not one of its response.
    """
    table = CONTEXTS.read_arrow(Path(settings.contexts)).sort_by("context_id")
    table = CONTEXTS.build({name: table[name] for name in CONTEXTS.schema.names})
    if table.num_rows == 0 or pc.count_distinct(table["context_id"]).as_py() != table.num_rows:
        raise ArtefactError(f"{settings.contexts}: context_id must be distinct, and there must be some contexts")
    _check_prompts(table, settings.contexts)
    _check_lists(table)
    limits: dict[Side, int] = {"student": pair.student.limit, "teacher": pair.teacher.limit}
    media = pair.student.media_ids | pair.teacher.media_ids
    check_fits(_contexts(table, Positions.of(settings)), limits, pair.known, media)
    sides = (table[name].to_pylist() for name in ("prompt_token_ids", "response_token_ids"))
    if all(response[: len(prompt)] == prompt for prompt, response in zip(*sides, strict=True)):
        raise ContextError(
            f"{settings.contexts}: every response begins with its whole prompt: response_token_ids are what the "
            "student sampled alone, and response_mask is of that length"
        )
    for index, start in enumerate(range(0, table.num_rows, ROLLOUT_CONTEXTS)):
        write_shard(table.slice(start, ROLLOUT_CONTEXTS), shard_path(run / "contexts", index))
    return int(table.num_rows)


def _check_prompts(table: pa.Table, path: str) -> None:
    """Refuse prompts that are in no split or in both, and one that has two names: prompts are clusters."""
    splits: dict[str, str] = {}
    names: dict[tuple[int, ...], str] = {}
    columns = (table[name].to_pylist() for name in ("prompt_id", "split", "prompt_token_ids"))
    for prompt_id, split, tokens in zip(*columns, strict=True):
        if split not in ("bank", "update"):
            raise ArtefactError(f"{path}: split {split!r} of prompt {prompt_id}: use 'bank' or 'update'")
        if splits.setdefault(prompt_id, split) != split:
            raise ArtefactError(f"{path}: prompt {prompt_id} is in both splits, which must not overlap")
        if (name := names.setdefault(tuple(tokens), prompt_id)) != prompt_id:
            raise ArtefactError(
                f"{path}: prompts {name} and {prompt_id} have the same prompt_token_ids: give them one prompt_id, "
                "since responses to it are not independent"
            )
    if "bank" not in splits.values():
        raise ArtefactError(f"{path} has no context with split 'bank', on which gains are measured")


def _check_lists(table: pa.Table) -> None:
    """Refuse what is said of each token of a response, and is not said of each."""
    for name in BROUGHT:
        listed = table.filter(table[name].is_valid()).select(["context_id", "response_token_ids", name])
        for context, response, values in zip(*(column.to_pylist() for column in listed.columns), strict=True):
            if len(values) != len(response):
                raise ContextError(
                    f"context {context} has a {name} of {len(values)} values for the {len(response)} tokens of its "
                    "response: give one value a token"
                )
            if name == "response_mask" and not set(values) <= {0, 1}:
                raise ContextError(f"context {context} has a response_mask that holds more than 0 and 1")


def _contexts(table: pa.Table, positions: Positions) -> list[Context]:
    return [_context(row, positions) for row in table.to_pylist()]


def _context(row: dict[str, Any], positions: Positions) -> Context:
    kept = positions.keep(row["context_id"], row["response_token_ids"], row["response_mask"])
    return Context(
        context_id=row["context_id"],
        prompt_id=row["prompt_id"],
        split=row["split"],
        student_prompt=tuple(row["prompt_token_ids"]),
        teacher_prompt=tuple(row["teacher_prompt_token_ids"]),
        response=kept.response,
        kept=kept.positions,
        weights=kept.weights,
    )
