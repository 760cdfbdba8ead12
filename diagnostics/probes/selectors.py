"""Kind selectors: a step on the positions that each selector keeps of the same update batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from teachdiag.artefacts import INTERVENTION_GAINS
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.sources import ModelSource
from teachdiag.diagnostics.probes.interventions import InterventionMeasurement, gains_path
from teachdiag.diagnostics.probes.masks import Cell, oracle_probe, resolve_choosers, selector_cells
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings
from teachdiag.tables import read_parquet, refuse_strays, shard_paths, write_parquet


class Selectors(InterventionMeasurement):
    """Steps restricted to selected positions."""

    matches = ("rate", "norm")

    def inputs(self, run: Path, capture: CaptureSettings, student: ModelSource, reporter: Reporter) -> dict[str, Any]:
        """Return the digests of the isolated gains that an oracle selects by."""
        if not any("isolated_gain" in chooser.columns for chooser in resolve_choosers(run, self.settings)):
            return {}
        oracle = oracle_probe(run, self.settings)
        return {"oracle": Stage(run, f"probes/{oracle}").require()["tables"]}

    def batch(self, contexts: list[Context]) -> list[Context]:
        """Return all contexts: every draw takes its update batch from them."""
        return contexts

    def cells(self, setup: ProbeSetup, inner_products: pa.Table) -> list[Cell]:
        """Return every selection that a step is taken on, of each draw the unselective one first."""
        return selector_cells(setup, inner_products)

    def write(self, setup: ProbeSetup, cells: Sequence[Cell], rows: list[dict[str, Any]], before: pa.Table) -> None:
        """Write the steps, and the gain of every rescored position."""
        super().write(setup, cells, rows, before)
        _write_gains(setup, cells, before)


def _write_gains(setup: ProbeSetup, cells: Sequence[Cell], before: pa.Table) -> None:
    """Write the gain of every rescored position, one shard a cell."""
    shards = shard_paths(setup.run / "intervention_gains" / setup.probe_id, len(cells))
    refuse_strays(shards[0].parent, shards)
    for index, (cell, shard) in enumerate(zip(cells, shards, strict=True)):
        gains = read_parquet(gains_path(setup, index))
        n = before.num_rows
        keys = {"probe_id": setup.probe_id, "selector": cell.selector, "budget": cell.budget, "seed": cell.seed}
        shared = {name: [value] * n for name, value in keys.items()}
        shared |= {name: before[name] for name in ("context_id", "position", "prompt_id")} | {
            "forward_kl_before": before["forward_kl"]
        }
        tables = [
            INTERVENTION_GAINS.build(shared | {"match": [match] * n, "gain": gains[match]})
            for match in gains.column_names
        ]
        write_parquet(pa.concat_tables(tables), shard)
