"""The frozen teacher's hidden states of a run's contexts, computed once and read from disk tile by tile.

A probe scores the same positions under many student weights; the teacher need not run again, nor stay in memory. The
next probe of the run takes the same file, which may be deleted at any time between them.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachdiag.diagnostics.models.alignment import Batch, Context, Side, batched
from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.processes.collectives import in_step, joined, on_first
from teachdiag.diagnostics.processes.group import share_of
from teachdiag.errors import using
from teachdiag.progress import Reporter
from teachdiag.tables import CHECKSUM, is_intact, vouch


@dataclass(frozen=True)
class TeacherStates:
    """Hidden states of shape (positions, width) on disk, as float32, and the head that makes logits of them.

    Attributes:
        states: memory-mapped array; rows are all kept positions of all contexts, context by context.
        first_row: row of each context's first kept position, by context_id.
        kept: each context's kept positions, ascending, by context_id.
        head: the teacher's LM head.
        stand_in: shape (positions,), the row that is read in place of each; None reads every position's own.
    """

    states: np.ndarray
    first_row: dict[int, int]
    kept: dict[int, np.ndarray]
    head: Head
    stand_in: np.ndarray | None = None

    def rows(self, batch: Batch) -> np.ndarray:
        """Row numbers of a batch's kept positions, or of fewer of them, shape (rows,), int64."""
        stored = [(self.first_row[c.context_id], self.kept[c.context_id], c.positions) for c in batch.contexts]
        rows = np.concatenate([first + np.searchsorted(kept, positions) for first, kept, positions in stored])
        return rows if self.stand_in is None else self.stand_in[rows]

    def at(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Hidden states of some rows, shape (rows, width), in the head's type, which is the one that they had."""
        return torch.from_numpy(self.states[rows]).to(device, self.head.weight.dtype)


def compute_teacher_states(
    teacher: LanguageModel,
    groups: Sequence[Sequence[Context]],
    batch_tokens: int,
    file: Path,
    reporter: Reporter,
    side: Side = "teacher",
) -> TeacherStates:
    """Run the teacher over every context once and keep its hidden states in `file`, or read those that are there.

    With `side` "student" it is the student at theta0 that runs, over its own prompts. Several processes share the
    batches. These hold contexts of one group, so that no state depends, in its last digits, on what other groups there
    are.
    """
    contexts = [c for group in groups for c in group]
    starts = np.cumsum([0] + [c.rows for c in contexts])
    first_row = {c.context_id: int(row) for c, row in zip(contexts, starts[:-1], strict=True)}
    if not on_first(is_intact)(file):
        part = file.with_name(file.name + ".part")  # one for all processes, which fill it together
        on_first(_empty)(part, (int(starts[-1]), teacher.head.weight.shape[1]))
        start = int(np.load(part, mmap_mode="r").offset)  # behind the header
        batches = [batch for group in groups for batch in batched(group, batch_tokens)]
        local = share_of(batches)
        bar = reporter.bar(f"{side.capitalize()} states", total=sum(len(b.contexts) for b in local))
        idle = partial(teacher.hidden_rows, batches[-1], side)
        with joined(), in_step(idle, teacher.sharded) as step, bar as advance:
            for batch in local:
                states = step(partial(teacher.hidden_rows, batch, side))  # (rows, width)
                _fill(part, start, first_row, batch, states.float().cpu().numpy())
                advance(len(batch.contexts))
        on_first(_finish)(part, file)
    kept = {c.context_id: c.positions for c in contexts}
    return TeacherStates(np.load(file, mmap_mode="r"), first_row, kept, teacher.head)


def shared_file(folder: Path, decided_by: Mapping[str, Any]) -> Path:
    """Return where states lie that probes share, after everything that decides a byte of them; delete all others."""
    digest = hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()
    file = folder / f"{digest[:16]}.npy"
    for stale in set(folder.glob("*")) - {file, file.with_suffix(CHECKSUM)}:
        stale.unlink(missing_ok=True)
    return file


def _empty(file: Path, shape: tuple[int, int]) -> None:
    with using(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape).flush()


def _finish(part: Path, file: Path) -> None:
    file.with_suffix(CHECKSUM).unlink(missing_ok=True)
    os.replace(part, file)
    vouch(file)


def _fill(file: Path, start: int, first_row: Mapping[int, int], batch: Batch, states: np.ndarray) -> None:
    """Write a batch's states, shape (rows, width), where they belong.

    As plain writes: pages of a memory map that several machines share would overwrite one another.
    """
    row = 0
    with using(file), file.open("r+b") as out:
        for context in batch.contexts:
            rows = states[row : row + context.rows]
            out.seek(start + first_row[context.context_id] * states.shape[1] * states.itemsize)
            out.write(rows.tobytes())
            row += len(rows)
