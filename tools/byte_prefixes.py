"""What a next-token distribution over one vocabulary says of the tokens of another: by the bytes that tokens write.

Two models with different tokenizers have read the same text where a token of either begins at the same byte. There the
teacher's next token, a distribution over its own vocabulary, bounds what is known of the student's candidates:

- *begins*: the teacher's text goes on with the bytes of some candidate. Tokens that begin with these bytes are certain
  to; tokens that are a proper beginning of them may or may not go on so (the byte prefixes of arXiv 2607.22334, with
  what is open counted apart). The bounds hold for whatever the teacher would write next.
- *read*: the student's tokenizer, reading what the teacher writes, makes a candidate its first token. This is C, and
  with one tokenizer exactly C; it holds as far as both write texts as their tokenizers do (`Readings`).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from teachdiag.diagnostics.models.vocabulary import part_of_character, special_tokens
from teachdiag.errors import ModelError

Texts = Sequence[bytes | None]  # what every id of a vocabulary writes; None of ids that write no text
Bounds = tuple[float, float]
Reals = npt.NDArray[np.float64]


def token_texts(name: str, tokenizer: Any) -> list[bytes | None]:  # noqa: ANN401
    """Return the bytes of every id.

    Raises:
        ModelError: the tokenizer is neither a byte-level BPE nor of SentencePiece's kind with a fallback to bytes.
    """
    decoder = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))
    byte_level = "ByteLevel" in decoder
    if not byte_level and "ByteFallback" not in decoder:
        raise ModelError(f"{name}: what bytes its tokens write is known of byte-level BPE and of SentencePiece alone")
    special, added = special_tokens(tokenizer), tokenizer.get_added_vocab().values()
    texts: list[bytes | None] = [None] * (max(tokenizer.get_vocab().values()) + 1)
    for token, index in tokenizer.get_vocab().items():
        if index in special:
            continue
        part = part_of_character(token) if byte_level and index not in added else None
        texts[index] = _plain(token) if part is None else part
    return texts


def _plain(token: str) -> bytes:
    fallback = part_of_character(token) if token.startswith("<0x") else None
    return fallback if fallback is not None and len(fallback) == 1 else token.replace("\u2581", " ").encode()


def starts(pieces: Sequence[bytes]) -> list[int]:
    """Return the byte at which each piece of a text starts."""
    return [int(start) for start in np.cumsum([0, *map(len, pieces)])[:-1]]


class ByteOrder:
    """A vocabulary in the order of its bytes, in which tokens that begin alike lie side by side."""

    def __init__(self, texts: Texts) -> None:
        """Sort the ids that write text."""
        written = sorted((text, index) for index, text in enumerate(texts) if text)
        self._texts = [text for text, _ in written]
        self._ids = [index for _, index in written]

    def reached(self, q: Reals) -> Reals:
        """Return the mass of all tokens before each place in this order.

        Args:
            q: probabilities of all ids, shape (.., V).

        Returns:
            Shape (.., tokens that write text + 1).
        """
        return np.insert(np.cumsum(q[..., self._ids], -1), 0, 0.0, -1)

    def bounds(self, reached: Reals, candidates: Iterable[bytes]) -> Bounds:
        """Return the least and most mass of texts that begin with the bytes of some candidate.

        Args:
            reached: of one distribution, shape (tokens that write text + 1,).
            candidates: what each candidate writes.
        """
        low, open_spans, last = 0.0, set[tuple[int, int]](), None
        for text in sorted(set(candidates)):
            if last is not None and text.startswith(last):
                continue  # whatever begins with it begins with the shorter candidate
            last = text
            span = bisect_left(self._texts, text), self._behind(text, len(text))
            low += reached[span[1]] - reached[span[0]]
            beginnings = (text[:size] for size in range(1, len(text)))
            open_spans |= {(bisect_left(self._texts, part), self._behind(part)) for part in beginnings}
        return float(low), float(low + sum(reached[behind] - reached[first] for first, behind in open_spans))

    def _behind(self, text: bytes, size: int | None = None) -> int:
        """Place behind the tokens whose first bytes, as many as `size`, are a text: of those that write it alone."""
        return bisect_right(self._texts, text, key=lambda token: token[:size])


class Readings:
    """Which tokens of the student can be its first where the teacher's next token is known.

    The texts that are tried are every token of both vocabularies, alone and followed by a letter where it ends in white
    space (which tokenizers tend to cut before the word behind it). A text whose first tokens are w of the teacher's and
    v of the student's shows that w can be read as v. Tokens that no text was seen to begin with are read as they are.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Take pairs of a teacher's and a student's token that begin the same text."""
        seen = np.unique(np.array(list(pairs), np.int64), axis=0)
        self.theirs, first = np.unique(seen[:, 0], return_index=True)
        self._ours, self._first = seen[:, 1], first

    def bounds(self, q: Reals, candidates: npt.NDArray[np.bool_]) -> Bounds:
        """Return the least and most mass that is read as a candidate.

        Args:
            q: probabilities of all the teacher's ids, shape (V,).
            candidates: whether each of the student's ids is one, and then whether what none of them writes is.
        """
        held = candidates[self._ours]
        always, ever = np.logical_and.reduceat(held, self._first), np.logical_or.reduceat(held, self._first)
        mass = q[self.theirs]
        return float(mass[always].sum()), float(mass[ever].sum())
