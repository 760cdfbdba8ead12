"""Notes, the small JSON files beside tables: one writer, which adds a digest, and one reader, which checks a schema.

A schema is an annotation, as of a settings class; a list of one schema, that of its elements; or a mapping of the keys
of an object to schemas, in which a key that ends in '?' may be absent, and `...` stands for every key without a name.
"""

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_type_hints

from teachdiag.errors import RunError
from teachdiag.settings.base import fits, in_words, shown
from teachdiag.tables import write_text

Schema = Any
OBJECT: Schema = {...: Any}
_DIGEST = "sha256"


class _Fields(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def fields_schema(declared: type[_Fields], optional: bool = False, without: Container[str] = ()) -> dict[Any, Schema]:
    """Return the schema of an object with a dataclass's fields, but for some; any may be absent if `optional`."""
    hints = get_type_hints(declared)
    names = [entry.name for entry in fields(declared) if entry.name not in without]
    return {f"{name}?" if optional else name: hints[name] for name in names}


def write_note(content: Mapping[str, Any], path: Path) -> None:
    """Write a note whole or not at all, with a digest of what it holds, so that any change of it shows."""
    plain = json.loads(json.dumps(content))  # with the keys that a reader will find
    write_text(json.dumps({**plain, _DIGEST: _digest(plain)}, indent=2) + "\n", path)


def read_note(path: Path, schema: Schema, advice: str) -> dict[str, Any]:
    """Read a note; one without a digest, as older versions wrote, is held against its schema alone.

    Args:
        path: the file.
        schema: of what it holds, its digest left out.
        advice: what to do if it is damaged.

    Raises:
        RunError: it cannot be read, is no such note, or was changed; the message names file and key.
    """
    content: Any = None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fault = ""
    except OSError as error:
        fault = error.strerror or "it cannot be read"
    except (ValueError, RecursionError):  # JSON and UTF-8 alike
        fault = "it is no JSON" if path.stat().st_size else "it is empty"
    digest = content.pop(_DIGEST, None) if isinstance(content, dict) else None
    fault = fault or first_fault(content, schema)
    if not fault and digest is not None and digest != _digest(content):
        lacking = ", ".join(_absent_settings(content, schema))
        fault = f"it is not what teachdiag wrote{f': of its settings, {lacking} is missing' * bool(lacking)}"
    if fault:
        raise RunError(f"{path} is damaged ({fault}): {advice}")
    note: dict[str, Any] = content
    return note


def recall(path: Path, schema: Schema) -> dict[str, Any] | None:
    """Read the note of an intermediate result; None where it is not there as it was written: it is made again."""
    try:
        return read_note(path, schema, "")
    except RunError:
        return None


def first_fault(value: Any, schema: Schema, name: str = "") -> str:  # noqa: ANN401 (whatever JSON holds)
    """Say what is wrong with a value, and at which key; '' if it is of the schema."""
    if isinstance(schema, Mapping):
        return _object_fault(value, schema, name)
    if isinstance(schema, list):
        return _list_fault(value, schema[0], name)
    return "" if fits(value, schema) else f"{name or 'it'} is {shown(value)}, not {in_words(schema)}"


def _list_fault(value: Any, schema: Schema, name: str) -> str:  # noqa: ANN401
    if not isinstance(value, list):
        return f"{name or 'it'} is {shown(value)}, not a list"
    faults = (first_fault(element, schema, f"{name}[{index}]") for index, element in enumerate(value))
    return next(filter(None, faults), "")


def _object_fault(value: Any, schema: Mapping[Any, Schema], name: str) -> str:  # noqa: ANN401
    if not isinstance(value, dict):
        return f"{name or 'it'} is {shown(value)}, not an object"
    prefix = f"{name}." if name else ""
    known = {str(key).removesuffix("?"): key for key in schema if key is not ...}
    for key, declared in known.items():
        if key not in value and not declared.endswith("?"):
            return f"{prefix}{key} is missing"
    for key, held in value.items():
        if key not in known and ... not in schema:
            return f"{prefix}{key} is unknown to this version"
        if fault := first_fault(held, schema[known.get(key, ...)], prefix + key):
            return fault
    return ""


def _absent_settings(content: Any, schema: Any) -> list[str]:  # noqa: ANN401
    """Settings that a note of this version has, and this one has not."""
    optional = [key[:-1] for key in schema.get("settings", ()) if str(key).endswith("?")]
    return [name for name in optional if name not in content["settings"]]


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content, whatever its layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
