"""SkyRL's evaluation dumps."""

from collections.abc import Mapping
from typing import Any

from teachdiag.diagnostics.imports.files import Format, read_jsonl
from teachdiag.diagnostics.imports.records import Record, Side, text_of


def _parse(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
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


FORMAT = Format(
    name="skyrl",
    help="SkyRL's evaluation dumps (dump_eval_results, .jsonl)",
    suffixes=(".jsonl",),
    rows=read_jsonl,
    parse=_parse,
    beside=frozenset({"aggregated_results.jsonl"}),
)
