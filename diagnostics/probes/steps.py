"""What kinds of one update of the whole student share: placebos of its size, and the bank rescored after each.

Every state of the weights is rescored into shards; the `gains` tables are assembled from these at the end.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from teachdiag.artefacts import GAINS
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.probes.gains import gain_columns
from teachdiag.diagnostics.probes.ladder import climb, ladder_results
from teachdiag.diagnostics.probes.measurement import Measurement
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup, noise_floor, rows_of
from teachdiag.diagnostics.probes.shuffles import refuse_unshufflable, shuffle_teacher
from teachdiag.diagnostics.probes.teacher_states import TeacherStates
from teachdiag.diagnostics.probes.theta0 import inner, random_direction
from teachdiag.diagnostics.probes.updates import Step, optimize, step_objective
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.processes.group import processes
from teachdiag.errors import ContextError
from teachdiag.notes import fields_schema, recall, write_note
from teachdiag.seeds import derive_seed
from teachdiag.settings import ProbeSettings
from teachdiag.tables import refuse_strays, shard_paths, write_parquet

NOTHING, TEACHER, RANDOM = "theta0", "shuffled_teacher", "random_direction"  # placebos
_STEP = fields_schema(Step) | {"processes": int}
_BEFORE = "before"  # the state, theta0 in the layout of all others, against which these are measured
_EXACT = "before-float32"  # that of a half-precision model, in float32
_CANDIDATES = ("student_topk_ids", "student_topk_logp", "student_logp")  # of the student after the real update


class Update(NamedTuple):
    """One draw of one update. The real one comes first in every list of them."""

    name: str
    draw: int = 0

    @property
    def state(self) -> str:
        """Folder of its shards."""
        return f"{self.name}-{self.draw}"


class StepMeasurement(Measurement):
    """One update of the student, and placebos of its length."""

    @property
    def update(self) -> str:
        """Name of the update that the probe is about."""
        return "one_step" if self.settings.steps == 1 else "multi_step"

    @property
    def placebos(self) -> tuple[str, ...]:
        """Names of the placebos."""
        return (NOTHING, TEACHER, RANDOM)

    def take(self, setup: ProbeSetup) -> Step:
        """Move the student from theta0 by the update that the probe is about."""
        return take_steps(setup, setup.update, setup.teacher)

    def take_placebo(self, setup: ProbeSetup, update: Update) -> Step:
        """Move the student from theta0 by one draw of a placebo."""
        if update.name == RANDOM:
            direction = random_direction(setup.student, derive_seed(self.settings.seed, RANDOM, update.draw))
            setup.theta0.displace(direction, 1.0)
            return Step(0.0, 0.0, 0, inner(direction, direction) ** 0.5)
        return take_steps(setup, setup.update, shuffled_teacher(setup, update.draw))

    def folders(self, probe_id: str) -> tuple[str, ...]:
        """Return a folder of gains for the update, and one for each placebo."""
        return tuple(f"gains/{self._update_id(probe_id, name)}" for name in (self.update, *self.placebos))

    def check(self, run: Path, bank: list[Context], update: list[Context]) -> None:
        """Refuse an update batch among which the placebos cannot be shuffled.

        Raises:
            EstimationError: one prompt holds more than half of it.
        """
        if TEACHER in self.placebos:
            refuse_unshufflable(update)

    def measure(self, setup: ProbeSetup) -> dict[str, Any]:
        """Take every update, rescore the bank after it, and write the gains; return the probe's results."""
        real = Update(self.update)
        placebos = [Update(name, draw) for name in self.placebos for draw in range(self.settings.placebo_draws)]
        half = setup.student.half
        setup.rescore_shards(_BEFORE, setup.batched, "theta0")
        compared = on_first(setup.compare_with_capture)(pa.concat_tables(setup.shards(_BEFORE)))
        setup.student.half = None  # the noise of a half-precision model shows against float32
        if half is not None and self.settings.laddered:
            setup.rescore_shards(_EXACT, setup.batched, "theta0, float32")
        for update in placebos:
            if update.name == NOTHING:
                setup.rescore_shards(update.state, setup.relaid(update.draw), f"theta0, layout {update.draw + 1}")
        setup.student.half = half
        steps = {update: Step(0.0, 0.0, 0, 0.0) for update in placebos if update.name == NOTHING}
        for update in (real, *(p for p in placebos if p.name != NOTHING)):
            steps[update] = self._take_and_rescore(setup, update, steps.get(real))
        return compared | on_first(self._assemble)(setup, real, placebos, steps)

    def _update_id(self, probe_id: str, update: str) -> str:
        return probe_id if update == self.update else f"{probe_id}.{update}"

    def _take_and_rescore(self, setup: ProbeSetup, update: Update, real: Step | None) -> Step:
        """Take an update and rescore the bank, or read what an earlier process did. `real` is None for the real one."""
        note = setup.scratch / update.state / "step.json"
        facts = on_first(recall)(note, _STEP)
        count = facts.pop("processes", None) if facts else None
        if facts and on_first(setup.unscored)(update.state) == []:
            return Step(**facts)
        if count != processes().num_processes:  # the step's last digits hang on their number
            on_first(shutil.rmtree)(note.parent, ignore_errors=True)
        step = self.take(setup) if real is None else self.take_placebo(setup, update)
        try:
            if real is not None:
                setup.theta0.stretch(real.update_norm / step.update_norm if step.update_norm else 1.0)
                step = replace(step, update_norm=setup.theta0.distance())
            elif self.settings.laddered:
                share = climb(setup, _EXACT if setup.student.half else _BEFORE, Update(NOTHING).state, update.state)
                step = replace(
                    step, share=share, update_norm=setup.theta0.distance() if share < 1 else step.update_norm
                )
            facts = asdict(step) | {"processes": processes().num_processes}
            on_first(write_note)(facts, note)
            setup.rescore_shards(
                update.state,
                setup.batched,
                f"{update.name} {update.draw + 1}" if real else update.name,
                listed=real is None,
            )
        except ContextError as error:
            raise ContextError(f"after the update {update.name}: {error}, or a smaller --learning-rate") from error
        setup.theta0.restore()
        setup.theta0.verify()
        return step

    def _assemble(
        self, setup: ProbeSetup, real: Update, placebos: Sequence[Update], steps: dict[Update, Step]
    ) -> dict[str, Any]:
        """Write the `gains` table of the real update and of each placebo, and summarise them."""
        before, again = (setup.forward_kl(state) for state in (_BEFORE, Update(NOTHING).state))
        floor = noise_floor(before, again)
        updates: dict[str, Any] = {}
        ladder = {"ladder": ladder_results(setup, steps[real].share)} if self.settings.laddered else {}
        for update in (real, *placebos):
            facts = self._write_gains(setup, update, update == real, floor) | asdict(steps[update])
            updates.setdefault(update.name, []).append(facts)
        return {
            "noise_floor": floor,
            "updates": {name: draws[0] if len(draws) == 1 else {"draws": draws} for name, draws in updates.items()},
        } | ladder

    def _write_gains(self, setup: ProbeSetup, update: Update, real: bool, floor: float) -> dict[str, float]:
        settings, update_id = self.settings, self._update_id(setup.probe_id, update.name)
        number, folder = len(setup.shards(_BEFORE)), setup.run / "gains" / update_id
        paths = shard_paths(folder, number * (1 if real else self.settings.placebo_draws))
        refuse_strays(folder, paths)
        states = (setup.shards(state) for state in (_BEFORE, Update(NOTHING).state, update.state))
        prompts = {c.context_id: c.prompt_id for c in setup.bank}
        gains = []
        for index, (before, again, after) in enumerate(zip(*states, strict=True)):
            noise = np.abs(before["forward_kl"].to_numpy() - again["forward_kl"].to_numpy())
            rows = before.num_rows
            columns = gain_columns(before, after, noise, floor) | {
                "probe_id": [update_id] * rows,
                "update": [update.name] * rows,
                "draw": np.full(rows, update.draw),
                "placebo_of": [None if real else setup.probe_id] * rows,
                "update_on": [settings.update_on] * rows,
                "loss": [settings.loss] * rows,
                "context_id": before["context_id"],
                "position": before["position"],
                "prompt_id": [prompts[i] for i in before["context_id"].to_pylist()],
            }
            columns |= {f"{name}_after": after[name] if real else [None] * rows for name in _CANDIDATES}
            write_parquet(GAINS.build(columns), paths[update.draw * number + index])
            gains.append(columns["gain"])
        gain = np.concatenate(gains)
        return {"mean_gain": float(gain.mean(dtype=np.float64)), "share_gaining": float((gain > 0).mean())}


def shuffled_teacher(setup: ProbeSetup, draw: int) -> TeacherStates:
    """Return the teacher's states as a draw of the placebo deals them among the positions of the update batch."""
    entropy = rows_of(setup.run, setup.update, ["teacher_entropy"])["teacher_entropy"].to_numpy()
    return shuffle_teacher(setup.teacher, setup.update, entropy, derive_seed(setup.settings.seed, TEACHER, draw))


def take_steps(setup: ProbeSetup, contexts: Sequence[Context], teacher: TeacherStates) -> Step:
    """Move the student by the probe's steps on the loss of some contexts, under a teacher's states."""
    objectives = [step_objective(batch, teacher, setup.settings) for batch in step_batches(setup.settings, contexts)]
    return optimize(setup.student, objectives, setup.settings, setup.theta0, setup.reporter)


def step_batches(settings: ProbeSettings, contexts: Sequence[Context]) -> list[list[Context]]:
    """The contexts of each step: the next `update_contexts` of them, from the start again when they are used up."""
    size = settings.update_contexts or len(contexts)
    return [[contexts[(step * size + i) % len(contexts)] for i in range(size)] for step in range(settings.steps)]
