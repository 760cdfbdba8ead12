"""Rows that any program can write."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from teachdiag.diagnostics.imports.files import Format, read_jsonl, read_parquet
from teachdiag.diagnostics.imports.records import (
    BadRow,
    Record,
    Row,
    Side,
    ids_of,
    malformed,
    mask_of,
    messages_of,
    names_of,
    step_of,
    turns,
)
from teachdiag.settings.base import shown

_FINISHES = ("stop", "length", "unknown")
_SPLITS = ("bank", "update")
_RENDERED_WITH = ("tools", "documents", "chat_template_kwargs")  # what chat templates read beside the messages


def _parse(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a row of the format that any program can write.

    `prompt` (text with special tokens written out, or chat messages) and `response` (text), or `prompt_token_ids` and
    `response_token_ids`, or both; and if known `prompt_id`, `split`, `teacher_prompt` or `teacher_prompt_token_ids`,
    `finish_reason`, `tokenizer` and `step`. A last message of the assistant's is continued by the response. A
    `response_mask` says which of the `response_token_ids` the student sampled, where tools or users said the others.
    """
    for name, value in fields.items():
        if name != "response_mask" and str(name).endswith("_mask") and value is not None:
            raise malformed(f"{name} is not read: give what the student sampled as response_mask, or leave it out")
        if name in _RENDERED_WITH and value and fields.get("prompt_token_ids") is None:
            raise malformed(f"{name} is not read: give --template-options, or prompt_token_ids")
    teacher = any(fields.get(name) is not None for name in ("teacher_prompt", "teacher_prompt_token_ids"))
    record = Record(
        where,
        row,
        _side(fields, "prompt", chat=True),
        _side(fields, "response"),
        teacher_prompt=_side(fields, "teacher_prompt", chat=True) if teacher else None,
        prompt_id=_name(fields, "prompt_id"),
        split=_choice(fields, "split", _SPLITS),
        finish_reason=_choice(fields, "finish_reason", _FINISHES) or "unknown",
        tokenizer=_name(fields, "tokenizer"),
        step=step_of(fields),
    )
    mask = fields.get("response_mask")
    return [record] if mask is None else _masked(record, mask)


def _masked(record: Record, mask: Any) -> list[Record]:  # noqa: ANN401 (whatever the file holds)
    """The turns of a record whose response is masked."""
    prompt, response = record.prompt.ids, record.response.ids
    if prompt is None or response is None or record.teacher_prompt is not None:
        raise malformed("response_mask needs prompt_token_ids and response_token_ids, and the teacher the same prompt")
    kept = mask_of(mask, "response_mask", len(response))
    if all(kept):
        return [replace(record, response=replace(record.response, masked=True))]
    sampled = turns(
        record.where,
        record.row,
        prompt + response,
        (*[False] * len(prompt), *kept),
        prompt,
        finish_reason=record.finish_reason,
        step=record.step,
    )
    named: dict[str, Any] = {"prompt_id": record.prompt_id, "split": record.split, "tokenizer": record.tokenizer}
    return [replace(turn, **named) for turn in sampled]


def _side(fields: Mapping[Any, Any], name: str, *, chat: bool = False) -> Side:
    given, ids = fields.get(name), fields.get(f"{name}_token_ids")
    if given is None and ids is None:
        raise BadRow(f"has no {name}", f"has neither {name} nor {name}_token_ids; it has {names_of(fields)}")
    listed = None if ids is None else ids_of(ids, f"{name}_token_ids")
    if given is not None and not isinstance(given, str):
        if not chat:
            raise malformed(f"{name} is no text but {type(given).__name__}")
        return Side(ids=listed, messages=messages_of(given, name), continues=True)
    return Side(ids=listed, text=given)


def _choice(fields: Mapping[Any, Any], name: str, choices: tuple[str, ...]) -> str | None:
    value = fields.get(name)
    if value is not None and value not in choices:
        raise malformed(f"{name} is {shown(value)}: use {', '.join(choices)}, or leave it out")
    return value


def _name(fields: Mapping[Any, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and (type(value) not in (str, int) or value == ""):
        raise malformed(f"{name} is {shown(value)}: use text or a whole number, or leave it out")
    return None if value is None else str(value)


def _rows(file: Path) -> Iterator[Row]:
    return read_parquet(file) if file.suffix == ".parquet" else read_jsonl(file)


FORMAT = Format(
    name="jsonl",
    help="rows with prompt and response, as text or as *_token_ids (.jsonl or .parquet)",
    suffixes=(".jsonl", ".parquet"),
    rows=_rows,
    parse=_parse,
)
