"""Kind predicted: the first-order gain of every bank position, and what the step does when it is really taken.

Two directions are differentiated along: that of a whole one-step update, which predicts each position's gain; and the
gradient of L_fix, which gives <grad L_fix, grad l_t> for the loss term of every position at once (paper Eq. 2).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from teachdiag.artefacts import PREDICTIONS
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.probes.derivatives import Along, choose_step, derivatives
from teachdiag.diagnostics.probes.gains import explained
from teachdiag.diagnostics.probes.measurement import Measurement
from teachdiag.diagnostics.probes.theta0 import Direction
from teachdiag.diagnostics.probes.updates import gradient, optimize, step_objective
from teachdiag.diagnostics.probes.workbench import Workbench, noise_floor
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.scoring.position_loss import PositionLoss, position_loss
from teachdiag.notes import Schema, read_note, recall, write_note
from teachdiag.settings import SHRINKS
from teachdiag.tables import is_intact, read_parquet, write_shard, write_table


class Predicted(Measurement):
    """First-order gains of every position; the update batch is that of a one_step probe, contexts of L_fix included."""

    fix_apart = False

    def measure(self, bench: Workbench) -> dict[str, Any]:
        """Predict every bank position's gain, take the step at several lengths, and write the `predictions` table."""
        bench.student.half = None  # in half precision, rounding exceeds a difference quotient
        direction: list[Direction] = []  # made at most once, and only if something is still to be computed

        def step() -> Direction:
            if not direction:
                objective = step_objective(bench.update, bench.teacher, bench.settings)
                optimize(bench.student, [objective], bench.settings, bench.theta0, bench.reporter)
                direction.append(bench.theta0.displacement())
                bench.theta0.restore()
            return direction[0]

        losses = {"kl": position_loss("forward_kl", {})}
        bench.rescore_shards("theta0", bench.batched, "theta0")
        compared = on_first(bench.compare_with_capture)(pa.concat_tables(bench.shards("theta0")))
        slopes, slope_facts = slopes_along(bench, "step", step, bench.bank, losses)
        bench.rescore_shards("relaid", bench.relaid(0), "theta0, another layout")
        for shrink in SHRINKS:
            state = _state(shrink)
            if on_first(bench.unscored)(state):
                bench.theta0.displace(step(), shrink)
                bench.rescore_shards(state, bench.batched, f"the step / {round(1 / shrink)}")
                bench.theta0.restore()
        direction.clear()  # a copy of the model less, before the gradient of L_fix needs one
        fix, fix_facts = inner_products(bench, "fix", bench.fix, bench.bank)
        bench.theta0.verify()
        measured = on_first(_assemble)(bench, -slopes["kl"].to_numpy(), fix)
        return compared | measured | {"step": slope_facts, "fix": fix_facts}


def inner_products(
    bench: Workbench, name: str, held_out: list[Context], contexts: list[Context]
) -> tuple[pa.Table, dict[str, float | None]]:
    """Return <grad L, grad l_t> for the loss term of every position of some contexts, column `loss`, and how.

    L is the mean forward KL over the held-out contexts; `name` is that of the intermediate result.
    """
    loss = {"loss": position_loss(bench.settings.loss, bench.settings.as_dict())}

    def along() -> Direction:
        return gradient(bench.student, bench.mean_kl(held_out), bench.settings, bench.reporter)

    return slopes_along(bench, name, along, contexts, loss)


def slopes_along(
    bench: Workbench,
    name: str,
    direction: Callable[[], Direction],
    contexts: list[Context],
    functions: dict[str, PositionLoss],
) -> tuple[pa.Table, dict[str, float | None]]:
    """Return derivatives along a direction at every position of some contexts, or read those that are there.

    Returns:
        The table of `derivatives`; and the step of the central differences with the relative change of the derivatives
        when it is halved, both null for the exact method.
    """
    path, note = bench.scratch / f"{name}.parquet", bench.scratch / f"{name}.json"
    schema = {"central_step": float | None, "change_when_halved": float | None}
    if on_first(kept)(path, note, schema) is None:
        exact = Along(bench.student, bench.theta0, direction(), None)
        step, change = None, None
        if bench.settings.method == "central":
            function = next(iter(functions.values()))
            step, change = choose_step(exact, contexts, bench.teacher, function, bench.settings)
        along = Along(bench.student, bench.theta0, exact.direction, step)
        table = derivatives(along, contexts, bench.teacher, functions, bench.settings, bench.reporter)
        on_first(keep)(table, path, {"central_step": step, "change_when_halved": change}, note)
    facts: dict[str, float | None] = read_note(note, schema, "start the probe again")
    return read_parquet(path), facts


def keep(table: pa.Table, path: Path, facts: Mapping[str, Any], note: Path) -> None:
    """Write an intermediate table, and then the note that vouches for it."""
    note.unlink(missing_ok=True)
    write_shard(table, path)
    write_note(facts, note)


def kept(path: Path, note: Path, schema: Schema) -> dict[str, Any] | None:
    """Return the note of an intermediate table, or None where either is not there as it was written."""
    return recall(note, schema) if is_intact(path) else None


def write_predictions(
    bench: Workbench, contexts: list[Context], columns: dict[str, np.ndarray | pa.Array], folder: Path
) -> None:
    """Write the `predictions` table of some contexts; columns that the kind of probe does not have become null."""
    rows = sum(len(c.response) for c in contexts)
    ordered = sorted(contexts, key=lambda c: c.context_id)
    lengths = [len(c.response) for c in ordered]
    whole = {name: pa.nulls(rows, pa.float32()) for name in PREDICTIONS.schema.names} | {
        "probe_id": [bench.probe_id] * rows,
        "loss": [bench.settings.loss] * rows,
        "context_id": np.repeat([c.context_id for c in ordered], lengths),
        "position": np.concatenate([np.arange(n) for n in lengths]),
        "prompt_id": pa.array(np.repeat([c.prompt_id for c in ordered], lengths).tolist()),
        "split": pa.array(np.repeat([c.split for c in ordered], lengths).tolist()),
    }
    write_table(PREDICTIONS.build(whole | columns), folder)


def _state(shrink: float) -> str:
    return f"step-{round(1 / shrink)}"


def _assemble(bench: Workbench, predicted: np.ndarray, fix: pa.Table) -> dict[str, Any]:
    before, again = (bench.forward_kl(state) for state in ("theta0", "relaid"))
    gains = {shrink: before - bench.forward_kl(_state(shrink)) for shrink in SHRINKS}
    columns = {"fix_inner": fix["loss"], "predicted_gain": predicted}
    columns |= {f"gain_at_{round(1 / shrink)}": gain for shrink, gain in gains.items()}
    write_predictions(bench, bench.bank, columns, bench.run / "predictions" / bench.probe_id)
    return {
        "noise_floor": noise_floor(before, again),
        "mean_predicted_gain": float(predicted.mean(dtype=np.float64)),
        "mean_gain": {f"1/{round(1 / s)}": float(gain.mean(dtype=np.float64)) for s, gain in gains.items()},
        "r2": {f"1/{round(1 / s)}": explained(gain, s * predicted) for s, gain in gains.items()},
    }
