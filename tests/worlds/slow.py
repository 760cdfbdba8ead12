"""The definitions of every measured column, written slowly: float64, plain loops, no shared code with the product."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from teachdiag.diagnostics.models.alignment import Context


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


def kl(a: np.ndarray, b: np.ndarray) -> float:
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True) if x > 0)


def entropy(a: np.ndarray) -> float:
    return -sum(x * math.log(x) for x in a if x > 0)


def position_columns(student_logits: np.ndarray, teacher_logits: np.ndarray, token: int) -> dict[str, float]:
    """Scalars of one position from two rows of logits."""
    p, q = softmax(student_logits), softmax(teacher_logits)
    m = (p + q) / 2
    reverse = kl(p, q)
    columns = {
        "student_entropy": entropy(p),
        "teacher_entropy": entropy(q),
        "forward_kl": kl(q, p),
        "reverse_kl": reverse,
        "jsd": kl(p, m) / 2 + kl(q, m) / 2,
        "student_logp": math.log(p[token]),
        "teacher_logp": math.log(q[token]),
        "logit_alignment": sum((x - y) * x * (math.log(x / y) - reverse) for x, y in zip(p, q, strict=True)),
        "forward_logit_energy": sum((x - y) ** 2 for x, y in zip(p, q, strict=True)),
    }
    listed = set(top(p, 32)) | set(top(q, 32))
    columns["tail_mass"] = sum(x for v, x in enumerate(q) if v not in listed)
    for k in (8, 16, 32):
        columns |= {f"{name}_k{k}": value for name, value in support_columns(p, q, k).items()}
    return columns


def support_columns(p: np.ndarray, q: np.ndarray, k: int) -> dict[str, float]:
    student, teacher = top(p, k), top(q, k)
    union, both = sorted(set(student) | set(teacher)), set(student) & set(teacher)
    p_union, q_union = p[union] / p[union].sum(), q[union] / q[union].sum()
    return {
        "disagreement": kl(q_union, p_union),
        "compatibility": sum(q[v] for v in student),
        "compatibility_bound": sum(q[v] for v in both),
        "bhattacharyya": sum(math.sqrt(x * y) for x, y in zip(p_union, q_union, strict=True)),
        "overlap": len(both) / k,
        "jaccard": len(both) / len(union),
        "teacher_top1_in_support": float(int(q.argmax()) in student),
    }


def top(a: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(a)), key=lambda v: -a[v])[:k]


def loss_term_gradients(student: str, teacher: str, context: Context, loss: str) -> list[list[Tensor]]:
    """Gradient of every position's loss on its own: float64 models, one backward pass a position."""
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (student, teacher)]
    vocabulary = len(AutoTokenizer.from_pretrained(student).get_vocab())
    logp = plain_logp(models[0], context, "student", vocabulary)
    logq = plain_logp(models[1], context, "teacher", vocabulary).detach()
    parameters = list(models[0].parameters())
    values = [LOSSES[loss](p, q, context.response[t]) for p, q, t in zip(logp, logq, context.positions, strict=True)]
    return [list(torch.autograd.grad(value, parameters, retain_graph=True)) for value in values]


def _jsd(p: Tensor, q: Tensor) -> Tensor:
    m = (p.exp() + q.exp()) / 2
    return ((p.exp() * (p - m.log())).sum() + (q.exp() * (q - m.log())).sum()) / 2


LOSSES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "reverse_kl": lambda p, q, _: (p.exp() * (p - q)).sum(),
    "forward_kl": lambda p, q, _: (q.exp() * (q - p)).sum(),
    "jsd": lambda p, q, _: _jsd(p, q),
    "sampled_reverse_kl": lambda p, q, y: -(q[y] - p[y].detach()) * p[y],
}


def plain_logp(model: PreTrainedModel, context: Context, side: str, vocabulary: int) -> Tensor:
    """Log-probabilities at every kept position of a context, from one whole forward pass: (positions, vocabulary)."""
    prompt = context.student_prompt if side == "student" else context.teacher_prompt
    logits = model(torch.tensor([prompt + context.response])).logits[0, :, :vocabulary]
    return logits[[len(prompt) - 1 + t for t in context.positions]].log_softmax(-1)
