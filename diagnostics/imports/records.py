"""Rollouts as their files give them: ids, text or messages, before anything is encoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from teachdiag.errors import RolloutError

Form = Literal["written", "plain", "stripped", "parsed"]
Ids = tuple[int, ...]
Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Side:
    """A prompt or a response: ids, text, both (which must agree), or, for prompts, chat messages.

    Attributes:
        form: what the text is. 'written': everything that was read or sampled, special tokens by their names;
            'plain': what was handed to the tokenizer, which adds what it adds; 'stripped': what decoding left of ids,
            special tokens skipped; 'parsed': that, or what the tokenizer's own parser of responses made of it.
    """

    ids: Ids | None = None
    text: str | None = None
    messages: Messages | None = None
    form: Form = "written"


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


def field(row: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Return a field that must be there.

    Raises:
        RolloutError: it is missing or null.
    """
    if row.get(name) is None:
        raise RolloutError(f"has no {name}; it has {', '.join(row) or 'nothing'}")
    return row[name]


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Return a field that must be text.

    Raises:
        RolloutError: it is missing, or no text.
    """
    value = field(row, name)
    if not isinstance(value, str):
        raise RolloutError(f"{name} is no text but {type(value).__name__}")
    return value


def ids_of(value: Any, name: str) -> Ids:  # noqa: ANN401 (whatever the file holds)
    """Return token ids: a list or a tensor of whole numbers, one dimension.

    Raises:
        RolloutError: it is something else.
    """
    listed = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(listed, list) or any(type(i) is not int for i in listed):
        raise RolloutError(f"{name} is no list of token ids")
    return tuple(listed)


def messages_of(value: Any, name: str) -> Messages:  # noqa: ANN401 (whatever the file holds)
    """Return chat messages of text alone; fields that hold null, as Parquet fills them in, are left out.

    Raises:
        RolloutError: a message holds anything besides a role and text: a tool call, an image, a separate thought.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise RolloutError(f"{name} is neither text nor a list of messages")
    found = tuple({key: part for key, part in message.items() if part is not None} for message in value)
    for message in found:
        if set(message) != {"role", "content"} or not all(isinstance(part, str) for part in message.values()):
            raise RolloutError(
                f"{name} holds a message with {', '.join(sorted(message)) or 'nothing'}: only a role and a content of "
                "plain text can be encoded exactly"
            )
    return found


def at(where: str, error: RolloutError) -> RolloutError:
    """Return the error with its place in front."""
    return RolloutError(f"{where}: {error}")
