"""What one machine takes for a position and a token, for `teachdiag plan`: measured on a capture of the embedded pair.

Bytes are those of the capture's own `positions` table, written again as one file, with and without its top-K lists.
Speeds are those of a second round, when everything is warm.
"""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from scoring import measured_peak, score_anew
from workload import QUIET, Row

from teachdiag.artefacts import CONTEXTS, POSITIONS
from teachdiag.calibration import COMMAND, Calibration, Measured, calibration_path, write_calibration
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.models.pair import Pair, load_pair, resolve_pair
from teachdiag.diagnostics.processes.devices import machine_facts, pick_device
from teachdiag.runs import environment
from teachdiag.settings import CaptureSettings
from teachdiag.tables import write_parquet

PROMPTS, LENGTH = 8, 128


class Stored(NamedTuple):
    """Bytes on disk of a file of `positions` with a single one, and what each further position adds."""

    file: float
    position: float


class Speeds(NamedTuple):
    """Tokens in a second: sampled by the student, and read (prompts included) and scored by both models."""

    rollouts: float
    scoring: float


def calibration_rows() -> list[Row]:
    """Measure this machine, record it in the cache folder, and say where."""
    device = pick_device("auto")
    settings = CaptureSettings(
        bank_prompts=PROMPTS - 1,
        update_prompts=1,
        max_new_tokens=LENGTH,
        positions=LENGTH,
        device=device,
        dtype="float32" if device == "cpu" else "bfloat16",
    )
    calibration, path = calibrate(settings), calibration_path()
    write_calibration(calibration, path)
    rows = [(name.replace("_", " "), f"{value:,.1f}", "") for name, value in vars(calibration.measured).items()]
    return [*rows, (f"recorded for `teachdiag plan` in {path}", "", "")]


def calibrate(settings: CaptureSettings) -> Calibration:
    """Capture a bank with these settings, and measure what it took."""
    device = pick_device(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run_capture(run, settings, QUIET)
        pair = load_pair(resolve_pair(settings, QUIET), settings.dtype, device)
        speeds = measured_speeds(run, settings, pair)
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
        scoring_peak_bytes=torch.cuda.max_memory_allocated() if device != "cpu" else measured_peak(PROMPTS) * 1024,
    )
    made_with = {"command": COMMAND, "student": _named(pair.student), "teacher": _named(pair.teacher)}
    prompts = settings.bank_prompts + settings.update_prompts
    workload = {"prompts": prompts, "max_new_tokens": settings.max_new_tokens, "batch_tokens": settings.batch_tokens}
    return Calibration(measured, settings.dtype, made_with | workload | machine_facts(device) | environment())


def measured_speeds(run: Path, settings: CaptureSettings, pair: Pair) -> Speeds:
    """Sample the rollouts of a finished capture once more, and score them once more."""
    contexts = CONTEXTS.read_arrow(run / "contexts")
    prompts, seeds = contexts["prompt_token_ids"].to_pylist(), contexts["sampling_seed"].to_pylist()
    start = time.perf_counter()
    rollouts = sample(pair.student, [tuple(p) for p in prompts], seeds, settings.sampling)
    sampled = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # of rollouts, which is not scoring's
    score_anew(run, settings, pair)
    scored = time.perf_counter()
    kept = [min(len(r.token_ids), settings.positions) for r in rollouts]
    read = sum(len(p) + n - 1 for p, n in zip(prompts, kept, strict=True))
    return Speeds(sum(len(r.token_ids) for r in rollouts) / (sampled - start), read / (scored - sampled))


def stored(positions: Path, *, lists: bool) -> Stored:
    """Write the positions of a run as one file, with or without their top-K lists, and as a file of one; weigh both."""
    table = POSITIONS.read_arrow(positions)
    kept = [f.name for f in table.schema if lists or not pa.types.is_nested(f.type)]
    table = table.select(kept).combine_chunks()
    one, all_ = (_weighed(table.slice(0, n)) for n in (1, table.num_rows))
    return Stored(one, (all_ - one) / (table.num_rows - 1))


def parameters(model: LanguageModel) -> int:
    """Parameters of a model, tied ones once."""
    return sum(p.numel() for _, p in model.parameters())


def _weighed(table: pa.Table) -> int:
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(table, Path(folder) / "table.parquet")
        return (Path(folder) / "table.parquet").stat().st_size


def _named(model: LanguageModel) -> dict[str, object]:
    return {"name": model.name, "digest": model.source.digest, "dropped_layers": list(model.source.dropped_layers)}
