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
from teachdiag.errors import EstimationError
from teachdiag.progress import Reporter


@dataclass(frozen=True)
class TeacherStates:
    """Hidden states of shape (positions, width), float32, on disk, and the head that makes logits of them.

    Attributes:
        states: memory-mapped array; rows are all kept positions of all contexts, context by context.
        first_row: row of each context's position 0, by context_id.
        head: the teacher's LM head.
    """

    states: np.ndarray
    first_row: dict[int, int]
    head: Head

    def rows(self, batch: Batch) -> np.ndarray:
        """Row numbers of a batch's kept positions, shape (rows,), int64."""
        return np.concatenate([self.first_row[c.context_id] + np.arange(len(c.response)) for c in batch.contexts])

    def at(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Hidden states of some rows, shape (rows, width), float32."""
        return torch.from_numpy(self.states[rows]).to(device)


def compute_teacher_states(
    teacher: LanguageModel, contexts: Sequence[Context], batch_tokens: int, file: Path, reporter: Reporter
) -> TeacherStates:
    """Run the teacher over every context once and keep its hidden states in `file`, or read those that are there."""
    starts = np.cumsum([0] + [len(c.response) for c in contexts])
    first_row = {c.context_id: int(row) for c, row in zip(contexts, starts[:-1], strict=True)}
    if not file.exists():
        part = file.with_name(file.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        shape = (int(starts[-1]), teacher.head.weight.shape[1])
        states = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        filling = TeacherStates(states, first_row, teacher.head)
        with reporter.bar("Teacher states", total=len(contexts)) as advance:
            for batch in batched(contexts, batch_tokens):
                states[filling.rows(batch)] = hidden_rows(teacher, batch, "teacher").float().cpu().numpy()
                advance(len(batch.contexts))
        states.flush()
        part.rename(file)
    return TeacherStates(np.load(file, mmap_mode="r"), first_row, teacher.head)


def shuffled_across_contexts(states: TeacherStates, contexts: Sequence[Context], seed: int) -> np.ndarray:
    """Permute the teacher's rows among the positions of some contexts so that none stays in its own context.

    The rows are laid out context by context, contexts and the rows within each in random order, and rotated by the
    longest context's length: every row then leaves its context, provided no context holds more than half of them.

    Returns:
        The row that stands in for each row of `states`, shape (positions,), int64: a bijection that leaves the rows of
        all other contexts alone.

    Raises:
        EstimationError: one context holds more than half of the positions.
    """
    refuse_unshufflable(contexts)
    rng = np.random.default_rng(seed)
    order = [contexts[i] for i in rng.permutation(len(contexts))]
    rows = np.concatenate([rng.permutation(states.rows(Batch((context,)))) for context in order])
    stand_in = np.arange(len(states.states))
    stand_in[rows] = np.roll(rows, max(len(context.response) for context in contexts))
    return stand_in


def refuse_unshufflable(contexts: Sequence[Context]) -> None:
    """Refuse contexts among which the teacher's rows cannot be shuffled.

    Raises:
        EstimationError: one context holds more than half of the positions, so that its rows cannot all leave it.
    """
    lengths = [len(context.response) for context in contexts]
    if 2 * max(lengths) > sum(lengths):
        raise EstimationError(
            f"the shuffled-teacher placebo needs an update batch in which no context holds more than half of the "
            f"positions: {len(lengths)} contexts with {sum(lengths)} positions do not do; use more update contexts"
        )
