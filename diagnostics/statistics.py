"""Entropies, divergences, supports and alignments of two next-token distributions: pure tensor functions.

Shapes: N positions, V shared vocabulary, K support size. p is the student, q the teacher; everything is float32 and in
nats. Definitions: the schema of the `positions` table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from teachdiag.artefacts import TOP
from teachdiag.settings import SUPPORT_SIZES


def statistics(student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Every column of the `positions` table that two rows of logits determine.

    Args:
        student_logits: shape (N, V), float32.
        teacher_logits: shape (N, V), float32.
        tokens: realised token ids, shape (N,), int64.

    Returns:
        One tensor a column, shape (N,), or (N, 32) for the top-K lists.
    """
    logp, logq = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    columns = full_vocabulary(logp, logq)
    columns["student_logp"] = _at(logp, tokens[:, None])[:, 0]
    columns["teacher_logp"] = _at(logq, tokens[:, None])[:, 0]
    tops = top_lists(logp, logq)
    return columns | tops | supports(tops)


def listed_statistics(logp: Tensor, tops: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every column that the student's whole distribution and both models' top lists determine.

    Args:
        logp: the student's log-probabilities, shape (N, V).
        tops: what `top_lists` returns, shape (N, 32) each, whoever computed it.
    """
    return {"student_entropy": (-_dot(logp.exp(), logp)).clamp_min(0)} | tops | supports(tops)


def divergences(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
    """Forward and reverse KL alone, shape (N,) each, for rescoring after an update."""
    logp, logq = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    log_ratio = logp - logq
    return {
        "forward_kl": (-_dot(logq.exp(), log_ratio)).clamp_min(0),
        "reverse_kl": _dot(logp.exp(), log_ratio).clamp_min(0),
    }


def full_vocabulary(logp: Tensor, logq: Tensor) -> dict[str, Tensor]:
    """Full-vocabulary scalars from log-probabilities of shape (N, V).

    Divergences are clamped at 0, which rounding can miss by about 1e-7. `logit_alignment` is this project's A: the
    inner product of the gradients of KL(q || p) and KL(p || q) with respect to the student's logits.
    """
    p, q = logp.exp(), logq.exp()
    log_ratio = logp - logq
    p_log_ratio = p * log_ratio
    reverse_kl = p_log_ratio.sum(-1)
    difference = p - q
    return {
        "student_entropy": (-_dot(p, logp)).clamp_min(0),
        "teacher_entropy": (-_dot(q, logq)).clamp_min(0),
        "forward_kl": (-_dot(q, log_ratio)).clamp_min(0),
        "reverse_kl": reverse_kl.clamp_min(0),
        "jsd": jensen_shannon(p, q, log_ratio),
        "logit_alignment": _dot(difference, p_log_ratio) - reverse_kl * _dot(difference, p),
        "forward_logit_energy": _dot(difference, difference),
    }


def jensen_shannon(p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """Jensen-Shannon divergence from p, q and log(p/q) of shape (N, V).

    log(p/m) with m = (p+q)/2 is ln 2 - softplus(-log p/q): no entropies are subtracted, so that small divergences
    keep their digits.
    """
    above = F.softplus(log_ratio)  # log(1 + p/q); softplus(-r) = softplus(r) - r
    ln2 = 0.6931471805599453
    twice = _dot(p, ln2 - above + log_ratio) + _dot(q, ln2 - above)
    return (twice / 2).clamp(0, ln2)


def top_lists(logp: Tensor, logq: Tensor) -> dict[str, Tensor]:
    """Both models' top 32 ids by falling probability, and each model's log-probabilities at both lists: (N, 32)."""
    student_logp, student_ids = logp.topk(TOP)
    teacher_logp, teacher_ids = logq.topk(TOP)
    return {
        "student_topk_ids": student_ids,
        "student_topk_logp": student_logp,
        "teacher_logp_at_student_topk": _at(logq, student_ids),
        "teacher_topk_ids": teacher_ids,
        "teacher_topk_logp": teacher_logp,
        "student_logp_at_teacher_topk": _at(logp, teacher_ids),
    }


def supports(tops: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every support column for K = 8, 16 and 32 from the top lists: D, C, its bound, proxies; the mass in no list."""
    same = tops["student_topk_ids"][:, :, None] == tops["teacher_topk_ids"][:, None, :]  # (N, 32, 32)
    columns: dict[str, Tensor] = {}
    for k in SUPPORT_SIZES:
        measured = _support({name: values[:, :k] for name, values in tops.items()}, same[:, :k, :k])
        columns |= {f"{name}_k{k}": values for name, values in measured.items()}
    columns["tail_mass"] = _tail_mass(tops, same)
    return columns


def _tail_mass(tops: dict[str, Tensor], same: Tensor) -> Tensor:
    """The teacher's mass outside both whole lists; `same` marks equal ids of S (dim 1) and T (dim 2)."""
    on_student = tops["teacher_logp_at_student_topk"].exp().sum(-1)
    on_teacher_alone = (tops["teacher_topk_logp"].exp() * ~same.any(1)).sum(-1)
    return (1 - on_student - on_teacher_alone).clamp(0, 1)


def _support(tops: dict[str, Tensor], same: Tensor) -> dict[str, Tensor]:
    """The support columns of one K, from lists cut to K; `same` marks equal ids of S (dim 1) and T (dim 2).

    U = S | T is S followed by the part of T that is not in S, which keeps its width of 2K and weighs nothing.
    """
    in_teacher, in_student = same.any(2), same.any(1)
    k = same.shape[1]
    in_union = torch.cat([torch.ones_like(in_student), ~in_student], dim=1)
    logp = torch.cat([tops["student_topk_logp"], tops["student_logp_at_teacher_topk"]], dim=1)
    logq = torch.cat([tops["teacher_logp_at_student_topk"], tops["teacher_topk_logp"]], dim=1)
    p, q = logp.exp() * in_union, logq.exp() * in_union
    mass_p, mass_q = p.sum(-1), q.sum(-1)
    shared = in_teacher.sum(-1).float()
    teacher_on_support = tops["teacher_logp_at_student_topk"].exp()
    return {
        "disagreement": (_dot(q, logq - logp) / mass_q - mass_q.log() + mass_p.log()).clamp_min(0),
        "compatibility": teacher_on_support.sum(-1).clamp(0, 1),
        "compatibility_bound": (teacher_on_support * in_teacher).sum(-1).clamp(0, 1),
        "bhattacharyya": ((p * q).sqrt().sum(-1) / (mass_p * mass_q).sqrt()).clamp(0, 1),
        "overlap": shared / k,
        "jaccard": shared / (2 * k - shared),
        "teacher_top1_in_support": in_student[:, 0].float(),
    }


def _at(logs: Tensor, ids: Tensor) -> Tensor:
    return logs.gather(-1, ids)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the last axis without an intermediate of that size."""
    product: Tensor = torch.linalg.vecdot(a, b)
    return product
