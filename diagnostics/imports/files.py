"""Files of rollouts: which there are, and their rows."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from teachdiag.diagnostics.imports.records import BadRow, Row, field
from teachdiag.errors import RolloutError, cause
from teachdiag.jsontext import parse_json
from teachdiag.preflight import existing

_NUMBERS = "?bBhHiIlLqQefd"  # kinds of NumPy numbers that are plain data


def expand(
    places: Sequence[Path], suffixes: tuple[str, ...], pattern: str = "*", beside: frozenset[str] = frozenset()
) -> list[Path]:
    """Return the files that are meant, each once: files as given, folders by the files in them of these suffixes.

    Args:
        places: files and folders.
        suffixes: endings of the format's files.
        pattern: which files of a folder count, as a glob.
        beside: names of files that the format's writer puts beside them, which hold something else.

    Raises:
        RolloutError: a place does not exist, a folder has no such file, or a file is of another kind.
    """
    found: dict[Path, Path] = {}
    kinds = " or ".join(suffixes)
    for place in places:
        inside = [existing(place)]
        try:
            if place.is_dir():
                listed = (f for f in sorted(place.glob(pattern)) if f.suffix in suffixes and f.is_file())
                inside = [file for file in listed if file.name not in beside]
        except OSError as error:
            raise RolloutError(f"{place} cannot be read: {cause(error)}") from error
        if not inside:
            raise RolloutError(f"{place} holds no {kinds} file")
        for file in inside:
            if file.suffix not in suffixes:
                raise RolloutError(f"{file} is no {kinds} file, which this format is")
            found.setdefault(file.resolve(), file)
    return list(found.values())


def read_jsonl(file: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file; blank lines count as lines but are no rows.

    A line that is no JSON object is a row that cannot be read.

    Raises:
        RolloutError: the file cannot be opened.
    """
    number = 0
    try:
        with file.open("rb") as stream:  # as bytes: text would also be cut at the line ends that JSON strings may hold
            for place, line in enumerate(stream, start=1):
                if line.strip():
                    yield Row(f"{file}:{place}", number, _fields(line), str(file))
                    number += 1
    except OSError as error:
        raise RolloutError(f"{file}: cannot be read ({cause(error)})") from error


def _fields(line: bytes) -> Mapping[Any, Any] | BadRow:
    try:
        fields = parse_json(line, finite=False)  # rewards may well be NaN, and nobody reads them here
    except ValueError as error:
        return BadRow("no JSON", f"is no JSON ({error})")
    return fields if isinstance(fields, dict) else BadRow("no JSON", "is no JSON object, which one rollout a line is")


def read_batches(file: Path) -> Iterator[Row]:
    """Yield the rollouts of a JSONL file whose lines each hold a batch: a list of values a field, one a rollout."""
    number = 0
    for line in read_jsonl(file):
        entries = [line.fields] if isinstance(line.fields, BadRow) else _entries(line.fields)
        for place, fields in enumerate(entries):
            where = line.where if len(entries) == 1 else f"{line.where}, entry {place}"
            yield Row(where, number, fields, line.where)
            number += 1


def _entries(fields: Mapping[Any, Any]) -> Sequence[Mapping[Any, Any] | BadRow]:
    try:
        prompts = field(fields, "prompt")
    except BadRow as error:
        return [error]
    if not isinstance(prompts, list):
        return [fields]
    lengths = {name: len(column) for name, column in fields.items() if isinstance(column, list)}
    others = [f"{length} of {name}" for name, length in lengths.items() if length != len(prompts)]
    if others:
        return [BadRow("malformed", f"holds {len(prompts)} values of prompt, but {', '.join(others)}")]
    return [
        {name: column[place] if name in lengths else column for name, column in fields.items()}
        for place in range(len(prompts))
    ]


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


def read_samples(file: Path) -> Iterator[Row]:
    """Yield the samples of a file that torch saved: plain data, tensors and arrays of numbers, nothing that runs code.

    Raises:
        RolloutError: it holds more than that, is damaged, or has no list `samples`.
    """
    try:
        whole = zipfile.is_zipfile(file)
        with torch.serialization.safe_globals(_arrays()):
            content = torch.load(file, map_location="cpu", weights_only=True) if whole else None
    except Exception as error:  # a damaged pickle may raise anything
        if isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower():
            raise RolloutError(
                f"{file}: holds objects besides plain data, tensors and arrays, which are not loaded because loading "
                "them runs code: save it anew with those fields removed or as lists"
            ) from error
        raise RolloutError(f"{file}: is damaged, torch cannot read it") from error
    if not whole:
        raise RolloutError(f"{file}: is no file of torch.save, or is cut short")
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise RolloutError(f"{file}: has no list 'samples' of dictionaries, so it is no rollout data that slime saved")
    yield from (Row(f"{file}, sample {number}", number, fields, str(file)) for number, fields in enumerate(samples))


def _arrays() -> list[Any]:
    """What a pickle may name to make NumPy's arrays and numbers, under the names of NumPy 1 and 2."""
    kinds = {type(np.dtype(kind)) for kind in _NUMBERS}
    makers: dict[str, Any] = {"_reconstruct": np.zeros(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
    named = [(maker, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, maker in makers.items()]
    return [np.ndarray, (_number_type, "numpy.dtype"), *kinds, *named]


def _number_type(kind: Any, *rest: Any) -> Any:  # noqa: ANN401 (whatever the file holds)
    found = np.dtype(kind, *rest)
    if found.char not in _NUMBERS:
        raise pickle.UnpicklingError("unsupported global: an array of something else than numbers")
    return found
