"""Do teacher and student speak the same tokens? Their distributions can be compared only if they do."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from transformers.convert_slow_tokenizer import bytes_to_unicode

from teachdiag.artefacts import VOCABULARY
from teachdiag.errors import ModelError
from teachdiag.settings import SUPPORT_SIZES, EndOfText

_SHOWN = 5  # differing ids that an error lists
_UNREADABLE = "\ufffd"  # what tokenizers decode a part of a character to
_FALLBACK = re.compile("<0x[0-9A-F]{2}>")
_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # GPT-2's alphabet, of byte-level BPE


class Speaker(Protocol):
    """A model, loaded or in outline, as far as its vocabulary goes."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def tokenizer(self) -> Any:  # noqa: ANN401
        """Its tokenizer."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end a text."""

    @property
    def rows(self) -> int:
        """Ids that its LM head has, padding included."""


@dataclass(frozen=True)
class Known:
    """The ids that a tokenizer knows, added tokens included: all below `size` but for the holes.

    The other rows of an LM head are padding: never sampled, and of no part in any softmax.
    """

    size: int
    holes: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many there are."""
        return self.size - len(self.holes)

    def unknown(self, rows: int) -> list[int]:
        """The other ids of a head of so many rows, ascending."""
        return [*self.holes, *range(self.size, rows)]

    def stranger(self, ids: Iterable[int]) -> int | None:
        """Return the first of some ids that is not known."""
        holes = set(self.holes)
        return next((i for i in ids if not 0 <= i < self.size or i in holes), None)


def known_ids(tokenizer: Any, rows: int) -> Known:  # noqa: ANN401
    """Return the ids that a tokenizer knows, of those that a head of so many rows has."""
    ids = {i for i in tokenizer.get_vocab().values() if i < rows}
    size = max(ids, default=-1) + 1
    return Known(size, tuple(sorted(set(range(size)) - ids)))


def token_strings(model: Speaker) -> dict[int, str]:
    """Token string of every id that a model's tokenizer can emit."""
    return {index: token for token, index in model.tokenizer.get_vocab().items()}


def special_tokens(tokenizer: Any) -> dict[int, str]:  # noqa: ANN401
    """Token string of every special token, by its id: those that decoding can skip."""
    return {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def shared_vocabulary(student: Speaker, teacher: Speaker) -> Known:
    """Return the ids that both models share: those that their tokenizers know.

    Padded LM heads of different sizes are accepted, since no tokenizer emits the padding.

    Raises:
        ModelError: some id that either tokenizer can emit stands for another token in the other, or the vocabulary is
            smaller than the largest K; the message lists the first ids that differ.
    """
    ours, theirs = token_strings(student), token_strings(teacher)
    differing = [i for i in sorted(ours.keys() | theirs.keys()) if ours.get(i) != theirs.get(i)]
    if differing:
        examples = "; ".join(f"id {i}: {ours.get(i)!r} against {theirs.get(i)!r}" for i in differing[:_SHOWN])
        raise ModelError(
            f"student {student.name} and teacher {teacher.name} do not share a vocabulary: {len(differing)} ids "
            f"differ ({examples}): choose a pair with one tokenizer; docs/tokenizers.md tells what is known of others"
        )
    for model in (student, teacher):
        refuse_short_head(model)
    known = known_ids(student.tokenizer, min(student.rows, teacher.rows))
    if known.count < max(SUPPORT_SIZES):
        raise ModelError(f"K = {max(SUPPORT_SIZES)} is larger than the shared vocabulary of {known.count} tokens")
    return known


def refuse_short_head(model: Speaker) -> None:
    """Refuse a model without a row for every id of its tokenizer: it is another model's tokenizer, or was extended.

    Raises:
        ModelError: it lacks some.
    """
    largest = max(token_strings(model))
    if largest >= model.rows:
        raise ModelError(
            f"the tokenizer of {model.name} emits id {largest}, but its LM head has only {model.rows} rows: "
            "is it another model's tokenizer?"
        )


def ends_of(student: Speaker, teacher: Speaker, choice: EndOfText) -> frozenset[int]:
    """Return the ids that end a response of the student.

    Both distributions stay over all tokens: at a response's last position, which predicts its end, a teacher that ends
    with another token than the student gives it little, and the KL there is mostly of that. With 'union' the student
    may end with a token of the teacher's, wherever it has learned some of it, and nothing is read behind that.

    Args:
        student: whose responses they are.
        teacher: it reads them.
        choice: 'same' refuses models that differ, 'student' takes the student's ids, 'union' those of both.

    Raises:
        ModelError: they differ, and must not.
    """
    if choice == "union":
        return student.end_ids | teacher.end_ids
    if choice == "same" and student.end_ids != teacher.end_ids:
        raise ModelError(
            f"student {student.name} ends text with ids {sorted(student.end_ids)}, teacher {teacher.name} with "
            f"{sorted(teacher.end_ids)}: choose a pair with the same end-of-text ids, or --end-of-text student or union"
        )
    return student.end_ids


def vocabulary_table(model: Speaker) -> pa.Table:
    """Return the `vocabulary` table: the text of every id that the tokenizer knows, parts of characters in bytes."""
    names = dict(sorted(token_strings(model).items()))
    decoded = {index: str(model.tokenizer.decode([index])) for index in names}
    return VOCABULARY.build(
        {
            "token_id": np.array(list(names), np.int32),
            "text": [_text(decoded[index], name) for index, name in names.items()],
            "part": [
                part_of_character(name) if _UNREADABLE in decoded[index] else None for index, name in names.items()
            ],
        }
    )


def part_of_character(name: str) -> bytes | None:
    """Return the bytes of a token that is a part of a character, by its name; None where the name does not tell.

    Byte-level tokenizers write each byte as a character of one alphabet; SentencePiece's fallback writes '<0xE2>'.
    """
    if _FALLBACK.fullmatch(name):
        return bytes.fromhex(name[3:5])
    values = [_BYTES.get(character) for character in name]
    return None if None in values else bytes(value for value in values if value is not None)


def _text(decoded: str, name: str) -> str:
    """Return what a token says: its name where that is nothing readable; SentencePiece drops a leading space."""
    if _UNREADABLE in decoded or not decoded:
        return name
    return f" {decoded}" if name.startswith("\u2581") and not decoded.startswith(" ") else decoded
