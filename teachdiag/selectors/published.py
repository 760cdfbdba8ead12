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
    order, starts, lengths = _by_context(context_id, position)
    size = np.abs(log_ratio)[order]
    before = np.cumsum(size) - size
    before -= np.repeat(before[starts], lengths)
    total = np.repeat(np.add.reduceat(size, starts), lengths)
    share = np.divide(before, total, out=np.zeros_like(total), where=total > 0)
    weights = np.empty(len(share))
    weights[order] = 1 + gamma * (1 - np.clip(share, 0, 1))
    return weights


def late_weight(context_id: Ids, position: Ids, least: float = 0.25, centre: float = 0.3, width: float = 0.1) -> Array:
    """PW-OPSD: w = least + (1 - least) sigmoid((u - centre) / width), shape (N,), u in (0, 1) the place in it.

    The i-th of a context's n positions, in their order, lies at u = (i - 1/2) / n. The defaults are the schedule that
    the authors hold fixed over models. Source: arXiv 2605.21606, and its code for u.

    Args:
        context_id: shape (N,).
        position: shape (N,), tokens.
        least: the weight that the first positions tend to.
        centre: u at which half of the rise is done.
        width: of the rise, in u.
    """
    order, starts, lengths = _by_context(context_id, position)
    places = np.empty(len(order))
    places[order] = (np.arange(len(order)) - np.repeat(starts, lengths) + 0.5) / np.repeat(lengths, lengths)
    weights: Array = least + (1 - least) / (1 + np.exp((centre - places) / width))
    return weights


def trust(student_logp: Array, teacher_logp: Array) -> Array:
    """TrOPD: min(1, q/p) of the realised token, shape (N,): the rate at which speculative decoding would accept it.

    The paper draws its trust region by this probability. Source: arXiv 2606.01249.
    """
    rates: Array = np.exp(np.minimum(teacher_logp - student_logp, 0))
    return rates


def influence_weight(
    student_topk_logp: Logs, student_entropy: Array, student_logp: Array, teacher_logp: Array
) -> Array:
    """IDA-OPD: 1 where the sampled gradient raises the student's entropy, else |q - p| / (q + p) of y, shape (N,).

    Descent on -log(q/p) log p(y) changes H(p) at the rate log(q/p) D, with D = sum_v p_v^2 (log p_v + H) -
    p_y (log p_y + H): the derivative of H along a step of the logits. The sum runs over the student's list, beyond
    which p_v^2 is next to nothing. Source: arXiv 2608.29846, Theorem 1 and the weight of its Section 4.

    Args:
        student_topk_logp: shape (N, K), nats.
        student_entropy: shape (N,), nats.
        student_logp: log p(y), shape (N,), nats.
        teacher_logp: log q(y), shape (N,), nats.
    """
    listed = student_topk_logp.astype(np.float64)
    spread = (np.exp(2 * listed) * (listed + student_entropy[:, None])).sum(1)
    advantage = teacher_logp - student_logp
    influence = advantage * (spread - np.exp(student_logp) * (student_logp + student_entropy))
    return np.where(influence < 0, np.abs(np.tanh(advantage / 2)), 1.0)


def next_confidence(context_id: Ids, position: Ids, teacher_top_logp: Array) -> Array:
    """LGR's measure: the teacher's largest probability one position later, shape (N,); NaN where that is not there.

    The paper rewards each of the student's candidates by the confidence that the teacher has after it; what is stored
    tells it for the realised token alone. Source: arXiv 2605.30833.

    Args:
        context_id: shape (N,).
        position: shape (N,), tokens.
        teacher_top_logp: log-probability of the teacher's first choice, shape (N,), nats.
    """
    last = int(position.max()) + 2
    places = context_id.astype(np.int64) * last + position
    known, first = np.unique(places, return_index=True)
    following = np.minimum(np.searchsorted(known, places + 1), len(known) - 1)
    there = known[following] == places + 1
    return np.where(there, np.exp(teacher_top_logp[first[following]]), np.nan)


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


def _by_context(context_id: Ids, position: Ids) -> tuple[Ids, Ids, Ids]:
    """Return rows in order of context and position, and where each context starts in it, and how many rows it has."""
    order = np.lexsort((position, context_id))
    ids = context_id[order]
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    return order, starts, np.diff(np.r_[starts, len(ids)])


def _columns(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turn (B, K) into (K, B) in memory too, so that loops over entries run along positions."""
    return np.ascontiguousarray(rows.T)


def _share_of_largest(values: Array) -> Array:
    largest = values.max()
    return values / largest if largest > 0 else np.zeros_like(values)
