"""Files of rollouts: which there are, and their rows."""

import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from teachdiag.errors import RolloutError, cause

Row = tuple[str, int, dict[str, Any]]  # where it stands, its zero-based number, its fields


def expand(places: Sequence[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files that are meant, each once: files as given, folders by the files in them of these suffixes.

    Raises:
        RolloutError: a place does not exist, a folder has no such file, or a file is of another kind.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if not place.exists():
            raise RolloutError(f"there is no file or folder {place}")
        inside = sorted(f for f in place.iterdir() if f.suffix in suffixes) if place.is_dir() else [place]
        if not inside:
            raise RolloutError(f"{place} holds no {' or '.join(suffixes)} file")
        for file in inside:
            if file.suffix not in suffixes:
                raise RolloutError(f"{file} is no {' or '.join(suffixes)} file, which this format is")
            found.setdefault(file.resolve(), file)
    return list(found.values())


def read_jsonl(file: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file; blank lines count as lines but are no rows.

    Raises:
        RolloutError: a line is no JSON object; the message has file:line.
    """
    row = 0
    with file.open("rb") as stream:  # as bytes: text would also be cut at the line ends that JSON strings may hold
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                fields = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                raise RolloutError(f"{where}: is no JSON ({cause(error)})") from error
            if not isinstance(fields, dict):
                raise RolloutError(f"{where}: is no JSON object, which one rollout a line must be")
            yield where, row, fields
            row += 1


def read_parquet(file: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Raises:
        RolloutError: it cannot be read as Parquet.
    """
    try:
        rows = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RolloutError(f"{file}: cannot be read as Parquet ({cause(error)})") from error
    yield from ((f"{file}, row {row}", row, fields) for row, fields in enumerate(rows))


def read_samples(file: Path) -> Iterator[Row]:
    """Yield the samples of a file that torch saved, which may hold plain data and tensors and nothing that runs code.

    Raises:
        RolloutError: it holds more than that, is damaged, or has no list `samples`.
    """
    if not zipfile.is_zipfile(file):
        raise RolloutError(f"{file}: is no file of torch.save, or is cut short")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        if isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower():
            raise RolloutError(
                f"{file}: holds objects besides plain data and tensors, which are not loaded because loading them "
                "runs code: save it anew with those fields removed or as lists"
            ) from error
        raise RolloutError(f"{file}: is damaged, torch cannot read it") from error
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise RolloutError(f"{file}: has no list 'samples' of dictionaries, so it is no rollout data that slime saved")
    yield from ((f"{file}, sample {row}", row, fields) for row, fields in enumerate(samples))
