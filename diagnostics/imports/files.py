"""Formats of rollouts, the files that are meant, their rows, and the records that these hold. No torch."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from teachdiag.diagnostics.imports.records import BadRow, Record, Row, at
from teachdiag.errors import RolloutError, cause
from teachdiag.jsontext import parse_json
from teachdiag.preflight import existing
from teachdiag.progress import Reporter

Parse = Callable[[str, int, Mapping[Any, Any]], list[Record]]
_BESIDE_TEXT = (  # what programs call pictures and sounds that a model read with its prompt
    *("image", "images", "video", "videos", "audio", "audios", "pixel_values"),
    *("multi_modal_data", "multi_modal_inputs", "multimodal_inputs", "multimodal_train_inputs"),
)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


@dataclass(frozen=True)
class Format:
    """What a program writes of its rollouts, and how it is read.

    Attributes:
        name: `teachdiag import NAME` reads it.
        help: what is imported, as the object of a sentence: 'the dumps of ...'.
        suffixes: endings of its files.
        rows: the rows of a file.
        parse: where a row stands, its number and its fields, to its records; raises `BadRow` where they cannot be had
            exactly.
        repeats: whether its writer may write one batch twice.
        pattern: which files of a folder count, as a glob.
        beside: names of files that its writer puts beside them, which hold something else.
        named: a row with fields under the names that `parse` reads, from a row and what the user calls them; None
            where the program decides on all names.
        more: what else its help says.
    """

    name: str
    help: str
    suffixes: tuple[str, ...]
    rows: Callable[[Path], Iterator[Row]]
    parse: Parse
    repeats: bool = False
    pattern: str = "*"
    beside: frozenset[str] = frozenset()
    named: Callable[[Mapping[Any, Any], Mapping[str, str]], Mapping[Any, Any]] | None = None
    more: str = ""


def files_of(form: Format, paths: Sequence[Path]) -> list[Path]:
    """Return the files that are meant, each once: files as given, folders by the files of the format in them.

    Raises:
        RolloutError: a path does not exist, a folder has no such file, or a file is of another kind, or compressed.
    """
    files: dict[Path, Path] = {}
    kinds = " or ".join(form.suffixes)
    for path in paths:
        inside = [existing(path)]
        try:
            if path.is_dir():
                listed = [file for file in sorted(path.glob(form.pattern)) if file.is_file()]
                listed = [file for file in listed if file.suffix in form.suffixes or _is_packed(form, file)]
                inside = [file for file in listed if file.name not in form.beside]
        except OSError as error:
            raise RolloutError(f"{path} cannot be read: {cause(error)}") from error
        if not inside:
            raise RolloutError(f"{path} holds no {kinds} file")
        for file in inside:
            if _is_packed(form, file):
                raise RolloutError(f"{file} is compressed: unpack it, and give it without {file.suffix}")
            if file.suffix not in form.suffixes:
                raise RolloutError(f"{file} is no {kinds} file, which this format is")
            files.setdefault(file.resolve(), file)
    return list(files.values())


def _is_packed(form: Format, file: Path) -> bool:
    return file.suffix in _PACKED and Path(file.stem).suffix in form.suffixes


def read_jsonl(file: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file; blank lines count as lines but are no rows.

    A line that is no JSON object is a row that cannot be read.

    Raises:
        RolloutError: the file cannot be opened.
    """
    number = 0
    try:
        with file.open("rb") as stream:  # as bytes: text would also be cut at the line ends that JSON strings may hold
            for line_number, line in enumerate(stream, start=1):
                if line.strip():
                    yield Row(f"{file}:{line_number}", number, _fields(line), str(file))
                    number += 1
    except OSError as error:
        raise RolloutError(f"{file}: cannot be read ({cause(error)})") from error


def _fields(line: bytes) -> Mapping[Any, Any] | BadRow:
    try:
        fields = parse_json(line, finite=False)  # rewards may well be NaN, and nobody reads them here
    except ValueError as error:
        return BadRow("no JSON", f"is no JSON ({error})")
    return fields if isinstance(fields, dict) else BadRow("no JSON", "is no JSON object, which one rollout a line is")


def read_parquet(file: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Raises:
        RolloutError: it cannot be read as Parquet.
    """
    try:
        rows = pq.read_table(file).to_pylist()
    except Exception as error:  # a damaged file may raise anything
        raise RolloutError(f"{file}: cannot be read as Parquet ({cause(error)})") from error
    yield from (Row(f"{file}, row {number}", number, fields, str(file)) for number, fields in enumerate(rows))


def read_records(
    form: Format, files: Sequence[Path], names: Mapping[str, str], reporter: Reporter
) -> tuple[list[Record], list[BadRow]]:
    """Return the rollouts of some files of a format, in their order, and the rows that could not be read.

    Batches that only repeat an earlier one are left out, and the reporter says so. `names` are what the user calls
    fields.

    Raises:
        RolloutError: a file cannot be read, or holds no rows.
    """
    records, bad_rows, batches = list[Record](), list[BadRow](), set[str]()
    for file in files:
        empty = True
        for where, rows in groupby(form.rows(file), key=lambda row: row.batch):
            of_batch, bad, empty = list[Record](), list[BadRow](), False
            for row in rows:
                try:
                    of_batch += _parsed(form, row, names)
                except BadRow as error:
                    bad.append(at(row.where, error))
            if form.repeats and of_batch:
                batch = json.dumps([(str(r.prompt), str(r.response)) for r in of_batch])
                if batch in batches:
                    reporter.say(f"{where}: repeats a batch that stands before it, and is left out")
                    continue
                batches.add(batch)
            records += of_batch
            bad_rows += bad
        if empty:
            raise RolloutError(f"{file}: holds no rollouts")
    return records, bad_rows


def _parsed(form: Format, row: Row, names: Mapping[str, str]) -> list[Record]:
    if isinstance(row.fields, BadRow):
        raise row.fields
    if beside := next((name for name in _BESIDE_TEXT if _is_there(row.fields.get(name))), None):
        raise BadRow("more than text", f"has {beside}, which the student read with its prompt: only text is scored")
    fields = form.named(row.fields, names) if form.named and names else row.fields
    return form.parse(row.where, row.number, fields)


def _is_there(value: Any) -> bool:  # noqa: ANN401 (whatever the file holds)
    """Whether a field holds anything: tensors and arrays do, whatever is in them."""
    return value is not None and (hasattr(value, "shape") or bool(value))
