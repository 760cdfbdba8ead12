"""The update positions of a probe of kind efficiency, with their statistics and inner products, and its selectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from teachdiag.analysis.bank.stored_columns import position_key
from teachdiag.analysis.efficiency.kept_means import Pool
from teachdiag.artefacts import INNER_PRODUCTS
from teachdiag.errors import ArtefactError
from teachdiag.scores import Array, Codes
from teachdiag.selectors import Selector, Tokens, resolve_selector
from teachdiag.selectors.catalogue import selectors_of
from teachdiag.selectors.tokens import FROM_PROBES
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import positions_of

_ORDER = [("context_id", "ascending"), ("position", "ascending")]
_ORACLE_COLUMN = "isolated_gain"  # here the inner product with the whole bank's gradient
_OTHERS = set(FROM_PROBES) - {_ORACLE_COLUMN}  # which other kinds of probe measure


def compared_selectors(run: Path, settings: Mapping[str, Any]) -> dict[str, Selector]:
    """Return the selectors that a probe compares, and those whose norms it measured, by name.

    All of the catalogue are those whose columns are there; `predicted` would be `oracle` again.

    Raises:
        SettingsError: a selector is unknown.
    """
    measured = {name: resolve_selector(name) for name in _names(settings["norm_selectors"])}
    if settings["selector"] != "all":
        return {name: resolve_selector(name) for name in _names(settings["selector"])} | measured
    columns = {c.name for c in positions_of(run / "positions").columns} | {_ORACLE_COLUMN}
    able = selectors_of(columns, HEADLINE_K)
    return {name: s for name, s in able.items() if _OTHERS.isdisjoint(s.columns(HEADLINE_K))} | measured


def load_pool(run: Path, probe_id: str, selectors: Mapping[str, Selector], seed: int) -> Pool:
    """Read what a probe measured at every update position, and the columns that selectors read, quantile scores.

    Args:
        run: the run directory.
        probe_id: a probe of kind efficiency.
        selectors: what will choose.
        seed: of random scores and random ties.

    Raises:
        ArtefactError: a table is missing, or does not hold each position once in each block.
    """
    folder = run / "inner_products" / probe_id
    wanted = ["context_id", "position", "prompt_id", "block", "block_positions", "inner", "inner_shuffled"]
    rows = INNER_PRODUCTS.read_arrow(folder, wanted).sort_by([*_ORDER, ("block", "ascending")])
    blocks, first = np.unique(rows["block"].to_numpy(), return_index=True)
    sizes = rows["block_positions"].to_numpy()[first].astype(np.float64)
    if rows.num_rows % len(blocks) or (rows["block"].to_numpy().reshape(-1, len(blocks)) != blocks).any():
        raise ArtefactError(f"{folder} does not hold each position once in each block: run the probe again")
    inner = np.stack([_by_block(rows[name], len(blocks)) for name in ("inner", "inner_shuffled")])
    each = rows.take(np.arange(0, rows.num_rows, len(blocks)))
    prompts = np.unique(each["prompt_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    total = inner[0] @ (sizes / sizes.sum())
    return Pool(_tokens(run, each, selectors, total, seed), inner, prompts.astype(np.int64), sizes)


def _tokens(run: Path, each: pa.Table, selectors: Mapping[str, Selector], total: Array, seed: int) -> Tokens:
    """Return the statistics of the positions of a table, row by row the same; the oracle ranks by the given totals."""
    folder, keys = run / "positions", [name for name, _ in _ORDER]
    names = {column for s in selectors.values() for column in s.columns(HEADLINE_K)} - {_ORACLE_COLUMN} | set(keys)
    schema = positions_of(folder, names)
    among = {"context_id": each["context_id"].unique()}
    table = schema.read_arrow(folder, sorted(names), among).sort_by(_ORDER)
    if not np.array_equal(_keys(table), _keys(each)):
        raise ArtefactError(f"{folder} does not hold the positions whose gradients were measured: run the probe again")
    read = Tokens.from_table(table, HEADLINE_K, seed)
    return Tokens({**read.columns, _ORACLE_COLUMN: total}, HEADLINE_K, seed)


def _keys(table: pa.Table) -> Codes:
    return position_key(*(table[name].to_numpy() for name, _ in _ORDER))


def _by_block(column: pa.ChunkedArray, n_blocks: int) -> Array:
    return np.asarray(column.to_numpy(), np.float64).reshape(-1, n_blocks)


def _names(listed: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in listed.split(",")))
