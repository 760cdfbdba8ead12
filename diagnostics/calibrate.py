"""Stage calibrate: what one machine takes for a position and a token, measured on a small capture for `teachdiag plan`.

Bytes are those of the capture's own `positions` table, written again as one file, with and without its top-K lists.
Speeds are those of a second round, when everything is warm. Peak memory on a CPU is that of a process that only scores.
"""

import gc
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from teachdiag.artefacts import CONTEXTS, POSITIONS
from teachdiag.calibration import COMMAND, Calibration, Measured, calibration_path, write_calibration
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.models.pair import Pair, load_pair, resolve_pair
from teachdiag.diagnostics.processes.devices import machine_facts, pick_device
from teachdiag.diagnostics.scoring.positions_table import by_models, score_contexts
from teachdiag.peak_memory import peak_memory
from teachdiag.progress import Reporter
from teachdiag.runs import end_with_parent, environment
from teachdiag.settings import CalibrateSettings, CaptureSettings, PairSettings
from teachdiag.tables import write_parquet

_PROMPTS, _LENGTH = 8, 128
_QUIET = Reporter(quiet=True)
_PROCESSORS = Path("/proc/cpuinfo")  # of Linux


class Stored(NamedTuple):
    """Bytes on disk of a file of `positions` with a single one, and what each further position adds."""

    file: float
    position: float


class Speeds(NamedTuple):
    """Tokens in a second: sampled by the student, and read (prompts included) and scored by both models."""

    rollouts: float
    scoring: float


def run_calibration(settings: CalibrateSettings, reporter: Reporter) -> dict[str, Any]:
    """Measure this machine, and record it.

    Returns:
        `file`, and what it holds.

    Raises:
        InputError: models or prompts cannot be had.
    """
    device = pick_device(settings.device)
    pair = {entry.name: getattr(settings, entry.name) for entry in fields(PairSettings)}
    capture = CaptureSettings(
        **pair,
        prompts=settings.prompts,
        data_file=settings.data_file,
        bank_prompts=_PROMPTS - 1,
        update_prompts=1,
        max_new_tokens=_LENGTH,
        positions=_LENGTH,
        device=device,
        dtype=settings.dtype if settings.dtype != "auto" else "float32" if device == "cpu" else "bfloat16",
    )
    calibration, path = calibrate(capture, reporter), Path(settings.to or calibration_path())
    write_calibration(calibration, path)
    return {"file": str(path), **asdict(calibration)}


def calibrate(settings: CaptureSettings, reporter: Reporter) -> Calibration:
    """Capture a bank with these settings, and measure what it took."""
    device = pick_device(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run_capture(run, settings, reporter)
        gc.collect()  # its models, whose memory would count as scoring's
        reporter.say("Once more, by the clock")
        pair = load_pair(resolve_pair(settings, _QUIET), settings.dtype, device)
        speeds = measured_speeds(run, settings, pair)
        peak = scoring_peak(run, settings) if device == "cpu" else torch.cuda.max_memory_allocated(device)
        return recorded(run, settings, pair, speeds, peak)


def recorded(run: Path, settings: CaptureSettings, pair: Pair, speeds: Speeds, peak: int) -> Calibration:
    """Put a calibration together.

    Args:
        run: a capture, whose `positions` are weighed.
        settings: of the capture.
        pair: the models.
        speeds: of these, measured.
        peak: memory of scoring, bytes.
    """
    lists, bare = (stored(run / "positions", lists=kept) for kept in (True, False))
    models = (pair.student, pair.teacher)
    measured = Measured(
        student_parameters=parameters(pair.student),
        teacher_parameters=parameters(pair.teacher),
        vocabulary=pair.vocabulary,
        width=max(model.head.weight.shape[1] for model in models),
        bytes_per_position=lists.position,
        bytes_per_position_without_topk=bare.position,
        bytes_per_file=lists.file,
        bytes_per_file_without_topk=bare.file,
        scoring_tokens_per_second=speeds.scoring,
        rollout_tokens_per_second=speeds.rollouts,
        scoring_peak_bytes=peak,
    )
    made_with = {"command": COMMAND, "student": _named(pair.student), "teacher": _named(pair.teacher)}
    prompts = settings.bank_prompts + settings.update_prompts
    workload = {"prompts": prompts, "max_new_tokens": settings.max_new_tokens, "batch_tokens": settings.batch_tokens}
    device = str(pair.student.device)
    machine = machine_facts(device) | ({"device_name": processor_name()} if device == "cpu" else {})
    return Calibration(measured, settings.dtype, made_with | workload | machine | environment())


def measured_speeds(run: Path, settings: CaptureSettings, pair: Pair) -> Speeds:
    """Sample the rollouts of a finished capture once more, and score them once more."""
    contexts = CONTEXTS.read_arrow(run / "contexts")
    prompts, seeds = contexts["prompt_token_ids"].to_pylist(), contexts["sampling_seed"].to_pylist()
    start = time.perf_counter()
    rollouts = sample(pair.student, [tuple(p) for p in prompts], seeds, settings.sampling)
    sampled = time.perf_counter()
    if pair.student.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(pair.student.device)  # of rollouts, which is not scoring's
    score_anew(run, settings, pair)
    scored = time.perf_counter()
    kept = [min(len(r.token_ids), settings.positions) for r in rollouts]
    read = sum(len(p) + n - 1 for p, n in zip(prompts, kept, strict=True))
    return Speeds(sum(len(r.token_ids) for r in rollouts) / (sampled - start), read / (scored - sampled))


def score_anew(run: Path, settings: CaptureSettings, pair: Pair) -> None:
    """Score a run's contexts as if none had been."""
    for shard in (run / "positions").glob("*.parquet"):
        os.unlink(shard)
    score_contexts(run, settings, by_models(pair, settings), _QUIET)


def scoring_peak(run: Path, settings: CaptureSettings) -> int:
    """Peak resident memory, in bytes, of a process of its own that scores a run's contexts on a CPU."""
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        return pool.submit(_score_and_weigh, run, settings, torch.get_num_threads()).result()


def _score_and_weigh(run: Path, settings: CaptureSettings, threads: int) -> int:
    torch.set_num_threads(threads)
    score_anew(run, settings, load_pair(resolve_pair(settings, _QUIET), settings.dtype, "cpu"))
    return peak_memory()


def processor_name() -> str:
    """Name of this machine's processor, for people."""
    lines = _PROCESSORS.read_text().splitlines() if _PROCESSORS.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def stored(positions: Path, *, lists: bool) -> Stored:
    """Write the positions of a run as one file, with or without their top-K lists, and as a file of one; weigh both."""
    table = POSITIONS.read_arrow(positions)
    kept = [f.name for f in table.schema if lists or not pa.types.is_nested(f.type)]
    table = table.select(kept).combine_chunks()
    one, all_ = (_weighed(table.slice(0, n)) for n in (1, table.num_rows))
    return Stored(one, (all_ - one) / (table.num_rows - 1))


def parameters(model: LanguageModel) -> int:
    """Parameters of a model, tied ones once."""
    return sum(p.numel() for p in model.model.parameters())


def _weighed(table: pa.Table) -> int:
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(table, Path(folder) / "table.parquet")
        return (Path(folder) / "table.parquet").stat().st_size


def _named(model: LanguageModel) -> dict[str, object]:
    return {"name": model.name, "digest": model.source.digest, "dropped_layers": list(model.source.dropped_layers)}
