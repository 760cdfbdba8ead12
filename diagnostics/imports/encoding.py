"""Prompts and responses to the ids that the student read and sampled: exactly, or not at all."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from teachdiag.diagnostics.imports.records import Form, Ids, Messages, Side
from teachdiag.diagnostics.rollouts import encode_messages
from teachdiag.errors import RolloutError, cause

_BROKEN = "\ufffd"  # what decoding puts where bytes are no character; which bytes they were is lost
_SHOWN = 60  # characters of a text that an error quotes
_CHATS = (("user",), ("system", "user"))  # conversations that a stripped prompt is read as


class Encoder:
    """One tokenizer, and what its chat template puts around messages."""

    def __init__(self, tokenizer: Any, rows: int) -> None:  # noqa: ANN401
        """Take a tokenizer, and the number of ids of its model."""
        self._tokenizer = tokenizer
        self._rows = rows

    def prompt(self, side: Side) -> Ids:
        """Return the ids of a prompt.

        Raises:
            RolloutError: they cannot be had exactly; the message does not say where.
        """
        if side.ids is not None:
            return self._checked(side.ids, side.text, "prompt")
        ids = self._chat(side.messages) if side.messages is not None else self._prompt_text(_text(side), side.form)
        return self._checked(ids, None, "prompt")

    def response(self, side: Side, prompt: Ids) -> Ids:
        """Return the ids of a response to a prompt of these ids.

        Raises:
            RolloutError: as `prompt`.
        """
        if side.ids is not None:
            return self._checked(side.ids, side.text, "response")
        text, skip = _text(side), side.form != "written"
        parsers = (getattr(self._tokenizer, name, None) for name in ("response_template", "response_schema"))
        if side.form == "parsed" and any(parsers):
            raise RolloutError("the response was parsed by the student's tokenizer, which may drop parts of its text")
        if _BROKEN in text:
            raise RolloutError("the response holds U+FFFD, in place of bytes that are lost: give response_token_ids")
        ids = self._encode(text)
        # Behind its prompt too: a space that a tokenizer drops at the start of a text may or may not have been there.
        if self._decode(ids, skip) != text or self._decode(prompt + ids, skip) != self._decode(prompt, skip) + text:
            raise RolloutError(
                f"the ids of the response cannot be recovered from its text, which begins {text[:_SHOWN]!r}: encoded "
                "and decoded it is another text"
            )
        return self._checked(ids, None, "response")

    def _checked(self, ids: Ids, text: str | None, name: str) -> Ids:
        if not ids:
            raise RolloutError(f"the {name} is empty")
        strangers = [i for i in ids if not 0 <= i < self._rows]
        if strangers:
            raise RolloutError(f"the {name} holds id {strangers[0]}, but the student's vocabulary has {self._rows} ids")
        if text is not None and text.rstrip(_BROKEN) not in [
            self._decode(ids, skip).rstrip(_BROKEN) for skip in (False, True)
        ]:
            raise RolloutError(
                f"the {name}'s ids decode to {self._decode(ids, skip=False)[:_SHOWN]!r}, where its text is "
                f"{text[:_SHOWN]!r}: it was tokenised by another tokenizer than the student's"
            )
        return ids

    def _prompt_text(self, text: str, form: Form) -> Ids:
        if not text:
            raise RolloutError("the prompt is empty")
        if form == "plain":
            return self._encode(text, special=True)
        if self._tokenizer.chat_template is None:
            return self._without_template(text, form)
        return self._recovered(text) if form == "stripped" else self._rendered(text)

    def _without_template(self, text: str, form: Form) -> Ids:
        """Encode a prompt as the tokenizer does by itself, unless its special tokens are written out already."""
        ids = self._encode(text, special=True)
        if self._decode(ids, skip=True) == text:
            return ids
        ids = self._encode(text)
        added = self._encode("", special=True)
        if form == "written" and self._decode(ids, skip=False) == text and ids[: len(added)] == added:
            return ids
        raise RolloutError(
            f"the ids of the prompt cannot be recovered from its text, which begins {text[:_SHOWN]!r}: encoded and "
            "decoded it is another text"
        )

    def _rendered(self, text: str) -> Ids:
        """Encode a prompt that the chat template made, special tokens written out."""
        before, after = self._frame
        if not (text.startswith(before) and text.endswith(after)):
            raise RolloutError(
                f"the prompt, which begins {text[:_SHOWN]!r}, is not what the student's chat template writes (that "
                f"begins {before!r}): give it as messages, or as prompt_token_ids"
            )
        ids = self._encode(text)
        if self._decode(ids, skip=False) != text:
            raise RolloutError(f"the ids of the prompt, which begins {text[:_SHOWN]!r}, cannot be recovered exactly")
        return ids

    def _recovered(self, text: str) -> Ids:
        """Render a stripped prompt anew: find the messages in it, and refuse where they could be others."""
        found: set[Ids] = set()
        for messages in self._readings(text):
            ids = self._chat(messages)
            if self._decode(ids, skip=True) == text:
                found.add(ids)
                if len(found) > 1 or any(self._next_turn in message["content"] for message in messages):
                    raise RolloutError(
                        f"the prompt, which begins {text[:_SHOWN]!r}, lost its special tokens and can be read as more "
                        "than one conversation"
                    )
        if not found:
            raise RolloutError(
                f"the prompt, which begins {text[:_SHOWN]!r}, lost its special tokens and is not what the student's "
                "chat template makes of a user's message, with or without a system message"
            )
        return found.pop()

    def _readings(self, text: str) -> Iterator[Messages]:
        """Yield every conversation of `_CHATS` whose stripped rendering may be this text."""
        for roles, pieces in self._pieces.items():
            for contents in _splits(text, pieces):
                yield tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=True))

    @cached_property
    def _pieces(self) -> dict[tuple[str, ...], list[str]]:
        """What a stripped rendering has before, between and after the messages of each conversation of `_CHATS`."""
        found = {roles: self._around(roles) for roles in _CHATS}
        return {roles: pieces for roles, pieces in found.items() if pieces}

    @cached_property
    def _next_turn(self) -> str:
        """What a stripped rendering has between a user's message and an answer; a lone surrogate if it knows none."""
        pieces = self._around(("user", "assistant", "user"))
        return pieces[1] if pieces else "\ud800"

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """What a rendering begins and ends with; where it has special tokens, only what it begins with to the first."""
        marker = "marker0"
        before, _, after = self._decode(self._chat(({"role": "user", "content": marker},)), skip=False).partition(
            marker
        )
        names = [str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        special = [before.find(name) + len(name) for name in names if name in before]
        return (before[: min(special)], "") if special else (before, after)

    def _around(self, roles: Sequence[str]) -> list[str] | None:
        markers = [f"marker{place}" for place in range(len(roles))]
        try:
            ids = self._chat(tuple({"role": r, "content": m} for r, m in zip(roles, markers, strict=True)))
        except RolloutError:
            return None  # a template may refuse a role
        pieces, rest = [], self._decode(ids, skip=True)
        for marker in markers:
            if rest.count(marker) != 1:
                return None
            piece, rest = rest.split(marker)
            pieces.append(piece)
        return [*pieces, rest]

    def _chat(self, messages: Messages) -> Ids:
        if self._tokenizer.chat_template is None:
            raise RolloutError("the prompt is a list of messages, but the student's tokenizer has no chat template")
        try:
            return encode_messages(self._tokenizer, messages)
        except (TemplateError, TypeError, ValueError) as error:
            raise RolloutError(f"the student's chat template refuses the prompt's messages ({cause(error)})") from error

    def _encode(self, text: str, *, special: bool = False) -> Ids:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RolloutError("its text is no valid Unicode (a lone surrogate)") from error
        return tuple(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _decode(self, ids: Ids, skip: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip))


def _text(side: Side) -> str:
    assert side.text is not None
    return side.text


def _splits(text: str, pieces: Sequence[str]) -> Iterator[list[str]]:
    """Yield every way to write a text as piece, content, piece, ..., content, piece."""
    head, *rest = pieces
    if not text.startswith(head):
        return
    text = text[len(head) :]
    if len(rest) == 1:
        if text.endswith(rest[0]):
            yield [text[: len(text) - len(rest[0])]]
        return
    place = text.find(rest[0])
    while place >= 0:
        yield from ([text[:place], *tail] for tail in _splits(text[place:], rest))
        place = text.find(rest[0], place + 1)
