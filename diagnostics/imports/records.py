"""Rollouts as their files give them: ids, text or messages, before anything is encoded."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from teachdiag.errors import RolloutError
from teachdiag.settings.base import shown

Form = Literal["written", "plain", "stripped", "message", "parsed", "unsure"]
Ids = tuple[int, ...]
Mask = tuple[bool, ...]
Messages = tuple[Mapping[str, str], ...]

_DIGITS = 19  # of a whole number that 64 bits hold


class BadRow(RolloutError):
    """One rollout cannot be had exactly; it may be left out where the user says so. `reason` is what is counted."""

    def __init__(self, reason: str, message: str) -> None:
        """Take why, in a few words that many rows share, and what is wrong with this one."""
        super().__init__(message)
        self.reason = reason


class Row(NamedTuple):
    """One rollout of a file before it is read: where it stands, its zero-based number, its fields or why it has none.

    Rows of one `batch` were written together.
    """

    where: str
    number: int
    fields: Mapping[Any, Any] | BadRow
    batch: str


@dataclass(frozen=True)
class Side:
    """A prompt or a response: ids, text, both (which must agree), or, for prompts, chat messages.

    Attributes:
        form: what the text is. 'written': everything that was read or sampled, special tokens by their names;
            'plain': what was handed to the tokenizer, which adds what it adds; 'stripped': what decoding left of ids,
            special tokens skipped; 'message': that, of one message; 'parsed': that, or what the tokenizer's own
            parser of responses made of it;
            'unsure': plain or stripped, which the chat template decides.
        masked: whether a mask tells the student's ids from those of others, which may stand at either end.
        continues: whether a last message of the assistant's is known to be continued by the response.
    """

    ids: Ids | None = None
    text: str | None = None
    messages: Messages | None = None
    form: Form = "written"
    masked: bool = False
    continues: bool = False


@dataclass(frozen=True)
class Record:
    """One rollout of a file.

    Attributes:
        where: file and row or line, for messages.
        row: zero-based row of the file.
        prompt, response: what the student read and sampled.
        teacher_prompt: what the teacher reads; None is the student's prompt.
        prompt_id: name of the prompt; None names it by its ids.
        split: 'bank' or 'update'; None leaves it to be drawn.
        finish_reason: 'stop', 'length' or 'unknown'; an end-of-text token in the response outranks it.
        tokenizer: name of the tokenizer that the file claims; None where it claims none.
        step: training step whose student sampled it; None where the file does not tell.
        response_mask: which ids of the response the student sampled, where tools or users said the others; None where
            nothing tells.
        recorded_logp, recorded_entropy: of each id of the response, as the file has them, nats; 0 where it is masked.
    """

    where: str
    row: int
    prompt: Side
    response: Side
    teacher_prompt: Side | None = None
    prompt_id: str | None = None
    split: str | None = None
    finish_reason: str = "unknown"
    tokenizer: str | None = None
    step: int | None = None
    response_mask: Mask | None = None
    recorded_logp: tuple[float, ...] | None = None
    recorded_entropy: tuple[float, ...] | None = None


def names_of(row: Mapping[Any, Any]) -> str:
    """Return the names of a row's fields, for a message."""
    names = [name if isinstance(name, str) and name.isprintable() else shown(name) for name in row]
    return ", ".join(names) or "nothing"


def field(row: Mapping[Any, Any], name: str) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Return a field that must be there.

    Raises:
        BadRow: it is missing or null.
    """
    if row.get(name) is None:
        raise BadRow(f"has no {name}", f"has no {name}; it has {names_of(row)}")
    return row[name]


def text_of(row: Mapping[Any, Any], name: str) -> str:
    """Return a field that must be text.

    Raises:
        BadRow: it is missing, or no text.
    """
    value = field(row, name)
    if not isinstance(value, str):
        raise malformed(f"{name} is no text but {type(value).__name__}")
    return value


def ids_of(value: Any, name: str) -> Ids:  # noqa: ANN401 (whatever the file holds)
    """Return token ids: a list, a tensor or an array of whole numbers, one dimension.

    Raises:
        BadRow: it is something else.
    """
    listed = _listed(value)
    if listed is None or any(type(i) is not int for i in listed):
        raise malformed(f"{name} is no list of token ids")
    return tuple(listed)


def mask_of(value: Any, name: str, length: int) -> Mask:  # noqa: ANN401 (whatever the file holds)
    """Return which of so many tokens a mask keeps, given as truth values or as 0 and 1; at least one.

    Raises:
        BadRow: it is something else, of another length, or keeps none.
    """
    listed = _listed(value)
    if listed is None or any(type(i) not in (int, bool, float) or i not in (0, 1) for i in listed):
        raise malformed(f"{name} is no list of 0 and 1")
    if len(listed) != length:
        raise malformed(f"{name} has {len(listed)} values for {length} tokens")
    if not any(listed):
        raise BadRow("masked", "no token of it is the student's: its mask is 0 everywhere")
    return tuple(bool(i) for i in listed)


def recorded_of(value: Any, kept: Mask) -> tuple[float, ...] | None:  # noqa: ANN401 (whatever the file holds)
    """Return a number for each token that a mask keeps, and 0 for the others; None where not all kept ones have one."""
    listed = _listed(value)
    if listed is None or len(listed) != len(kept):
        return None
    numbers = [value if own else 0.0 for value, own in zip(listed, kept, strict=True)]
    known = all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
    return tuple(map(float, numbers)) if known else None


def messages_of(value: Any, name: str) -> Messages:  # noqa: ANN401 (whatever the file holds)
    """Return chat messages of text alone; fields that hold null, as Parquet fills them in, are left out.

    Raises:
        BadRow: a message holds anything besides a role and text: a tool call, an image, a separate thought.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise malformed(f"{name} is neither text nor a list of messages")
    messages = tuple({key: part for key, part in message.items() if part is not None} for message in value)
    for message in messages:
        if set(message) != {"role", "content"} or not all(isinstance(part, str) for part in message.values()):
            raise malformed(
                f"{name} holds a message with {names_of(dict.fromkeys(sorted(message, key=str)))}: only a role and a "
                "content of plain text can be encoded exactly"
            )
    return messages


def step_of(fields: Mapping[Any, Any]) -> int | None:
    """Return the training step, which ms-swift writes as text."""
    step = fields.get("step", fields.get("gen_step"))
    if isinstance(step, str) and step.isdecimal() and len(step) < _DIGITS:
        return int(step)
    if isinstance(step, float) and step.is_integer():  # as pandas has whole numbers beside missing ones
        return int(step)
    return step if type(step) is int else None


def malformed(message: str) -> BadRow:
    """Return the error of a row that is not what its format says."""
    return BadRow("malformed", message)


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """Return how often each reason was given, the commonest first."""
    listed = list(reasons)
    return dict(sorted(((r, listed.count(r)) for r in set(listed)), key=lambda pair: (-pair[1], pair[0])))


def at(where: str, error: BadRow) -> BadRow:
    """Return the error with its place in front."""
    return BadRow(error.reason, f"{where}: {error}")


def _listed(value: Any) -> list[Any] | None:  # noqa: ANN401 (whatever the file holds)
    """Return a list as it is, a tensor's or an array's values, and None for anything else."""
    try:
        listed = value.tolist() if hasattr(value, "tolist") else value
    except Exception:  # a tensor without values, or of a kind that has no list
        return None
    return listed if isinstance(listed, list) else None
