"""verl's rollout dumps."""

from collections.abc import Mapping
from typing import Any

from teachdiag.diagnostics.imports.files import Format, read_jsonl
from teachdiag.diagnostics.imports.records import Record, Side, step_of, text_of


def _parse(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
    """Parse a line of verl's rollout dumps (`trainer.rollout_data_dir`): text decoded without special tokens."""
    return [
        Record(
            where,
            row,
            Side(text=text_of(fields, "input"), form="stripped"),
            Side(text=text_of(fields, "output"), form="stripped"),
            step=step_of(fields),
        )
    ]


FORMAT = Format(
    name="verl",
    help="the dumps of verl's trainer.rollout_data_dir (.jsonl)",
    suffixes=(".jsonl",),
    rows=read_jsonl,
    parse=_parse,
)
