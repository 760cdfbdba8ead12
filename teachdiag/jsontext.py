"""JSON as any program can read it: what only Python understands, or programs read differently, is no JSON here."""

import json
import math
import re
from typing import Any

_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:  # noqa: ANN401 (whatever the text says)
    """Return what a JSON text says.

    Args:
        text: the text, or its UTF-8, with or without a byte order mark.
        finite: whether NaN, Infinity and numbers beyond float64 are refused; Python's own writer writes them.

    Raises:
        ValueError: it is no JSON, names a key twice, holds half a surrogate pair or a number that is refused, or is
            nested too deep; the message is one line.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    numbers = _finite if finite else None
    try:
        content = json.loads(text, object_pairs_hook=_distinct, parse_float=numbers, parse_constant=numbers)
        if "\\ud" in text.lower():  # an escape of a surrogate, which need not be half of a pair
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is no valid Unicode") from error
    return content


def is_written_messages(text: str) -> bool:
    """Whether a text begins as Python or JSON writes a list of chat messages, which was to be stored as a list."""
    return _MESSAGES.match(text) is not None


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is no finite number")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands in one object twice")
    return mapping
