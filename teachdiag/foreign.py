"""A `contexts` table from elsewhere, looked at before anything of it is used: its columns, and how it was imported."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from teachdiag.artefacts import CONTEXTS, IMPORTED
from teachdiag.errors import ArtefactError
from teachdiag.jsontext import parse_json
from teachdiag.settings.base import fits
from teachdiag.tables import shard_files

COUNTS = ("skipped", "responses")  # of an import: rows left out by reason, responses by how their ids are known
GIVEN, RECODED = "ids given", "re-encoded from text"  # how ids are known


def how_imported(path: Path) -> dict[str, Any]:
    """Check the columns of contexts from elsewhere; return what `teachdiag import` recorded as `imported`, if it did.

    Args:
        path: Parquet file, or a folder of them.

    Raises:
        ArtefactError: nothing is there, it is no Parquet, columns are missing (all are named) or of another type, or
            the record is damaged.
    """
    files = shard_files(path) if path.is_dir() else [path]
    convert = f"`teachdiag import jsonl {path} --student MODEL --contexts FILE.parquet` makes one of rollouts"
    if not files or not files[0].exists():
        raise ArtefactError(f"no contexts table at {path}: {convert}")
    try:
        schema = pq.read_schema(files[0])
    except (pa.ArrowException, OSError) as error:
        raise ArtefactError(
            f"{files[0]} cannot be read as a contexts table, it is no Parquet file: {convert}"
        ) from error
    lacking = [c.name for c in CONTEXTS.columns if c.name not in schema.names and not c.nullable]
    if lacking:
        raise ArtefactError(f"{files[0]} is no contexts table: it lacks the columns {', '.join(lacking)}; {convert}")
    for column in CONTEXTS.columns:
        stored = schema.field(column.name).type if column.name in schema.names else column.type
        if not _is_like(stored, column.type):
            raise ArtefactError(
                f"{files[0]}: column {column.name} holds {stored}, where {column.type} is meant; {convert}"
            )
    recorded = (schema.metadata or {}).get(IMPORTED.encode())
    if recorded is None:
        return {}
    try:
        record = parse_json(recorded)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(fits(record.get(name), dict[str, int]) for name in COUNTS):
        raise ArtefactError(f"{files[0]}: what it says of its import is damaged: import it again")
    return {IMPORTED: record}


def _is_like(stored: pa.DataType, meant: pa.DataType) -> bool:
    """Whether a column is of the kind that is meant, of whatever width: whole numbers, text, lists of whole numbers."""
    if pa.types.is_dictionary(stored):
        stored = stored.value_type
    if pa.types.is_null(stored):
        return True  # no value at all, which the table's own checks tell
    if pa.types.is_list(meant):
        lists = pa.types.is_list(stored) or pa.types.is_large_list(stored) or pa.types.is_fixed_size_list(stored)
        return lists and _is_like(stored.value_type, meant.value_type)
    if pa.types.is_int8(meant) and pa.types.is_boolean(stored):
        return True  # a mask of truth values
    if pa.types.is_floating(meant):
        return bool(pa.types.is_floating(stored) or pa.types.is_integer(stored))
    if pa.types.is_integer(meant):
        return bool(pa.types.is_integer(stored) or pa.types.is_floating(stored))  # pandas makes floats of whole numbers
    return bool(pa.types.is_integer(stored) or pa.types.is_string(stored) or pa.types.is_large_string(stored))
