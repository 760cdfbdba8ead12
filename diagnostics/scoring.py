"""Tiled scoring: hidden states of a batch, then logits and statistics of a few positions at a time.

The LM head is applied to kept positions only, in float32, and no more than one tile of logits exists at any time.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from teachdiag.diagnostics.alignment import Batch, Side
from teachdiag.diagnostics.models import Head, LanguageModel
from teachdiag.diagnostics.statistics import divergences, statistics
from teachdiag.errors import ContextError

Columns = dict[str, np.ndarray]


@torch.no_grad()
def hidden_rows(model: LanguageModel, batch: Batch, side: Side) -> Tensor:
    """Hidden states that feed the LM head at every kept position of a batch, shape (rows, width)."""
    return batch.gather(model.hidden(batch.input_ids(side, model.device)), side)


@torch.no_grad()
def score(student: LanguageModel, teacher: LanguageModel, batch: Batch, tile_positions: int) -> Columns:
    """Every theta0 column of a batch's kept positions, from one forward pass of each model.

    Returns:
        One array a column of the `positions` table, first axis = rows of the batch.

    Raises:
        ContextError: a logit is NaN or infinite; the message names model, context and position.
    """
    hidden = hidden_rows(student, batch, "student")
    taught = hidden_rows(teacher, batch, "teacher") if teacher is not student or _prompts_differ(batch) else hidden
    tokens = torch.from_numpy(batch.tokens).long().to(student.device)
    columns = _tiled(
        lambda rows: statistics(
            student.head(hidden[rows]), teacher.head(taught[rows]).to(student.device), tokens[rows]
        ),
        batch.rows,
        tile_positions,
    )
    columns["hidden_norm_sq"] = hidden.float().square().sum(-1).cpu().numpy()
    _refuse_non_finite(columns, batch, {"student": (hidden, student.head), "teacher": (taught, teacher.head)})
    return columns


@torch.no_grad()
def rescore(student: LanguageModel, batch: Batch, taught: Tensor, head: Head, tile_positions: int) -> Columns:
    """Forward and reverse KL of a batch's kept positions against stored teacher states.

    Args:
        student: the student, at whatever weights it has now.
        batch: contexts to score.
        taught: the teacher's hidden states, shape (rows, width).
        head: the teacher's LM head.
        tile_positions: positions whose logits exist at the same time.

    Raises:
        ContextError: a logit is NaN or infinite; the message names model, context and position.
    """
    hidden = hidden_rows(student, batch, "student")
    columns = _tiled(
        lambda rows: divergences(student.head(hidden[rows]), head(taught[rows])), batch.rows, tile_positions
    )
    _refuse_non_finite(columns, batch, {"student": (hidden, student.head), "teacher": (taught, head)})
    return columns


def tiles(rows: int, tile_positions: int) -> list[slice]:
    """Cut `rows` positions into slices of at most `tile_positions`."""
    return [slice(start, min(start + tile_positions, rows)) for start in range(0, rows, tile_positions)]


def _tiled(measure: Callable[[slice], dict[str, Tensor]], rows: int, tile_positions: int) -> Columns:
    """Fill one array a column, tile by tile. No tensor of a tile outlives it: it would pin its neighbours' memory."""
    columns: Columns = {}
    for tile in tiles(rows, tile_positions):
        for name, tensor in measure(tile).items():
            values = tensor.cpu().numpy()
            if name not in columns:
                columns[name] = np.empty((rows, *values.shape[1:]), values.dtype)
            columns[name][tile] = values
    return columns


def _prompts_differ(batch: Batch) -> bool:
    return any(c.student_prompt != c.teacher_prompt for c in batch.contexts)


def _refuse_non_finite(columns: Columns, batch: Batch, sides: dict[str, tuple[Tensor, Head]]) -> None:
    """Name the first position whose statistics are not finite, and the model to blame: a NaN logit reaches them all."""
    bad = np.zeros(batch.rows, bool)
    for values in columns.values():
        bad |= ~np.isfinite(values.reshape(batch.rows, -1)).all(axis=1)
    if not bad.any():
        return
    row = int(np.flatnonzero(bad)[0])
    blamed = [side for side, (hidden, head) in sides.items() if not torch.isfinite(head(hidden[row : row + 1])).all()]
    raise ContextError(
        f"the {' and '.join(blamed) or 'pair'} gives NaN or infinite logits in context {batch.context_ids[row]} at "
        f"position {batch.positions[row]}: try --dtype float32, or check the model's weights"
    )
