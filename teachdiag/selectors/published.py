"""Token scores of other papers that the stored statistics determine: each from its formula, on plain arrays.

Shapes: N positions, K entries a list, B positions a block. p is the student, q the teacher, y the realised token,
U = S | T the union of both top-K lists; logarithms are natural.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from teachdiag.scores import Array, Mask

Ids = npt.NDArray[Any]
Logs = npt.NDArray[Any]
Block = npt.NDArray[np.floating[Any]]

_BLOCK = 4096  # positions whose lists are worked on at the same time: they stay in cache
_NO_NOISE = 1e-8  # denominators of IER below this count as this, as in the code of its authors


@dataclass(frozen=True)
class Lists:
    """Both models' top-K lists: ids, and both models' log-probabilities (nats) at them; shape (N, K) each."""

    student_ids: Ids
    teacher_ids: Ids
    student_logp: Logs
    teacher_logp: Logs
    teacher_logp_at_student: Logs
    student_logp_at_teacher: Logs


@dataclass(frozen=True)
class Realised:
    """The realised token y of each position: its id, log p(y) and log q(y), nats; shape (N,) each."""

    ids: Ids
    student_logp: Logs
    teacher_logp: Logs


def ratio_variance(lists: Lists) -> Array:
    """PGT: Var of log q/p over v ~ p renormalised on U, shape (N,), nats^2.

    The energy of the natural gradient of the local distillation loss. Source: the `jta-opd` code (no paper known).
    Exact: the lists hold both models' full-softmax probabilities on all of U.
    """
    scores = np.empty(len(lists.student_ids))
    for rows, p, c, _ in _unions(lists):
        mean = (p * c).sum(0)
        scores[rows] = (p * np.square(c - mean)).sum(0)
    return scores


def information_ratio(lists: Lists, realised: Realised) -> Array:
    """IER: signal over noise of the sampled reverse-KL gradient at its best baseline, shape (N,), a pure number.

    Var_p[c] / max(E_p[(c - b)^2 L] - Var_p[c], 1e-8), with c = log p/q, L = 1/p - 1 and b = E_p[c L] / E_p[L], p and
    q renormalised on U | {y}. Source: arXiv 2609.24432. Exact on that set, to which y is added with its own
    log-probabilities; the authors' floor for unknown ones and their cap of c at 30 nats have no part in it.
    """
    scores = np.empty(len(lists.student_ids))
    for rows, p, c, member in _unions(lists, realised):
        mean = (p * c).sum(0)
        signal = (p * np.square(c - mean)).sum(0)
        weight = (1 - p) * member  # E_p[f L] is the sum of f (1 - p) over the set
        baseline = (weight * c).sum(0) / np.maximum(weight.sum(0), _NO_NOISE)
        noise = (weight * np.square(c - baseline)).sum(0) - signal
        scores[rows] = signal / np.maximum(noise, _NO_NOISE)
    return scores


def log_mean_ratio(student_logp: Array, teacher_logp: Array, beta: float = 0.5) -> Array:
    """DIAL: |log q - log p| L(p, q)^beta of the realised token, shape (N,), with L = (q - p) / (log q - log p).

    L is the logarithmic mean. beta = 0 is the plain log ratio, beta = 1 is |q - p|; 0.5 lies between. Source: arXiv
    2610.11659, whose abstract names the mean; its experiments tune beta for each pair.
    """
    gap = np.abs(teacher_logp - student_logp)
    larger = np.exp(np.maximum(student_logp, teacher_logp))
    # max(p, q) (1 - e^-gap) / gap, whose limit at p = q is p: no difference of near equals.
    shrink = np.divide(-np.expm1(-gap), gap, out=np.ones_like(gap), where=gap > 0)
    scores: Array = gap * (larger * shrink) ** beta
    return scores


def first_choice_weight(student_ids: Ids, teacher_ids: Ids) -> Array:
    """SelecTKD: 1 where argmax p is among the teacher's top 5, else 0.01, shape (N,). Source: arXiv 2510.24021.

    Args:
        student_ids: shape (N, >= 1), by falling probability.
        teacher_ids: shape (N, >= 5), by falling probability.
    """
    accepted = (teacher_ids[:, :5] == student_ids[:, :1]).any(1)
    return np.where(accepted, 1.0, 0.01)


def confidence_weight(teacher_entropy: Array, student_entropy: Array) -> Array:
    """FiRe's token factor: (1 + 1 - H(q) / max H(q)) (1 + H(p) / max H(p)), maxima over the N positions, shape (N,).

    The paper's factor at its default a = b = 1; its mean-1 scaling changes no order, and its filter of whole
    trajectories is no token score. Source: arXiv 2606.02684.
    """
    return (2 - _share_of_largest(teacher_entropy)) * (1 + _share_of_largest(student_entropy))


def early_weight(context_id: Ids, position: Ids, log_ratio: Array, gamma: float = 0.5) -> Array:
    """IW-OPD: w_t = 1 + gamma (1 - sum_{s<t} |r_s| / sum_s |r_s|), r = log q/p of the realised token, shape (N,).

    Sums run over the positions given of the same context, in order of position. Where a context has no |r| at all, w
    is 1 + gamma throughout. Source: arXiv 2606.22600.

    Args:
        context_id: shape (N,).
        position: shape (N,), tokens.
        log_ratio: shape (N,), nats.
        gamma: the largest extra weight; the paper's 0.5.
    """
    order = np.lexsort((position, context_id))
    size = np.abs(log_ratio)[order]
    ids = context_id[order]
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    lengths = np.diff(np.r_[starts, len(ids)])
    before = np.cumsum(size) - size
    before -= np.repeat(before[starts], lengths)
    total = np.repeat(np.add.reduceat(size, starts), lengths)
    share = np.divide(before, total, out=np.zeros_like(total), where=total > 0)
    weights = np.empty(len(share))
    weights[order] = 1 + gamma * (1 - np.clip(share, 0, 1))
    return weights


def members(ids: Ids, others: Ids) -> Mask:
    """Say which ids are among the others of the same position; shapes (K, B) and (any, B), result (K, B)."""
    member = np.zeros(ids.shape, bool)
    for other in others:
        member |= ids == other
    return member


def _unions(lists: Lists, realised: Realised | None = None) -> Iterator[tuple[slice, Block, Block, Mask]]:
    """Yield blocks of positions with p, renormalised on the set, c = log p/q, and membership, shape (entries, B) each.

    The set is U, or U | {y} where the realised token is given. S comes first, whole; what repeats an id in T and y is
    no member, and has p = 0 and c = 0.
    """
    for rows in blocks(len(lists.student_ids)):
        student, teacher = _columns(lists.student_ids[rows]), _columns(lists.teacher_ids[rows])
        logp = [_columns(lists.student_logp[rows]), _columns(lists.student_logp_at_teacher[rows])]
        logq = [_columns(lists.teacher_logp_at_student[rows]), _columns(lists.teacher_logp[rows])]
        inside = [np.ones(student.shape, bool), ~members(teacher, student)]
        if realised is not None:
            y = realised.ids[None, rows]
            logp.append(realised.student_logp[None, rows])
            logq.append(realised.teacher_logp[None, rows])
            inside.append(~(student == y).any(0, keepdims=True) & ~(teacher == y).any(0, keepdims=True))
        log_p, log_q, member = np.concatenate(logp), np.concatenate(logq), np.concatenate(inside)
        p = np.exp(log_p) * member
        p /= p.sum(0)
        yield rows, p, (log_p - log_q) * member, member


def blocks(n: int) -> Iterator[slice]:
    """Yield the rows of one block after another."""
    return (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK))


def _columns(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turn (B, K) into (K, B) in memory too, so that loops over entries run along positions."""
    return np.ascontiguousarray(rows.T)


def _share_of_largest(values: Array) -> Array:
    largest = values.max()
    return values / largest if largest > 0 else np.zeros_like(values)
