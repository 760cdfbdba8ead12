"""The cells of a selector experiment, and the gain of every rescored bank position in each, as one matrix."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from teachdiag.analysis.bank.measurements import Bank
from teachdiag.analysis.bank.stored_columns import position_key
from teachdiag.artefacts import INTERVENTION_GAINS, INTERVENTIONS
from teachdiag.errors import ArtefactError
from teachdiag.scores import Array, Codes

CELL = ["selector", "budget", "seed", "match"]
GROUP = ["selector", "budget", "match"]
_LISTS = ("kept_context_ids", "kept_positions")


@dataclass(frozen=True)
class Cells:
    """Every cell of one probe, in the order of selector, budget, seed and match.

    `table`: the rows of `interventions`, kept lists left out. `gains`: shape (cells, positions), nats. `before`: shape
    (positions,), forward KL at theta0, nats. `rows`: shape (positions,), their rows in the bank. `prompts`: shape
    (positions,), their prompts, numbered from 0 among those that were rescored. `n_prompts`: how many these are.
    """

    probe_id: str
    table: pd.DataFrame
    gains: Array
    before: Array
    rows: Codes
    prompts: Codes
    n_prompts: int

    @property
    def groups(self) -> tuple[pd.DataFrame, Codes]:
        """The distinct (selector, budget, match), and which of them each cell belongs to."""
        groups = self.table[GROUP].drop_duplicates().sort_values(GROUP, ignore_index=True)
        return groups, _index_in(self.table[GROUP], groups)

    @property
    def seeds(self) -> Codes:
        """Which seed each cell has, counted from 0 in their order."""
        return np.unique(self.table["seed"], return_inverse=True)[1].astype(np.int64)

    def partners(self, selector: str, budget: float | None = None) -> Codes:
        """Return the cell of another selector at the same seed and match, shape (cells,); -1 where there is none.

        Args:
            selector: the partner's.
            budget: the partner's; by default the cell's own.
        """
        wanted = self.table[CELL].assign(selector=selector)
        return _index_in(wanted if budget is None else wanted.assign(budget=budget), self.table[CELL])


def load_cells(run: Path, probe_id: str, bank: Bank) -> Cells:
    """Read one probe of kind selectors.

    Raises:
        ArtefactError: a table is missing, or some cell does not hold each of the same bank positions once.
    """
    columns = [c.name for c in INTERVENTIONS.columns if c.name not in _LISTS]
    table = INTERVENTIONS.read(run / "interventions" / probe_id, columns)
    table = table.sort_values(CELL, ignore_index=True)
    folder = run / "intervention_gains" / probe_id
    wanted = [*CELL, "context_id", "position", "prompt_id", "forward_kl_before", "gain"]
    rows = INTERVENTION_GAINS.read_arrow(folder, wanted)
    cell, bank_row = _cell_codes(rows, table, folder), _bank_rows(rows, bank, folder)
    scored, column = np.unique(bank_row, return_inverse=True)
    filled = np.bincount(cell * len(scored) + column, minlength=len(table) * len(scored))
    if (filled != 1).any():
        raise ArtefactError(f"the cells of {folder} do not all hold the same positions, once each: run the probe again")
    gains, before = np.empty((len(table), len(scored))), np.empty(len(scored))
    gains[cell, column] = rows["gain"].to_numpy()
    before[column] = rows["forward_kl_before"].to_numpy()
    present, prompts = np.unique(bank.prompts[scored], return_inverse=True)
    return Cells(probe_id, table, gains, before, scored, prompts.astype(np.int64), len(present))


def _cell_codes(rows: pa.Table, table: pd.DataFrame, folder: Path) -> Codes:
    """Return the cell of each row of gains."""
    numbers = [np.unique(rows[name].to_numpy(), return_inverse=True)[1] for name in ("budget", "seed")]
    texts = [_codes(rows[name])[0] for name in ("selector", "match")]
    combined = np.ravel_multi_index([*numbers, *texts], [int(c.max(initial=0)) + 1 for c in (*numbers, *texts)])
    _, first, code = np.unique(combined, return_index=True, return_inverse=True)
    present = rows.select(CELL).take(pa.array(first)).to_pandas()
    index = _index_in(present, table[CELL])
    if len(present) != len(table) or (index < 0).any():
        raise ArtefactError(f"{folder} holds {len(present)} cells that are not the {len(table)} of the interventions")
    return index[code]


def _bank_rows(rows: pa.Table, bank: Bank, folder: Path) -> Codes:
    """Return the bank row of each row of gains."""
    known = bank.key
    keys = position_key(rows["context_id"].to_numpy(), rows["position"].to_numpy())
    index = np.minimum(np.searchsorted(known, keys), len(known) - 1).astype(np.int64)
    prompts, names = _codes(rows["prompt_id"])
    numbers = {name: number for number, name in enumerate(bank.names)}
    codes = np.asarray([numbers.get(name, -1) for name in names], dtype=np.int64)[prompts]
    if (known[index] != keys).any() or (codes != bank.prompts[index]).any():
        raise ArtefactError(f"{folder} holds positions that are not the bank's, by context, position and prompt")
    return index


def _codes(texts: pa.ChunkedArray) -> tuple[Codes, list[str]]:
    encoded = pc.dictionary_encode(texts.combine_chunks())
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _index_in(wanted: pd.DataFrame, among: pd.DataFrame) -> Codes:
    """Return where each wanted row stands among others; -1 where it does not."""
    index = pd.MultiIndex.from_frame(among)
    return np.asarray(index.get_indexer(pd.MultiIndex.from_frame(wanted)), dtype=np.int64)
