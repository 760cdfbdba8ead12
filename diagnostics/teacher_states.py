"""The frozen teacher's hidden states of a run's contexts, computed once a probe and read from disk tile by tile.

A probe scores the same positions under many student weights; the teacher need not run again, nor stay in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from teachdiag.diagnostics.alignment import Batch, Context, batched
from teachdiag.diagnostics.models import Head, LanguageModel
from teachdiag.diagnostics.scoring import hidden_rows
from teachdiag.progress import Reporter


@dataclass(frozen=True)
class TeacherStates:
    """Hidden states of shape (positions, width), float32, on disk, and the head that makes logits of them.

    Attributes:
        states: memory-mapped array; rows are all kept positions of all contexts, context by context.
        first_row: row of each context's position 0, by context_id.
        head: the teacher's LM head.
        stand_in: shape (positions,), the row that is read in place of each; None reads every position's own.
    """

    states: np.ndarray
    first_row: dict[int, int]
    head: Head
    stand_in: np.ndarray | None = None

    def rows(self, batch: Batch) -> np.ndarray:
        """Row numbers of a batch's kept positions, shape (rows,), int64."""
        rows = np.concatenate([self.first_row[c.context_id] + np.arange(len(c.response)) for c in batch.contexts])
        return rows if self.stand_in is None else self.stand_in[rows]

    def at(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Hidden states of some rows, shape (rows, width), float32."""
        return torch.from_numpy(self.states[rows]).to(device)


def compute_teacher_states(
    teacher: LanguageModel, groups: Sequence[Sequence[Context]], batch_tokens: int, file: Path, reporter: Reporter
) -> TeacherStates:
    """Run the teacher over every context once and keep its hidden states in `file`, or read those that are there.

    Batches hold contexts of one group, so that no state depends, in its last digits, on what other groups there are.
    """
    contexts = [c for group in groups for c in group]
    starts = np.cumsum([0] + [len(c.response) for c in contexts])
    first_row = {c.context_id: int(row) for c, row in zip(contexts, starts[:-1], strict=True)}
    if not file.exists():
        part = file.with_name(file.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        shape = (int(starts[-1]), teacher.head.weight.shape[1])
        states = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        filling = TeacherStates(states, first_row, teacher.head)
        with reporter.bar("Teacher states", total=len(contexts)) as advance:
            for batch in (batch for group in groups for batch in batched(group, batch_tokens)):
                states[filling.rows(batch)] = hidden_rows(teacher, batch, "teacher").float().cpu().numpy()
                advance(len(batch.contexts))
        states.flush()
        part.rename(file)
    return TeacherStates(np.load(file, mmap_mode="r"), first_row, teacher.head)
