"""Records to a `contexts` table: ids, names and splits of prompts, and how each response ended."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachdiag.artefacts import CONTEXTS
from teachdiag.diagnostics.imports.encoding import Encoder
from teachdiag.diagnostics.imports.files import expand
from teachdiag.diagnostics.imports.formats import FORMATS, read_records
from teachdiag.diagnostics.imports.records import Ids, Record, at
from teachdiag.diagnostics.sources import outline, resolve
from teachdiag.errors import RolloutError, SettingsError, cause
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed
from teachdiag.tables import write_parquet

_UPDATE_SHARE = 4  # one prompt in so many is set aside for updates, unless the user says how many


def import_rollouts(
    name: str,
    places: Sequence[Path],
    out: Path,
    student: str,
    revision: str,
    update_prompts: int | None,
    seed: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write rollouts from elsewhere as one `contexts` table, whole or not at all.

    Args:
        name: of the format, one of `FORMATS`.
        places: its files, and folders of them.
        out: Parquet file to write.
        student: the model that sampled the rollouts; its weights are not loaded.
        revision: Hub revision of it.
        update_prompts: prompts of the split 'update'; None is a quarter, at least 1.
        seed: of the draw of splits.
        reporter: told what the user should know of the files.

    Returns:
        Numbers of `contexts`, and of `prompts` by split, and how many contexts ended in each way (`ends`).

    Raises:
        InputError: a file, a row, the student or an option is wrong.
    """
    if out.suffix != ".parquet":
        raise SettingsError(f"--contexts is {out}: it must end in .parquet")
    files = expand(places, FORMATS[name].suffixes)
    if out.resolve() in [file.resolve() for file in files]:
        raise SettingsError(f"--contexts {out} is one of the files to import: choose another name")
    records = read_records(name, files, reporter)
    _check_origins(records, reporter)
    model = outline(resolve(student, revision, (), reporter))
    encoder = Encoder(model.tokenizer, model.rows)
    rows = [_row(name, record, encoder, model.end_ids) for record in records]
    _check_names(records, rows)
    _split(records, rows, update_prompts, seed)
    rows.sort(key=lambda row: str(row["split"]))  # the bank first, each split in the order of the files
    table = CONTEXTS.build_rows([row | {"context_id": place} for place, row in enumerate(rows)])
    try:
        write_parquet(table, out)
    except OSError as error:
        raise SettingsError(f"--contexts {out} cannot be written: {cause(error)}") from error
    return _summary(rows)


def _check_origins(records: list[Record], reporter: Reporter) -> None:
    """Refuse rows of several tokenizers, and tell of rows of several students."""
    first: dict[str, str] = {}
    for record in records:
        if record.tokenizer is not None:
            first.setdefault(record.tokenizer, record.where)
    if len(first) > 1:
        (one, here), (other, there), *_ = first.items()
        raise RolloutError(f"{there}: was tokenised by {other}, but {here} by {one}: import one tokenizer's at a time")
    steps = {record.step for record in records if record.step is not None}
    if len(steps) > 1:
        reporter.say(
            f"rollouts of training steps {min(steps)} to {max(steps)}, each with weights of its own: import one step's "
            "file if --student is to have sampled them all"
        )


def _row(name: str, record: Record, encoder: Encoder, ends: frozenset[int]) -> dict[str, Any]:
    """Columns of one context but its id and split."""
    try:
        prompt = encoder.prompt(record.prompt)
        response = encoder.response(record.response, prompt)
        teacher = prompt if record.teacher_prompt is None else encoder.prompt(record.teacher_prompt)
        _check_end(response, ends)
    except RolloutError as error:
        raise at(record.where, error) from error
    return {
        "prompt_id": record.prompt_id or f"{name}/{_digest(prompt)}",
        "source_row": record.row,
        "prompt_token_ids": prompt,
        "teacher_prompt_token_ids": teacher,
        "response_token_ids": response,
        "finish_reason": "stop" if response[-1] in ends else record.finish_reason,
        "sampling_seed": None,
    }


def _check_end(response: Ids, ends: frozenset[int]) -> None:
    for place, token in enumerate(response[:-1]):
        if token in ends:
            raise RolloutError(
                f"the response goes on behind its end-of-text token (id {token} at position {place}): cut off what "
                "follows, which is padding or another turn"
            )


def _digest(ids: Ids) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12]


def _check_names(records: list[Record], rows: list[dict[str, Any]]) -> None:
    """Refuse a name for two prompts, and two names for one: prompts are clusters, each in one split."""
    names: dict[Ids, tuple[str, str]] = {}
    prompts: dict[str, tuple[Ids, str]] = {}
    for record, row in zip(records, rows, strict=True):
        prompt_id, prompt = row["prompt_id"], row["prompt_token_ids"]
        name, there = names.setdefault(prompt, (prompt_id, record.where))
        if name != prompt_id:
            raise RolloutError(f"{record.where}: prompt_id {prompt_id} has the same prompt as {name} ({there})")
        other, there = prompts.setdefault(prompt_id, (prompt, record.where))
        if other != prompt:
            raise RolloutError(f"{record.where}: prompt_id {prompt_id} stands for another prompt at {there}")


def _split(records: list[Record], rows: list[dict[str, Any]], update_prompts: int | None, seed: int) -> None:
    """Put a split into every row: the file's own, or one that is drawn.

    Raises:
        RolloutError: there are fewer than 2 prompts, the file's splits overlap, are not in every row or have no bank.
        SettingsError: `update_prompts` leaves nothing for a split, or the file has splits already.
    """
    prompts = sorted({row["prompt_id"] for row in rows})
    if len(prompts) < 2:
        raise RolloutError(f"all {len(rows)} rollouts have the same prompt: bank and updates need at least one each")
    lacking = [record.where for record in records if record.split is None]
    own = len(lacking) < len(records)
    if own and lacking:
        raise RolloutError(f"{lacking[0]}: has no split, but other rows have: give it in every row or in none")
    if own and update_prompts is not None:
        raise SettingsError("--update-prompts cannot be used: the rows say which split they are in")
    chosen = _given_splits(records, rows) if own else _drawn_splits(prompts, update_prompts, seed)
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


def _drawn_splits(prompts: list[str], update_prompts: int | None, seed: int) -> dict[str, str]:
    wanted = max(1, len(prompts) // _UPDATE_SHARE) if update_prompts is None else update_prompts
    if not 1 <= wanted < len(prompts):
        raise SettingsError(
            f"--update-prompts is {wanted}: of the {len(prompts)} prompts, between 1 and {len(prompts) - 1} can be set "
            "aside for updates"
        )
    order = np.random.default_rng(derive_seed(seed, "import")).permutation(len(prompts))
    return {prompts[i]: "update" if place < wanted else "bank" for place, i in enumerate(order)}


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    prompts = {split: {row["prompt_id"] for row in rows if row["split"] == split} for split in ("bank", "update")}
    ends = [row["finish_reason"] for row in rows]
    return {
        "contexts": len(rows),
        "prompts": {split: len(names) for split, names in prompts.items()},
        "ends": {end: ends.count(end) for end in ("stop", "length", "unknown")},
    }
