"""Where an answer stands in a text: in its last box, behind its last word 'answer', or in its last formula.

Texts are whatever a model wrote, so every pattern here takes time in proportion to their length.
"""

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BETWEEN_BOXES = re.compile(r"(?:[\s,;$&}]|\\[()\[\],;!]|\\q?quad|\\text\{|and|or|[a-zA-Z](?:_\w)?\s*=)*")
_MARK = re.compile(
    r"####|\banswers?\b(?:[^.!?\n]{0,80}?\b(?:is|are|be)\b|[^.!?\n]{0,40}?(?:[:=]|\*\*))?[\s:*]*", re.IGNORECASE
)
_SENTENCE = re.compile(
    r"[.?](?=[\s*]|$)|!(?=[ \t]*$| +[A-Z])|(?<=\S):(?=\s)|(?<!\\\\)(?<!matrix\})\n(?![ \t]*\\end)", re.MULTILINE
)
_COMMANDS = re.compile(r"\\(?:begin|end|text|textbf|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_PROSE = re.compile(
    r"(?<![a-zA-Z])(?!(?:sqrt|pi|sin|cos|tan|log|ln|and|or|percent|infinity|oo)(?![a-zA-Z]))[A-Za-z]{2,}|\b(?:i\.e|e\.g)(?:\.|$)"
)
_NUMBER_FIRST = re.compile(r"[-−$(\[*]*\.?\d(?!\d*(?:st|nd|rd|th)\b)")
_NOTES = re.compile(r"<<[^<>]*>>")  # GSM8K's own, of what a calculator said
_OPERATORS, _END = ("+", "-", "−", "*", "/", "×", "÷", "x", r"\times", r"\cdot"), ""
_CONNECTING = ("", "and", "or")
# What thinking begins and ends with: most models, Magistral, Command, gpt-oss.
THINKING = (
    *(("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>")),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
_SOME = 20  # boxes and marks that are looked at, from the last


class UnreadableError(ValueError):
    """A text that is no answer, or none that can be read."""


def without_thinking(text: str) -> str:
    """Return what follows the thinking, '' where the thinking never ends: an answer in it is none yet."""
    for opening, closing in THINKING:
        text = text.rpartition(closing)[2]
        if opening in text:
            return ""
    return text


def tagged(text: str) -> str | None:
    """Return what stands between the last tags <answer> and </answer>; None without them."""
    before, closed, _ = text.rpartition("</answer>")
    _, opened, content = before.rpartition("<answer>")
    return content.strip() if opened and closed else None


def whole_sentences(text: str) -> str:
    """Return a text that was cut at a length limit up to its last complete sentence."""
    ends = [match.end() for match in _SENTENCE.finditer(text) if match.end() < len(text)]
    return text[: ends[-1]] if ends else ""


def boxed(text: str) -> str | None:
    """Return what the last box holds, after those that only a comma or an 'and' parts from it; None without a box.

    Raises:
        UnreadableError: a box never ends.
    """
    contents: list[str] = []
    after = len(text)
    for box in reversed(list(_BOX.finditer(text))[-_SOME:]):
        content, end = _braced(text, box.end())
        if end > after < len(text):  # around the box that was found
            continue
        if contents and not _BETWEEN_BOXES.fullmatch(text, end, max(end, after)):
            break
        contents.insert(0, content)
        after = box.start()
    return ", ".join(dict.fromkeys(contents)) if contents else None


def _braced(text: str, start: int) -> tuple[str, int]:
    """Return what the braces that open at `start` hold, or else the one character there, and where that ends."""
    if not text.startswith("{", start):
        return text[start : start + 1], start + 1
    depth = 0
    for index in range(start, len(text)):
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return text[start + 1 : index], index + 1
    raise UnreadableError("a box that never ends")


def marked(text: str) -> Iterator[str]:
    """Yield the sentences that follow the word 'answer' (or GSM8K's ####), from the last."""
    for mark in reversed(list(_MARK.finditer(text))[-_SOME:]):
        end = _SENTENCE.search(text, mark.end())
        if sentence := text[mark.end() : end.start() if end else len(text)].strip(" *"):
            yield sentence


def formulas(text: str) -> list[str]:
    """Return the stretches of a text that are no prose, and hold a digit, a command, or something between dollars."""
    return [stretch for stretch, _ in _stretches(text)]


def first_formula(sentence: str) -> str | None:
    """Return a sentence's first formula, or where it goes on through words (90 cm / 45 cm = 2) to, and None without."""
    formula = None
    for stretch, goes_on in _stretches(sentence):
        if formula is None or goes_on:
            formula = stretch
        else:
            break
    return formula


def _stretches(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each stretch, and whether it begins with an operation on what came before it."""
    text = _NOTES.sub("", text)
    for sentence in _SENTENCE.split(text):
        run: list[str] = []
        for token in (*_tokens(sentence), _END):
            prose = _PROSE.search(_COMMANDS.sub("", token)) and not _NUMBER_FIRST.match(token)
            if not prose and token not in ("a", "A", "I", _END):
                run.append(token)
                continue
            stretch = " ".join(_trimmed(run)).strip(" ,;=:*")
            if re.search(r"\d|\\[a-zA-Z]|\$.+\$", stretch):
                yield stretch, run[0][0] == "=" or run[0] in _OPERATORS
            run = []


def _trimmed(run: list[str]) -> list[str]:
    while run and run[0].strip(",;=:*") in _CONNECTING:
        run = run[1:]
    while run and run[-1].strip(",;=:*") in _CONNECTING:
        run = run[:-1]
    return run


def _tokens(text: str) -> list[str]:
    """Split at white space outside braces."""
    depth, starts, tokens = 0, 0, []
    for index, sign in enumerate(text):
        depth = max(0, depth + {"{": 1, "}": -1}.get(sign, 0))
        glued = sign == ":" and text[max(0, index - 2) : index].isalpha()  # Total:12
        if (sign.isspace() or glued) and not depth:
            tokens.append(text[starts:index])
            starts = index + 1
    return [token for token in (*tokens, text[starts:]) if token]
