r"""What an answer says as mathematics, and whether two answers say the same.

Math-Verify reads single expressions. What stands around them (brackets, units, relations, words) is read here, because
it tells (1, 2) from \{1, 2\} and [1, 2), 12 cm from 12 m, and x = 5 from y = 5. Two answers are the same if

- words, letters of choices: they agree, whatever their case and wrapping;
- numbers and expressions: they are equal everywhere, to 30 digits. A decimal stands for what it agrees with to six
  decimals and six significant digits: 0.333333 is 1/3, 0.33 is not;
- equations: one is a multiple of the other. x = 5 is also 5, never y = 5. Inequalities of one variable are intervals;
- collections: brackets and elements agree. \{...\} and lists without brackets have no order, (...) and [...] have one;
  a list without brackets may also stand for (...) in the same order;
- units: one side may leave them out. Known units that differ (cm, m) never agree; none is converted;
- percentages: 12\% is 0.12; the sign may be left out of a number above 1, which is no share: 12\% is 12, 1\% is not 1;
- numerals of a named base: digits and base agree, where one side may leave the base out.
"""

import re
import zlib
from dataclasses import dataclass, replace
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.function import AppliedUndef

from teachdiag.diagnostics.grading.extraction import UnreadableError

_LONGEST, _DEEPEST = 2000, 50  # characters, and brackets in brackets, of an answer that is still read
# Units are read here: with Math-Verify's list of them 2t would be 2.
_LATEX = LatexExtractionConfig(
    normalization_config=replace(LatexExtractionConfig().normalization_config, units=False, boxed="none")
)


@dataclass(frozen=True)
class Words:
    """An answer in words, or the letters of choices."""

    said: str


@dataclass(frozen=True)
class Numeral:
    """Digits of a named base."""

    digits: str
    base: str


@dataclass(frozen=True)
class Quantity:
    """An expression, a matrix, or a set, as sympy's object; `said` is how it was written."""

    value: Any
    said: str
    decimal: bool = False
    unit: str = ""
    percent: bool = False


@dataclass(frozen=True)
class Relation:
    """What stands left of a sign, and what right of it."""

    left: str
    sign: str
    right: "Value"


@dataclass(frozen=True)
class Collection:
    """Elements between brackets: '()', '[)' and so on, '{}', '' without any, 'union' of sets, ':' of a ratio."""

    brackets: str
    items: tuple["Value", ...]


Value = Words | Numeral | Quantity | Relation | Collection

_SIGNS = {
    **{"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ "},
    **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm "},
    **{
        "∅": r"\emptyset ",
        "½": r"\frac{1}{2}",
        "²": "^2",
        "³": "^3",
        "¢": r"\text{ cents}",
        "\xa0": " ",
        "~": " ",
        "\n": " ",
        "\t": " ",
    },
}
_WRAP = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox|operatorname)\s*"
_TIDIED = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:d|t|c)frac", r"\\frac"),
        (r"(?<!\\)\\[()\[\]]|(?<!\\)\$|\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![a-zA-Z])", ""),
        (r"\\le(?:q|qslant)?(?![a-zA-Z])|<=", r"\\le "),
        (r"\\ge(?:q|qslant)?(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq?(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (rf"{_WRAP}\{{(\s*[-+]?[\d.,]*\d\s*)\}}", r"\1"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (
            r"(?<=\d)(?:(?:\{,\}|,)\\!|\{,\}|\\[,!;: ]| (?=\d{3}(?:\D|$)))(?=\d{3}(?!\d))",
            "",
        ),  # 1{,}000, 10\,000, 10 000
        (r"\\frac\s*(\d)\s*(?=[\d{])", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),  # \frac 1 2
        (r"_\s*(\d+)\s+(?=[\d.])", r"_{\1} "),  # \log_2 3
        (r"\{,\}", ","),
        (r"(?<!\\)\\(?:[,;:!> ]|q?quad(?![a-zA-Z]))", " "),
        (
            rf"\^\s*\{{?\s*\\circ\s*\}}?(?:\s*[CF](?![a-zA-Z]))?|\\degree(?![a-zA-Z])|{_WRAP}\{{\s*degrees?\s*\}}|\bdegrees?\b",
            r"^\\circ ",
        ),
        (rf"\\?%|{_WRAP}\{{\s*(?:\\?%|percent)\s*\}}|\bpercent\b", r"\\% "),
        (rf"{_WRAP}\{{\s*([ie])\s*\}}", r"\1"),
        (rf"(?:,\s*)?{_WRAP}\{{\s*,?\s*(?:and|or)\s*\}}|(?:,\s*)?(?<![\\a-zA-Z])(?:and|or)(?![a-zA-Z])", ", "),
        (r"\*\*", "^"),
        (r"\*", r"\\cdot "),
        (r"(?:√|(?<![\\a-zA-Z])sqrt)\s*(\d+)", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt"),
        (r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|exp|ln|log)(?![a-zA-Z])", r"\\\1"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"(?<![\\a-zA-Z])(?:oo|infinity|infty)(?![a-zA-Z])", r"\\infty "),
        (
            rf"\\mathbb\s*(?:R|\{{R\}})(?!\s*\\setminus)|{_WRAP}\{{\s*all real numbers\s*\}}|all real numbers",
            r"(-\\infty,\\infty)",
        ),
        (r"(?<=[)\]}])\s*U\s*(?=[(\[\\{])", r"\\cup "),
    )
]
_WRAPPED = re.compile(rf"{_WRAP}\{{([^{{}}]*)\}}")
_WORDS = re.compile(r"(?=.*(?:[A-Za-z]{4}|\b(?:yes|no|dne|odd|all)\b))[A-Za-z][\w .,;:'()/-]*", re.IGNORECASE)
_UNIT_NAMES = {
    **{"centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km"},
    **{"millimeter": "mm", "millimetre": "mm", "inche": "in", "inch": "in", "feet": "ft", "foot": "ft", "yard": "yd"},
    **{"mile": "mi", "gram": "g", "kilogram": "kg", "pound": "lb", "second": "s", "sec": "s", "minute": "min"},
    **{"hour": "h", "hr": "h", "day": "day", "week": "week", "month": "month", "year": "year", "liter": "l"},
    **{"litre": "l", "milliliter": "ml", "cent": "cent", "dollar": "dollar", "degree": "degree", "radian": "rad"},
}
_KNOWN_UNITS = sorted({*_UNIT_NAMES.values()})
_UNIT = re.compile(
    rf"(?:(?<=\S)\s*{_WRAP}\{{(?P<wrapped>[^{{}}\d]+)\}}"
    r"|(?<=[\d})]) (?P<plain>[A-Za-z][A-Za-z ./]+[A-Za-z])|(?<=\d) (?P<letter>[mgsLhJNW])"
    r"|(?<=\d)\s?/\s?(?P<rate>[A-Za-z]{3,})"
    rf"|(?<=\d)\s?(?P<known>{'|'.join(unit for unit in _KNOWN_UNITS if len(unit) > 1)}))"
    r"\s*(?:\^\s*\{?(?P<power>\d)\}?)?\s*"
)
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:(?:(?P<whole>\d+)\s+)?(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    r"|(?P<mixed>\d+)?\s*\\frac\s*\{(?P<over>-?\d+)\}\s*\{(?P<under>-?\d+)\}"
    r"|(?P<int>\d{1,3}(?:,\d{3})+|\d+)?(?P<decimals>\.\d+)?(?:[eE](?P<power>[-+]?\d{1,3}))?)"
)
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_NUMERAL = re.compile(r"(\d[0-9A-F]*|[0-9A-F]+(?=_\{?16))_\{?(\d+|[a-z]+)\}?")
_BASES = dict(two="2", three="3", four="4", five="5", six="6", seven="7", eight="8", nine="9", ten="10", sixteen="16")
_TIME = re.compile(  # a clock's, or a date; no term of a ratio begins with 0
    r"(?:(\d{1,2}:\d\d|\d{1,2})\s*([ap])\.?\s?m\.?|(\d{1,2}:0\d)|(\d{4}-\d\d-\d\d))", re.IGNORECASE
)
_BUILT = re.compile(r"\\\{\s*[A-Za-z]\s*(?:\\in\s*\(-\\infty,\\infty\)\s*)?(?:\\?\||\\mid(?![a-zA-Z])|:)(.*[<>].*)\\\}")
_SIGN = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|[<>=]")
_COMMA, _CUP, _COLON = re.compile("[,;]"), re.compile(r"\\cup(?![a-zA-Z])"), re.compile(":")
_LIST_COMMA = re.compile(r";|(?<!\d),|,(?!\d{3}(?!\d))")  # not that of 1,000
_MEMBER = re.compile(r"^\s*[A-Za-z]\s*\\in(?![a-zA-Z])")
_VARIABLE = re.compile(r"(?!\\(?:infty|pi)\b)\\?[A-Za-z]+'?(?:_\{?\w+\}?)?(?:\(\w\))?")
_FUNCTION = re.compile(r"[A-Za-z]\^\{?-1\}?\(\w\)|\\frac\{d\w?\}\{d\w\}\w?")
_OPERATION = re.compile(r"[-+*/^\d]|\\(?:frac|sqrt|cdot|times|div)")
_COMPUTED = re.compile(r"\\(?:frac|sqrt|cdot|times|div|pi)(?![a-zA-Z])")
_MULTIPLE = re.compile(
    r"[-+]?\s*(?:[\d./]+|\\frac\{[^{}]*\}\{[^{}]*\})\s*(?:\\cdot\s*)?\\?[A-Za-z]+"
)  # 2x = 10: x is unsaid
_STEPS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def read(latex: str, every_comma: bool = False) -> Value:
    """Read an answer, in LaTeX or as people type it; `every_comma` parts elements also within 1,000.

    Raises:
        UnreadableError: it is empty, too long or nested too deeply, or neither words nor mathematics.
    """
    for sign, new in _SIGNS.items():
        latex = latex.replace(sign, new)
    if len(latex) > _LONGEST:
        raise UnreadableError(f"longer than {_LONGEST} characters")
    for pattern, new in _TIDIED:
        latex = pattern.sub(new, latex)
    if _depth(latex) > _DEEPEST:
        raise UnreadableError(f"more than {_DEEPEST} brackets in brackets")
    return _read(latex, _COMMA if every_comma else _LIST_COMMA)


def same(gold: Value, answer: Value) -> bool:
    """Whether an answer says what the gold answer says, as the head of this module defines it."""
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        return _same_relation(gold, answer)
    if isinstance(answer, Collection) and not isinstance(gold, Collection) and answer.brackets == "" and answer.items:
        return all(same(gold, item) for item in answer.items)  # 1/2, or 0.5
    if isinstance(gold, Collection) or isinstance(answer, Collection):
        return _same_collection(gold, answer)
    if isinstance(gold, Numeral) or isinstance(answer, Numeral):
        (ours, base), (theirs, other) = _digits(gold), _digits(answer)
        return ours == theirs and (base == other or "" in (base, other))
    if isinstance(gold, Words) or isinstance(answer, Words):
        return gold.said == answer.said
    return _same_quantity(gold, answer)


def said(text: str) -> str:
    """Return words as they are compared: unwrapped, in lower case, single spaces, without article and full stop."""
    plain = " ".join(_WRAPPED.sub(r"\1", text).replace("$", "").casefold().split()).strip(" .,;:!?*'\"")
    if time := _TIME.fullmatch(plain):
        return " ".join(part for part in time.groups() if part)
    return re.sub(r"^\((\w+)\)$|^(?:an?|the) (?=\w{4})", r"\1", plain)


# Reading.


def _read(latex: str, commas: re.Pattern[str] = _LIST_COMMA) -> Value:
    latex = _MEMBER.sub("", latex).strip().rstrip(".,;").strip()
    if built := _BUILT.fullmatch(latex):  # {x | x > 2}
        latex = built[1]
    if not latex:
        raise UnreadableError("nothing")
    if words := _words(latex):
        return words
    if re.fullmatch(r"\\emptyset|\\?\{\s*\\?\}", latex):
        return Collection("{}", ())
    if len(parts := _split(latex, _CUP)) > 1:
        return Collection("union", tuple(_read(part) for part in parts))
    if len(parts := _split(latex, commas)) > 1:
        return _listed("", parts)
    brackets, inner = _bracketed(latex)
    if brackets and len(parts := _split(inner, _COMMA)) > 1:
        return _listed(brackets, parts)
    if brackets in ("()", "[]", "{}"):
        return _read(inner)
    if len(parts := _split(latex, _SIGN)) > 1:
        return _related([part.strip() for part in parts], _SIGN.findall(latex))
    if r"\pm" in latex:
        upper, lower = (latex.replace(r"\pm", a).replace(r"\mp", b).strip() for a, b in ("+-", "-+"))
        return Collection("", (_read(upper.removeprefix("+")), _read(lower)))
    if len(parts := _split(latex, _COLON)) > 1:
        return Collection(":", tuple(_read(part) for part in parts))
    if (numeral := _NUMERAL.fullmatch(_WRAPPED.sub(r"\1", latex))) and (
        base := _BASES.get(numeral[2], numeral[2])
    ).isdigit():
        return Numeral(numeral[1], base)
    return _quantity(latex)


def _words(latex: str) -> Words | None:
    plain = _WRAPPED.sub(r"\1", latex).strip()
    wrapped = not _WRAPPED.sub("", latex).strip() and re.match(r"\W*[A-Za-z]", plain)
    return Words(said(plain)) if wrapped or _WORDS.fullmatch(plain) or _TIME.fullmatch(plain) else None


def _listed(brackets: str, parts: list[str]) -> Collection:
    items: list[Value] = []
    for part in parts:
        item = _read(part)
        items += item.items if isinstance(item, Collection) and not item.brackets else [item]  # both signs of \pm
    inequalities = all(
        _SIGN.search(part) and isinstance(item, Collection) for part, item in zip(parts, items, strict=False)
    )
    return Collection("union" if inequalities and not brackets else brackets, tuple(items))


def _related(parts: list[str], signs: list[str]) -> Value:
    if set(signs) <= {">", r"\ge"}:
        rising: list[str] = [{">": "<", r"\ge": r"\le"}[sign] for sign in reversed(signs)]
        interval = _interval(parts[::-1], rising)
    else:
        interval = _interval(parts, signs) if set(signs) <= {"<", r"\le"} else None
    if interval:
        return interval
    if set(signs) == {"="}:
        right = _read(parts[-1])
        if len(parts) > 2 and _MULTIPLE.fullmatch(parts[0]):
            return right
        return Relation(parts[0], "=", right) if re.search("[A-Za-z]", _COMPUTED.sub("", parts[0])) else right
    if len(signs) > 1:
        raise UnreadableError("a chain of relations")
    return Relation(parts[0], signs[0], _read(parts[1]))


def _interval(parts: list[str], signs: list[str]) -> Collection | None:
    """Read what rises, such as 1 < x <= 2, as an interval of its one variable."""
    indices = [index for index, part in enumerate(parts) if _VARIABLE.fullmatch(part)]
    if len(indices) != 1 or (len(parts), indices[0]) not in ((2, 0), (2, 1), (3, 1)):
        return None
    index = indices[0]
    low = _read(parts[index - 1]) if index else Quantity(-sympy.oo, "")
    high = _read(parts[index + 1]) if index + 1 < len(parts) else Quantity(sympy.oo, "")
    opening = "[" if index and signs[index - 1] == r"\le" else "("
    return Collection(opening + ("]" if signs[index:] == [r"\le"] else ")"), (low, high))


def _quantity(latex: str) -> Quantity:
    unit, percent, written = "", False, latex
    unit_match = next((unit_match for unit_match in _UNIT.finditer(latex) if unit_match.end() == len(latex)), None)
    if unit_match:
        unit, latex = _unit_name(unit_match), latex[: unit_match.start()].strip()
    if re.match(r"[-+]?\s*(?:\\\$|€|£)", latex):
        unit, latex = unit or "dollar", re.sub(r"\\\$|€|£", "", latex)
    if latex.endswith(r"\%"):
        percent, latex = True, latex[:-2].strip()
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", latex):
        latex = re.sub(r"(\d+)\s*\^\\circ", r"(\\frac{\1 \\pi}{180})", latex)
    elif latex.endswith(r"^\circ"):
        unit, latex = "degree", latex.removesuffix(r"^\circ").strip()
    value, decimal = _number(latex), "." in latex
    if value is None:
        value, decimal = _expression(latex)
    return Quantity(value, said(written), decimal, unit, percent)


def _unit_name(match: re.Match[str]) -> str:
    name = (
        next(name for name in match.group("wrapped", "plain", "rate", "letter", "known") if name).strip(" .").casefold()
    )
    power = match["power"] or ""
    for prefix, its in (("square ", "2"), ("sq ", "2"), ("sq. ", "2"), ("cubic ", "3"), ("cu ", "3")):
        if name.startswith(prefix):
            name, power = name.removeprefix(prefix), its
    return _UNIT_NAMES.get(name.removesuffix("s") or name, name) + power


def _number(text: str) -> sympy.Rational | None:
    """Read a plain number exactly; None if it is something else."""
    if repeating := _REPEATING.fullmatch(text):
        sign, whole, fixed, period = repeating.groups()
        tail = sympy.Rational(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
        return (-1 if sign else 1) * (sympy.Rational(f"{whole or 0}.{fixed or 0}") + tail)
    match = _NUMBER.fullmatch(text)
    if match is None or not re.search(r"\d", text):
        return None
    part = match.groupdict()
    bottom = int(part["bottom"] or part["under"] or 1)
    if bottom == 0:
        raise UnreadableError("a division by zero")
    if part["bottom"] or part["under"]:
        whole = int(part["whole"] or part["mixed"] or 0)
        value = whole + sympy.Rational(int(part["top"] or part["over"]), bottom)
    else:
        digits = (part["int"] or "0").replace(",", "") + (part["decimals"] or "")
        value = sympy.Rational(digits) * sympy.Rational(10) ** int(part["power"] or 0)
    return -value if part["sign"] == "-" else value


def _expression(latex: str) -> tuple[Any, bool]:
    """Let Math-Verify read one expression; tell whether it holds decimals, which become exact."""
    if re.search(r"[\d.]\s+[\d.]", latex):
        raise UnreadableError("two numbers without a sign between them")
    try:
        parsed = parse(
            f"${latex}$",
            [_LATEX],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,  # an alarm, which reaches only the main thread and no C code: `grading` has a limit
            raise_on_error=True,
        )
    except Exception as error:  # the parser's own and sympy's, of any class
        raise UnreadableError("no mathematics") from error
    if not parsed or isinstance(parsed[0], str):
        raise UnreadableError("no mathematics")
    value = parsed[0]
    floats, calls = value.atoms(sympy.Float), value.atoms(AppliedUndef)
    value = value.xreplace({call: sympy.Symbol(str(call)) for call in calls})
    plain = {symbol: sympy.I if symbol.name == "i" else sympy.Symbol(symbol.name) for symbol in value.free_symbols}
    return value.xreplace(plain | {number: sympy.Rational(str(number)) for number in floats}), bool(floats)


def _split(latex: str, separator: re.Pattern[str]) -> list[str]:
    """Split outside of brackets of every kind and of LaTeX environments."""
    depth, index, start, parts = 0, 0, 0, []
    while index < len(latex):
        if depth == 0 and (match := separator.match(latex, index)):
            parts.append(latex[start:index])
            start = index = match.end()
        else:
            depth += _STEPS.get(latex[index], 0)
            depth += latex.startswith(r"\begin", index) - latex.startswith(r"\end", index)
            index += 1
    return [*parts, latex[start:]]


def _bracketed(latex: str) -> tuple[str, str]:
    """Return the brackets around the whole and what they hold; '' and the whole where there are none."""
    opened, depth = latex.removeprefix("\\"), 0
    for sign in opened[:-1]:
        depth += _STEPS.get(sign, 0)
        if depth <= 0:
            return "", latex
    if opened[-1] not in ")]}" or depth != 1:
        return "", latex
    return opened[0] + opened[-1], opened[1:-1].removesuffix("\\")


def _depth(latex: str) -> int:
    deepest = depth = 0
    for sign in latex:
        depth += _STEPS.get(sign, 0)
        deepest = max(deepest, depth)
    return deepest


# Comparing.


def _same_relation(gold: Value, answer: Value) -> bool:
    if not isinstance(answer, Relation):
        return isinstance(gold, Relation) and _is_name(gold) and same(gold.right, answer)
    if not isinstance(gold, Relation):
        return answer.sign == "=" and not _MULTIPLE.fullmatch(answer.left) and same(gold, answer.right)
    if gold.left == answer.left and gold.sign == answer.sign and same(gold.right, answer.right):
        return True
    ratio = _ratio(gold, answer)
    if ratio is None:
        return False
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    return gold.sign == (answer.sign if ratio > 0 else turned.get(answer.sign, answer.sign))


def _is_name(relation: Relation) -> bool:
    """Whether what stands left only names what stands right: x, x_1, f(x), dy/dx, AB, an area."""
    left = relation.left
    named = _VARIABLE.fullmatch(left) or _FUNCTION.fullmatch(left) or not _OPERATION.search(left)
    return relation.sign == "=" and bool(named)


def _ratio(gold: Relation, answer: Relation) -> Any:  # noqa: ANN401 (sympy)
    """Return the number that left less right of one relation is of the other's, everywhere; None if there is none."""
    differences = []
    for relation in (gold, answer):
        if not isinstance(relation.right, Quantity):
            return None
        try:
            differences.append(_quantity(relation.left).value - relation.right.value)
        except (UnreadableError, TypeError):
            return None
    ratios = [_at(differences[0], point) / _at(differences[1], point) for point in _POINTS]
    constant = all(
        ratio.is_real and ratio.is_finite and abs(ratio - ratios[0]) < 1e-25 * abs(ratio) for ratio in ratios
    )
    return ratios[0] if constant else None


def _same_collection(gold: Value, answer: Value) -> bool:
    ours, theirs = _with_names_resolved(gold), _with_names_resolved(answer)
    if ":" in (ours.brackets, theirs.brackets):
        return _same_ratio(ours, theirs)
    if len(ours.items) != len(theirs.items):
        return False
    kinds = {ours.brackets, theirs.brackets}
    if len(ours.items) != 2:  # no interval
        kinds = {"()" if kind == "[]" else kind for kind in kinds}
    if kinds <= {"", "{}"} or kinds == {"union"}:
        return _same_unordered(ours.items, theirs.items)
    if len(kinds) == 1 or kinds == {"", "()"}:
        return all(same(one, other) for one, other in zip(ours.items, theirs.items, strict=True))
    return False


def _with_names_resolved(value: Value) -> Collection:
    """Read y = 2, x = 1 as (1, 2), and x = 1, x = 2, as x_1 = 1, x_2 = 2, or x = 1, 2, as the list 1, 2."""
    listed = value if isinstance(value, Collection) else Collection("", (value,))
    named = [item for item in listed.items if isinstance(item, Relation) and _is_name(item)]
    if listed.brackets not in ("", "{}") or len(listed.items) < 2 or not named:
        return listed
    names = {item.left.split("_")[0] for item in named}
    if len(names) == len(listed.items):
        return Collection("()", tuple(item.right for item in sorted(named, key=lambda item: item.left)))
    if len(names) == 1:
        return Collection("", tuple(item.right if isinstance(item, Relation) else item for item in listed.items))
    return listed


def _same_unordered(ours: tuple[Value, ...], theirs: tuple[Value, ...]) -> bool:
    left = list(theirs)
    for item in ours:
        index = next((index for index, other in enumerate(left) if same(item, other)), None)
        if index is None:
            return False
        del left[index]
    return not left


def _same_ratio(ours: Collection, theirs: Collection) -> bool:
    """3:4 is 6:8, and 3/4."""
    one, other = _terms(ours), _terms(theirs)
    if not one or len(one) != len(other):
        return False
    return all(_equal(a * other[0], b * one[0], False) for a, b in zip(one, other, strict=True))


def _terms(side: Collection) -> list[Any]:
    values = [item.value for item in side.items if isinstance(item, Quantity)]
    if len(values) != len(side.items) or (side.brackets != ":" and len(values) > 1):
        return []
    return values if side.brackets == ":" else [*values, sympy.Integer(1)]


def _digits(value: Value) -> tuple[str, str]:
    if isinstance(value, Numeral):
        return value.digits.casefold(), value.base
    return (value.said, "") if isinstance(value, Quantity | Words) else ("", "")


def _same_quantity(gold: Quantity, answer: Quantity) -> bool:
    units = {side.unit for side in (gold, answer) if side.unit.rstrip("23") in _KNOWN_UNITS}
    if len(units) > 1:
        return False
    decimal = gold.decimal or answer.decimal
    if gold.percent == answer.percent:
        return _equal(gold.value, answer.value, decimal)
    percent, plain = (gold.value, answer.value) if gold.percent else (answer.value, gold.value)
    above_1 = plain.is_number and plain.is_real and abs(plain) > 1
    return _equal(percent / 100, plain, decimal) or bool(above_1 and _equal(percent, plain, decimal))


def _equal(one: Any, other: Any, decimal: bool) -> bool:  # noqa: ANN401 (sympy)
    """Whether two expressions, matrices or sets are equal, wherever their variables may be."""
    matrices = [side for side in (one, other) if isinstance(side, sympy.MatrixBase)]
    if matrices:
        alike = len(matrices) == 2 and one.shape == other.shape
        return alike and all(_equal(a, b, decimal) for a, b in zip(one, other, strict=True))
    if one == other:
        return True
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)):
        return bool(verify(one, other, timeout_seconds=None))
    if one.is_Rational and other.is_Rational and not decimal:
        return False
    for point in _POINTS if one.free_symbols | other.free_symbols else _POINTS[:1]:
        ours, theirs = _at(one, point), _at(other, point)
        if not (ours.is_number and theirs.is_number):  # a sum or an integral over what the point does not say
            return bool(verify(one, other, timeout_seconds=None))
        if not abs(ours - theirs) <= _tolerance(abs(ours), decimal):
            return False
    return True


_POINTS = ((1, 1), (-1, 2), (1, 3))  # sign and salt of where expressions are compared


def _at(expression: Any, point: tuple[int, int]) -> Any:  # noqa: ANN401 (sympy)
    """Return an expression's value, to at least 40 digits, where each variable has the place that its name gives it."""
    sign, salt = point
    point_of = {
        symbol: sympy.Rational(sign * (1 + zlib.crc32(f"{salt}{symbol}".encode()) % 1999), 997)
        for symbol in expression.free_symbols
    }
    value = expression.subs(point_of)
    size = abs(sympy.N(value, 15))
    more = int(sympy.log(size, 10)) if size.is_finite and 1 < size < sympy.Float("1e2000") else 0
    return sympy.N(value, 40 + more)


def _tolerance(size: Any, decimal: bool) -> Any:  # noqa: ANN401 (sympy)
    if not size:
        return sympy.Float("1e-35")
    if decimal:
        return sympy.Float("5e-7") * min(1, 10 ** sympy.ceiling(sympy.log(size, 10)))
    return sympy.Float("1e-30") * max(sympy.Float("1e-5"), min(1, size))
