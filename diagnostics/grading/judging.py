"""Judges an answer by its gold answer; imported only by the process that may be given up (`python -m` its package)."""

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from teachdiag.diagnostics.grading.extraction import (
    UnreadableError,
    boxed,
    first_formula,
    formulas,
    marked,
    tagged,
    whole_sentences,
)
from teachdiag.diagnostics.grading.values import Collection, Quantity, Relation, Value, Words, read, said, same

_LETTERS = re.compile(r"\(?([A-Za-z])\)?(?:\s*(?:,|&|,?\s?and|or)\s*\(?([A-Za-z])\)?)*")
_OPTION = re.compile(r"(?:option|choice)?\s*\(?([A-Z])(?:[).:,]|(?=\s|$))")
_CHOSEN = re.compile(r"\((?i:([A-Z]))\)|\b(?i:option|choice)(?:\s+is:?)?\s+\**(?!I\b)([A-Z])\b")
_WRAPPED_CHOICE = re.compile(r"\\text(?:bf|it)?\{\s*\(?[A-Z]\)?\s*\}|\([A-Z]\)|\\text(?:bf|it)?\{\s*\([A-Z]\)\s*\}.*")
_LAST_NUMBER = re.compile(r"(?:(?<![\w.)])[-−])?\d+(?:,\d{3})*(?:\.\d+)?(?:\s?/\s?\d+)?(?:\s?\\?%)?")
_GLUED = re.compile(r"(?<=\d)[mgsLhJNW](?=\W*$)")
_NOTHING = ("nan", "null", "<na>")
_SHORT = 5  # words of a text that is an answer without a mark


class GoldError(ValueError):
    """A gold answer that nothing can be compared with."""


class Answer(NamedTuple):
    """What a text gives as its answer: as it is written there, and what that says."""

    written: str
    value: Value


def judge(answer_type: str, gold: str, text: str, cut: bool) -> tuple[bool, str]:
    """Whether a text gives the gold answer, and the answer that it gives, as it is written there.

    Args:
        answer_type: 'latex', 'number', 'text', 'set', 'interval' or 'choice' (see `grading.grader_of`).
        gold: the right answer, as the source writes it.
        text: what the model wrote, without its thinking.
        cut: the text ended at a length limit: only a box, or a complete sentence marked as the answer, is an answer.

    Raises:
        GoldError: the gold answer is not of its type.
        UnreadableError: the text holds no answer, or none that can be read.
    """
    right, kind = gold_value(answer_type, gold)
    answer = _answer(kind, right, text, cut)
    return same(right, answer.value), answer.written


@lru_cache(maxsize=1024)
def gold_value(answer_type: str, gold: str) -> tuple[Value, str]:
    """Read a gold answer; return it with the type that answers to it are read as.

    Raises:
        GoldError: it is not of its type.
    """
    try:
        written = boxed(gold) or gold
        if said(written) in _NOTHING:
            raise GoldError("is what tables write for a missing value")
        if answer_type == "choice" or (answer_type == "latex" and _WRAPPED_CHOICE.fullmatch(written.strip(" .$"))):
            letters = _letters(said(written))
            if not letters:
                raise GoldError("names no choice by its letter")
            return letters, "choice"
        value = _typed(answer_type, written)
    except UnreadableError as error:
        raise GoldError(f"cannot be read as {answer_type}: {error}") from error
    if answer_type == "number" and not (isinstance(value, Quantity) and getattr(value.value, "is_number", False)):
        raise GoldError("is no number")
    if answer_type == "interval" and not _is_interval(value):
        raise GoldError("is no interval, nor a union of intervals")
    return value, "text" if isinstance(value, Words) else answer_type


def _typed(answer_type: str, written: str) -> Value:
    if answer_type == "text":
        if not said(written):
            raise UnreadableError("nothing")
        return Words(said(written))
    if answer_type == "number":  # has no variables: 540m is 540 metres
        written = _GLUED.sub("", written)
    value = read(written, every_comma=answer_type == "set")
    if answer_type != "set":
        return value
    return Collection("{}", value.items if isinstance(value, Collection) and value.brackets != "union" else (value,))


def _is_interval(value: Value) -> bool:
    if not isinstance(value, Collection):
        return False
    if value.brackets in ("union", "{}"):
        return all(_is_interval(item) for item in value.items) or value.brackets == "{}"
    return value.brackets in ("()", "[)", "(]", "[]") and len(value.items) == 2


def _answer(kind: str, gold: Value, text: str, cut: bool) -> Answer:
    if (content := tagged(text)) is not None:
        text, cut = f"answer: {content}", False
    content = boxed(text)
    if kind == "choice":
        chosen = _choice(text, content, cut)
        return Answer(chosen.said, chosen)
    if content is not None:
        return Answer(content, _typed(kind, content))
    if cut:
        text = whole_sentences(text)
    if kind == "text":
        sentence = _sentence(text, cut)
        return Answer(sentence, Words(said(sentence)))
    return _from_prose(kind, gold, text, cut)


def _sentence(text: str, cut: bool) -> str:
    for sentence in marked(text):
        return sentence
    if cut or not text.strip() or len(text.split()) > _SHORT:
        raise UnreadableError("no answer in words")
    return text


def _from_prose(kind: str, gold: Value, text: str, cut: bool) -> Answer:
    """Read the first formula behind the last mark, else the text's last one."""
    stretch = next((formula for sentence in marked(text) if (formula := first_formula(sentence))), None)
    listed = isinstance(gold, Collection)
    if stretch is None:
        everywhere = [] if cut else formulas(text)
        if not everywhere:
            raise UnreadableError("no formula")
        stretch = everywhere[-1] if listed else re.split(r"[,;]\s", everywhere[-1])[-1]
    try:
        value = _typed(kind, stretch)
    except UnreadableError:
        value = None
    number = isinstance(gold, Quantity) and getattr(gold.value, "is_number", False)
    if value is None or (number and isinstance(value, Relation) and value.sign != "="):  # its last number counts
        numbers = _LAST_NUMBER.findall(stretch) if number else []
        if not numbers:
            raise UnreadableError("no mathematics")
        return Answer(numbers[-1], read(numbers[-1]))
    return Answer(stretch, value)


def _choice(text: str, content: str | None, cut: bool) -> Words:
    if content is not None:
        plain = said(content)
        return _letters(plain) or Words(plain or "nothing")
    for sentence in marked(whole_sentences(text) if cut else text):
        plain = sentence.replace("*", "").replace("$", "")
        if letters := _letters(said(plain)):
            return letters
        if option := _OPTION.match(plain):
            return Words(option[1].casefold())
    lines = text.strip().splitlines()
    if lines and not cut and (letters := _letters(said(lines[-1]))):
        return letters
    chosen = [] if cut else _CHOSEN.findall(text)
    if not chosen:
        raise UnreadableError("no choice")
    return Words("".join(chosen[-1]).casefold())


def _letters(plain: str) -> Words | None:
    """Read 'c', '(a), (b)', 'a and b', or 'c) what it says'."""
    if _LETTERS.fullmatch(plain):
        return Words(" ".join(sorted(set(re.findall(r"\b[a-z]\b", plain)))))
    option = re.match(r"\(?([a-z])[).:]", plain)
    return Words(option[1]) if option else None


def judge_by_gym(source: Mapping[str, Any], row: int, question: str, text: str, cut: bool) -> tuple[bool, str]:
    """Whether a text answers a problem of reasoning-gym, by the data set's own score of 1, and its answer.

    Numbers are compared as numbers first, since some scores lose signs and thousands separators; the score then only
    tells whether a number within 1% of the right one is near enough.

    Raises:
        GoldError: reasoning-gym now makes another problem of this row.
        UnreadableError: the text holds no answer.
    """
    dataset = gym_problems(source["dataset"], source["size"], source["seed"])
    entry = dataset[row]  # with the metadata that some scores read
    if entry["question"] != question:
        raise GoldError(
            "is another problem than reasoning-gym makes now: use its revision "
            f"{source.get('revision', 'that made them')}, or the grader math_verify"
        )
    gold, content = str(entry["answer"]), tagged(text)
    try:
        expected = Fraction(gold.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        expected = None
    if expected is None or "/" in gold:
        answer = content or boxed(text) or _sentence(text, cut)
        return bool(dataset.score_answer(answer, entry) >= 1), answer
    written, value = _answer("number", gold_value("number", gold)[0], text, cut)
    if not (isinstance(value, Quantity) and getattr(value.value, "is_Rational", False)):
        return False, written
    number = Fraction(int(value.value.p), int(value.value.q))
    if number == expected:
        return True, written
    near = abs(number - expected) <= abs(expected) / 100
    return near and bool(dataset.score_answer(str(float(number)), entry) >= 1), written


@lru_cache(maxsize=4)
def gym_problems(name: str, size: int, seed: int) -> Any:  # noqa: ANN401 (a data set of reasoning-gym)
    """Make a data set of reasoning-gym."""
    import reasoning_gym

    return reasoning_gym.create_dataset(name, size=size, seed=seed)
