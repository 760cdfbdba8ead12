"""Kinds one_step, placebo and checkpoint: one update, placebos of its size, and the bank rescored after each.

Every state of the weights is rescored into shards; the `gains` tables are assembled from these at the end.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from teachdiag.artefacts import GAINS
from teachdiag.diagnostics.contexts.contexts_table import ROLLOUT_CONTEXTS
from teachdiag.diagnostics.contexts.sampling import Rollout, check_prompts_fit, sample
from teachdiag.diagnostics.models.alignment import Context, Side, in_shards
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.sources import ModelSource
from teachdiag.diagnostics.models.weights import resolve_whole
from teachdiag.diagnostics.probes.gains import gain_columns
from teachdiag.diagnostics.probes.ladder import climb, ladder_results
from teachdiag.diagnostics.probes.shuffles import refuse_unshufflable, shuffle_rollouts, shuffle_teacher
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import inner, random_direction
from teachdiag.diagnostics.probes.updates import (
    Objective,
    Step,
    optimize,
    step_objective,
)
from teachdiag.diagnostics.probes.workbench import Workbench, noise_floor, rows_of
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.processes.group import processes
from teachdiag.diagnostics.processes.parameters import laid_out_like
from teachdiag.errors import ContextError, ModelError
from teachdiag.notes import fields_schema, recall, write_note
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed
from teachdiag.settings import CaptureSettings, ProbeSettings
from teachdiag.tables import refuse_strays, shard_paths, write_parquet

NOTHING, ROLLOUTS = "theta0", "shuffled_rollouts"
_RANDOM = "random_direction"
_STEP = fields_schema(Step) | {"processes": int}
_BEFORE = "before"  # the state, theta0 in the layout of all others, against which these are measured
_EXACT = "before-float32"  # that of a half-precision model, in float32


class Update(NamedTuple):
    """One draw of one update. The real one comes first in every list of them."""

    name: str
    draw: int = 0

    @property
    def state(self) -> str:
        """Folder of its shards."""
        return f"{self.name}-{self.draw}"


def real_update(settings: ProbeSettings) -> str:
    """Name of the update that the probe is about."""
    if settings.kind == "checkpoint":
        return "checkpoint"
    return "one_step" if settings.steps == 1 else "multi_step"


def placebo_names(settings: ProbeSettings) -> tuple[str, ...]:
    """Placebos of a kind of probe. A checkpoint, or fresh rollouts, cannot be shuffled after the fact.

    Shuffled rollouts still have their true teacher: the panel tells what they teach, the verdict on one step does not.
    """
    if settings.kind == "placebo":
        return (NOTHING, "shuffled_teacher", ROLLOUTS, _RANDOM)
    if settings.kind == "checkpoint" or settings.rollouts == "fresh":
        return (NOTHING, _RANDOM)
    return (NOTHING, "shuffled_teacher", _RANDOM)


def gains_folders(settings: ProbeSettings, probe_id: str) -> tuple[str, ...]:
    """Folders of the gains tables that the probe writes."""
    return tuple(f"gains/{_own_id(probe_id, settings, n)}" for n in (real_update(settings), *placebo_names(settings)))


def further_contexts(settings: ProbeSettings, update: list[Context], limit: int) -> list[Context]:
    """The rollouts of the shuffled-rollouts placebo, every draw of it, where the probe has that.

    Raises:
        EstimationError: there are too few contexts to shuffle among.
    """
    if ROLLOUTS not in placebo_names(settings):
        return []
    seeds = [derive_seed(settings.seed, ROLLOUTS, draw) for draw in range(_draws(settings))]
    firsts = [-1 - draw * len(update) for draw in range(len(seeds))]
    return [c for first, seed in zip(firsts, seeds, strict=True) for c in shuffle_rollouts(update, limit, first, seed)]


def check_steps(run: Path, settings: ProbeSettings, bank: list[Context], update: list[Context]) -> None:
    """Refuse an update batch among which the placebos cannot be shuffled.

    Raises:
        EstimationError: one prompt holds more than half of it.
    """
    if "shuffled_teacher" in placebo_names(settings):
        refuse_unshufflable(update)


def student_after(settings: ProbeSettings, capture: CaptureSettings, reporter: Reporter) -> ModelSource:
    """Find the student that was trained elsewhere.

    Raises:
        ModelError: it cannot be found, or its weights are not those of its architecture.
    """
    return resolve_whole(settings.student_after, "main", (), reporter, capture.trust_remote_code)


def measure_steps(bench: Workbench) -> dict[str, Any]:
    """Take every update, rescore the bank after it, and write the gains; return the probe's results."""
    settings = bench.settings
    real = Update(real_update(settings))
    placebos = [Update(name, draw) for name in placebo_names(settings) for draw in range(_draws(settings))]
    half = bench.student.half
    bench.rescore_shards(_BEFORE, bench.batched, "theta0")
    compared = on_first(bench.compare_with_capture)(pa.concat_tables(bench.shards(_BEFORE)))
    bench.student.half = None  # the noise of a half-precision model shows against float32
    if half is not None and settings.laddered:
        bench.rescore_shards(_EXACT, bench.batched, "theta0, float32")
    for update in placebos:
        if update.name == NOTHING:
            bench.rescore_shards(update.state, bench.relaid(update.draw), f"theta0, layout {update.draw + 1}")
    bench.student.half = half
    steps = {update: Step(0.0, 0.0, 0, 0.0) for update in placebos if update.name == NOTHING}
    for update in (real, *(p for p in placebos if p.name != NOTHING)):
        steps[update] = _take_and_rescore(bench, update, steps.get(real))
    return compared | on_first(_assemble)(bench, real, placebos, steps)


def _draws(settings: ProbeSettings) -> int:
    return settings.draws if settings.kind == "placebo" else 1


def _own_id(probe_id: str, settings: ProbeSettings, name: str) -> str:
    return probe_id if name == real_update(settings) else f"{probe_id}.{name}"


def _take_and_rescore(bench: Workbench, update: Update, real: Step | None) -> Step:
    """Take an update and rescore the bank, or read what an earlier process did. `real` is None for the real one."""
    note = bench.scratch / update.state / "step.json"
    facts = on_first(recall)(note, _STEP)
    count = facts.pop("processes", None) if facts else None
    if facts and on_first(bench.unscored)(update.state) == []:
        return Step(**facts)
    if count != processes().num_processes:  # the step's last digits hang on their number
        on_first(shutil.rmtree)(note.parent, ignore_errors=True)
    step = _take(bench, update)
    try:
        if real is not None:
            bench.theta0.stretch(real.update_norm / step.update_norm if step.update_norm else 1.0)
            step = replace(step, update_norm=bench.theta0.distance())
        elif bench.settings.laddered:
            share = climb(bench, _EXACT if bench.student.half else _BEFORE, Update(NOTHING).state, update.state)
            step = replace(step, share=share, update_norm=bench.theta0.distance() if share < 1 else step.update_norm)
        facts = asdict(step) | {"processes": processes().num_processes}
        on_first(write_note)(facts, note)
        bench.rescore_shards(update.state, bench.batched, f"{update.name} {update.draw + 1}" if real else update.name)
    except ContextError as error:
        raise ContextError(f"after the update {update.name}: {error}, or a smaller --learning-rate") from error
    bench.theta0.restore()
    bench.theta0.verify()
    return step


def _take(bench: Workbench, update: Update) -> Step:
    """Move the student from theta0 by an update."""
    if update.name == "checkpoint":
        return _take_checkpoint(bench)
    seed = derive_seed(bench.settings.seed, update.name, update.draw)
    if update.name == _RANDOM:
        direction = random_direction(bench.student, seed)
        bench.theta0.displace(direction, 1.0)
        return Step(0.0, 0.0, 0, inner(direction, direction) ** 0.5)
    if bench.settings.rollouts == "fresh":
        return _take_fresh_steps(bench)
    contexts, teacher = bench.update, bench.teacher
    if update.name == ROLLOUTS:
        size = len(bench.update)
        contexts = bench.further[update.draw * size : (update.draw + 1) * size]
    elif update.name == "shuffled_teacher":
        entropy = rows_of(bench.run, bench.update, ["teacher_entropy"])["teacher_entropy"].to_numpy()
        teacher = shuffle_teacher(bench.teacher, bench.update, entropy, seed)
    objectives = [step_objective(batch, teacher, bench.settings) for batch in _step_batches(bench.settings, contexts)]
    return optimize(bench.student, objectives, bench.settings, bench.theta0, bench.reporter)


def _step_batches(settings: ProbeSettings, contexts: Sequence[Context]) -> list[list[Context]]:
    """The contexts of each step: the next `update_contexts` of them, from the start again when they are used up."""
    size = settings.update_contexts or len(contexts)
    return [[contexts[(step * size + i) % len(contexts)] for i in range(size)] for step in range(settings.steps)]


def _take_fresh_steps(bench: Workbench) -> Step:
    """Take steps on responses that are sampled, before each, from the student as it is then."""
    teacher = bench.teacher_model
    assert teacher is not None, "the teacher is kept where rollouts are fresh"
    sides: tuple[tuple[LanguageModel, Side], ...] = ((bench.student, "student"), (teacher, "teacher"))
    for model, side in sides:
        prompts = [(c.prompt_id, c.prompt(side)) for c in bench.update]
        check_prompts_fit(prompts, model, bench.capture.max_new_tokens)
    batches = _step_batches(bench.settings, bench.update)
    objectives = (_fresh_objective(bench, teacher, batch, number) for number, batch in enumerate(batches))
    return optimize(bench.student, objectives, bench.settings, bench.theta0, bench.reporter)


def _fresh_objective(bench: Workbench, teacher: LanguageModel, batch: Sequence[Context], number: int) -> Objective:
    sampled = on_first(_fresh_rollouts)(bench, batch, number)
    contexts = [
        replace(c, context_id=place, response=rollout.token_ids[: bench.capture.positions])
        for place, (c, rollout) in enumerate(zip(batch, sampled, strict=True))
    ]
    file = bench.scratch / "fresh.npy"
    file.unlink(missing_ok=True)
    states = compute_teacher_states(teacher, [contexts], bench.settings.batch_tokens, file, Reporter(quiet=True))
    return step_objective(contexts, states, bench.settings)


def _fresh_rollouts(bench: Workbench, batch: Sequence[Context], number: int) -> list[Rollout]:
    sampled: list[Rollout] = []
    for places in in_shards(range(len(batch)), ROLLOUT_CONTEXTS):
        seeds = [derive_seed(bench.settings.seed, "fresh", number, place) for place in places]
        prompts = [batch[place].student_prompt for place in places]
        sampled += sample(bench.student, prompts, seeds, bench.capture.sampling)
    return sampled


@torch.no_grad()
def _take_checkpoint(bench: Workbench) -> Step:
    """Give the student the weights of a student that was trained elsewhere.

    Raises:
        ModelError: it has other parameters than the student.
    """
    path = bench.settings.student_after
    device = "cpu" if bench.student.sharded else str(bench.student.device)
    trained = load(student_after(bench.settings, bench.capture, bench.reporter), "float32", device)
    theirs = dict(trained.parameters())
    ours = dict(bench.student.parameters())
    if theirs.keys() != ours.keys() or any(ours[name].shape != p.shape for name, p in theirs.items()):
        raise ModelError(f"--student-after {path!r} has other parameters than the student {bench.student.name!r}")
    bench.theta0.leave(laid_out_like(own, theirs[name]) for name, own in ours.items())
    return Step(0.0, 0.0, 0, bench.theta0.distance())


def _assemble(bench: Workbench, real: Update, placebos: Sequence[Update], steps: dict[Update, Step]) -> dict[str, Any]:
    """Write the `gains` table of the real update and of each placebo, and summarise them."""
    before, again = (bench.forward_kl(state) for state in (_BEFORE, Update(NOTHING).state))
    floor = noise_floor(before, again)
    updates: dict[str, Any] = {}
    ladder = {"ladder": ladder_results(bench, steps[real].share)} if bench.settings.laddered else {}
    for update in (real, *placebos):
        facts = _write_gains(bench, update, update == real, floor) | asdict(steps[update])
        updates.setdefault(update.name, []).append(facts)
    return {
        "noise_floor": floor,
        "updates": {name: found[0] if len(found) == 1 else {"draws": found} for name, found in updates.items()},
    } | ladder


def _write_gains(bench: Workbench, update: Update, real: bool, floor: float) -> dict[str, float]:
    settings, own_id = bench.settings, _own_id(bench.probe_id, bench.settings, update.name)
    number, folder = len(bench.shards(_BEFORE)), bench.run / "gains" / own_id
    paths = shard_paths(folder, number * (1 if real else _draws(settings)))
    refuse_strays(folder, paths)
    states = (bench.shards(state) for state in (_BEFORE, Update(NOTHING).state, update.state))
    prompts = {c.context_id: c.prompt_id for c in bench.bank}
    gains = []
    for index, (before, again, after) in enumerate(zip(*states, strict=True)):
        noise = np.abs(before["forward_kl"].to_numpy() - again["forward_kl"].to_numpy())
        rows = before.num_rows
        columns = gain_columns(before, after, noise, floor) | {
            "probe_id": [own_id] * rows,
            "update": [update.name] * rows,
            "draw": np.full(rows, update.draw),
            "placebo_of": [None if real else bench.probe_id] * rows,
            "update_on": [settings.update_on] * rows,
            "loss": [settings.loss] * rows,
            "context_id": before["context_id"],
            "position": before["position"],
            "prompt_id": [prompts[i] for i in before["context_id"].to_pylist()],
        }
        write_parquet(GAINS.build(columns), paths[update.draw * number + index])
        gains.append(columns["gain"])
    gain = np.concatenate(gains)
    return {"mean_gain": float(gain.mean(dtype=np.float64)), "share_gaining": float((gain > 0).mean())}
