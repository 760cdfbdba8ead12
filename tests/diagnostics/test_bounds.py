"""Bounds of C and D from a teacher's top list.

The truth: distributions that agree with the list, made at random and by a general optimiser, whose C and D are written
out; and the product's own exact columns.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from teachdiag.diagnostics.scoring.bounds import support_bounds
from teachdiag.diagnostics.scoring.statistics import log_probabilities, supports, top_lists

rows = st.tuples(st.integers(0, 2**32 - 1), st.floats(0.05, 12))


def _tops(ours: tuple[int, float], theirs: tuple[int, float], n: int = 5) -> dict[str, torch.Tensor]:
    z, w = (torch.randn(n, 90, generator=torch.Generator().manual_seed(seed)) * scale for seed, scale in (ours, theirs))
    return top_lists(log_probabilities(z), log_probabilities(z / 2 + w))


@settings(max_examples=30)
@given(rows, rows)
def test_the_exact_values_lie_within(ours: tuple[int, float], theirs: tuple[int, float]) -> None:
    tops = _tops(ours, theirs)
    exact, bounds = supports(tops), support_bounds(tops)
    for name in ("compatibility", "disagreement"):
        for k in (8, 16, 32):
            low, high, value = bounds[f"{name}_low_k{k}"], bounds[f"{name}_high_k{k}"], exact[f"{name}_k{k}"]
            room = 1e-5 * (1 + value)  # both are float32
            assert (low <= value + room).all()
            assert (value <= high + room).all()


class Position:
    """One position: what is known of it, and D as the definition has it for any unknown part."""

    def __init__(self, tops: dict[str, torch.Tensor], k: int) -> None:
        one = {name: values[0].double().numpy() for name, values in tops.items()}
        student, listed = one["student_topk_ids"][:k].tolist(), one["teacher_topk_ids"].tolist()
        q = dict(zip(listed, np.exp(one["teacher_topk_logp"]), strict=True))
        p = dict(zip(listed, np.exp(one["student_logp_at_teacher_topk"]), strict=True))
        p |= dict(zip(student, np.exp(one["student_topk_logp"][:k]), strict=True))
        self.open = [i for i in student if i not in q]
        self.union = [i for i in listed if i in student or i in listed[:k]] + self.open
        self.q, self.p = np.array([q.get(i, 0) for i in self.union]), np.array([p[i] for i in self.union])
        self.most, self.rest = min(q.values()), max(0, 1 - sum(q.values()))

    def disagreement(self, x: np.ndarray) -> float:
        q = self.q.copy()
        q[len(q) - len(self.open) :] = x
        q, p = q / q.sum(), self.p / self.p.sum()
        return float(sum(a * np.log(a / b) for a, b in zip(q, p, strict=True) if a > 0))

    def possible(self, rng: np.random.Generator) -> np.ndarray:
        x = rng.uniform(0, self.most, len(self.open)) * (rng.uniform(size=len(self.open)) < rng.uniform())
        return x * min(1, self.rest / x.sum()) if x.sum() > 0 else x


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [8, 32])
def test_no_distribution_goes_beyond_and_some_come_near(seed: int, k: int) -> None:
    tops, rng = _tops((seed, 1.5), (seed + 100, 0.3 + seed / 2), n=1), np.random.default_rng(seed)
    position, bounds = Position(tops, k), support_bounds(tops)
    low, high = (float(bounds[f"disagreement_{side}_k{k}"]) for side in ("low", "high"))
    found = [position.disagreement(position.possible(rng)) for _ in range(100)]
    if position.open:
        for sign in (1, -1):
            found += [_optimised(position, sign, position.possible(rng)) for _ in range(4)]
    assert low <= min(found) + 1e-6
    assert max(found) <= high + 1e-6
    assert min(found) - low < 0.02 * (high - low) + 1e-5
    assert high - max(found) < 0.1 * (high - low) + 1e-5


def _optimised(position: Position, sign: int, start: np.ndarray) -> float:
    """The least D that a general optimiser finds, or the largest; it knows the constraints alone."""
    scale = position.most
    found = minimize(
        lambda y: sign * position.disagreement(np.clip(y, 0, 1) * scale),
        start / scale,
        method="SLSQP",
        bounds=[(0, 1)] * len(start),
        constraints=[{"type": "ineq", "fun": lambda y: position.rest - y.sum() * scale}],
    )
    y = np.clip(found.x, 0, 1) * scale
    y *= min(1, position.rest / max(y.sum(), 1e-300))
    return position.disagreement(y)


def test_bounds_of_c_are_those_of_the_list() -> None:
    """K = 8; the student's first is the teacher's second, its other seven are not listed."""
    teacher = torch.tensor([0.5, 0.2, *[0.008] * 30]).log()[None]
    tops = {
        "student_topk_ids": torch.tensor([[1, *range(40, 71)]]),
        "student_topk_logp": torch.full((1, 32), 1 / 40).log(),
        "teacher_topk_ids": torch.arange(32)[None],
        "teacher_topk_logp": teacher,
        "student_logp_at_teacher_topk": torch.full((1, 32), 1 / 200).log(),
    }
    bounds = support_bounds(tops)
    assert float(bounds["compatibility_low_k8"]) == pytest.approx(0.2, abs=1e-5)
    assert float(bounds["compatibility_high_k8"]) == pytest.approx(0.2 + 7 * 0.008, abs=1e-5)  # 0.056 of the open 0.06
    assert float(bounds["compatibility_high_k16"]) == pytest.approx(0.2 + 0.06, abs=1e-5)  # 15 x 0.008 would be more
