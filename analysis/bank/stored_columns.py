"""Columns of a table of shards, in the order of its key, read when they are asked for.

The columns of a bank of ten million positions exceed a laptop's memory together, while no statistic needs more than a
handful at once. Those that were read last stay, up to `HELD_BYTES`, so that the columns of a small bank are read once.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from teachdiag.errors import ArtefactError
from teachdiag.scores import Codes
from teachdiag.selectors.tokens import column_array
from teachdiag.tables import Table

HELD_BYTES = 1 << 27  # of columns of one table
_KEY = ("context_id", "position")


def position_key(context_id: npt.NDArray[Any], position: npt.NDArray[Any]) -> Codes:
    """Return context and position in one number, shape (N,), which orders as the two do."""
    return context_id.astype(np.int64) << 32 | position.astype(np.int64)


class StoredColumns(Mapping[str, npt.NDArray[Any]]):
    """The columns of one table but for texts, one row a position, in the order of (context_id, position).

    Values have the type that they are stored in; nulls are NaN.
    """

    def __init__(self, table: Table, folder: Path, together: tuple[str, ...], **equal: str | int) -> None:
        """Find the rows and their order.

        Args:
            table: the schema.
            folder: the shards.
            together: columns that are read at one go where they can stay; all others one by one.
            equal: what rows must hold, by column; others are left out.

        Raises:
            ArtefactError: the table is missing, or holds a position twice.
        """
        self._table, self._folder, self._together = table, folder, together
        self._names = tuple(c.name for c in table.columns if c.type != pa.string())
        self._held: OrderedDict[str, npt.NDArray[Any]] = OrderedDict()
        self._lock = Lock()
        keys = table.read_arrow(folder, [*_KEY, *equal])
        wanted = [pc.equal(keys[name], value).to_numpy() for name, value in equal.items()]
        rows = np.flatnonzero(reduce(np.logical_and, wanted, np.ones(keys.num_rows, bool)))
        key = position_key(*(keys[name].to_numpy()[rows] for name in _KEY))
        if (np.diff(key) < 0).any():
            order = np.argsort(key, kind="stable")
            rows, key = rows[order], key[order]
        if (np.diff(key) == 0).any():
            raise ArtefactError(
                f"the {table.name} of {folder} hold a position twice: run the stage again in a new run directory"
            )
        self.n_rows = len(rows)
        gapless = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        self._rows: Codes | slice = slice(rows[0], rows[-1] + 1) if gapless else rows

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return one column, shape (N,), or (N, length) where it holds lists."""
        if name not in self._names:
            raise KeyError(name)
        with self._lock:
            if name not in self._held:
                self._read(name)
            self._held.move_to_end(name)
            return self._held[name]

    def __contains__(self, name: object) -> bool:
        """Say whether there is a column of the name, without reading it."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Count the columns."""
        return len(self._names)

    @property
    def key(self) -> Codes:
        """Context and position in one number, shape (N,), rising."""
        return position_key(*(self[name] for name in _KEY))

    def texts(self, name: str) -> tuple[list[str], Codes]:
        """Return the distinct texts of a column, sorted, and which of them each row holds, shape (N,)."""
        encoded = pc.dictionary_encode(self._table.read_arrow(self._folder, [name])[name].combine_chunks())
        known, codes = np.array(encoded.dictionary.to_pylist(), str), encoded.indices.to_numpy()[self._rows]
        present = np.flatnonzero(np.bincount(codes, minlength=len(known)))
        present = present[np.argsort(known[present])]
        ranks = np.zeros(len(known), np.int64)
        ranks[present] = np.arange(len(present))
        return known[present].tolist(), ranks[codes]

    def _read(self, name: str) -> None:
        """Read one column, or those that go together; let go of those that were not asked for the longest."""
        fit = 8 * self.n_rows * len(self._together) <= HELD_BYTES
        names = self._together if fit and name in self._together else (name,)
        table = self._table.read_arrow(self._folder, names)
        self._held |= {column: column_array(table[column])[self._rows] for column in names}
        while len(self._held) > 1 and sum(column.nbytes for column in self._held.values()) > HELD_BYTES:
            self._held.popitem(last=False)
