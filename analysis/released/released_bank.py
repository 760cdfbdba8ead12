"""Banks of the released code: read in its own column names, checked, and normalised as it does."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from teachdiag.artefacts import RELEASED_BANK
from teachdiag.artefacts.released import MEASURED
from teachdiag.errors import ArtefactError, RunError, SettingsError, cause
from teachdiag.runs import Stage, writing
from teachdiag.scores import Array, Codes, Mask
from teachdiag.tables import file_digest, shard_path, write_parquet

_TABLE = "released_bank"
_KEY = ["sample_ordinal", "tok_pos"]
_FACTS = ["sample_index", "pos_norm"]
_ROUNDING = 1e-6  # of a share that a file may hold in float32
_NAMES = [name for name, _, _ in MEASURED]


@dataclass(frozen=True)
class ReleasedBank:
    """One bank, row by row the same before and after its update.

    `rows`: the released_bank table. `k`: support size.
    """

    rows: pd.DataFrame
    k: int

    def before(self, name: str) -> Array:
        """Return a column at theta0, shape (N,), in its unit."""
        return self.rows[f"{name}_before"].to_numpy(np.float64)

    def after(self, name: str) -> Array:
        """Return a column after the update, shape (N,), in its unit."""
        return self.rows[f"{name}_after"].to_numpy(np.float64)

    @cached_property
    def gain(self) -> Array:
        """G_KLf = (KL before - KL after) / (KL before + 1e-12): a fraction, where the paper's Eq. 1 has nats."""
        before = self.before("KLf_full")
        return (before - self.after("KLf_full")) / (before + 1e-12)

    @property
    def position(self) -> Array:
        """Response position, scaled to [0, 1] within its context."""
        return self.rows["pos_norm"].to_numpy(np.float64)

    def clusters(self, name: str) -> Codes:
        """Return the cluster of every row by one of the key columns, numbered from 0."""
        return np.unique(self.rows[name].to_numpy(), return_inverse=True)[1].astype(np.int64)


def import_bank(before: Path, after: Path, run: Path, k: int) -> dict[str, Any]:
    """Write the table `released_bank` of a run directory from the release's two tables.

    Args:
        before: Parquet or CSV file of the untouched student's scores.
        after: the same after the update.
        run: the run directory.
        k: the support size that they were scored with.

    Raises:
        SettingsError: k is no support size.
        ArtefactError: a file cannot be read, lacks a column, holds a position twice or a non-finite number, contradicts
            k, or the two do not hold the same positions.
        RunError: the run directory holds another bank, or a run of teachdiag itself.
    """
    if k < 1:
        raise SettingsError(f"--k is {k}: it must be the support size, at least 1")
    tables = {side: _read(path) for side, path in (("before", before), ("after", after))}
    joined = tables["before"].merge(tables["after"][[*_KEY, *_NAMES]], on=_KEY, suffixes=("_before", "_after"))
    for side, path in (("before", before), ("after", after)):
        _check_support(path, tables[side], k)
        if len(joined) != len(tables[side]):
            raise ArtefactError(
                f"{path} holds {len(tables[side])} positions, of which {len(joined)} are in both tables: score the "
                "same contexts with the same cap before and after"
            )
    columns = {c.name: pa.array(joined[c.name]).cast(c.type) for c in RELEASED_BANK.columns}
    stage = Stage(run, "import", tables=(_TABLE,))
    if (run / "capture.json").exists():
        raise RunError(
            f"{run} is a run of teachdiag itself, which a foreign bank has no place in: choose another --run"
        )
    digests = {"before": file_digest(before), "after": file_digest(after)}
    with writing(run):
        if stage.claim({"before": before.name, "after": after.name, "k": k}, digests):
            return dict(stage.require()["results"])
        with stage.timed():
            write_parquet(RELEASED_BANK.build(columns), shard_path(run / _TABLE, 0))
            results = {"positions": len(joined), "contexts": int(joined["sample_ordinal"].nunique()), "k": k}
            stage.complete(results)
    return results


def load_released(run: Path) -> ReleasedBank:
    """Read the bank of a run.

    Raises:
        RunError: none was imported.
        ArtefactError: the table is missing.
    """
    stage = Stage(run, "import", tables=(_TABLE,))
    if not stage.note.exists():
        raise RunError(
            f"{run} holds no bank of the released code: bring one with `teachdiag import released --before FILE "
            f"--after FILE --run NEW`; runs of teachdiag itself do not keep C and entropy of the updated student"
        )
    record = stage.require()
    rows = RELEASED_BANK.read(run / _TABLE).sort_values(_KEY, ignore_index=True)
    return ReleasedBank(rows, int(record["settings"]["k"]))


def norm_or_zero(values: Array) -> Array:
    """Scale to [0, 1] by the 5% and 95% quantiles; zeros where these are equal, as the release has it."""
    low, high = np.quantile(values, [0.05, 0.95])
    return np.clip((values - low) / (high - low), 0, 1) if high - low >= 1e-12 else np.zeros(len(values))


def quadrant(h: Array, d: Array) -> Mask:
    """Q3 on normalised scores, both medians included."""
    return (h <= np.median(h)) & (d >= np.median(d))


def winsorised(values: Array, tail: float) -> Array:
    """Move values beyond the quantiles at `tail` and 1 - `tail` to these."""
    return np.clip(values, *np.quantile(values, [tail, 1 - tail]))


def _check_support(path: Path, table: pd.DataFrame, k: int) -> None:
    """Refuse a K by which an overlap, which is a number of shared tokens over K, is no whole number of tokens."""
    shared = table["Coverlap"].to_numpy(np.float64) * k
    odd = np.abs(shared - np.round(shared)) > _ROUNDING * k
    if odd.any():
        first = table[odd].iloc[0]
        raise ArtefactError(
            f"{path} was not scored with K={k}: at position {first['tok_pos']:g} of sample {first['sample_ordinal']:g} "
            f"Coverlap is {first['Coverlap']:g}, no multiple of 1/{k}; give the K that it was scored with as --k"
        )


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise ArtefactError(f"{path} does not exist: give the released scorer's table, Parquet or CSV")
    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtefactError(f"{path} cannot be read as Parquet or CSV: {cause(error)}") from error
    lacking = [name for name in (*_KEY, *_FACTS, *_NAMES) if name not in table]
    if lacking:
        raise ArtefactError(f"{path} is no bank of the released code: it lacks the columns {', '.join(lacking)}")
    table = table[[*_KEY, *_FACTS, *_NAMES]]
    twice = table.duplicated(_KEY)
    if twice.any():
        first = table[twice].iloc[0]
        raise ArtefactError(f"{path} holds position {first['tok_pos']:g} of sample {first['sample_ordinal']:g} twice")
    bad = ~np.isfinite(table.to_numpy(np.float64)).all(axis=1)
    if bad.any():
        first = table[bad].iloc[0]
        raise ArtefactError(
            f"{path} holds a non-finite number at position {first['tok_pos']:g} of sample {first['sample_ordinal']:g}"
        )
    return table
