"""Formats of rollouts: what each program writes, and what of it is known for sure.

A text is never the whole truth: several id sequences decode to the same text, and the student may have sampled one that
its tokenizer would not choose. Ids that are recovered from text are the tokenizer's own choice, then, and the responses
of such files count as rollouts of the student only as far as students sample what tokenizers choose. Text that lost its
special tokens does not tell whether any stood inside a message or a response either. Nor does a file tell with which
options of the chat template its prompts were rendered (tools, say, or thinking switched off), where they leave no trace
in the text; prompts are rendered with the options that the user gives. Where a format has ids, ids are taken.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from teachdiag.diagnostics.imports.files import read_batches, read_jsonl, read_parquet, read_samples
from teachdiag.diagnostics.imports.records import (
    BadRow,
    Form,
    Ids,
    Record,
    Row,
    Side,
    at,
    field,
    ids_of,
    malformed,
    mask_of,
    messages_of,
    names_of,
    shown,
    text_of,
)
from teachdiag.errors import RolloutError
from teachdiag.progress import Reporter

_FINISHES = ("stop", "length", "unknown")
_SPLITS = ("bank", "update")

Parse = Callable[[str, int, Mapping[Any, Any]], list[Record]]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        suffixes: endings of its files.
        rows: the rows of a file.
        parse: a row's place, number and fields to a record, or to one a turn where a mask says which are the student's.
        repeats: whether its writer may write one batch twice.
        pattern, beside: which files of a folder count, as `expand` has it.
    """

    suffixes: tuple[str, ...]
    rows: Callable[[Path], Iterator[Row]]
    parse: Parse
    repeats: bool = False
    pattern: str = "*"
    beside: frozenset[str] = frozenset()


class Found(NamedTuple):
    """The rollouts of some files, and the rows that could not be read."""

    records: list[Record]
    bad: list[BadRow]


def read_records(name: str, files: list[Path], reporter: Reporter) -> Found:
    """Return every rollout of the files, in their order.

    Args:
        name: of the format, one of `FORMATS`.
        files: files of the format's suffixes.
        reporter: told of batches that only repeat an earlier one, which are left out.

    Raises:
        RolloutError: a file cannot be read, or holds no rows.
    """
    form, found, batches = FORMATS[name], Found([], []), set[str]()
    for file in files:
        empty = True
        for where, rows in groupby(form.rows(file), key=lambda row: row.batch):
            records, bad, empty = list[Record](), list[BadRow](), False
            for row in rows:
                try:
                    records += _parsed(form, row)
                except BadRow as error:
                    bad.append(at(row.where, error))
            if form.repeats and records:
                batch = json.dumps([(str(r.prompt), str(r.response)) for r in records])
                if batch in batches:
                    reporter.say(f"{where}: repeats a batch that stands before it, and is left out")
                    continue
                batches.add(batch)
            found.records.extend(records)
            found.bad.extend(bad)
        if empty:
            raise RolloutError(f"{file}: holds no rollouts")
    return found


def _parsed(form: Format, row: Row) -> list[Record]:
    if isinstance(row.fields, BadRow):
        raise row.fields
    return form.parse(row.where, row.number, row.fields)


def _trl(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a row of TRL's completions (`log_completions`; run with TRL 1.16).

    GRPOTrainer logs completions decoded without special tokens, and each prompt as its dataset has it, messages or
    text; before 1.15 it logged prompts decoded without special tokens too, messages included, and nothing in the file
    says which it was. DistillationTrainer, whose rows have no `advantage`, logs both decoded without special tokens.
    Whether a last message of the assistant's was continued depends on the release, too.
    """
    given, answer = field(fields, "prompt"), field(fields, "completion")
    answered: Form = "stripped"
    form: Form = "unsure" if "advantage" in fields else "stripped"
    prompt = Side(text=given, form=form) if isinstance(given, str) else Side(messages=messages_of(given, "prompt"))
    if not isinstance(answer, str):
        messages = messages_of(answer, "completion")
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise BadRow(
                "other turns in the response",
                "completion is more than one message of the assistant, whose ids cannot be recovered",
            )
        answer, answered = messages[0]["content"], "parsed"
    return [Record(where, row, prompt, Side(text=answer, form=answered), step=_step(fields))]


def _verl(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a line of verl's rollout dumps (`trainer.rollout_data_dir`): text decoded without special tokens."""
    return [
        Record(
            where,
            row,
            Side(text=text_of(fields, "input"), form="stripped"),
            Side(text=text_of(fields, "output"), form="stripped"),
            step=_step(fields),
        )
    ]


def _msswift(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a rollout of ms-swift's `completions.jsonl` (follows the source of 3.x, not run).

    Prompts, earlier turns included, have their special tokens written out; completions are the last message's content.
    """
    return [
        Record(
            where,
            row,
            Side(text=text_of(fields, "prompt")),
            Side(text=text_of(fields, "completion"), form="message"),
            step=_step(fields),
        )
    ]


def _skyrl(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a line of SkyRL's evaluation dumps (`dump_eval_results`; follows the source, not run): ids as text."""
    return [
        Record(
            where,
            row,
            Side(text=text_of(fields, "input_prompt")),
            Side(text=text_of(fields, "output_response")),
            finish_reason="length" if fields.get("stop_reason") == "length" else "unknown",
        )
    ]


def _slime(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a sample of slime's `--save-debug-rollout-data`: the last `response_length` of its ids are the response."""
    status = fields.get("status")
    if status is not None and not (isinstance(status, str) and status in _STATUSES):
        raise BadRow("not generated", f"status is {shown(status)}: its tokens are no finished rollout")
    ids, length = ids_of(field(fields, "tokens"), "tokens"), field(fields, "response_length")
    if type(length) is not int or not 0 <= length < len(ids):
        raise malformed(f"response_length is {shown(length)}, but there are {len(ids)} tokens with the prompt")
    start = len(ids) - length
    if not length:
        raise BadRow("aborted before a token" if status == "aborted" else "empty", "the response is empty")
    finish = "length" if status == "truncated" else "unknown"
    if (mask := fields.get("loss_mask")) is not None:
        kept = mask_of(mask, "loss_mask", length)
        if not all(kept):
            return _turns(where, row, ids, (*[False] * start, *kept), ids[:start], finish_reason=finish)
    prompt, response = (fields.get(name) for name in ("prompt", "response"))
    return [
        Record(
            where,
            row,
            Side(ids=ids[:start], text=prompt if isinstance(prompt, str) and prompt else None),
            Side(
                ids=ids[start:],
                text=response if isinstance(response, str) and response else None,
                masked=mask is not None,
            ),
            finish_reason=finish,
        )
    ]


def _prime_rl(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a sequence of prime-rl's token exports (`enable_token_export`; follows the source, not run).

    The tokens of all turns stand one after the other; `loss_mask` says which the student sampled.
    """
    ids = ids_of(field(fields, "token_ids"), "token_ids")
    kept = mask_of(field(fields, "loss_mask"), "loss_mask", len(ids))
    places = fields.get("position_ids")
    if places is not None and ids_of(places, "position_ids") != tuple(range(len(ids))):
        raise malformed("position_ids do not count from 0: the row is more than one sequence, or none from its start")
    copied = fields.get("ce_weights")
    if isinstance(copied, list) and any(copied):
        raise BadRow("not the student's tokens", "ce_weights are not 0: its tokens come from another model")
    return _turns(where, row, ids, kept, ids[: kept.index(True)] if any(kept) else ids, step=_step(fields))


def _turns(
    where: str,
    row: int,
    ids: Ids,
    kept: tuple[bool, ...],
    opening: Ids,
    *,
    finish_reason: str = "unknown",
    step: int | None = None,
) -> list[Record]:
    """One record a run of tokens that the student sampled: it read all that stands before. The finish is the last's."""
    edges = [i for i in range(len(ids) + 1) if (i > 0 and kept[i - 1]) != (i < len(ids) and kept[i])]
    if not edges:
        raise BadRow("masked", "no token of it is the student's: its mask is 0 everywhere")
    return [
        Record(
            where,
            row,
            Side(ids=ids[:start], masked=True),
            Side(ids=ids[start:end], masked=True),
            finish_reason=finish_reason if end == len(ids) else "unknown",
            step=step,
            opening=opening,
        )
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]


_RENDERED_WITH = ("tools", "documents", "chat_template_kwargs")  # what chat templates read beside the messages


def _own(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
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
        step=_step(fields),
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
    turns = _turns(
        record.where,
        record.row,
        prompt + response,
        (*[False] * len(prompt), *kept),
        prompt,
        finish_reason=record.finish_reason,
        step=record.step,
    )
    return [replace(turn, prompt_id=record.prompt_id, split=record.split, tokenizer=record.tokenizer) for turn in turns]


def _side(fields: Mapping[Any, Any], name: str, *, chat: bool = False) -> Side:
    given, ids = fields.get(name), fields.get(f"{name}_token_ids")
    if given is None and ids is None:
        raise BadRow(f"has no {name}", f"has neither {name} nor {name}_token_ids; it has {names_of(fields)}")
    found = None if ids is None else ids_of(ids, f"{name}_token_ids")
    if given is not None and not isinstance(given, str):
        if not chat:
            raise malformed(f"{name} is no text but {type(given).__name__}")
        return Side(ids=found, messages=messages_of(given, name), continues=True)
    return Side(ids=found, text=given)


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


def _step(fields: Mapping[Any, Any]) -> int | None:
    """Return the training step, which ms-swift writes as text."""
    step = fields.get("step", fields.get("gen_step"))
    if isinstance(step, str) and step.isdecimal() and len(step) < _DIGITS:
        return int(step)
    return step if type(step) is int else None


def _rows_of_either(file: Path) -> Iterator[Row]:
    return read_parquet(file) if file.suffix == ".parquet" else read_jsonl(file)


_STATUSES = ("completed", "truncated", "aborted")  # of slime's samples; an aborted one has what was sampled until then
_DIGITS = 19  # of a whole number that 64 bits hold

FORMATS = {
    "trl": Format((".parquet",), read_parquet, _trl, repeats=True),
    "verl": Format((".jsonl",), read_jsonl, _verl),
    "slime": Format((".pt",), read_samples, _slime),
    "msswift": Format((".jsonl",), read_batches, _msswift, repeats=True),
    "skyrl": Format((".jsonl",), read_jsonl, _skyrl, beside=frozenset({"aggregated_results.jsonl"})),
    "prime-rl": Format((".jsonl",), read_jsonl, _prime_rl, pattern="**/*"),
    "jsonl": Format((".jsonl", ".parquet"), _rows_of_either, _own),
}
