"""Entropies, divergences, supports and alignments of two next-token distributions: pure tensor functions.

Shapes: N positions, V shared vocabulary, K support size. p is the student, q the teacher; everything is float32 and in
nats. Definitions: the schema of the `positions` table.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from teachdiag.artefacts import CANDIDATES, TOP
from teachdiag.diagnostics.scoring.bounds import support_bounds
from teachdiag.errors import SettingsError
from teachdiag.registry import attribute, guarded, load
from teachdiag.settings import SUPPORT_SIZES
from teachdiag.signals import added_columns

_FLOOR = -1e4  # nats below the likeliest id, where masks of any kind (-inf, -1e9, a type's smallest number) are put
_MASKED = 5e3  # nats between the models at an id that one of them masks: no network's own logits are as far apart


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the last axis, whose probabilities sum to 1 within rounding (3e-7 in float32).

    On a CPU, torch's own adds up a row in few running sums, which loses 1e-5 of the whole over a wide vocabulary. An id
    that is masked comes out as log-probability -1e4 or so: its probability is 0, and 0 log 0 is 0. NaN or an infinite
    logit makes the whole row NaN.

    Args:
        logits: shape (..., V), float32 or float64; gradients flow to it.
    """
    logp: Tensor = _LogProbabilities.apply(logits)  # type: ignore[no-untyped-call]
    return logp


class _LogProbabilities(torch.autograd.Function):
    """Keeps its output alone for the way back, as torch's own does."""

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        shifted = (logits - logits.amax(-1, keepdim=True)).clamp_min_(_FLOOR)
        return shifted.sub_(shifted.exp().sum(-1, keepdim=True).log_())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ANN401
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        (logp,) = ctx.saved_tensors
        return torch.addcmul(gradient, logp.exp(), gradient.sum(-1, keepdim=True), value=-1)

    @staticmethod
    def jvp(ctx: Any, slope: Tensor) -> Tensor:  # noqa: ANN401
        (logp,) = ctx.saved_tensors
        return slope - _dot(logp.exp(), slope)[..., None]


def statistics(student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Every column of the `positions` table that two rows of logits determine, those of installed packages included.

    Args:
        student_logits: shape (N, V), float32.
        teacher_logits: shape (N, V), float32.
        tokens: realised token ids, shape (N,), int64.

    Returns:
        One tensor a column, shape (N,), or (N, 32) for the top-K lists.

    Raises:
        InputError: an installed package's function fails, or returns something else than N finite numbers.
    """
    logp, logq = log_probabilities(student_logits), log_probabilities(teacher_logits)  # (N, V) each
    columns = full_vocabulary(logp, logq)
    columns["student_logp"] = _at(logp, tokens[:, None])[:, 0]
    columns["teacher_logp"] = _at(logq, tokens[:, None])[:, 0]
    tops = top_lists(logp, logq)
    return columns | tops | supports(tops) | _added(logp, logq, tokens)


def listed_statistics(logp: Tensor, tops: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every column that the student's whole distribution and both models' top lists determine.

    Args:
        logp: the student's log-probabilities, shape (N, V).
        tops: what `top_lists` returns, shape (N, 32) each, whoever computed it; `teacher_logp_at_student_topk` may be
            missing, and then so is what needs it, and bounds stand instead.
    """
    entropy = {"student_entropy": (-_dot(logp.exp(), logp)).clamp_min(0)}
    if "teacher_logp_at_student_topk" in tops:
        return entropy | tops | supports(tops)
    return entropy | tops | _shared_supports(tops) | support_bounds(tops)


def divergences(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, Tensor]:
    """Forward and reverse KL alone, shape (N,) each, for rescoring after an update."""
    both = _compared(log_probabilities(student_logits), log_probabilities(teacher_logits))
    forward_kl, reverse_kl = _divergences(both)
    return {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


def candidates(student_logits: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """What a reader sees of the student at N positions: its likeliest ids, and what it gives to the realised tokens.

    Args:
        student_logits: shape (N, V), float32.
        tokens: realised token ids, shape (N,), int64.
    """
    logp = log_probabilities(student_logits)
    top_logp, top_ids = logp.topk(CANDIDATES)
    return {
        "student_topk_ids": top_ids,
        "student_topk_logp": top_logp,
        "student_logp": _at(logp, tokens[:, None])[:, 0],
    }


def full_vocabulary(logp: Tensor, logq: Tensor) -> dict[str, Tensor]:
    """Full-vocabulary scalars from log-probabilities of shape (N, V), as `log_probabilities` gives them.

    A KL is infinite where one model masks an id that the other does not. `logit_alignment` is this project's A: the
    inner product of the gradients of KL(q || p) and KL(p || q) with respect to the student's logits.
    """
    both = _compared(logp, logq)
    forward_kl, reverse_kl = _divergences(both)
    return {
        "student_entropy": (-_dot(both.p, logp)).clamp_min(0),
        "teacher_entropy": (-_dot(both.q, logq)).clamp_min(0),
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": _jensen_shannon(both),
        "logit_alignment": _dot(both.gap, both.p * both.log_ratio) - reverse_kl * _dot(both.gap, both.p),
        "forward_logit_energy": _dot(both.gap, both.gap),
    }


def masked_by_one(logp: Tensor, logq: Tensor) -> tuple[int, bool] | None:
    """Return the likeliest id that one model masks and the other does not, and whether the student is that one.

    Args:
        logp: the student's log-probabilities at one position, shape (V,), as `log_probabilities` gives them.
        logq: the teacher's.
    """
    log_ratio = logp - logq  # (V,)
    alone = log_ratio.abs() > _MASKED
    if not alone.any():
        return None
    token = int(torch.maximum(logp, logq).masked_fill(~alone, -torch.inf).argmax())
    return token, bool(log_ratio[token] < 0)


class _Compared(NamedTuple):
    """Two distributions side by side, shape (N, V) each; differences have all their digits where p and q are near.

    Attributes:
        p: the student's probabilities.
        q: the teacher's.
        log_ratio: log(p/q).
        shortfall: min(p, q) / max(p, q) - 1.
        gap: p - q.
    """

    p: Tensor
    q: Tensor
    log_ratio: Tensor
    shortfall: Tensor
    gap: Tensor


def _compared(logp: Tensor, logq: Tensor) -> _Compared:
    p, q, log_ratio = logp.exp(), logq.exp(), logp - logq
    shortfall = torch.expm1(-log_ratio.abs())
    return _Compared(p, q, log_ratio, shortfall, torch.copysign(torch.maximum(p, q) * shortfall, log_ratio))


def _divergences(both: _Compared) -> tuple[Tensor, Tensor]:
    """KL(q || p) and KL(p || q), shape (N,).

    Summed as q log(q/p) + p - q, of which no term is negative: nothing cancels, so that small divergences keep their
    digits, and an error of a normaliser counts to second order only. For measuring: cut off at 0, it has no gradient
    where the models agree, so that steps differentiate the plain sums of `teachdiag.losses`.
    """
    excess = both.gap.sum(-1)
    forward_kl = (excess - _dot(both.q, both.log_ratio)).clamp_min(0)
    reverse_kl = (_dot(both.p, both.log_ratio) - excess).clamp_min(0)
    return (
        forward_kl.masked_fill(both.log_ratio.amin(-1) < -_MASKED, torch.inf),
        reverse_kl.masked_fill(both.log_ratio.amax(-1) > _MASKED, torch.inf),
    )


def _jensen_shannon(both: _Compared) -> Tensor:
    """Jensen-Shannon divergence, shape (N,).

    With m = (p+q)/2 and t = |p-q| / (p+q), log(max/m) = log(1+t) and log(min/m) = log(1-t): no entropies are
    subtracted, so that small divergences keep their digits.
    """
    minus_t = (both.shortfall / (both.shortfall + 2)).clamp_min_(2**-24 - 1)  # where it is -1, min(p, q) is nothing
    larger, smaller = torch.maximum(both.p, both.q), torch.minimum(both.p, both.q)
    twice = _dot(larger, torch.log1p(-minus_t)) + _dot(smaller, torch.log1p(minus_t))
    return (twice / 2).clamp(0, 0.6931471805599453)


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


def _shared_supports(tops: dict[str, Tensor]) -> dict[str, Tensor]:
    """The support columns that need nothing of the teacher but its own list."""
    same = tops["student_topk_ids"][:, :, None] == tops["teacher_topk_ids"][:, None, :]  # (N, 32, 32)
    columns: dict[str, Tensor] = {}
    for k in SUPPORT_SIZES:
        in_student = same[:, :k, :k].any(1)  # (N, k)
        mass = (tops["teacher_topk_logp"][:, :k].exp() * in_student).sum(-1).clamp(0, 1)
        measured = {"compatibility_bound": mass} | _overlaps(in_student)
        columns |= {f"{name}_k{k}": values for name, values in measured.items()}
    return columns


def _overlaps(in_student: Tensor) -> dict[str, Tensor]:
    """What two supports have in common, from which ids of T are in S, shape (N, K)."""
    k, shared = in_student.shape[1], in_student.sum(-1).float()
    return {
        "overlap": shared / k,
        "jaccard": shared / (2 * k - shared),
        "teacher_top1_in_support": in_student[:, 0].float(),
    }


def _tail_mass(tops: dict[str, Tensor], same: Tensor) -> Tensor:
    """The teacher's mass outside both whole lists; `same` marks equal ids of S (dim 1) and T (dim 2)."""
    on_student = tops["teacher_logp_at_student_topk"].exp().sum(-1)
    on_teacher_alone = (tops["teacher_topk_logp"].exp() * ~same.any(1)).sum(-1)
    return (1 - on_student - on_teacher_alone).clamp(0, 1)


def _support(tops: dict[str, Tensor], same: Tensor) -> dict[str, Tensor]:
    """The support columns of one K, from lists cut to K; `same` marks equal ids of S (dim 1) and T (dim 2).

    U = S | T is S followed by the part of T that is not in S, which keeps its width of 2K and weighs nothing.
    """
    in_teacher, in_student = same.any(2), same.any(1)  # (N, K) each
    in_union = torch.cat([torch.ones_like(in_student), ~in_student], dim=1)
    logp = torch.cat([tops["student_topk_logp"], tops["student_logp_at_teacher_topk"]], dim=1)
    logq = torch.cat([tops["teacher_logp_at_student_topk"], tops["teacher_topk_logp"]], dim=1)
    p, q = logp.exp() * in_union, logq.exp() * in_union  # (N, 2K) each
    mass_p, mass_q = p.sum(-1), q.sum(-1)  # (N,) each
    both = _compared(logp - mass_p.log()[:, None], logq - mass_q.log()[:, None])
    teacher_on_support = tops["teacher_logp_at_student_topk"].exp()
    return {
        "disagreement": _dot(in_union.float(), both.gap - both.q * both.log_ratio).clamp_min(0),
        "compatibility": teacher_on_support.sum(-1).clamp(0, 1),
        "compatibility_bound": (teacher_on_support * in_teacher).sum(-1).clamp(0, 1),
        "bhattacharyya": ((p * q).sqrt().sum(-1) / (mass_p * mass_q).sqrt()).clamp(0, 1),
    } | _overlaps(in_student)


def _added(logp: Tensor, logq: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Columns that installed packages measure, shape (N,) float32 each; finite where the models' logits are."""
    columns: dict[str, Tensor] = {}
    for name, (_, measure) in added_columns().items():
        label, function = f"signal {name}", load(f"signal {name}", partial(attribute, measure), _function)
        with guarded(label, "failed"):
            values = function(logp, logq, tokens)
        if not isinstance(values, Tensor) or values.shape != tokens.shape or not values.dtype.is_floating_point:
            shape = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
            raise SettingsError(f"{label} returned {shape}, where a floating number for each of {len(tokens)} is due")
        bad = ~values.isfinite() & logp.isfinite().all(-1) & logq.isfinite().all(-1)
        if bad.any():
            raise SettingsError(f"{label} is {float(values[bad][0])} at a position: it must be finite")
        columns[name] = values.float()
    return columns


def _function(label: str, loaded: object) -> Callable[..., Any]:
    if not callable(loaded):
        raise SettingsError(f"{label} is measured by {loaded!r}, which is no function")
    return loaded


def _at(logs: Tensor, ids: Tensor) -> Tensor:
    return logs.gather(-1, ids)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the last axis: products, then torch's pairwise sum, which libraries' dot products lack."""
    product: Tensor = torch.linalg.vecdot(a, b)
    return product
