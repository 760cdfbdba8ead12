"""The table of token statistics in which positions compete for the loss."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from teachdiag.artefacts import BOUNDS, POSITIONS
from teachdiag.errors import EstimationError, SettingsError
from teachdiag.formulas import stored_name
from teachdiag.scores import Array, mid_ranks, norm
from teachdiag.seeds import derive_seed
from teachdiag.settings import HEADLINE_K, SUPPORT_SIZES, Normalisation

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("context_id", "position")  # what every table of tokens carries: scopes and tie rules need them
READABLE = tuple(c for c in POSITIONS.columns if c.type != pa.string())  # what scores can read of `positions`
MEASURED = tuple(c.name for c in READABLE if c not in BOUNDS and not c.nullable)  # of these, what a capture always has
FROM_PROBES = ("fix_inner", "bank_inner", "isolated_gain")  # what a probe adds to it


@dataclass(frozen=True)
class Tokens:
    """Statistics of N competing positions, one array a column, and how scores read them.

    Attributes:
        columns: shape (N,) each, or (N, 32) for the top-K lists; names, units and meanings are those of the table
            `positions`, and any further ones that the caller's selectors read. `context_id` and `position` identify a
            row and are always there. NaN in a column means unknown. Kept as read-only views: no score changes what
            the next one reads.
        k: support size K at which `disagreement`, `compatibility` and their kin are read.
        seed: root of the random selector and of random ties.
        normalisation: what `normed` does: 'quantile' is clip((z - Q05) / (Q95 - Q05), 0, 1), 'rank' is mid-rank / N,
            'none' leaves values as measured. Always over these N positions: give it the whole batch, or the whole bank.
    """

    columns: Mapping[str, npt.NDArray[Any]]
    k: int = HEADLINE_K
    seed: int = 0
    normalisation: Normalisation = "quantile"

    def __post_init__(self) -> None:
        """Check that the columns are one table.

        Raises:
            SettingsError: a key is missing, lengths differ, the table is empty, or K is not a measured one.
        """
        for name in KEYS:
            if name not in self.columns:
                raise SettingsError(f"the tokens lack the column {name}, which tells positions apart")
        for name, values in self.columns.items():
            if len(values) != len(self):
                raise SettingsError(f"column {name} has {len(values)} rows, where {KEYS[0]} has {len(self)}")
        if not len(self):
            raise SettingsError("there are no tokens to select from")
        object.__setattr__(self, "columns", {name: _read_only(values) for name, values in self.columns.items()})
        if self.k not in SUPPORT_SIZES:
            raise SettingsError(f"K is {self.k}: it must be one of {', '.join(map(str, SUPPORT_SIZES))}")

    def __len__(self) -> int:
        return len(self.columns[KEYS[0]])

    @classmethod
    def from_table(cls, table: "pa.Table | pd.DataFrame", k: int = HEADLINE_K, seed: int = 0) -> "Tokens":
        """Read the numeric columns of a `positions` table, Arrow or pandas, or of some of its rows and columns."""
        names = table.column_names if isinstance(table, pa.Table) else list(table.columns)
        arrays = {name: column_array(table[name]) for name in names}
        return cls({name: values for name, values in arrays.items() if values.dtype.kind in "biuf"}, k, seed)

    def under(self, normalisation: Normalisation) -> "Tokens":
        """Return the same table, read under another normalisation."""
        return replace(self, normalisation=normalisation)

    def stored(self, name: str) -> npt.NDArray[Any]:
        """Return a column as stored.

        Raises:
            SettingsError: there is none of this name.
        """
        name = stored_name(name, self.k)
        if name not in self.columns:
            raise SettingsError(f"the tokens lack the column {name}, which the selector reads: give it with the others")
        return self.columns[name]

    def column(self, name: str) -> Array:
        """Return a column as measured, shape (N,), float64, in its own unit."""
        return self.stored(name).astype(np.float64)

    def normed(self, name: str) -> Array:
        """Return a column normalised over all N positions, shape (N,).

        Raises:
            EstimationError: it cannot be normalised; the message names it.
        """
        values, name = self.column(name), stored_name(name, self.k)
        if np.isnan(values).any():
            raise EstimationError(f"column {name} is unknown (NaN) at some positions, so it cannot be normalised")
        if self.normalisation == "quantile":
            return norm(values, name)
        return mid_ranks(values) if self.normalisation == "rank" else values

    def top_list(self, name: str) -> npt.NDArray[Any]:
        """Return a top-K list cut to K entries, shape (N, K)."""
        return self.stored(name)[:, : self.k]

    def uniform(self, stream: str) -> Array:
        """Return one random number of [0, 1) a position, shape (N,).

        Made from (seed, stream, context_id, position) alone, so that neither the order of rows nor the company of
        others changes it.
        """
        context_id, position = (self.stored(name).astype(np.uint64) for name in KEYS)
        bits = _scramble(_scramble(context_id + np.uint64(derive_seed(self.seed, stream))) + position)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _scramble(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits in which every bit moves all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _read_only(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = values.view()
    view.flags.writeable = False
    return view


def column_array(column: Any) -> npt.NDArray[Any]:  # noqa: ANN401 (an Arrow column or a pandas one)
    """Return a column as an array, (N,), or (N, length) where it holds lists."""
    if isinstance(column, pa.ChunkedArray):
        whole = column.combine_chunks()
        if pa.types.is_list(whole.type) or pa.types.is_fixed_size_list(whole.type):
            return column_array(pa.chunked_array([whole.flatten()])).reshape(len(whole), -1)
        values: npt.NDArray[Any] = whole.to_numpy(zero_copy_only=False)
        return values
    values = column.to_numpy()
    holds_arrays = values.dtype == object and len(values) and isinstance(values[0], np.ndarray)
    return np.stack(values.tolist()) if holds_arrays else values
