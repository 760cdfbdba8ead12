"""Tables with a schema: units and meanings in the file, whole writes, reads that refuse what is not the table.

Which tables there are stands in `artefacts`.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from teachdiag.errors import ArtefactError, RunError, cause, using

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.dataset

CHECKSUM = ".sha256"  # suffix of the file that holds a shard's, until its stage ends
_UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # whatever a damaged file raises


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, unit ('1' is a pure number) and meaning.

    Null only where `nullable` says so; absent only where `optional` does, from whole files that could not have it.
    """

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    nullable: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """One kind of table: what it holds, which columns identify a row, and where it lies in a run directory."""

    name: str
    folder: str
    written_by: str
    meaning: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, with unit and meaning in each field's metadata."""
        return pa.schema(
            [
                pa.field(c.name, c.type, c.nullable, metadata={"unit": c.unit, "meaning": c.meaning})
                for c in self.columns
            ],
            metadata={"table": self.name, "meaning": self.meaning, "key": ", ".join(self.key)},
        )

    def file(self, run: Path) -> Path:
        """Return the file of a table that a stage writes whole, in a run directory."""
        return run / self.folder / f"{self.name}.parquet"

    def build(self, values: Mapping[str, Any]) -> pa.Table:
        """Make an Arrow table of this schema from one array (or sequence) a column.

        Raises:
            ArtefactError: a column is missing or unknown, or holds a null or a non-finite number that its schema
                does not allow; the message names the column and the first such row's key.
        """
        required, given = {c.name for c in self.columns if not c.optional}, set(values)
        expected = {c.name for c in self.columns}
        if required - given or given - expected:
            raise ArtefactError(
                f"table {self.name}: missing columns {sorted(required - given)}, unknown {sorted(given - expected)}"
            )
        present = [c for c in self.columns if c.name in given]
        table = pa.table({c.name: _column(values[c.name], c.type) for c in present})
        self._refuse_gaps(table)
        return table.cast(pa.schema([self.schema.field(c.name) for c in present], self.schema.metadata))

    def build_rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Make an Arrow table of this schema from one mapping a row, every column present in each."""
        return self.build({c.name: [row[c.name] for row in rows] for c in self.columns})

    def read(
        self, path: Path, columns: Sequence[str] | None = None, among: Mapping[str, Sequence[Any]] | None = None
    ) -> "pd.DataFrame":
        """Read one Parquet file or a folder of shards, in shard order.

        Args:
            path: file or folder; a folder may hold sub-folders.
            columns: names to load; by default all that there are. Statistics never need the top-K lists.
            among: only rows that hold one of these values, by column.

        Raises:
            ArtefactError: nothing is there, a file is not Parquet, or the columns are not this table's.
        """
        frame: pd.DataFrame = self.read_arrow(path, columns, among).to_pandas()
        return frame

    def read_arrow(
        self, path: Path, columns: Sequence[str] | None = None, among: Mapping[str, Sequence[Any]] | None = None
    ) -> pa.Table:
        """Like `read`, as an Arrow table."""
        files = shard_files(path) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise ArtefactError(f"no {self.name} table at {path}: run the stage that writes it ({self.written_by})")
        wanted = [c for c in self.columns if columns is None or c.name in columns]
        try:
            shards = _verified(files)
            if columns is None:  # all that there are
                wanted = [c for c in wanted if c.name in shards.schema.names or not c.optional]
            self._refuse_lacking(path, wanted, shards.schema.names)
            present = [c.name for c in wanted if c.name in shards.schema.names]
            table = shards.to_table(columns=present, filter=_rows(among) if among else None)
            for c in wanted:
                if c.name not in present:
                    table = table.append_column(c.name, pa.nulls(table.num_rows, c.type))
            table = table.select([c.name for c in wanted])
            self._refuse_gaps(table)
            return table.cast(pa.schema([self.schema.field(c.name) for c in wanted]))
        except _UNREADABLE as error:
            raise ArtefactError(f"{path} cannot be read as a {self.name} table: {cause(error)}") from error

    def present(self, path: Path, names: Sequence[str]) -> list[str]:
        """Return those of some columns that the files have."""
        file = min(path.rglob("*.parquet")) if path.is_dir() else path
        try:
            there = pq.read_schema(file).names
        except _UNREADABLE as error:
            raise ArtefactError(f"{file} cannot be read as a {self.name} table: {cause(error)}") from error
        return [name for name in names if name in there]

    def require(self, path: Path, names: Sequence[str]) -> None:
        """Refuse files that lack one of some columns.

        Raises:
            ArtefactError: they do; the message says which, and how to have them.
        """
        present = self.present(path, names)
        self._refuse_lacking(path, [c for c in self.columns if c.name in names], present)

    def _refuse_lacking(self, path: Path, wanted: Sequence[Column], names: Sequence[str]) -> None:
        lacking = [c for c in wanted if c.name not in names and not c.nullable]
        if lacking and all(c.optional for c in lacking):
            raise ArtefactError(
                f"{path} lacks the columns {', '.join(c.name for c in lacking)}, which the run's teacher engine could "
                "not give exactly: capture with a teacher that is loaded here (--teacher-engine transformers, or "
                "--teacher-engine vllm --teacher-gives states)"
            )
        if lacking:
            names = ", ".join(c.name for c in lacking if not c.optional)
            raise ArtefactError(f"{path} is no {self.name} table: it lacks the columns {names}")

    def _refuse_gaps(self, table: pa.Table) -> None:
        from teachdiag.gaps import first_gap

        for c in self.columns:
            row = first_gap(table[c.name], c.nullable) if c.name in table.column_names else None
            if row is not None:
                keys = [name for name in self.key if name in table.column_names]
                where = ", ".join(f"{name} {table[name][row].as_py()}" for name in keys) or f"row {row}"
                raise ArtefactError(f"table {self.name}: column {c.name} has no finite value at {where}")


def _rows(among: Mapping[str, Sequence[Any]]) -> "pyarrow.dataset.Expression":
    from pyarrow.dataset import field

    return reduce(and_, [field(name).isin(values) for name, values in among.items()])


def _verified(files: Sequence[Path]) -> "pyarrow.dataset.Dataset":
    """Open Parquet files as one table, whose pages' checksums are verified when they are read."""
    # It loads pandas, which takes longer than a refusal: whoever reads no table does without.
    from pyarrow.dataset import ParquetFileFormat, ParquetFragmentScanOptions, dataset

    scan = ParquetFragmentScanOptions(page_checksum_verification=True)
    return dataset([str(file) for file in files], format=ParquetFileFormat(default_fragment_scan_options=scan))


def rows_where(table: "pd.DataFrame", **held: object) -> "pd.DataFrame":
    """Return the rows of a table that hold these values, by column; None is null."""
    return table[holding(table, **held)] if held else table


def holding(table: "pd.DataFrame", **held: object) -> npt.NDArray[np.bool_]:
    """Say of each row of a table if it holds these values, by column; None is null."""
    columns = ((table[name].array, value) for name, value in held.items())
    masks = (column.isna() if value is None else column == value for column, value in columns)
    return reduce(and_, (np.asarray(mask, bool) for mask in masks), np.ones(len(table), bool))


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where a file is to be written first; it takes its name when that has ended well, and else leaves nothing.

    Raises:
        PlaceError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # no other process's
    with using(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink()


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write one Parquet file whole or not at all, with a checksum a page. The same table gives the same bytes.

    Raises:
        PlaceError: it cannot be written.
    """
    # Numbers are hardly ever the same twice: dictionaries of them cost a third of the file.
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    with whole(path) as part:
        pq.write_table(table, part, compression="zstd", use_dictionary=texts, write_page_checksum=True)


def write_parquet_and_csv(table: pa.Table, path: Path) -> list[Path]:
    """Write one table as `path`.parquet and, lists as text, as `path`.csv; return both files.

    Raises:
        PlaceError: one cannot be written.
    """
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("parquet", "csv")]
    write_parquet(table, files[0])
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = [" ".join(map(repr, values)) for values in table[number].to_pylist()]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
    with whole(files[1]) as part:
        pyarrow.csv.write_csv(table, part)
    return files


def read_parquet(path: Path) -> pa.Table:
    """Read one Parquet file of whatever columns, checking what each page holds against its checksum.

    Raises:
        ArtefactError: it cannot be read as it was written.
    """
    try:
        return pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except _UNREADABLE as error:
        raise ArtefactError(f"{path} cannot be read as it was written: {cause(error)}") from error


def write_table(table: pa.Table, folder: Path) -> None:
    """Write a table of one shard.

    Raises:
        RunError: the folder holds other shards.
        PlaceError: it cannot be written.
    """
    refuse_strays(folder, shard_paths(folder, 1))
    write_parquet(table, shard_path(folder, 0))


def write_shard(table: pa.Table, path: Path) -> None:
    """Write one Parquet file of a stage that may be killed, and then, beside it, the checksum that vouches for it."""
    write_parquet(table, path)
    vouch(path)


def vouch(path: Path) -> None:
    """Write the checksum of a file beside it."""
    write_text(file_digest(path), path.with_suffix(CHECKSUM))


def is_intact(path: Path) -> bool:
    """Whether a shard of an unfinished stage is there as it was written; anything else is to be made again."""
    checksum = path.with_suffix(CHECKSUM)
    return path.exists() and checksum.exists() and checksum.read_bytes() == file_digest(path).encode()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(text: str, path: Path) -> None:
    """Write one text file whole or not at all.

    Raises:
        PlaceError: it cannot be written.
    """
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def shard_path(folder: Path, index: int) -> Path:
    """Return the file of one shard; a shard is complete when it has this name."""
    return folder / f"part-{index:05d}.parquet"


def shard_paths(folder: Path, count: int) -> list[Path]:
    """Return the files of a table's shards, in their order."""
    return [shard_path(folder, index) for index in range(count)]


def shard_files(folder: Path) -> list[Path]:
    """Return a table's files, shards by their number, which from 100,000 on is not the order of their names."""

    def order(file: Path) -> tuple[Path, int, str]:
        return file.parent, len(file.stem) if file.stem.startswith("part-") else 0, file.name

    return sorted(folder.rglob("*.parquet"), key=order)


def refuse_strays(folder: Path, expected: Iterable[Path]) -> None:
    """Refuse a table's folder that holds Parquet files which its stage does not write.

    Raises:
        RunError: it does; the message names the first.
    """
    strays = sorted(set(folder.rglob("*.parquet")) - set(expected))
    if strays:
        raise RunError(f"{strays[0]} was not written by this stage: move it elsewhere")


def _column(values: Any, type_: pa.DataType) -> pa.Array:  # noqa: ANN401 (arrays and sequences alike)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), type_.value_type), values.shape[1])
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(type_)
    return pa.array(values, type_, from_pandas=False)
