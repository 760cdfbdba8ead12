"""Prompts and responses to the ids that the student read and sampled: exactly, or not at all."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from teachdiag.diagnostics.contexts.templates import encode_messages, options_read
from teachdiag.diagnostics.imports.records import BadRow, Form, Ids, Messages, Side, malformed
from teachdiag.diagnostics.models.vocabulary import special_tokens
from teachdiag.errors import ContextError, cause
from teachdiag.jsontext import is_written_messages
from teachdiag.settings.base import shown

_BROKEN = "\ufffd"  # what decoding puts where bytes are no character; which bytes they were is lost
_CHATS = (("user",), ("system", "user"))  # conversations that a stripped prompt is read as
_TURNS = (("user", "assistant", "user"), ("user", "assistant", "tool"))  # conversations that show how turns begin


class Encoder:
    """One tokenizer, and what its chat template puts around messages."""

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401
        rows: int,
        ends: frozenset[int] = frozenset(),
        options: Mapping[str, Any] | None = None,
        *,
        media: frozenset[int] = frozenset(),
        strip_padding: bool = False,
    ) -> None:
        """Take a tokenizer, what is known of its model, options of its template, and what to do with padding.

        Args:
            tokenizer: the student's.
            rows: number of ids of its model.
            ends: ids that end its texts.
            options: of its chat template.
            media: ids in whose places its model reads pictures or sounds.
            strip_padding: whether padding is taken off lists of ids, rather than refused.
        """
        self._tokenizer = tokenizer
        self._rows = rows
        self._ends = ends
        self._media = media
        self._known = frozenset(tokenizer.get_vocab().values())
        self._special = frozenset(tokenizer.all_special_ids) | special_tokens(tokenizer).keys()
        self._strip = strip_padding
        self._options = dict(options or {})
        self.unpadded = 0  # lists of ids that padding was taken off

    @cached_property
    def options(self) -> list[str]:
        """Names of what the chat template reads besides messages and special tokens: thinking, tools, a date."""
        try:
            return options_read(self._tokenizer, self._options)
        except ContextError:
            return []  # rendering will say what is wrong with it

    def prompt(self, side: Side) -> Ids:
        """Return the ids of a prompt.

        Raises:
            BadRow: they cannot be had exactly; the message does not say where.
        """
        if side.ids is not None:
            return self._checked(self._unpadded(side, "prompt"), side.text, "prompt")
        ids = self._given(side) if side.messages is not None else self._prompt_text(_text(side, "prompt"), side.form)
        return self._checked(self._unpadded(replace(side, ids=ids), "prompt"), None, "prompt")

    def response(self, side: Side, prompt: Ids, finish_reason: str = "unknown", *, own_end: bool = True) -> Ids:
        """Return the ids of a response to a prompt of these ids, which ended for this reason.

        Args:
            side: the response.
            prompt: what it answers.
            finish_reason: 'stop', 'length' or 'unknown'.
            own_end: whether its mask, if it has one, calls the last id the student's: masks are padded with 1, too.

        Raises:
            BadRow: as `prompt`.
        """
        if side.ids is not None:
            unpadded = self._unpadded(side, "response", finish_reason, own_end=own_end)
            ids = self._checked(unpadded, side.text, "response")
            if not side.masked:
                self._refuse_turns(self._decode(ids, skip=False), skip=False)
            return ids
        text, skip = _text(side, "response"), side.form != "written"
        parsers = (getattr(self._tokenizer, name, None) for name in ("response_template", "response_schema"))
        if side.form == "parsed" and any(parsers):
            raise BadRow(
                "parsed", "the response was parsed by the student's tokenizer, which may drop parts of its text"
            )
        if _BROKEN in text:
            raise BadRow(
                "cut in a character",
                "the response holds U+FFFD, in place of bytes that are lost: give response_token_ids",
            )
        self._refuse_turns(text, skip)
        ids = self._encode(text)
        # Behind its prompt too: a space that a tokenizer drops at the start of a text may or may not have been there.
        if self._decode(ids, skip) != text or self._decode(prompt + ids, skip) != self._decode(prompt, skip) + text:
            raise _unrecovered(
                f"the ids of the response cannot be recovered from its text, which begins {shown(text)}: encoded "
                "and decoded it is another text"
            )
        return self._checked(self._unpadded(replace(side, ids=ids), "response", finish_reason), None, "response")

    def _checked(self, ids: Ids, text: str | None, name: str) -> Ids:
        ids = self._in_range(ids, name)
        if text is not None and text.rstrip(_BROKEN) not in [
            self._decode(ids, skip).rstrip(_BROKEN) for skip in (False, True)
        ]:
            raise BadRow(
                "another tokenizer",
                f"the {name}'s ids decode to {shown(self._decode(ids, skip=False))}, where its text is "
                f"{shown(text)}: it was tokenised by another tokenizer than the student's",
            )
        return ids

    def _in_range(self, ids: Ids, name: str) -> Ids:
        """Refuse ids that the student cannot have sampled, before anything decodes them."""
        if not ids:
            raise BadRow("empty", f"the {name} is empty")
        strangers = [i for i in ids if not 0 <= i < self._rows]
        if strangers:
            raise BadRow(
                "unknown ids",
                f"the {name} holds id {shown(strangers[0])}, but the student's vocabulary has {self._rows} ids",
            )
        strangers = [i for i in ids if i not in self._known]
        if strangers:
            raise BadRow(
                "unknown ids", f"the {name} holds id {strangers[0]}, which the student's tokenizer does not know"
            )
        if media := self._media.intersection(ids):
            raise BadRow(
                "more than text",
                f"the {name} holds id {min(media)}, in whose place a picture or a sound was read: only text is scored",
            )
        return ids

    def repeats(self, prompt: Ids, response: Ids) -> bool:
        """Whether a response begins with its whole prompt, whatever special tokens either of them has."""
        text = self._decode(prompt, skip=True).strip()
        return bool(text) and self._decode(response, skip=True).lstrip().startswith(text)

    def made(self, ids: Ids) -> str | None:
        """What ids say that the tokenizer would write otherwise, as those of another tokenizer; None of its own."""
        text = self._decode(ids, skip=False)
        return None if self._encode(text) == ids else text

    def _unpadded(self, side: Side, name: str, finish_reason: str = "unknown", *, own_end: bool = False) -> Ids:
        """Return ids without padding at either end, if the user allows that it is taken off.

        Raises:
            BadRow: there is padding, and nothing was said of it.
        """
        ids = side.ids or ()
        front = 0 if side.masked and name == "response" else self._padding(ids, name)
        back = 0 if side.masked and not own_end else self._padding(ids[::-1], name, finish_reason, back=True)
        if not front and not back:
            return ids
        if not self._strip:
            token, count = (ids[0], front) if front else (ids[-1], back)
            raise BadRow(
                "padding",
                f"the {name} {'begins' if front else 'ends'} with {count} of id {shown(token)}, which looks like "
                "padding: give the ids without it, or have it taken off with --strip-padding",
            )
        self.unpadded += 1
        return ids[front : len(ids) - back]

    def _padding(self, ids: Ids, name: str, finish_reason: str = "unknown", *, back: bool = False) -> int:
        """Return how many ids at the front of a list (of a reversed one for `back`) are padding.

        Padding is what no text has there: ids below 0, special tokens (or several of id 0, which arrays are filled
        with) beyond those that the tokenizer puts at the ends of a prompt, and beyond the one that ended a response.
        """
        if not ids:
            return 0
        first, pad = ids[0], self._tokenizer.pad_token_id
        run = _first_run(ids)
        filler = first in (0, pad)
        if first < 0:
            return run
        if first not in self._special and (first != 0 or run == 1):
            return 0
        if name == "prompt" and first == self._tokenizer.bos_token_id != pad:
            usual = run
        elif name == "prompt":
            usual = self._usual[back].get(first, int(run == 1 and not filler))
        elif not back:
            usual = run if run == len(ids) else int(run == 1 and not filler)
        elif first in self._ends:
            usual = int(run == 1 or finish_reason == "stop")
        else:
            usual = int(first == self._turn_end)
        return max(0, run - usual)

    @cached_property
    def _usual(self) -> tuple[dict[int, int], dict[int, int]]:
        """Which ids the tokenizer puts first and last, and how many of each, in prompts of its own making."""
        prompts = [self._encode("marker", special=True)]
        if self._tokenizer.chat_template is not None:
            with suppress(BadRow):  # of a template that refuses even this
                prompts.append(self._chat(({"role": "user", "content": "marker"},)))
        usual: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for ids in filter(None, prompts):
            for counts, listed in zip(usual, (ids, ids[::-1]), strict=True):
                counts[listed[0]] = max(counts.get(listed[0], 0), _first_run(listed))
        return usual

    @cached_property
    def _turn_end(self) -> int | None:
        """The special token that the chat template writes behind what the assistant said, if it writes one."""
        pieces = self._around(_TURNS[0], skip=False)
        ids = self._encode(pieces[2]) if pieces else ()
        return ids[0] if ids and ids[0] in self._special else None

    def _prompt_text(self, text: str, form: Form) -> Ids:
        if not text:
            raise BadRow("empty", "the prompt is empty")
        if form == "plain":
            return self._encode(text, special=True)
        if self._tokenizer.chat_template is None:
            return self._encode(text, special=True) if form == "unsure" else self._without_template(text, form)
        if form == "unsure" and not self._looks_rendered(text):
            return self._encode(text, special=True)
        return self._rendered(text) if form == "written" else self._recovered(text)

    def _looks_rendered(self, text: str) -> bool:
        """Whether a text that was rendered or not, nobody knows, bears the template's marks.

        Raises:
            BadRow: the template leaves none, so that it cannot be told.
        """
        marks = [mark for pieces in self._pieces.values() for mark in (pieces[0], pieces[-1])]
        if not any(mark.strip() for mark in marks):
            raise BadRow(
                "ambiguous",
                f"the prompt, which begins {shown(text)}, is plain text or a chat that lost its special tokens: the "
                "student's chat template leaves no trace that tells which",
            )
        return any(
            mark.strip() and (text.startswith(mark) if index % 2 == 0 else text.endswith(mark))
            for index, mark in enumerate(marks)
        )

    def _without_template(self, text: str, form: Form) -> Ids:
        """Encode a prompt as the tokenizer does by itself, unless its special tokens are written out already."""
        ids = self._encode(text, special=True)
        if self._decode(ids, skip=True) == text:
            return ids
        ids = self._encode(text)
        added = self._encode("", special=True)
        if form == "written" and self._decode(ids, skip=False) == text and ids[: len(added)] == added:
            return ids
        raise _unrecovered(
            f"the ids of the prompt cannot be recovered from its text, which begins {shown(text)}: encoded and "
            "decoded it is another text"
        )

    def _rendered(self, text: str) -> Ids:
        """Encode a prompt that the chat template made, special tokens written out."""
        before, after = self._frame
        if not (text.startswith(before) and text.endswith(after)):
            raise BadRow(
                "no prompt of the template",
                f"the prompt, which begins {shown(text)}, is not what the student's chat template writes (that "
                f"begins {before!r}): give it as messages, or as prompt_token_ids",
            )
        ids = self._encode(text)
        if self._decode(ids, skip=False) != text:
            raise _unrecovered(f"the ids of the prompt, which begins {shown(text)}, cannot be recovered exactly")
        return ids

    def _recovered(self, text: str) -> Ids:
        """Render a stripped prompt anew: find the messages in it, and refuse where they could be others."""
        readings: set[Ids] = set()
        for messages in self._readings(text):
            ids = self._chat(messages)
            if self._decode(ids, skip=True) == text:
                readings.add(ids)
                if len(readings) > 1 or any(self._may_be_turns(message["content"]) for message in messages):
                    raise BadRow(
                        "ambiguous",
                        f"the prompt, which begins {shown(text)}, lost its special tokens and can be read as more "
                        "than one conversation",
                    )
        if not readings:
            raise BadRow(
                "no prompt of the template",
                f"the prompt, which begins {shown(text)}, lost its special tokens and is not what the student's "
                "chat template makes of a user's message, with or without a system message"
                + f"; of what it reads besides ({', '.join(self.options)}), --template-options tells"
                * bool(self.options),
            )
        return readings.pop()

    def _readings(self, text: str) -> Iterator[Messages]:
        """Yield every conversation of `_CHATS` whose stripped rendering may be this text."""
        for roles, pieces in self._pieces.items():
            for contents in _splits(text, pieces):
                yield tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=True))

    @cached_property
    def _pieces(self) -> dict[tuple[str, ...], list[str]]:
        """What a stripped rendering has before, between and after the messages of each conversation of `_CHATS`."""
        around = {roles: self._around(roles, skip=True) for roles in _CHATS}
        return {roles: pieces for roles, pieces in around.items() if pieces}

    def _may_be_turns(self, content: str) -> bool:
        """Whether a stripped message may be more than one: it holds what stands between turns, or nothing does."""
        return any(mark in content or not mark.strip() for mark in self._openings)

    @cached_property
    def _openings(self) -> list[str]:
        """What a stripped rendering has between turns, behind a user's and behind the assistant's."""
        around = [self._around(roles, skip=True) for roles in _TURNS]
        return sorted({piece for pieces in around if pieces for piece in pieces[1:3]})

    def _refuse_turns(self, text: str, skip: bool) -> None:
        """Refuse a response in which another turn begins: tools and users said part of it, not the student.

        Args:
            text: the response, special tokens skipped or written out.
            skip: which of the two.
        """
        for sign in self._signs[skip]:
            if match := sign.search(text):
                raise BadRow(
                    "other turns in the response",
                    f"the response holds {shown(match.group())}, with which the student's chat template begins another "
                    "turn: a tool's or a user's text is not the student's, and the file does not mask it",
                )

    @cached_property
    def _signs(self) -> dict[bool, list[re.Pattern[str]]]:
        """How turns begin inside a response, special tokens skipped or written out."""
        signs: dict[bool, list[re.Pattern[str]]] = {}
        for skip in (True, False):
            around = [self._around(roles, skip) for roles in _TURNS]
            pieces = sorted({piece for listed in around if listed for piece in (listed[1], listed[2], listed[-1])})
            signs[skip] = [sign for piece in pieces if (sign := self._sign(piece))]
        return signs

    def _sign(self, piece: str) -> re.Pattern[str] | None:
        """What tells that a piece of the template, behind the token that ends a turn, stands in a response.

        Writers that join turns by ids leave out what the template writes behind that token. A sign that begins with
        letters then stands right behind the response's last character; behind a space it is a word like any other.
        """
        begun = piece.lstrip()
        ended = next((name for name in self._names if begun.startswith(name)), "")
        if rest := begun[len(ended) :].strip():
            if ended or not rest[0].isalnum():
                return re.compile(re.escape(rest))
            joined = rf"(?<=\S){re.escape(begun)}"
            return re.compile(joined if begun == piece else f"{re.escape(piece)}|{joined}")
        return re.compile(rf"{re.escape(ended)}(?=\s*\S)") if ended else None

    @cached_property
    def _names(self) -> list[str]:
        """What special tokens are written as."""
        return list(special_tokens(self._tokenizer).values())

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """What a rendering begins and ends with; where it has special tokens, only what it begins with to the first."""
        before, after = self._around(("user",), skip=False) or ("", "")
        special = [before.find(name) + len(name) for name in self._names if name in before]
        return (before[: min(special)], "") if special else (before, after)

    def _around(self, roles: Sequence[str], skip: bool) -> list[str] | None:
        """What a rendering has before, between and after messages of these roles; None where there is none."""
        markers = [f"marker{number}" for number in range(len(roles))]
        try:
            ids = self._chat(tuple({"role": r, "content": m} for r, m in zip(roles, markers, strict=True)))
        except BadRow:
            return None
        pieces, rest = [], self._decode(ids, skip)
        for marker in markers:
            if rest.count(marker) != 1:
                return None
            piece, rest = rest.split(marker)
            pieces.append(piece)
        return [*pieces, rest]

    def _given(self, side: Side) -> Ids:
        """Render messages; a last one of the assistant's is continued, if its writer is known to have done so."""
        messages = side.messages or ()
        ids = self._chat(messages)
        if messages[-1]["role"] != "assistant":
            return ids
        opened = self._decode(self._chat(messages[:-1]), skip=False) if len(messages) > 1 else None
        if not side.continues or opened is None or self._decode(ids, skip=False) != opened + messages[-1]["content"]:
            raise BadRow(
                "ambiguous prefill",
                "the prompt ends with a message of the assistant's, and whether the student continued it, or began "
                "another behind it, cannot be told: give prompt_token_ids",
            )
        return ids

    def _chat(self, messages: Messages) -> Ids:
        if self._tokenizer.chat_template is None:
            raise BadRow(
                "no chat template", "the prompt is a list of messages, but the student's tokenizer has no chat template"
            )
        try:
            return encode_messages(self._tokenizer, messages, self._options)
        except Exception as error:  # a template is a program, which may fail in any way
            raise BadRow(
                "refused by the template", f"the student's chat template refuses the prompt's messages ({cause(error)})"
            ) from error

    def _encode(self, text: str, *, special: bool = False) -> Ids:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise malformed("its text is no valid Unicode (a lone surrogate)") from error
        return tuple(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _decode(self, ids: Ids, skip: bool) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip))


def _first_run(ids: Ids) -> int:
    """How often the first id stands there before another follows."""
    return next((index for index, other in enumerate(ids) if other != ids[0]), len(ids))


def _unrecovered(message: str) -> BadRow:
    return BadRow("not recoverable", message)


def _text(side: Side, name: str) -> str:
    """Return a side's text, unless it is what Python or JSON writes of a list of messages."""
    assert side.text is not None
    if is_written_messages(side.text):
        raise malformed(f"the {name} is a list of messages that was written as text, {shown(side.text)}")
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
    start = text.find(rest[0])
    while start >= 0:
        yield from ([text[:start], *tail] for tail in _splits(text[start:], rest))
        start = text.find(rest[0], start + 1)
