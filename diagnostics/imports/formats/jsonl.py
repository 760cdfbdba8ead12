"""Rows that any program can write."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from teachdiag.artefacts import RECORDED
from teachdiag.diagnostics.imports.files import Format, read_jsonl, read_parquet
from teachdiag.diagnostics.imports.records import (
    BadRow,
    Messages,
    Record,
    Row,
    Side,
    ids_of,
    malformed,
    mask_of,
    messages_of,
    names_of,
    recorded_of,
    step_of,
)
from teachdiag.settings.base import shown

_FINISHES = ("stop", "length", "unknown")
_SPLITS = ("bank", "update")
_MASK, _LABELS = "response_mask", "labels"
_IGNORED = -100  # what trainers label tokens with that they do not train on
_FIELDS = (
    *("prompt", "prompt_token_ids", "response", "response_token_ids", _MASK, "teacher_prompt"),
    *("teacher_prompt_token_ids", "prompt_id", "split", "finish_reason", "tokenizer", "step"),
)
_RENDERED_WITH = ("tools", "documents", "chat_template_kwargs")  # what chat templates read beside the messages
_SYSTEM = ("system", "system_prompt")  # what may stand in front of these


def _parse(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a row of the format that any program can write.

    `prompt` (text with special tokens written out, or chat messages) and `response` (text), or `prompt_token_ids` and
    `response_token_ids`, or both; and if known `prompt_id`, `split`, `teacher_prompt` or `teacher_prompt_token_ids`,
    `finish_reason`, `tokenizer` and `step`. `prompt` and `response` may be lists of ids, too. A last message of the
    assistant's is continued by the response. A `response_mask` says which ids of the response the student sampled,
    where tools or users said the others; of another run's contexts, what was recorded of them is kept.
    """
    prompt = _side(fields, "prompt", chat=True)
    beside = () if prompt.ids is not None or prompt.messages is None else _beside(prompt.messages)
    for name, value in fields.items():
        if _is_another_mask(name, value):
            raise malformed(
                f"{name} is not read: give what the student sampled as response_mask"
                + f", or say --mask-field {name}" * (name != _LABELS)
            )
        if name in beside and value:
            raise malformed(
                f"{name} is not read: give --template-options and rows without it, or prompt_token_ids; a system "
                "prompt as the first message"
            )
    teacher = any(fields.get(name) is not None for name in ("teacher_prompt", "teacher_prompt_token_ids"))
    record = Record(
        where,
        row,
        prompt,
        _side(fields, "response"),
        teacher_prompt=_side(fields, "teacher_prompt", chat=True) if teacher else None,
        prompt_id=_name(fields, "prompt_id"),
        split=_choice(fields, "split", _SPLITS),
        finish_reason=_choice(fields, "finish_reason", _FINISHES) or "unknown",
        tokenizer=_name(fields, "tokenizer"),
        step=step_of(fields),
    )
    ids, mask = record.response.ids, fields.get(_MASK)
    if mask is not None and ids is None:
        raise malformed("response_mask needs the ids of the response: give response_token_ids")
    if ids is None:
        return [record]
    kept = None if mask is None else mask_of(mask, _MASK, len(ids))
    everywhere = kept or (True,) * len(ids)
    logp, entropy = (recorded_of(fields.get(name), everywhere) for name in RECORDED)
    response = replace(record.response, masked=mask is not None)
    return [replace(record, response=response, response_mask=kept, recorded_logp=logp, recorded_entropy=entropy)]


def _named(fields: Mapping[Any, Any], names: Mapping[str, str]) -> Mapping[Any, Any]:
    """Put fields under the names that `_parse` reads, in place of whatever has these; masks, of every other mask.

    Args:
        fields: of a row.
        names: what the user calls `prompt`, `response`, `response_mask` or `split`.

    Raises:
        BadRow: there is no field of that name.
    """
    given = {}
    for name, theirs in names.items():
        if theirs not in fields:
            raise BadRow(f"has no {theirs}", f"has no {theirs}; it has {names_of(fields)}")
        given[name] = fields[theirs]
    replaced = {*names.values(), *(f"{name}_token_ids" for name in names)}
    kept = {k: v for k, v in fields.items() if k not in replaced and not (_MASK in names and _is_another_mask(k, v))}
    return kept | given


def _is_another_mask(name: Any, value: Any) -> bool:  # noqa: ANN401 (whatever the file holds)
    """Whether a field tells, under a name that is not read, which tokens are the student's."""
    if name == _MASK or value is None:
        return False
    listed = value if isinstance(value, list) else []
    named = any(part in str(name).lower() for part in ("mask", "weight"))
    return str(name).endswith("_mask") or (named and 0 in listed) or (name == _LABELS and _IGNORED in listed)


def _beside(messages: Messages) -> tuple[str, ...]:
    """What a prompt of these messages may have been rendered with, by the names of fields."""
    return _RENDERED_WITH if messages[0]["role"] == "system" else (*_RENDERED_WITH, *_SYSTEM)


def _side(fields: Mapping[Any, Any], name: str, *, chat: bool = False) -> Side:
    given, ids = fields.get(name), fields.get(f"{name}_token_ids")
    if given is None and ids is None:
        raise BadRow(f"has no {name}", f"has neither {name} nor {name}_token_ids; it has {names_of(fields)}")
    if ids is None and _is_ids(given):
        return Side(ids=ids_of(given, name))
    listed = None if ids is None else ids_of(ids, f"{name}_token_ids")
    if given is not None and not isinstance(given, str):
        if not chat:
            raise malformed(f"{name} is no text but {type(given).__name__}")
        return Side(ids=listed, messages=messages_of(given, name), continues=True)
    return Side(ids=listed, text=given)


def _is_ids(value: Any) -> bool:  # noqa: ANN401 (whatever the file holds)
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


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
    named=_named,
    more=f"It reads the fields {', '.join(_FIELDS)}, as far as they are there; options name them otherwise.",
)
