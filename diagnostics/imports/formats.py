"""Formats of rollouts: what each program writes, and what of it is known for sure.

A text is never the whole truth: several id sequences decode to the same text, and the student may have sampled one that
its tokenizer would not choose. Ids that are recovered from text are the tokenizer's own choice, then, and the responses
of such files count as rollouts of the student only as far as students sample what tokenizers choose. Text that lost its
special tokens does not tell whether any stood inside a message or a response either. Nor does a file tell with which
options of the chat template its prompts were rendered (tools, say, or thinking switched off), where they leave no trace
in the text; prompts are rendered with none. Where a format has ids, ids are taken.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachdiag.diagnostics.imports.files import Row, read_jsonl, read_parquet, read_samples
from teachdiag.diagnostics.imports.records import Form, Record, Side, at, field, ids_of, messages_of, text_of
from teachdiag.errors import RolloutError
from teachdiag.progress import Reporter

_FINISHES = ("stop", "length", "unknown")
_SPLITS = ("bank", "update")


@dataclass(frozen=True)
class Format:
    """One format: `suffixes` of its files, `rows` of a file, and `parse`, which makes one row a record."""

    suffixes: tuple[str, ...]
    rows: Callable[[Path], Iterator[Row]]
    parse: Callable[[str, int, Mapping[str, Any]], Record]
    repeats: bool = False  # whether its writer may write one batch twice


def read_records(name: str, files: list[Path], reporter: Reporter) -> list[Record]:
    """Return every rollout of the files, in their order.

    Args:
        name: of the format, one of `FORMATS`.
        files: files of the format's suffixes.
        reporter: told of files that only repeat an earlier batch, which are left out.

    Raises:
        RolloutError: a file cannot be read or is empty, or a row lacks what the format has; the message has the place.
    """
    form, found, batches = FORMATS[name], list[Record](), set[str]()
    for file in files:
        records = [_parsed(form, *row) for row in form.rows(file)]
        if not records:
            raise RolloutError(f"{file}: holds no rollouts")
        batch = json.dumps([(str(r.prompt), str(r.response)) for r in records])
        if form.repeats and batch in batches:
            reporter.say(f"{file}: repeats a batch that an earlier file holds, and is left out")
            continue
        batches.add(batch)
        found += records
    return found


def _parsed(form: Format, where: str, row: int, fields: Mapping[str, Any]) -> Record:
    try:
        return form.parse(where, row, fields)
    except RolloutError as error:
        raise at(where, error) from error


def _trl(where: str, row: int, fields: Mapping[str, Any]) -> Record:
    """Parse a row of TRL's completions (`log_completions`; read in TRL 1.16).

    GRPOTrainer logs each prompt as its dataset has it, messages or text, and completions decoded without special
    tokens. DistillationTrainer, whose rows have no `advantage`, logs both decoded without special tokens.
    """
    given, answer = field(fields, "prompt"), field(fields, "completion")
    answered: Form = "stripped"
    form: Form = "plain" if "advantage" in fields else "stripped"
    prompt = Side(text=given, form=form) if isinstance(given, str) else Side(messages=messages_of(given, "prompt"))
    if not isinstance(answer, str):
        messages = messages_of(answer, "completion")
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise RolloutError("completion is more than one message of the assistant, whose ids cannot be recovered")
        answer, answered = messages[0]["content"], "parsed"
    return Record(where, row, prompt, Side(text=answer, form=answered), step=_step(fields))


def _verl(where: str, row: int, fields: Mapping[str, Any]) -> Record:
    """Parse a line of verl's rollout dumps (`trainer.rollout_data_dir`): text decoded without special tokens."""
    return Record(
        where,
        row,
        Side(text=text_of(fields, "input"), form="stripped"),
        Side(text=text_of(fields, "output"), form="stripped"),
        step=_step(fields),
    )


def _slime(where: str, row: int, fields: Mapping[str, Any]) -> Record:
    """Parse a sample of slime's `--save-debug-rollout-data`: the last `response_length` of its ids are the response."""
    ids, length = ids_of(field(fields, "tokens"), "tokens"), field(fields, "response_length")
    if type(length) is not int or not 0 <= length < len(ids):
        raise RolloutError(f"response_length is {length!r}, but there are {len(ids)} tokens with the prompt")
    mask = fields.get("loss_mask")
    if mask is not None and len(set(ids_of(mask, "loss_mask"))) > 1:
        raise RolloutError("parts of the response are masked (loss_mask): tokens that the student did not sample")
    start = len(ids) - length
    prompt, response = (fields.get(name) for name in ("prompt", "response"))
    return Record(
        where,
        row,
        Side(ids=ids[:start], text=prompt if isinstance(prompt, str) and prompt else None),
        Side(ids=ids[start:], text=response if isinstance(response, str) and response else None),
        finish_reason="length" if fields.get("status") == "truncated" else "unknown",
    )


def _own(where: str, row: int, fields: Mapping[str, Any]) -> Record:
    """Parse a row of the format that any program can write.

    `prompt` (text with special tokens written out, or chat messages) and `response` (text), or `prompt_token_ids` and
    `response_token_ids`, or both; and if known `prompt_id`, `split`, `teacher_prompt` or `teacher_prompt_token_ids`,
    `finish_reason`, `tokenizer` and `step`.
    """
    teacher = any(fields.get(name) is not None for name in ("teacher_prompt", "teacher_prompt_token_ids"))
    return Record(
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


def _side(fields: Mapping[str, Any], name: str, *, chat: bool = False) -> Side:
    given, ids = fields.get(name), fields.get(f"{name}_token_ids")
    if given is None and ids is None:
        raise RolloutError(f"has neither {name} nor {name}_token_ids; it has {', '.join(fields) or 'nothing'}")
    found = None if ids is None else ids_of(ids, f"{name}_token_ids")
    if given is not None and not isinstance(given, str):
        if not chat:
            raise RolloutError(f"{name} is no text but {type(given).__name__}")
        return Side(ids=found, messages=messages_of(given, name))
    return Side(ids=found, text=given)


def _choice(fields: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    value = fields.get(name)
    if value is not None and value not in choices:
        raise RolloutError(f"{name} is {value!r}: use {', '.join(choices)}, or leave it out")
    return value


def _name(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, str | int) or value == ""):
        raise RolloutError(f"{name} is {value!r}: use text or a whole number, or leave it out")
    return None if value is None else str(value)


def _step(fields: Mapping[str, Any]) -> int | None:
    return fields["step"] if isinstance(fields.get("step"), int) else None


def _rows_of_either(file: Path) -> Iterator[Row]:
    return read_parquet(file) if file.suffix == ".parquet" else read_jsonl(file)


FORMATS = {
    "trl": Format((".parquet",), read_parquet, _trl, repeats=True),
    "verl": Format((".jsonl",), read_jsonl, _verl),
    "slime": Format((".pt",), read_samples, _slime),
    "jsonl": Format((".jsonl", ".parquet"), _rows_of_either, _own),
}
