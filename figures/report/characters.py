"""Characters from tokens: parts of a UTF-8 character are shown as the character that they make together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REST = "\u203f"  # ‿ stands for a later part of a character that is shown with its first part


@dataclass(frozen=True)
class Texts:
    """What to show for token ids.

    `texts`: text by id. `parts`: bytes by id, of the tokens that are a part of a character.
    """

    texts: Mapping[int, str]
    parts: Mapping[int, bytes]

    def one(self, token_id: int) -> str:
        """Return the text of a token by itself: a part of a character as its bytes, an unknown id as its number."""
        if token_id in self.parts:
            return in_bytes(self.parts[token_id])
        return self.texts.get(token_id, f"<{token_id}>")

    def each(self, token_ids: Sequence[int]) -> list[str]:
        """Return what to show for each token of a text.

        The first part of a character shows all of it, later parts `REST`; parts that make no character show as bytes.
        """
        shown: list[str] = []
        pending: list[int] = []  # parts of a character that is not yet whole
        for token_id in token_ids:
            if token_id not in self.parts:
                shown += [self.one(part) for part in pending] + [self.one(token_id)]
                pending = []
                continue
            pending.append(token_id)
            shown += self._settled(pending)
        return shown + [self.one(part) for part in pending]

    def _settled(self, pending: list[int]) -> list[str]:
        """Take from pending parts what no later part can change, and return what is shown for it."""
        shown: list[str] = []
        while pending:
            try:
                whole = b"".join(self.parts[part] for part in pending).decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    break
                shown.append(self.one(pending.pop(0)))
            else:
                shown += [whole] + [REST] * (len(pending) - 1)
                pending.clear()
        return shown

    def together(self, token_ids: Sequence[int]) -> str:
        """Return the text that tokens make."""
        return joined(self.each(token_ids))


def joined(shown: Sequence[str]) -> str:
    """Return the text that shown tokens make."""
    return "".join(text for text in shown if text != REST)


def in_bytes(part: bytes) -> str:
    """Return a part of a character as it is shown: what it holds of text, then the bytes, as in ' ⟨E2 89⟩'."""
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        return f"{part[: error.start].decode()}\u27e8{part[error.start :].hex(' ').upper()}\u27e9"
