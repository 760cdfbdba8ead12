"""What a run will take, by simple laws, from what one machine was measured to take.

Let P_s and P_t be the parameters of student and teacher, L the positions of a context, N those of the run, R the tokens
of a response, L unless it is longer than what is scored: N / L contexts of (prompt + R - 1) tokens each, which both
models read. A prime marks what was calibrated.

- Passes: capture samples S = N R / L tokens and reads every context once with each model. The default one_step probe
  reads it 10 more times with the student (theta0, theta0 in other layouts, the step, half of it forwards and backwards,
  two draws of each placebo) and once with the teacher. Each halving that a step needs to be short enough is one time
  more. A step of training samples its rollouts, and reads them 5 times with the student (scored, forwards, again for
  its activations, and backwards, which counts as two) and once with the teacher.
- Time = tokens x parameters / calibrated throughput. Scoring takes tokens read x (P_s + P_t) / (tokens/s' x (P_s' +
  P_t')), rollouts take S x P_s / (tokens/s' x P_s'), a probe its passes; all divided by the number of processes, which
  is the best that these can do. Gradients, loading of models and the analysis are left out.
- Memory of a device = weights + whole heads + tile of logits + rest. Weights are P x bytes of the dtype, whole or
  sharded over the processes. Beside shards every device has a whole head, vocabulary x width x bytes of the dtype. A
  tile is `LIVE` float32 arrays of tile positions x vocabulary. The rest (activations, libraries) is what was measured
  beyond that, and is not scaled. A probe needs 3 float32 copies of the student and the teacher's head instead of the
  weights; before that the teacher, where it takes more.
- Storage = bytes per position' x N, and bytes per file' for each shard, of the `positions` table. A
  probe keeps the teacher's hidden states, N x width x 4 bytes, for the next one.

A calibration of a CPU says nothing about a GPU, nor one of small models about how well large ones use a device.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from teachdiag.calibration import Calibration, Measured
from teachdiag.errors import SettingsError
from teachdiag.settings import CaptureSettings, DType, PlanSettings, ProbeSettings

Side = Literal["student", "teacher"]
LIVE = 12  # float32 arrays of a tile's size that scoring holds at the same time: logits, logs, and what is made of them
PASSES: dict[str, dict[Side, int]] = {  # over every context
    "scoring": {"student": 1, "teacher": 1},
    "probe": {"student": 10, "teacher": 1},  # the default one_step
    "training": {"student": 5, "teacher": 1},  # scored; read again, and once more for its activations, and backwards
}
OUT_OF_CORE = 10_000_000  # positions from which the analysis reads columns block by block
SHARD_BYTES = 150e6  # what a shard should hold at scale
SHARDS_A_PROCESS = 10  # at least, so that processes end together and a killed run loses little
_FLOAT32, _GB = 4, 1e9
BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

Bytes = dict[str, float]


@dataclass(frozen=True)
class Models:
    """What the laws know of a pair: parameters of each model, shared vocabulary, width, type of the weights."""

    parameters: dict[Side, float]
    vocabulary: float
    width: float
    dtype: DType

    @property
    def head(self) -> float:
        """Bytes of one LM head."""
        return self.vocabulary * self.width * BYTES[self.dtype]

    def memory(self, sides: tuple[Side, ...], shards: int = 1) -> Bytes:
        """Bytes on one device, by part, without the rest, where it holds these models, cut into that many shards."""
        return {
            "weights": sum(self.parameters[side] for side in sides) * BYTES[self.dtype] / shards,
            "whole_heads": len(sides) * self.head if shards > 1 else 0.0,
            "tile": LIVE * CaptureSettings.tile_positions * self.vocabulary * _FLOAT32,
        }


@dataclass(frozen=True)
class Placement:
    """How models lie on devices: whole or sharded, the teacher beside the student or in an engine of its own."""

    shards: int
    beside: bool
    memory: Bytes  # of the fullest device

    @property
    def total(self) -> float:
        """Bytes on the fullest device."""
        return sum(self.memory.values())


def plan(settings: PlanSettings, calibration: Calibration) -> dict[str, Any]:
    """Foresee a run.

    Returns:
        Plain values: passes (over every context), tokens, storage and memory (bytes), time (s), and the layout.

    Raises:
        SettingsError: a model fits the devices not even sharded over all processes.
    """
    measured, models = calibration.measured, _models(settings, calibration.measured)
    contexts = math.ceil(settings.positions / settings.positions_per_context)
    placement = _place(settings, models, _rest(calibration))
    layout = _layout(settings, measured, contexts, placement)
    sampled = settings.positions if settings.response_tokens is None else contexts * settings.response_tokens
    read = contexts * settings.prompt_tokens + sampled - contexts  # each context's last token is not read
    time = _time(sampled, read, layout["processes"], models, measured)
    training = time["rollouts"] + time.pop("training")  # on as many rollouts as there are contexts
    if settings.train_rollouts:
        time["training"] = training * settings.train_rollouts / contexts
    return {
        "positions": int(settings.positions),
        "contexts": contexts,
        "models": {**models.parameters, "vocabulary": models.vocabulary, "width": models.width, "dtype": models.dtype},
        "calibration": {"measured_on": calibration.source, **calibration.made_with},
        "passes": {"capture": {"rollouts": 1, "student": 1, "teacher": 1}, "probe": dict(PASSES["probe"])},
        "tokens": {"sampled": int(sampled), "read_a_pass": read},
        "storage_bytes": _storage(settings.positions, layout["shards"], models, measured),
        "time_seconds": time,
        "memory_bytes": _memory(models, placement),
        "layout": layout | _options(settings, placement, time, layout, measured),
    }


def _models(settings: PlanSettings, measured: Measured) -> Models:
    return Models(
        parameters={
            "student": settings.student_parameters or measured.student_parameters,
            "teacher": settings.teacher_parameters or measured.teacher_parameters,
        },
        vocabulary=settings.vocabulary or measured.vocabulary,
        width=settings.width or measured.width,
        dtype=settings.dtype,
    )


def _time(rolled: float, read: float, processes: int, models: Models, measured: Measured) -> dict[str, float]:
    """Seconds for `rolled` tokens of rollouts, and for what makes passes, each of which reads `read` tokens."""
    sampled = measured.rollout_tokens_per_second * measured.student_parameters
    scored = measured.scoring_tokens_per_second * (measured.student_parameters + measured.teacher_parameters)
    times = {"rollouts": rolled * models.parameters["student"] / sampled / processes}
    for name, passes in PASSES.items():
        work = sum(number * models.parameters[side] for side, number in passes.items())
        times[name] = read * work / scored / processes
    return times


def _storage(positions: float, shards: int, models: Models, measured: Measured) -> Bytes:
    """Bytes of the `positions` table, with and without its top-K lists, and of what probes share."""
    further = positions - shards  # one position of each file is in the bytes of a file
    bare = measured.bytes_per_position_without_topk * further + measured.bytes_per_file_without_topk * shards
    return {
        "positions": measured.bytes_per_position * further + measured.bytes_per_file * shards,
        "positions_without_topk": bare,
        "probe_scratch": positions * models.width * _FLOAT32,
    }


def _rest(calibration: Calibration) -> float:
    """Bytes that scoring took beyond what the law of memory knows."""
    measured = calibration.measured
    parameters: dict[Side, float] = {"student": measured.student_parameters, "teacher": measured.teacher_parameters}
    models = Models(parameters, measured.vocabulary, measured.width, calibration.dtype)
    return max(0.0, measured.scoring_peak_bytes - sum(models.memory(("student", "teacher")).values()))


def _memory(models: Models, placement: Placement) -> Bytes:
    """Bytes on a device, part by part; what capture takes with these, and what a probe takes in one process."""
    student, teacher = models.parameters["student"] * _FLOAT32, models.parameters["teacher"] * BYTES[models.dtype]
    heads = placement.memory["whole_heads"] or models.head  # the teacher's is kept when the teacher is gone
    weights = max(teacher, student * ProbeSettings().student_copies + heads)
    probe = weights + placement.memory["tile"] + placement.memory["rest"]
    return {**placement.memory, "capture": placement.total, "probe": probe}


def _place(settings: PlanSettings, models: Models, rest: float) -> Placement:
    """Return the simplest way in which the models fit: whole before sharded, side by side before apart.

    A teacher apart is behind an engine, which alone can shard it; the student is whole beside that.

    Raises:
        SettingsError: there is none.
    """
    room, fullest = settings.device_memory * _GB, {}
    for shards in dict.fromkeys((1, settings.processes)):
        together = {"pair": models.memory(("student", "teacher"), shards)}
        apart = {"student": models.memory(("student",)), "teacher": models.memory(("teacher",), shards)}
        for needs in (together, apart):
            fullest = max((need | {"rest": rest} for need in needs.values()), key=lambda need: sum(need.values()))
            if sum(fullest.values()) <= room:
                return Placement(shards, needs is together, fullest)
    sharded = sum(together["pair"].values()) + rest
    raise SettingsError(
        f"the models need {sharded / _GB:.3g} GB on each device where both are sharded over --processes "
        f"{settings.processes}, {sum(fullest.values()) / _GB:.3g} GB where the teacher has an engine of its own, and "
        f"--device-memory is {settings.device_memory:g}: plan with more processes, larger devices or a smaller --dtype"
    )


def _layout(settings: PlanSettings, measured: Measured, contexts: int, placement: Placement) -> dict[str, int]:
    """Contexts a shard, shards, and processes: no more than shards where each has the models for itself."""
    shard_contexts = _shard_contexts(settings, measured, contexts)
    shards = math.ceil(contexts / shard_contexts)
    processes = settings.processes if placement.shards > 1 else min(settings.processes, shards)
    if not placement.beside:
        processes = 1  # an engine's client is one process
    return {"processes": processes, "shard_contexts": shard_contexts, "shards": shards}


def _shard_contexts(settings: PlanSettings, measured: Measured, contexts: int) -> int:
    """Contexts of 150 MB, or fewer where processes would share too few shards; never below capture's default."""
    at_scale = SHARD_BYTES / (measured.bytes_per_position * settings.positions_per_context)
    shared = contexts / (SHARDS_A_PROCESS * settings.processes)
    return max(CaptureSettings.shard_contexts, int(min(at_scale, shared)))


def _options(
    settings: PlanSettings, placement: Placement, time: dict[str, float], layout: dict[str, int], measured: Measured
) -> dict[str, Any]:
    """Options of capture that the rules recommend, each with its reason, and the command that has them."""
    held = min(layout["shard_contexts"] * settings.positions_per_context, settings.positions)
    shards = f"{layout['shards']:,} of about {held * measured.bytes_per_position / 1e6:.3g} MB"
    reasons = {f"--shard-contexts {layout['shard_contexts']}": shards}
    processes, sharded = layout["processes"], placement.shards > 1
    shard_model = sharded and placement.beside
    if shard_model:
        reasons["--shard-model"] = "the models do not fit one device"
    if not placement.beside:
        reasons["--teacher-engine vllm"] = "the teacher does not fit beside the student, and needs devices of its own"
    if sharded and not placement.beside:
        reasons[f"--tensor-parallel {placement.shards}"] = "the teacher does not fit one device"
    engine = time["rollouts"] > time["scoring"] and not shard_model
    if engine:
        workers = f"--engine ray --ray-workers {processes}" if processes > 1 else "--engine vllm"
        reasons[workers] = "rollouts take longer than scoring"
    start = f"torchrun --nproc-per-node {processes} -m -- teachdiag" if processes > 1 and not engine else "teachdiag"
    analysis = "out of core, by itself" if settings.positions >= OUT_OF_CORE else "in memory"
    return {"options": reasons, "command": f"{start} capture {' '.join(reasons)}", "analysis": analysis}
