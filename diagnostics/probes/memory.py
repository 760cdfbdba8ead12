"""What a probe takes of a device's memory: foreseen before weights are loaded, said, and refused where it cannot fit.

The teacher is there first, in its own type, and gone when its states are kept. A step holds the student, further
copies of the weights that it moves (theta0, the moved ones and a direction; of several steps AdamW's moments, too), one
tile of logits with what is made of it, the teacher's head, and what the backward pass keeps of each layer: about ten
vectors of the model's width and four of its inner width a token; where it recomputes, of one layer at a time, and one
vector of all others. The backward pass of a single step is taken at theta0, before there are moved weights; shards are
moved where they are, so that theta0 is beside them from the start.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from teachdiag.diagnostics.models.adapters import in_shape
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.layers import moved_by_text
from teachdiag.diagnostics.models.sources import ModelSource, Sources
from teachdiag.diagnostics.processes.group import processes
from teachdiag.errors import SettingsError
from teachdiag.planning import BYTES, LIVE
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings
from teachdiag.settings.lora import Lora

_FLOAT32, _GB = 4, 1e9
_LIBRARIES = 0.5e9  # bytes that Python and torch take in the memory of a CPU
_CERTAIN = 0.75  # of what is foreseen: not even that is there where a probe is refused
_CONTAINER = Path("/sys/fs/cgroup")  # its limit and use of memory, where there is one (version 2)


@dataclass(frozen=True)
class Size:
    """What memory depends on: parameters, layers, width of hidden states and within layers, rows of the LM head.

    `trained` are the parameters that steps move.
    """

    parameters: int
    layers: int
    width: int
    inner: int
    rows: int
    trained: int


def size_of(source: ModelSource, fresh: Lora | None = None) -> Size:
    """Size of a model, from its configuration alone; layers that are dropped are not counted, adapters are."""
    model = in_shape(source, fresh)
    text = model.config.get_text_config()
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        inner=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        rows=model.get_output_embeddings().weight.shape[0],
        trained=sum(p.numel() for _, p in moved_by_text(model)),
    )


def foreseen(
    settings: ProbeSettings, capture: CaptureSettings, student: Size, teacher: Size, tokens: int, shards: int = 1
) -> float:
    """Bytes that one process of a probe takes at its fullest, libraries left out.

    Args:
        settings: the probe's.
        capture: the settings of the run's capture.
        student: its size.
        teacher: its size.
        tokens: padded tokens of the largest batch that a gradient is taken of.
        shards: processes that share each model's weights.
    """
    whole, taught = student.parameters * _FLOAT32 / shards, teacher.parameters * BYTES[capture.dtype] / shards
    tile = LIVE * settings.tile_positions * student.rows * _FLOAT32
    head = teacher.rows * teacher.width * BYTES[capture.dtype]
    kept = tokens * _kept_of_a_token(student, settings.recompute) if settings.reads("optimizer") else 0
    copy = student.trained * _FLOAT32 / shards
    unmoved = copy if settings.steps == 1 and shards == 1 else 0
    step = whole + (settings.student_copies - 1) * copy + max(0, kept * _FLOAT32 - unmoved)
    step += taught if settings.rollouts == "fresh" else head
    return tile + max(taught, step)


def _kept_of_a_token(student: Size, recompute: bool) -> int:
    """Numbers that the backward pass keeps of one token."""
    of_a_layer = 10 * student.width + 4 * student.inner
    return student.layers * student.width + of_a_layer if recompute else student.layers * of_a_layer


def refuse_what_cannot_fit(
    settings: ProbeSettings,
    capture: CaptureSettings,
    sources: Sources,
    update: Sequence[Context],
    device: str,
    reporter: Reporter,
) -> None:
    """Say how much memory a probe will take on its device, and refuse what cannot fit.

    Raises:
        SettingsError: by a wide margin there is not as much.
    """
    longest, all_of_them = max((c.cost for c in update), default=0), sum(c.cost for c in update)
    tokens = max(longest, min(settings.batch_tokens, all_of_them))
    shards = processes().num_processes if settings.shard_model else 1
    student, teacher = size_of(sources[0], settings.fresh_adapter), size_of(sources[1])
    needed = foreseen(settings, capture, student, teacher, tokens, shards)
    needed += 0 if device.startswith("cuda") else _LIBRARIES
    free = free_memory(device)
    need = f"needs about {needed / _GB:.2g} GB of memory on {device}, of {free / _GB:.2g} GB that are free"
    if needed * _CERTAIN > free:
        raise SettingsError(
            f"the probe {need}: take a smaller --batch-tokens, --recompute, --optimizer sgd, --train lora, "
            "--shard-model over several processes, or a machine with more memory"
        )
    reporter.say(f"The probe {need}")


def free_memory(device: str) -> float:
    """Bytes that are free on a device for this process: of a CPU's, its share among the processes on the machine."""
    if device.startswith("cuda"):
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    free = min(float(psutil.virtual_memory().available), _free_in_container())
    return free / int(processes().num_processes)


def _free_in_container() -> float:
    """Bytes until the container's limit, files that are merely cached counted as free; infinite without a limit."""
    try:
        limit, used = ((_CONTAINER / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        facts = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
    except OSError:
        return math.inf
    if limit == "max":
        return math.inf
    return float(limit) - float(used) + float(facts.get("inactive_file", 0))
