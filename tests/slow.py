"""The definitions of every measured column, written slowly: float64, plain loops, no shared code with the product."""

import math

import numpy as np


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
