"""TRL's completions."""

from collections.abc import Mapping
from typing import Any

from teachdiag.diagnostics.imports.files import Format, read_parquet
from teachdiag.diagnostics.imports.records import BadRow, Form, Record, Side, field, messages_of, step_of


def _parse(where: str, row: int, fields: Mapping[Any, Any]) -> list[Record]:
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
    return [Record(where, row, prompt, Side(text=answer, form=answered), step=step_of(fields))]


FORMAT = Format(
    name="trl",
    help="the completions that TRL's GRPO and distillation trainers log (log_completions=True, .parquet)",
    suffixes=(".parquet",),
    rows=read_parquet,
    parse=_parse,
    repeats=True,
)
