"""What `make bench` measured before on the same machine, as Parquet: a slower commit is seen beside the last one.

`benchmarks/history/MACHINE/PART.parquet` holds every row that was ever recorded there, newest last, with the commit.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import torch
from workload import Row

from teachdiag.diagnostics.calibrate import processor_name
from teachdiag.tables import read_parquet, write_parquet

HISTORY = Path(__file__).with_name("history")
_TOLERATED = 0.1  # of a ratio, between two runs of one commit on a quiet machine
_SCHEMA = pa.schema(
    [
        ("at", pa.timestamp("ms", "UTC")),
        ("commit", pa.string()),
        ("what", pa.string()),
        ("number", pa.int32()),  # among rows of one name
        ("measured", pa.string()),
        ("ratio", pa.string()),
    ]
)


def recorded(part: str, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Record the rows of a part; return them with the ratio that was recorded before, and how it has changed."""
    path = HISTORY / _machine() / f"{part}.parquet"
    history = read_parquet(path) if path.exists() else _SCHEMA.empty_table()
    before = {(row["what"], row["number"]): row for row in history.to_pylist()}
    now, commit = datetime.now(UTC).replace(microsecond=0), _commit()
    new = [
        {"at": now, "commit": commit, "what": row[0], "number": number, "measured": row[1], "ratio": row[2]}
        for number, row in _numbered(rows)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(pa.concat_tables([history, pa.Table.from_pylist(new, _SCHEMA)]), path)
    return [(*row, _told(row, before.get((row[0], number)))) for number, row in _numbered(rows)]


def _numbered(rows: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    seen: Counter[str] = Counter()
    for row in rows:
        yield seen[row[0]], row
        seen[row[0]] += 1


def _told(row: Row, before: dict[str, str] | None) -> str:
    """Say what the ratio was; of costs, whether it has grown by more than noise, of speed-ups ('x'), fallen."""
    if before is None:
        return ""
    now, then = (_number(ratio) for ratio in (row[2], before["ratio"]))
    worse = ""
    if now and then:
        cost = then / now if row[2].endswith("x") else now / then
        worse = ", worse" if cost > 1 + _TOLERATED else ""
    return f"{before['ratio']} ({before['commit']}){worse}"


def _number(ratio: str) -> float | None:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x?", ratio)
    return float(found[1]) if found else None


def _machine() -> str:
    """Name of the folder: a cloud's processors share a name, and are told apart by their widest vectors."""
    vectors = torch.backends.cpu.get_cpu_capability()
    name = f"{processor_name()} {vectors} {torch.get_num_threads()} threads"
    return re.sub(r"\W+", "-", name).strip("-").lower()


def _commit() -> str:
    """The commit that was measured, '+' where files differ from it."""
    command = ("git", "describe", "--always", "--dirty=+", "--abbrev=8", "--exclude=*")
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
