"""Kind predicted: the first-order gain of every bank position, and what the step does when it is really taken.

Two directions are differentiated along: that of a whole one-step update, which predicts each position's gain; and the
gradient of L_fix, which gives <grad L_fix, grad l_t> for the loss term of every position at once (paper Eq. 2). Where
the run was graded, a third is the gradient of L_success over the update batch, whose prompts are not the bank's, and a
fourth the same after grades were dealt to other rollouts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from teachdiag.artefacts import PREDICTIONS
from teachdiag.diagnostics.models.alignment import Context, in_shards
from teachdiag.diagnostics.models.sources import ModelSource
from teachdiag.diagnostics.probes.derivatives import GROUP, Along, Term, choose_step, derivatives
from teachdiag.diagnostics.probes.gains import explained
from teachdiag.diagnostics.probes.measurement import Measurement
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup, noise_floor
from teachdiag.diagnostics.probes.success import graded_rollouts, grading_digest, success_loss
from teachdiag.diagnostics.probes.teacher_states import TeacherStates, compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Direction, inner
from teachdiag.diagnostics.probes.updates import Objective, gradient, optimize, step_objective
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.notes import Schema, read_note, recall, write_note
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed
from teachdiag.settings import SHRINKS, CaptureSettings
from teachdiag.tables import is_intact, read_parquet, write_shard, write_table

_ONE_SIDED = 1 / 16  # of the central step: its error falls with the step alone, not with its square


class Predicted(Measurement):
    """First-order gains of every position; the update batch is that of a one_step probe, contexts of L_fix included."""

    fix_apart = False

    def inputs(self, run: Path, capture: CaptureSettings, student: ModelSource, reporter: Reporter) -> dict[str, Any]:
        """Return the digest of the grades that L_success is made of."""
        return grading_digest(run)

    def measure(self, setup: ProbeSetup) -> dict[str, Any]:
        """Predict every bank position's gain, take the step at several lengths, and write the `predictions` table."""
        setup.student.half = None  # in half precision, rounding exceeds a difference quotient
        direction: list[Direction] = []  # made at most once, and only if something is still to be computed

        def step() -> Direction:
            if not direction:
                objective = step_objective(setup.update, setup.teacher, setup.settings)
                optimize(setup.student, [objective], setup.settings, setup.theta0, setup.reporter)
                direction.append(setup.theta0.displacement())
                setup.theta0.restore()
            return direction[0]

        kl = {"kl": Term(position_loss("forward_kl", {}), setup.teacher)}
        setup.rescore_shards("theta0", setup.batched, "theta0")
        compared = on_first(setup.compare_with_capture)(pa.concat_tables(setup.shards("theta0")))
        slopes, slope_facts = slopes_along(setup, "step", step, setup.bank, kl)
        setup.rescore_shards("relaid", setup.relaid(0), "theta0, another layout")
        for shrink in SHRINKS:
            state = _state(shrink)
            if on_first(setup.unscored)(state):
                setup.theta0.displace(step(), shrink)
                setup.rescore_shards(state, setup.batched, f"the step / {round(1 / shrink)}")
                setup.theta0.restore()
        direction.clear()  # a copy of the model less, before the gradient of L_fix needs one
        fix, fix_facts = inner_products(setup, "fix", setup.mean_kl(setup.fix), setup.bank)
        success, success_facts = _success(setup)
        setup.theta0.verify()
        measured = on_first(_assemble)(setup, -slopes["kl"].to_numpy(), {"fix_inner": fix["loss"]} | success)
        return compared | measured | {"step": slope_facts, "fix": fix_facts} | success_facts


def _success(setup: ProbeSetup) -> tuple[dict[str, pa.Array], dict[str, Any]]:
    """Return <grad L_success, grad l_t> of every bank position, as columns, and facts; nothing where there is none."""
    rollouts = on_first(graded_rollouts)(setup.run, setup.update)
    if rollouts is None:
        return {}, {}
    columns, facts = {}, rollouts.facts()
    shuffled = rollouts.shuffled(derive_seed(setup.settings.seed, "grades"))
    for name, graded in {"success_inner": rollouts, "success_inner_shuffled": shuffled}.items():
        loss = success_loss(setup, setup.update, graded)
        if loss is None:
            setup.reporter.say(f"{name} is left out: the update batch's rollouts that it compares all have one grade")
        else:
            inner, facts[name] = inner_products(setup, name, loss, setup.bank)
            columns[name] = inner["loss"]
    return columns, {"success": facts}


def inner_products(
    setup: ProbeSetup, name: str, held_out: Objective, contexts: list[Context]
) -> tuple[pa.Table, dict[str, float | None]]:
    """Return <grad L, grad l_t> for the loss term of every position of some contexts, column `loss`, and how.

    L is the objective; `name` is that of the intermediate result.
    """
    loss = {"loss": Term(position_loss(setup.settings.loss, setup.settings.as_dict()), setup.teacher)}

    def along() -> Direction:
        return gradient(setup.student, held_out, setup.settings, setup.reporter)

    return slopes_along(setup, name, along, contexts, loss)


def slopes_along(
    setup: ProbeSetup,
    name: str,
    direction: Callable[[], Direction],
    contexts: list[Context],
    terms: dict[str, Term],
    length: float | None = None,
) -> tuple[pa.Table, dict[str, float | None]]:
    """Return derivatives along a direction at every position of some contexts, or read those that are there.

    Args:
        setup: the student at theta0, where it is again afterwards.
        name: of the intermediate result.
        direction: makes the direction, where it is needed.
        contexts: whose positions.
        terms: what is differentiated.
        length: Euclidean length of the differences' step, where it is known already; else it is chosen.

    Returns:
        The table of `derivatives`; and `difference_step`, the step of the differences in units of the direction,
        `difference_length`, its Euclidean length, and `change_when_halved`, by how much the derivatives then change,
        relative to themselves, if differences are central: null where that was not tried. With one-sided differences
        the first two are a sixteenth of those for which it was. All are null for the exact method.
    """
    path, note = setup.scratch / f"{name}.parquet", setup.scratch / f"{name}.json"
    schema = dict.fromkeys(("difference_step", "difference_length", "change_when_halved"), float | None)
    if on_first(kept)(path, note, schema) is None:
        exact = Along(setup.student, setup.theta0, direction(), None)
        made = dict.fromkeys(schema)
        if setup.settings.method != "jvp":
            made = _difference(setup, exact, contexts, next(iter(terms.values())), length)
        start = _start(setup, contexts) if setup.settings.method == "one-sided" else None
        along = replace(exact, step=made["difference_step"], start=start)
        on_first(keep)(derivatives(along, contexts, terms, setup.settings, setup.reporter), path, made, note)
    facts: dict[str, float | None] = read_note(note, schema, "start the probe again")
    return read_parquet(path), facts


def _difference(
    setup: ProbeSetup, exact: Along, contexts: list[Context], term: Term, length: float | None
) -> dict[str, float | None]:
    """Return the facts of `slopes_along` on differences whose step has a length, or is to be chosen."""
    norm = math.sqrt(inner(exact.direction, exact.direction))
    if length is not None and norm > 0:
        return {"difference_step": length / norm, "difference_length": length, "change_when_halved": None}
    step, change = choose_step(exact, contexts, term, setup.settings)
    step *= _ONE_SIDED if setup.settings.method == "one-sided" else 1.0
    return {"difference_step": step, "difference_length": step * norm, "change_when_halved": change}


def _start(setup: ProbeSetup, contexts: list[Context]) -> TeacherStates:
    """The student's states at theta0, in the very batches in which it moves, so that rounding cancels."""
    groups, file = list(in_shards(contexts, GROUP)), setup.scratch / "student.npy"
    tokens = setup.settings.batch_tokens
    return compute_teacher_states(setup.student, groups, tokens, file, setup.reporter, "student")


def keep(table: pa.Table, path: Path, facts: Mapping[str, Any], note: Path) -> None:
    """Write an intermediate table, and then the note that vouches for it."""
    note.unlink(missing_ok=True)
    write_shard(table, path)
    write_note(facts, note)


def kept(path: Path, note: Path, schema: Schema) -> dict[str, Any] | None:
    """Return the note of an intermediate table, or None where either is not there as it was written."""
    return recall(note, schema) if is_intact(path) else None


def write_predictions(
    setup: ProbeSetup, contexts: list[Context], columns: dict[str, np.ndarray | pa.Array], folder: Path
) -> None:
    """Write the `predictions` table of some contexts; columns that the kind of probe does not have become null."""
    ordered = sorted(contexts, key=lambda c: c.context_id)
    lengths = [c.rows for c in ordered]
    rows = sum(lengths)
    whole = {name: pa.nulls(rows, pa.float32()) for name in PREDICTIONS.schema.names} | {
        "probe_id": [setup.probe_id] * rows,
        "loss": [setup.settings.loss] * rows,
        "context_id": np.repeat([c.context_id for c in ordered], lengths),
        "position": np.concatenate([c.positions for c in ordered]),
        "prompt_id": pa.array(np.repeat([c.prompt_id for c in ordered], lengths).tolist()),
        "split": pa.array(np.repeat([c.split for c in ordered], lengths).tolist()),
    }
    write_table(PREDICTIONS.build(whole | columns), folder)


def _state(shrink: float) -> str:
    return f"step-{round(1 / shrink)}"


def _assemble(setup: ProbeSetup, predicted: np.ndarray, inner: dict[str, pa.Array]) -> dict[str, Any]:
    before, again = (setup.forward_kl(state) for state in ("theta0", "relaid"))
    gains = {shrink: before - setup.forward_kl(_state(shrink)) for shrink in SHRINKS}
    columns = inner | {"predicted_gain": predicted}
    columns |= {f"gain_at_{round(1 / shrink)}": gain for shrink, gain in gains.items()}
    write_predictions(setup, setup.bank, columns, setup.run / "predictions" / setup.probe_id)
    return {
        "noise_floor": noise_floor(before, again),
        "mean_predicted_gain": float(predicted.mean(dtype=np.float64)),
        "mean_gain": {f"1/{round(1 / s)}": float(gain.mean(dtype=np.float64)) for s, gain in gains.items()},
        "r2": {f"1/{round(1 / s)}": explained(gain, s * predicted) for s, gain in gains.items()},
    }
