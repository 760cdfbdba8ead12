"""Stage probe: one update of the student, placebos of the same size, and the bank rescored after each.

Every state of the weights is rescored into shards under `scratch/`, so that a killed probe continues; the `gains`
tables are assembled from these at the end.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from teachdiag.artefacts import GAINS, POSITIONS
from teachdiag.diagnostics.alignment import Batch, Context, batched, in_shards, relaid
from teachdiag.diagnostics.capture import load_pair, read_contexts, resolve_pair
from teachdiag.diagnostics.gains import gain_columns
from teachdiag.diagnostics.models import LanguageModel, ModelSource, machine_facts, pick_device
from teachdiag.diagnostics.scoring import rescore
from teachdiag.diagnostics.teacher_states import (
    TeacherStates,
    compute_teacher_states,
    refuse_unshufflable,
    shuffled_across_contexts,
)
from teachdiag.diagnostics.updates import Snapshot, Step, optimizer_step, random_direction
from teachdiag.errors import ContextError, RunError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, writing
from teachdiag.seeds import derive_seed
from teachdiag.settings import CaptureSettings, ProbeSettings
from teachdiag.tables import shard_path, write_parquet, write_text

REAL, PLACEBOS = "one_step", ("theta0", "shuffled_teacher", "random_direction")
_RELAID = "theta0_relaid"  # theta0 again, in another batch layout: the noise
_KEY = [("context_id", "ascending"), ("position", "ascending")]


@dataclass(frozen=True)
class _Bench:
    """Everything one probe works with: where it writes, the models, and the two sets of contexts."""

    scratch: Path
    settings: ProbeSettings
    shard_contexts: int
    student: LanguageModel
    teacher: TeacherStates
    theta0: Snapshot
    bank: list[Context]
    update: list[Context]
    stand_in: np.ndarray  # the teacher row that replaces each in the shuffled-teacher placebo
    reporter: Reporter


def run_probe(run: Path, settings: ProbeSettings, reporter: Reporter) -> dict[str, Any]:
    """Measure one optimizer step and its placebos on the bank of a run.

    Returns:
        The probe's summary, which is also the `results` of `probes/<probe_id>.json`.

    Raises:
        InputError: anything that the user can mend; nothing already computed is lost.
    """
    captured = Stage(run, "capture").require()
    capture = _capture_settings(run, captured)
    _refuse_biased_loss(settings, capture, reporter)
    probe_id = settings.name or _default_name(settings)
    tables = tuple(f"gains/{_own_id(probe_id, update)}" for update in (REAL, *PLACEBOS))
    stage = Stage(run, f"probes/{probe_id}", tables, scratch=f"scratch/{probe_id}")
    with writing(run):
        sources = resolve_pair(capture, reporter)
        _refuse_other_models(run, captured, sources)
        device = pick_device(settings.device)
        if stage.claim(settings.as_dict(), captured["inputs"] | captured["tables"], machine_facts(device)):
            reporter.say(f"{run}: probe {probe_id} is complete")
            return dict(stage.require()["results"])
        with stage.timed():
            bench = _set_up(stage, settings, capture, sources, device, reporter)
            steps = _rescore_every_state(bench)
            results = {"probe_id": probe_id} | _assemble(run, probe_id, bench, steps)
            stage.complete(results)
    return results


def _capture_settings(run: Path, captured: dict[str, Any]) -> CaptureSettings:
    try:
        return CaptureSettings(**captured["settings"])
    except TypeError as error:
        raise RunError(f"{run} was captured by another version of teachdiag ({error}): capture it again") from error


def _refuse_other_models(run: Path, captured: dict[str, Any], sources: tuple[ModelSource, ModelSource]) -> None:
    """Refuse to probe models that are not, byte for byte, those whose predictors the run holds."""
    for side, source in zip(("student", "teacher"), sources, strict=True):
        before = captured["inputs"][side]["digest"]
        if before != source.digest:
            raise RunError(
                f"{run} was captured with another {side}: {source.name} was {before}, now {source.digest}: restore "
                "those weights, or capture again"
            )


def _refuse_biased_loss(settings: ProbeSettings, capture: CaptureSettings, reporter: Reporter) -> None:
    """The sampled loss estimates the reverse KL only from tokens that follow the student's own distribution."""
    if settings.loss != "sampled_reverse_kl":
        return
    if capture.contexts:
        reporter.say("--loss sampled_reverse_kl is unbiased only if the imported rollouts were sampled from theta0")
    elif (capture.temperature, capture.top_p, capture.top_k) != (1.0, 1.0, 0):
        raise RunError(
            "--loss sampled_reverse_kl is biased on rollouts sampled with temperature, top-p or top-k other than 1, 1 "
            "and 0: capture with these, or choose a full-vocabulary loss"
        )


def _default_name(settings: ProbeSettings) -> str:
    digest = hashlib.sha256(json.dumps(settings.as_dict(), sort_keys=True).encode()).hexdigest()
    return f"{REAL}-{settings.loss}-{settings.optimizer}-{digest[:6]}"


def _own_id(probe_id: str, update: str) -> str:
    return probe_id if update == REAL else f"{probe_id}.{update}"


def _set_up(
    stage: Stage,
    settings: ProbeSettings,
    capture: CaptureSettings,
    sources: tuple[ModelSource, ModelSource],
    device: str,
    reporter: Reporter,
) -> _Bench:
    """Load the pair, store the teacher's states of every context, and keep only its head."""
    contexts = list(read_contexts(stage.run, capture.positions))
    bank = [c for c in contexts if c.split == "bank"]
    update = _update_contexts(stage.run, settings, contexts)
    needed = list({c.context_id: c for c in bank + update}.values())
    pair = load_pair(sources, capture.dtype, device, reporter, master=True)
    scratch = stage.run / stage.scratch
    teacher = compute_teacher_states(pair.teacher, needed, settings.batch_tokens, scratch / "teacher.npy", reporter)
    return _Bench(
        scratch=scratch,
        settings=settings,
        shard_contexts=capture.shard_contexts,
        student=pair.student,
        teacher=teacher,
        theta0=Snapshot(pair.student),
        bank=bank,
        update=update,
        stand_in=shuffled_across_contexts(teacher, update, derive_seed(settings.seed, "shuffled_teacher")),
        reporter=reporter,
    )


def _update_contexts(run: Path, settings: ProbeSettings, contexts: Sequence[Context]) -> list[Context]:
    chosen = [c for c in contexts if c.split == settings.update_on]
    wanted = settings.update_contexts or len(chosen)
    if not chosen or wanted > len(chosen):
        raise RunError(
            f"{run} has {len(chosen)} contexts to update on ({settings.update_on}), --update-contexts asks for "
            f"{wanted or 'some'}: capture more --update-prompts, or use --update-on bank"
        )
    refuse_unshufflable(chosen[:wanted])
    return chosen[:wanted]


def _rescore_every_state(bench: _Bench) -> dict[str, Step]:
    """Rescore the bank at theta0, at theta0 in another layout, and after each update; return what each step did."""
    settings, half = bench.settings, bench.student.half
    _rescore_bank(bench, "theta0", lambda shard: batched(shard, settings.batch_tokens))
    bench.student.half = None  # the noise of a half-precision model shows against float32
    _rescore_bank(bench, _RELAID, lambda shard: relaid(shard, settings.batch_tokens, bench.student.limit))
    bench.student.half = half
    nothing = Step(loss=0.0, gradient_norm=0.0, update_norm=0.0, positions=0)
    steps = {"theta0": nothing}
    for name in (REAL, "shuffled_teacher", "random_direction"):
        steps[name] = _take_and_rescore(bench, name, steps)
    return steps


def _take_and_rescore(bench: _Bench, name: str, earlier: dict[str, Step]) -> Step:
    note = bench.scratch / name / "step.json"
    if note.exists() and _unscored(bench, name) == []:
        return Step(**json.loads(note.read_text()))
    step = _take(bench, name, earlier)
    write_text(json.dumps(asdict(step)), note)
    try:
        _rescore_bank(bench, name, lambda shard: batched(shard, bench.settings.batch_tokens))
    except ContextError as error:
        raise ContextError(f"after the update {name}: {error}, or a smaller --learning-rate") from error
    bench.theta0.restore()
    return step


def _take(bench: _Bench, name: str, earlier: dict[str, Step]) -> Step:
    """Move the student from theta0 by the named update."""
    settings, student, theta0 = bench.settings, bench.student, bench.theta0
    if name == "random_direction":
        random_direction(student, earlier[REAL].update_norm, derive_seed(settings.seed, name))
        return Step(loss=0.0, gradient_norm=0.0, update_norm=theta0.distance(), positions=0)
    stand_in = bench.stand_in if name == "shuffled_teacher" else None
    return optimizer_step(student, bench.update, bench.teacher, settings, theta0, bench.reporter, stand_in)


def _rescore_bank(bench: _Bench, state: str, layout: Callable[[Sequence[Context]], list[Batch]]) -> None:
    """Write forward and reverse KL of every bank position at the student's present weights, shard by shard."""
    missing = dict(_unscored(bench, state))
    with bench.reporter.bar(f"Rescoring: {state}", total=len(bench.bank)) as advance:
        for index, shard in enumerate(in_shards(bench.bank, bench.shard_contexts)):
            if index in missing:
                scored = [_rescored(bench, batch) for batch in layout(shard)]
                write_parquet(pa.concat_tables(scored).sort_by(_KEY), missing[index])
            advance(len(shard))


def _unscored(bench: _Bench, state: str) -> list[tuple[int, Path]]:
    shards = -(-len(bench.bank) // bench.shard_contexts)
    paths = [shard_path(bench.scratch / state, index) for index in range(shards)]
    return [(index, path) for index, path in enumerate(paths) if not path.exists()]


def _rescored(bench: _Bench, batch: Batch) -> pa.Table:
    taught = bench.teacher.at(bench.teacher.rows(batch), bench.student.device)
    columns = rescore(bench.student, batch, taught, bench.teacher.head, bench.settings.tile_positions)
    return pa.table({"context_id": batch.context_ids, "position": batch.positions} | columns)


def _assemble(run: Path, probe_id: str, bench: _Bench, steps: dict[str, Step]) -> dict[str, Any]:
    """Write the `gains` table of the real step and of each placebo, and summarise them."""
    whole = {state: pa.concat_tables(_shards(bench, state)) for state in ("theta0", _RELAID)}
    forward = {state: table["forward_kl"].to_numpy() for state, table in whole.items()}
    floor = float(np.quantile(np.abs(forward["theta0"] - forward[_RELAID]), 0.99))
    positions = POSITIONS.read(run / "positions", ["split", "forward_kl"])
    captured = positions["forward_kl"].to_numpy()[(positions["split"] == "bank").to_numpy()]
    updates = {
        name: _write_gains(run, probe_id, bench, name, floor) | asdict(steps[name]) for name in (REAL, *PLACEBOS)
    }
    return {
        "noise_floor": floor,
        "largest_difference_from_capture": float(np.abs(captured - forward["theta0"]).max()),
        "updates": updates,
    }


def _write_gains(run: Path, probe_id: str, bench: _Bench, update: str, floor: float) -> dict[str, float]:
    own_id = _own_id(probe_id, update)
    after_state = _RELAID if update == "theta0" else update
    states = (_shards(bench, state) for state in ("theta0", _RELAID, after_state))
    prompts = {c.context_id: c.prompt_id for c in bench.bank}
    gains = []
    for index, (before, again, after) in enumerate(zip(*states, strict=True)):
        noise = np.abs(before["forward_kl"].to_numpy() - again["forward_kl"].to_numpy())
        rows = before.num_rows
        columns = gain_columns(before, after, noise, floor) | {
            "probe_id": [own_id] * rows,
            "update": [update] * rows,
            "placebo_of": [None if update == REAL else probe_id] * rows,
            "update_on": [bench.settings.update_on] * rows,
            "loss": [bench.settings.loss] * rows,
            "context_id": before["context_id"],
            "position": before["position"],
            "prompt_id": [prompts[i] for i in before["context_id"].to_pylist()],
        }
        write_parquet(GAINS.build(columns), shard_path(run / "gains" / own_id, index))
        gains.append(columns["gain"])
    gain = np.concatenate(gains)
    return {"mean_gain": float(gain.mean(dtype=np.float64)), "share_gaining": float((gain > 0).mean())}


def _shards(bench: _Bench, state: str) -> list[pa.Table]:
    return [pq.read_table(path) for path in sorted((bench.scratch / state).glob("part-*.parquet"))]
