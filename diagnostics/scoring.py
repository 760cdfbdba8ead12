"""Tiled scoring: hidden states of a batch, then logits and statistics of a few positions at a time.

The LM head is applied to kept positions only, in float32, and no more than one tile of logits exists at any time.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from teachdiag.diagnostics.alignment import Batch
from teachdiag.diagnostics.head import Head
from teachdiag.diagnostics.models import LanguageModel
from teachdiag.diagnostics.statistics import divergences, statistics
from teachdiag.errors import ContextError

Columns = dict[str, np.ndarray]
_CACHED_ROWS = 16


class States(NamedTuple):
    """Hidden states of the same rows in both models, shape (rows, width) each, and the heads that read them."""

    student: Tensor
    student_head: Head
    teacher: Tensor
    teacher_head: Head


@torch.no_grad()
def score(student: LanguageModel, teacher: LanguageModel, batch: Batch, tile_positions: int) -> Columns:
    """Every theta0 column of a batch's kept positions, from one forward pass of each model.

    Returns:
        One array a column of the `positions` table, first axis = rows of the batch.

    Raises:
        ContextError: a logit is NaN or infinite; the message names model, context and position.
    """
    hidden = student.hidden_rows(batch, "student")
    taught = teacher.hidden_rows(batch, "teacher") if teacher is not student or _prompts_differ(batch) else hidden
    tokens = torch.from_numpy(batch.tokens).long().to(student.device)
    states = States(hidden, student.head, taught, teacher.head)
    columns = tiled(states, lambda z, w, rows: statistics(z, w, tokens[rows]), tile_positions)
    columns["hidden_norm_sq"] = hidden.float().square().sum(-1).cpu().numpy()
    _refuse_non_finite(columns, batch, states)
    return columns


@torch.no_grad()
def rescore(states: States, batch: Batch, tile_positions: int, rows: slice = slice(None)) -> Columns:
    """Forward and reverse KL of a batch's kept positions, from hidden states of both models.

    Args:
        states: the student's states at whatever weights it has now, and the teacher's.
        batch: where they are from.
        tile_positions: positions whose logits exist at the same time.
        rows: which of the batch's positions the states belong to.

    Raises:
        ContextError: a logit is NaN or infinite; the message names model, context and position.
    """
    columns = tiled(states, lambda z, w, _: divergences(z, w), tile_positions)
    _refuse_non_finite(columns, batch, states, rows)
    return columns


def tiles(rows: int, tile_positions: int) -> list[slice]:
    """Cut `rows` positions into slices of at most `tile_positions`."""
    return [slice(start, min(start + tile_positions, rows)) for start in range(0, rows, tile_positions)]


def tiled(
    states: States, measure: Callable[[Tensor, Tensor, slice], dict[str, Tensor]], tile_positions: int
) -> Columns:
    """Fill one array a column, tile by tile, from (student logits, teacher logits, their rows).

    Nothing of a tile outlives it: it would pin its neighbours' memory. On a CPU the statistics of a tile are taken a
    few rows at a time, so that their intermediates stay in its cache.
    """
    columns: Columns = {}
    total = len(states.student)
    for tile in tiles(total, tile_positions):
        z = states.student_head(states.student[tile])
        w = states.teacher_head(states.teacher[tile]).to(z.device)
        for part in tiles(len(z), _CACHED_ROWS if z.device.type == "cpu" else len(z)):
            rows = slice(tile.start + part.start, tile.start + part.stop)
            for name, tensor in measure(z[part], w[part], rows).items():
                values = tensor.cpu().numpy()
                if name not in columns:
                    columns[name] = np.empty((total, *values.shape[1:]), values.dtype)
                columns[name][rows] = values
    return columns


def _prompts_differ(batch: Batch) -> bool:
    return any(c.student_prompt != c.teacher_prompt for c in batch.contexts)


def _refuse_non_finite(columns: Columns, batch: Batch, states: States, rows: slice = slice(None)) -> None:
    """Name the first position whose statistics are not finite, and the model to blame: a NaN logit reaches them all."""
    bad = np.zeros(len(states.student), bool)
    for values in columns.values():
        bad |= ~np.isfinite(values.reshape(len(bad), -1)).all(axis=1)
    if not bad.any():
        return
    row = int(np.flatnonzero(bad)[0])
    logits = {
        "student": states.student_head(states.student[row : row + 1]),
        "teacher": states.teacher_head(states.teacher[row : row + 1]),
    }
    context_id, position = batch.context_ids[rows][row], batch.positions[rows][row]
    blamed = [side for side, values in logits.items() if not torch.isfinite(values).all()]
    raise ContextError(
        f"the {' and '.join(blamed) or 'pair'} gives NaN or infinite logits in context {context_id} at position "
        f"{position}: try --dtype float32, or check the model's weights"
    )
