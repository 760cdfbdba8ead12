"""What kinds selectors and lds share: steps whose loss is restricted to some positions, and what each gains.

All selectors see the same update batches, and each masked step is measured twice: at the learning rate, and stretched
to the length of the step that keeps everything. A cell is one selection from one draw of the update batch.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from teachdiag.artefacts import INTERVENTIONS
from teachdiag.diagnostics.models.alignment import KEY
from teachdiag.diagnostics.probes.masks import EVERYTHING, Cell
from teachdiag.diagnostics.probes.measurement import Measurement
from teachdiag.diagnostics.probes.predicted import inner_products, keep, kept, write_predictions
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup, noise_floor, rows_of
from teachdiag.diagnostics.probes.updates import Step, optimize, step_objective
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.notes import fields_schema
from teachdiag.progress import Reporter
from teachdiag.scores import q3_mask
from teachdiag.tables import is_intact, read_parquet, shard_path, write_shard, write_table

_KEYS = [name for name, _ in KEY]


class InterventionMeasurement(Measurement):
    """Masked steps.

    Attributes:
        matches: how steps are compared: at the learning rate, and stretched to the length of the unselective step.
    """

    matches: tuple[str, ...]

    def cells(self, setup: ProbeSetup, inner_products: pa.Table) -> list[Cell]:
        """Return every selection that a step is taken on.

        Args:
            setup: settings and contexts.
            inner_products: `fix_inner` and `bank_inner` of every position that may be selected, by (context_id,
                position).
        """
        raise NotImplementedError

    def write(self, setup: ProbeSetup, cells: Sequence[Cell], rows: list[dict[str, Any]], before: pa.Table) -> None:
        """Write the tables, but for the predictions."""
        write_table(INTERVENTIONS.build_rows(rows), setup.run / "interventions" / setup.probe_id)

    def measure(self, setup: ProbeSetup) -> dict[str, Any]:
        """Take every masked step and write the tables; return the results."""
        setup.student.half = None  # selectors differ by less than half precision rounds
        before, floor = _at_theta0(setup)
        compared = on_first(setup.compare_with_capture)(before)
        began = time.perf_counter()
        predictions = _predictions(setup)
        cells = self.cells(setup, predictions)
        took = time.perf_counter() - began
        setup.reporter.say(f"{len(cells)} masked steps; their first-order form took {took:.0f} s")
        lengths: dict[int, float] = {}
        rows: list[dict[str, Any]] = []
        for index, cell in enumerate(setup.reporter.track(cells, "Masked steps")):
            length = lengths.get(cell.seed)
            step, gains = _measured(setup, cell, gains_path(setup, index), self.matches, length, before)
            if cell.selector == EVERYTHING:
                lengths[cell.seed] = step.update_norm
            rows += _rows(setup, cell, step, gains, lengths.get(cell.seed), before)
        setup.theta0.verify()
        on_first(self.write)(setup, cells, rows, before)
        return compared | {
            "cells": len(cells),
            "noise_floor": floor,
            "fix_contexts": sorted(c.context_id for c in setup.fix),
            "bank_positions": before.num_rows,
            "selectors": _summary(rows),
        }


def _predictions(setup: ProbeSetup) -> pa.Table:
    """Write `predictions` for every position that may be selected, and return them by (context_id, position)."""
    fix, _ = inner_products(setup, "fix", setup.mean_kl(setup.fix), setup.update)
    bank, _ = inner_products(setup, "bank", setup.mean_kl(setup.bank), setup.update)
    columns = {"fix_inner": fix["loss"], "bank_inner": bank["loss"]}
    on_first(write_predictions)(setup, setup.update, columns, setup.run / "predictions" / setup.probe_id)
    return pa.table({name: fix[name] for name in _KEYS} | columns)


def _at_theta0(setup: ProbeSetup) -> tuple[pa.Table, float]:
    """Forward KL of the rescored bank at theta0, and the 99th percentile of its change in another layout, nats."""
    path = setup.scratch / "theta0.parquet"
    if not on_first(is_intact)(path):
        again = setup.bank_kl(setup.relaid(0)(setup.bank))["forward_kl"]
        table = setup.bank_kl(setup.batched(setup.bank)).append_column("again", again)
        on_first(write_shard)(table, path)
    table = read_parquet(path)
    floor = noise_floor(table["forward_kl"].to_numpy(), table["again"].to_numpy())
    facts = rows_of(setup.run, setup.bank, ["prompt_id", "student_entropy", "forward_kl"]).sort_by(KEY)
    q3 = q3_mask(facts["student_entropy"].to_numpy(), facts["forward_kl"].to_numpy())[0]
    return table.append_column("prompt_id", facts["prompt_id"]).append_column("q3", pa.array(q3)), floor


def gains_path(setup: ProbeSetup, number: int) -> Path:
    """Return where a cell's gains lie until the probe ends."""
    return shard_path(setup.scratch / "cells", number)


def _measured(
    setup: ProbeSetup, cell: Cell, path: Path, matches: Sequence[str], length: float | None, before: pa.Table
) -> tuple[Step, pa.Table]:
    """Take a cell's step and keep what it gained, or read what an earlier process did.

    Args:
        setup: the student at theta0, where it is again afterwards.
        cell: what is kept.
        path: where its gains lie.
        matches: how steps are compared.
        length: norm that the step is stretched to for the second measurement; None takes none.
        before: the bank at theta0.

    Returns:
        The step, and the gain of every rescored position, one column a way of matching steps.
    """
    note = path.with_suffix(".json")
    done = on_first(kept)(path, note, fields_schema(Step) | {"kept": str})
    if done and done.pop("kept") == cell.digest:
        return Step(**done), read_parquet(path)
    mask = cell.draw.kept(cell.selection.kept)
    objective = step_objective(cell.draw.contexts, setup.teacher, setup.settings, mask)
    step = optimize(setup.student, [objective], setup.settings, setup.theta0, Reporter(quiet=True))
    gains = {"rate": _gain(setup, before)}
    if "norm" in matches:
        gains["norm"] = gains["rate"]
        if length is not None and step.update_norm > 0:
            setup.theta0.stretch(length / step.update_norm)
            gains["norm"] = _gain(setup, before)
    setup.theta0.restore()
    on_first(keep)(pa.table(gains), path, asdict(step) | {"kept": cell.digest}, note)
    return step, pa.table(gains)


def _gain(setup: ProbeSetup, before: pa.Table) -> np.ndarray:
    after = setup.bank_kl(setup.batched(setup.bank))["forward_kl"].to_numpy()
    gain: np.ndarray = before["forward_kl"].to_numpy() - after
    return gain


def _rows(
    setup: ProbeSetup, cell: Cell, step: Step, gains: pa.Table, length: float | None, before: pa.Table
) -> list[dict[str, Any]]:
    """Rows of `interventions`: one for each way of matching steps."""
    inside = before["q3"].to_numpy()
    common = {"probe_id": setup.probe_id, "loss": setup.settings.loss} | cell.facts()
    rows = []
    for match in gains.column_names:
        norm = step.update_norm if match == "rate" or length is None else length
        gain = gains[match].to_numpy().astype(np.float64)
        first_order = norm / step.gradient_norm * cell.mean("bank_inner") if step.gradient_norm else 0.0
        rows.append(
            common
            | {"match": match, "step_loss": step.loss, "gradient_norm": step.gradient_norm, "update_norm": norm}
            | {"mean_gain": gain.mean(), "gain_q3": gain[inside].mean(), "first_order_gain": first_order}
        )
    return rows


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean gain and its first-order form of each selector, budget and match, over the draws."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["selector"], row["budget"], row["match"]), []).append(row)
    return [
        {"selector": selector, "budget": budget, "match": match}
        | {name: float(np.mean([row[name] for row in group])) for name in ("keep", "mean_gain", "first_order_gain")}
        for (selector, budget, match), group in groups.items()
    ]
