"""Parts of characters: shown as the character that they make, and as bytes where they make none."""

from hypothesis import given
from hypothesis import strategies as st

from teachdiag.diagnostics.models.vocabulary import part_of_character
from teachdiag.figures.report.characters import REST, Texts

TEXTS = Texts({0: "a", 1: "<end>"}, {2: b" \xe2\x89", 3: b"\x88", 4: b"\xf0\x9f", 5: b"\x98\x80", 6: b"\x88\xe2\x89"})


def test_parts_are_shown_as_what_they_make() -> None:
    assert TEXTS.each([0, 2, 3, 0]) == ["a", " \u2248", REST, "a"]
    assert TEXTS.each([4, 5, 4, 5]) == ["\U0001f600", REST, "\U0001f600", REST]
    assert TEXTS.each([2, 6, 3]) == [" \u2248\u2248", REST, REST]  # the second token ends one and begins another
    assert TEXTS.together([0, 2, 3, 1]) == "a \u2248<end>"


def test_parts_that_make_nothing_are_shown_as_bytes() -> None:
    assert TEXTS.each([2, 0, 3]) == [" \u27e8E2 89\u27e9", "a", "\u27e888\u27e9"]
    assert TEXTS.each([3, 4, 5]) == ["\u27e888\u27e9", "\U0001f600", REST]  # one stray byte spoils nothing behind it
    assert TEXTS.each([4]) == [TEXTS.one(4)] == ["\u27e8F0 9F\u27e9"]
    assert TEXTS.one(9) == "<9>"


@given(st.text(max_size=8))
def test_any_text_comes_back_from_its_bytes(text: str) -> None:
    parts = Texts({byte: chr(byte) for byte in range(128)}, {byte: bytes([byte]) for byte in range(128, 256)})
    assert parts.together(list(text.encode())) == text.replace(REST, "")


def test_names_of_parts() -> None:
    assert part_of_character("\u0120\u00e2\u012b") == b" \xe2\x89"  # GPT-2 writes a space as G with a dot
    assert part_of_character("<0xE2>") == b"\xe2"
    assert part_of_character("\u2581a\ufffd") is None  # SentencePiece's own sign: no byte-level name
