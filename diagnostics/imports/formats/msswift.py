"""The completions that ms-swift logs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from teachdiag.diagnostics.imports.files import Format, read_jsonl
from teachdiag.diagnostics.imports.records import BadRow, Record, Row, Side, field, step_of, text_of


def _rows(file: Path) -> Iterator[Row]:
    """Yield the rollouts of a JSONL file whose lines each hold a batch: a list of values a field, one a rollout."""
    number = 0
    for line in read_jsonl(file):
        entries = [line.fields] if isinstance(line.fields, BadRow) else _entries(line.fields)
        for index, fields in enumerate(entries):
            where = line.where if len(entries) == 1 else f"{line.where}, entry {index}"
            yield Row(where, number, fields, line.where)
            number += 1


def _entries(fields: Mapping[Any, Any]) -> Sequence[Mapping[Any, Any] | BadRow]:
    try:
        prompts = field(fields, "prompt")
    except BadRow as error:
        return [error]
    if not isinstance(prompts, list):
        return [fields]
    lengths = {name: len(column) for name, column in fields.items() if isinstance(column, list)}
    others = [f"{length} of {name}" for name, length in lengths.items() if length != len(prompts)]
    if others:
        return [BadRow("malformed", f"holds {len(prompts)} values of prompt, but {', '.join(others)}")]
    return [
        {name: column[index] if name in lengths else column for name, column in fields.items()}
        for index in range(len(prompts))
    ]


def _parse(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a rollout of ms-swift's `completions.jsonl` (follows the source of 3.x, not run).

    Prompts, earlier turns included, have their special tokens written out; completions are the last message's content.
    """
    return [
        Record(
            where,
            row,
            Side(text=text_of(fields, "prompt")),
            Side(text=text_of(fields, "completion"), form="message"),
            step=step_of(fields),
        )
    ]


FORMAT = Format(
    name="msswift",
    help="the completions.jsonl that ms-swift logs (log_completions)",
    suffixes=(".jsonl",),
    rows=_rows,
    parse=_parse,
    repeats=True,
)
