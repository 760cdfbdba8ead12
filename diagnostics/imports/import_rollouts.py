"""Records to a `contexts` table: ids, names and splits of prompts, and how each response ended."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from teachdiag.artefacts import CONTEXTS, IMPORTED
from teachdiag.diagnostics.contexts.doubts import of_import
from teachdiag.diagnostics.contexts.templates import resolve_options
from teachdiag.diagnostics.imports.encoding import Encoder
from teachdiag.diagnostics.imports.files import Format, files_of, read_records
from teachdiag.diagnostics.imports.records import BadRow, Ids, Mask, Record, at, counted
from teachdiag.diagnostics.models.sources import Outline, outline, resolve
from teachdiag.errors import RolloutError, SettingsError, cause
from teachdiag.foreign import GIVEN, RECODED
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed
from teachdiag.settings import ImportSettings, template_options
from teachdiag.settings.base import shown
from teachdiag.tables import write_parquet

_UPDATE_SHARE = 4  # one prompt in so many is set aside for updates, unless the user says how many


def import_rollouts(form: Format, settings: ImportSettings, reporter: Reporter) -> dict[str, Any]:
    """Write rollouts from elsewhere as one `contexts` table, whole or not at all.

    The table's metadata say how it was imported: format, student, options, and what was left out.

    Args:
        form: the format of the files.
        settings: its files, the student, what may be mended or left out.
        reporter: told what the user should know of the files.

    Returns:
        Numbers of `contexts`, of `prompts` by split, and of contexts by how they ended (`ends`); `file`, which was
        written; and what its metadata say, as `imported`.

    Raises:
        InputError: a file, a row, the student or an option is wrong.
    """
    out, files = Path(settings.contexts), files_of(form, [Path(path) for path in settings.files])
    _check_output(out, files)
    readable, bad = read_records(form, files, settings.names, reporter)
    _check_origins(readable, reporter)
    model = outline(resolve(settings.student, settings.revision, (), reporter, settings.trust_remote_code))
    if settings.end_of_text:
        model = replace(model, end_ids=_named_ends(model, settings.end_of_text))
    options = resolve_options(settings.template_options, {settings.student: model.tokenizer}, {}, {}, reporter)
    encoder = Encoder(
        model.tokenizer,
        model.rows,
        model.end_ids,
        options,
        media=model.media_ids,
        strip_padding=settings.strip_padding,
    )
    records, rows, mended = [], [], 0
    for record in readable:
        before = encoder.unpadded
        try:
            rows.append(_row(form.name, record, encoder, model.end_ids))
            records.append(record)
            mended += encoder.unpadded > before
        except BadRow as error:
            bad.append(at(record.where, error))
    _check_share(bad, len(records) + len(bad), settings)
    _check_sides(records, rows, encoder)
    _check_names(records, rows)
    _split(records, rows, settings)
    rows.sort(key=lambda row: str(row["split"]))  # the bank first, each split in the order of the files
    imported = {
        "format": form.name,
        "files": [file.name for file in files],
        "student": settings.student,
        "template_options": options,
        "skipped": counted(error.reason for error in bad),
        "padding_stripped": mended,
        "responses": counted(_known_by(record) for record in records),
    }
    _say_doubts(imported, reporter)
    _say_repeated(rows, reporter)
    _say_foreign(records, rows, encoder, reporter)
    _say_unset_options(settings, records, encoder, reporter)
    table = CONTEXTS.build_rows([row | {"context_id": context_id} for context_id, row in enumerate(rows)])
    table = table.replace_schema_metadata({**table.schema.metadata, IMPORTED: json.dumps(imported)})
    write_parquet(table, out)
    return {"file": settings.contexts} | _summary(rows) | {"imported": imported}


def _check_output(out: Path, files: Sequence[Path]) -> None:
    try:
        taken, folder = out.resolve() in [file.resolve() for file in files], out.is_dir()
    except OSError as error:
        raise SettingsError(f"--contexts {str(out)[:200]} cannot be written: {cause(error)}") from error
    if taken:
        raise SettingsError(f"--contexts {out} is one of the files to import: choose another name")
    if folder:
        raise SettingsError(f"--contexts {out} is a folder: choose another name")


def _check_share(bad: Sequence[BadRow], rows: int, settings: ImportSettings) -> None:
    """Refuse the first bad row, or too many of them where they may be left out."""
    if not bad:
        return
    reasons = "; ".join(f"{count} {reason}" for reason, count in counted(error.reason for error in bad).items())
    if not settings.skip_bad_rows:
        more = f" (so are {len(bad) - 1} more of {rows} rows: {reasons})" if len(bad) > 1 else f" (1 of {rows} rows)"
        raise RolloutError(f"{bad[0]}{more}; --skip-bad-rows leaves such rows out")
    if len(bad) == rows or len(bad) > settings.skip_at_most * rows:
        raise RolloutError(
            f"{len(bad)} of {rows} rows cannot be had exactly ({reasons}), where --skip-at-most is "
            f"{settings.skip_at_most:g}: the first is {bad[0]}"
        )


def _known_by(record: Record) -> str:
    return GIVEN if record.response.ids is not None else RECODED


def _say_doubts(imported: dict[str, Any], reporter: Reporter) -> None:
    """Say what was left out or mended, and what the files could not tell."""
    if mended := imported["padding_stripped"]:
        reporter.say(f"padding was taken off the ids of {mended} rows")
    for doubt in of_import(imported):
        reporter.say(doubt)


def _say_repeated(rows: Sequence[dict[str, Any]], reporter: Reporter) -> None:
    """Say how many rollouts are there more than once: short answers are, and files that were given twice."""
    again = len(rows) - len({(row["prompt_token_ids"], row["response_token_ids"]) for row in rows})
    if again:
        reporter.say(
            f"{again} of {len(rows)} rollouts are there already, token for token: short answers may be sampled twice, "
            "and rows may have been written twice"
        )


def _say_foreign(
    records: Sequence[Record], rows: Sequence[dict[str, Any]], encoder: Encoder, reporter: Reporter
) -> None:
    """Say where no prompt that came as ids is what the student's tokenizer makes of its text."""
    text = None
    for record, row in zip(records, rows, strict=True):
        if record.prompt.ids is not None and (text := encoder.made(row["prompt_token_ids"])) is None:
            return
    if text is not None:
        reporter.say(
            "Beware: none of the prompts' ids are those that the student's tokenizer makes of their text: if the last "
            f"one, which begins {shown(text)}, is not what was asked, they are another tokenizer's"
        )


def _say_unset_options(
    settings: ImportSettings, records: Sequence[Record], encoder: Encoder, reporter: Reporter
) -> None:
    """Say which options of the chat template nothing was said of, where messages were rendered with it."""
    unsaid = [name for name in encoder.options if name not in template_options(settings.template_options)]
    if unsaid and any(record.prompt.ids is None and record.prompt.messages is not None for record in records):
        reporter.say(
            f"messages were rendered by a chat template that also reads {', '.join(unsaid)}: if the run gave it any of "
            "these, import with --template-options"
        )


def _check_origins(records: list[Record], reporter: Reporter) -> None:
    """Refuse rows of several tokenizers, and tell of rows of several students."""
    first: dict[str, str] = {}
    for record in records:
        if record.tokenizer is not None:
            first.setdefault(record.tokenizer, record.where)
    if len(first) > 1:
        (one, first_where), (other, other_where), *_ = first.items()
        raise RolloutError(
            f"{other_where}: was tokenised by {other}, but {first_where} by {one}: import one tokenizer's at a time"
        )
    steps = {record.step for record in records if record.step is not None}
    if len(steps) > 1:
        reporter.say(
            f"rollouts of training steps {min(steps)} to {max(steps)}, each with weights of its own: import one step's "
            "file if --student is to have sampled them all"
        )


def _named_ends(model: Outline, names: str) -> frozenset[int]:
    vocabulary = model.tokenizer.get_vocab()
    unknown = [name for name in names.split(",") if name not in vocabulary]
    if unknown:
        raise SettingsError(f"--end-of-text: {model.name} has no token {unknown[0]!r}: give tokens, comma-separated")
    return frozenset(vocabulary[name] for name in names.split(","))


def _row(name: str, record: Record, encoder: Encoder, ends: frozenset[int]) -> dict[str, Any]:
    """Columns of one context but its id and split."""
    prompt = encoder.prompt(record.prompt)
    mask = record.response_mask
    response = encoder.response(record.response, prompt, record.finish_reason, own_end=mask is None or mask[-1])
    teacher = prompt if record.teacher_prompt is None else encoder.prompt(record.teacher_prompt)
    students = (mask or (True,) * len(response))[: len(response)]  # of masked ones, padding is taken off the end alone
    if not any(students):
        raise BadRow("masked", "no token of it is the student's: its mask keeps padding alone")
    _check_end(response, students, ends)
    last = max(position for position, mine in enumerate(students) if mine)
    return {
        "prompt_id": record.prompt_id or f"{name}/{_digest(prompt)}",
        "source_row": record.row,
        "prompt_token_ids": prompt,
        "teacher_prompt_token_ids": teacher,
        "response_token_ids": response,
        "response_mask": None if all(students) else list(map(int, students)),
        "finish_reason": "stop" if response[last] in ends else record.finish_reason,
        "sampling_seed": None,
        "recorded_logp": _of_each(record.recorded_logp, response),
        "recorded_entropy": _of_each(record.recorded_entropy, response),
    }


def _of_each(values: tuple[float, ...] | None, response: Ids) -> list[float] | None:
    """Return what was recorded, unless padding was taken off the response."""
    return list(values) if values is not None and len(values) == len(response) else None


def _check_end(response: Ids, students: Mask, ends: frozenset[int]) -> None:
    """Refuse a response in which the student goes on behind its own end-of-text, and nobody spoke in between."""
    for position, token in enumerate(response[:-1]):
        if token in ends and students[position] and students[position + 1]:
            raise BadRow(
                "goes on behind its end",
                f"the response goes on behind its end-of-text token (id {token} at position {position}): cut off what "
                "follows, which is padding (--strip-padding takes it off) or another turn",
            )


def _digest(ids: Ids) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12]


def _check_sides(records: Sequence[Record], rows: Sequence[dict[str, Any]], encoder: Encoder) -> None:
    """Refuse files whose responses are whole sequences: a single one may begin with its prompt, but not all of them."""
    if all(encoder.repeats(row["prompt_token_ids"], row["response_token_ids"]) for row in rows):
        raise RolloutError(
            f"{records[0].where}: this response begins with its whole prompt, and so do all {len(rows)}: give as "
            "response what the student sampled alone, with a mask of that length"
        )


def _check_names(records: list[Record], rows: list[dict[str, Any]]) -> None:
    """Refuse a name for two prompts, and two names for one: prompts are clusters, each in one split."""
    names: dict[Ids, tuple[str, str]] = {}
    prompts: dict[str, tuple[Ids, str]] = {}
    for record, row in zip(records, rows, strict=True):
        prompt_id, prompt = row["prompt_id"], row["prompt_token_ids"]
        name, where = names.setdefault(prompt, (prompt_id, record.where))
        if name != prompt_id:
            raise RolloutError(f"{record.where}: prompt_id {prompt_id} has the same prompt as {name} ({where})")
        other, where = prompts.setdefault(prompt_id, (prompt, record.where))
        if other != prompt:
            raise RolloutError(f"{record.where}: prompt_id {prompt_id} stands for another prompt at {where}")


def _split(records: list[Record], rows: list[dict[str, Any]], settings: ImportSettings) -> None:
    """Put a split into every row: the file's own, or one that is drawn.

    Raises:
        RolloutError: there are fewer than 2 prompts, the file's splits overlap, are not in every row or have no bank.
        SettingsError: --update-prompts leaves nothing for a split, or the file has splits already.
    """
    prompts = sorted({row["prompt_id"] for row in rows})
    if len(prompts) < 2:
        raise RolloutError(f"all {len(rows)} rollouts have the same prompt: bank and updates need at least one each")
    lacking = [record.where for record in records if record.split is None]
    given = len(lacking) < len(records)
    if given and lacking:
        raise RolloutError(f"{lacking[0]}: has no split, but other rows have: give it in every row or in none")
    if given and settings.update_prompts:
        raise SettingsError("--update-prompts cannot be used: the rows say which split they are in")
    chosen = _given_splits(records, rows) if given else _drawn_splits(prompts, settings.update_prompts, settings.seed)
    for row in rows:
        row["split"] = chosen[row["prompt_id"]]


def _given_splits(records: list[Record], rows: list[dict[str, Any]]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for record, row in zip(records, rows, strict=True):
        assert record.split is not None
        if splits.setdefault(row["prompt_id"], record.split) != record.split:
            raise RolloutError(f"{record.where}: prompt {row['prompt_id']} is in both splits, which must not overlap")
    if "bank" not in splits.values():
        raise RolloutError("no row has the split 'bank', on which gains are measured")
    return splits


def _drawn_splits(prompts: list[str], update_prompts: int, seed: int) -> dict[str, str]:
    wanted = update_prompts or max(1, len(prompts) // _UPDATE_SHARE)
    if wanted >= len(prompts):
        raise SettingsError(
            f"--update-prompts is {wanted}: of the {len(prompts)} prompts, between 1 and {len(prompts) - 1} can be set "
            "aside for updates"
        )
    order = np.random.default_rng(derive_seed(seed, "import")).permutation(len(prompts))
    return {prompts[i]: "update" if rank < wanted else "bank" for rank, i in enumerate(order)}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    prompts = {split: {row["prompt_id"] for row in rows if row["split"] == split} for split in ("bank", "update")}
    ends = [row["finish_reason"] for row in rows]
    return {
        "contexts": len(rows),
        "prompts": {split: len(names) for split, names in prompts.items()},
        "ends": {end: ends.count(end) for end in ("stop", "length", "unknown")},
    }
