"""Tiled scoring: hidden states of a batch, then logits and statistics of a few positions at a time.

The LM head is applied to kept positions only, in float32, and no more than one tile of logits exists at any time.

Numbers do not depend on the order of contexts, nor on which shard or process scores them. Batches and tiles of another
shape multiply matrices in another order, which moves logits by a few units in their last place: entropies, divergences
and log-probabilities by less than 1e-4 nats in float32, and ids of the top lists only where two are as near as that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from teachdiag.artefacts import TOP
from teachdiag.diagnostics.models.alignment import Batch, Side
from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.language_model import LanguageModel, nan_advice
from teachdiag.diagnostics.processes.devices import without_autocast
from teachdiag.diagnostics.scoring.statistics import (
    candidates,
    divergences,
    listed_statistics,
    log_probabilities,
    masked_by_one,
    statistics,
)
from teachdiag.errors import ContextError

Columns = dict[str, np.ndarray]
_CACHED = 2**20  # logits whose statistics are taken at a time on a CPU: their intermediates stay in its cache


class Scored(Protocol):
    """A model as far as scoring goes: loaded here, or behind an engine that gives its hidden states."""

    head: Head

    def hidden_rows(self, batch: Batch, side: Side) -> Tensor:
        """Hidden states that feed the LM head at every kept position of a batch, shape (rows, width)."""


class Answer(NamedTuple):
    """What a teacher says of R positions: float32 nats, from its full softmax.

    Attributes:
        realised: log q of the realised tokens, shape (R,).
        at_support: log q at the student's top ids, shape (R, 32); None where it cannot be asked for them.
        top_ids: its own top ids by falling probability, shape (R, 32), int64.
        top: log q at these, shape (R, 32).
    """

    realised: np.ndarray
    at_support: np.ndarray | None
    top_ids: np.ndarray
    top: np.ndarray


class States(NamedTuple):
    """Hidden states of the same rows in both models, shape (rows, width) each, and the heads that read them."""

    student: Tensor
    student_head: Head
    teacher: Tensor
    teacher_head: Head


@torch.no_grad()
def score(student: LanguageModel, teacher: Scored, batch: Batch, tile_positions: int) -> Columns:
    """Every theta0 column of a batch's kept positions, from one forward pass of each model.

    Returns:
        One array a column of the `positions` table, first axis = rows of the batch.

    Raises:
        ContextError: a logit is NaN or infinite, or one model masks an id that the other does not; the message names
            model, context and position, and the token.
    """
    hidden = student.hidden_rows(batch, "student")  # (rows, width)
    taught = teacher.hidden_rows(batch, "teacher") if teacher is not student or _prompts_differ(batch) else hidden
    tokens = torch.from_numpy(batch.tokens).long().to(student.device)  # (rows,)
    states = States(hidden, student.head, taught, teacher.head)
    columns = tiled(states, lambda z, w, rows: statistics(z, w, tokens[rows]), tile_positions)
    columns["hidden_norm_sq"] = hidden.float().square().sum(-1).cpu().numpy()
    _refuse_non_finite(columns, batch, states, student.tokenizer)
    return columns


@torch.no_grad()
def score_listed(
    student: LanguageModel, answer: Callable[[Batch, np.ndarray], Answer], batch: Batch, tile_positions: int
) -> Columns:
    """Every theta0 column that a teacher which answers for single ids determines; the others are left out.

    Args:
        student: the student at theta0.
        answer: asks the teacher about a batch, given the student's top ids, shape (rows, 32).
        batch: contexts whose kept positions are scored.
        tile_positions: positions whose logits exist at the same time.

    Raises:
        ContextError: a statistic is NaN or infinite; the message names context and position.
    """
    hidden = student.hidden_rows(batch, "student")  # (rows, width)
    tokens = torch.from_numpy(batch.tokens).long()[:, None].to(student.device)  # (rows, 1)

    def logp(rows: slice) -> Tensor:
        return log_probabilities(student.head(hidden[rows]))

    places = tiles(len(hidden), tile_positions)
    support = torch.cat([logp(rows).topk(TOP).indices for rows in places])  # (rows, 32)
    realised, at_support, top_ids, top = answer(batch, support.cpu().numpy())
    parts: list[dict[str, Tensor]] = []
    for rows in places:
        ours = logp(rows)  # (tile, vocabulary)
        theirs = torch.from_numpy(top_ids[rows]).to(ours.device)  # (tile, 32)
        tops = {
            "student_topk_ids": support[rows],
            "student_topk_logp": ours.gather(1, support[rows]),
            "teacher_topk_ids": theirs,
            "teacher_topk_logp": torch.from_numpy(top[rows]).to(ours.device),
            "student_logp_at_teacher_topk": ours.gather(1, theirs),
        }
        if at_support is not None:
            tops["teacher_logp_at_student_topk"] = torch.from_numpy(at_support[rows]).to(ours.device)
        parts.append(listed_statistics(ours, tops) | {"student_logp": ours.gather(1, tokens[rows])[:, 0]})
    columns = {name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]}
    columns["teacher_logp"] = realised
    columns["hidden_norm_sq"] = hidden.float().square().sum(-1).cpu().numpy()
    _refuse_gaps(columns, batch, nan_advice(student.computes_in))
    return columns


@torch.no_grad()
def rescore(
    states: States,
    batch: Batch,
    tile_positions: int,
    tokenizer: Any,  # noqa: ANN401
    listed: bool = False,
) -> Columns:
    """Forward and reverse KL of a batch's kept positions, from hidden states of both models.

    Args:
        states: the student's states at whatever weights it has now, and the teacher's.
        batch: where they are from.
        tile_positions: positions whose logits exist at the same time.
        tokenizer: names the token where an error is about one.
        listed: whether the student's candidates are returned too.

    Raises:
        ContextError: a logit is NaN or infinite, or one model masks an id that the other does not; the message names
            model, context and position, and the token.
    """
    tokens = torch.from_numpy(batch.tokens).long().to(states.student.device)

    def measure(ours: Tensor, theirs: Tensor, place: slice) -> dict[str, Tensor]:
        return divergences(ours, theirs) | (candidates(ours, tokens[place]) if listed else {})

    columns = tiled(states, measure, tile_positions)
    _refuse_non_finite(columns, batch, states, tokenizer)
    return columns


def tiles(rows: int, tile_positions: int) -> list[slice]:
    """Cut `rows` positions into slices of at most `tile_positions`."""
    return [slice(start, min(start + tile_positions, rows)) for start in range(0, rows, tile_positions)]


def tiled(
    states: States, measure: Callable[[Tensor, Tensor, slice], dict[str, Tensor]], tile_positions: int
) -> Columns:
    """Fill one array a column, tile by tile, from (student logits, teacher logits, their rows).

    Nothing of a tile outlives it: it would pin its neighbours' memory. On a CPU the statistics of a tile are taken a
    few rows at a time; on a GPU nothing waits for them until the last tile.
    """
    columns: dict[str, Tensor] = {}
    total = len(states.student)
    with without_autocast(states.student.device):
        for tile in tiles(total, tile_positions):
            z = states.student_head(states.student[tile])  # (tile, vocabulary), like w
            w = states.teacher_head(states.teacher[tile]).to(z.device)
            for part in tiles(len(z), max(2, _CACHED // z.shape[1]) if z.device.type == "cpu" else len(z)):
                rows = slice(tile.start + part.start, tile.start + part.stop)
                for name, values in measure(z[part], w[part], rows).items():
                    if name not in columns:
                        columns[name] = values.new_empty((total, *values.shape[1:]))
                    columns[name][rows] = values
    return {name: column.cpu().numpy() for name, column in columns.items()}


def _prompts_differ(batch: Batch) -> bool:
    return any(c.student_prompt != c.teacher_prompt for c in batch.contexts)


def _refuse_gaps(columns: Columns, batch: Batch, advice: str) -> None:
    row = _first_gap(columns, batch.rows)
    if row is not None:
        raise ContextError(
            f"the pair gives NaN or infinite log-probabilities in context {batch.context_ids[row]} at position "
            f"{batch.positions[row]}: {advice}"
        )


def _first_gap(columns: Columns, rows: int) -> int | None:
    bad = np.zeros(rows, bool)
    for values in columns.values():
        bad |= ~np.isfinite(values.reshape(rows, -1)).all(axis=1)
    return int(np.flatnonzero(bad)[0]) if bad.any() else None


def _refuse_non_finite(
    columns: Columns,
    batch: Batch,
    states: States,
    tokenizer: Any,  # noqa: ANN401
) -> None:
    """Name the first position whose statistics are not finite, and why: broken logits, or an id that one model masks.

    NaN or an infinite logit reaches every statistic; where one model alone masks an id, a KL is infinite.
    """
    row = _first_gap(columns, len(states.student))
    if row is None:
        return
    at = slice(row, row + 1)
    logp = {
        "student": log_probabilities(states.student_head(states.student[at]))[0].cpu(),
        "teacher": log_probabilities(states.teacher_head(states.teacher[at]))[0].cpu(),
    }
    where = f"in context {batch.context_ids[row]} at position {batch.positions[row]}"
    broken = [side for side, values in logp.items() if not torch.isfinite(values).all()]
    alone = None if broken else masked_by_one(logp["student"], logp["teacher"])
    if alone is None:
        raise ContextError(
            f"the {' and '.join(broken) or 'pair'} gives NaN or infinite logits {where}: "
            f"{nan_advice(states.student.dtype, states.teacher.dtype)}"
        )
    token, student_masks = alone
    zero, other = ("student", "teacher") if student_masks else ("teacher", "student")
    name = tokenizer.convert_ids_to_tokens(token)
    raise ContextError(
        f"the {zero} gives token {name!r} (id {token}) probability 0 {where}, and the {other} "
        f"{logp[other][token].exp():.3g}, so that a KL is infinite: mask the id in both models, or in neither"
    )
