"""Numbers are read off a device once, however many parameters they are summed over: each read lets a GPU run dry."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from teachdiag.diagnostics.contexts.sampling import KnownAlone, SeededSampling
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.diagnostics.probes import theta0 as module
from teachdiag.diagnostics.probes.theta0 import Theta0, inner, random_direction

READS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read since the test began."""
    done: list[str] = []

    def counting(name: str) -> None:
        read = getattr(Tensor, name)

        def counted(self: Tensor, *args: object, **kwargs: object) -> object:
            done.append(name)
            return read(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counted)

    for name in READS:
        counting(name)
    return done


@pytest.mark.parametrize("block", [7, 10**6])
def test_a_product_and_a_distance_are_read_once(block: int, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parameters that are one block, and of those that are many."""
    monkeypatch.setattr(module, "_LARGE", block)
    drawn = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=drawn)) for shape in pairwise(range(2, 20))]
    student = SimpleNamespace(
        parameters=lambda: enumerate(weights), sharded=False, head=SimpleNamespace(follow=lambda: None)
    )
    theta0, direction, other = Theta0(student), *(random_direction(student, seed) for seed in (1, 2))
    theta0.displace(direction, 0.5)
    reads.clear()
    found = inner(direction, other), theta0.distance()
    assert reads == ["tolist"] * 2
    true = sum((a.double() * b.double()).sum() for a, b in zip(direction, other, strict=True)).item()
    length = 0.5 * sum(a.double().square().sum() for a in direction).item() ** 0.5
    assert found == pytest.approx((true, length), rel=1e-5)


def test_tokens_are_drawn_without_a_read_and_the_first_nan_is_known_afterwards(reads: list[str]) -> None:
    scores = torch.randn(4, 2, 9, generator=torch.Generator().manual_seed(0))  # of four steps of two rollouts
    alone, drawing = KnownAlone(Known(8, (1, 4)), scores.device), SeededSampling(np.full((2, 4), 0.5), 3, scores.device)
    for broken in (None, 2):
        if broken is not None:
            scores[broken:, 1] = torch.nan
        reads.clear()
        drawn = [drawing(torch.zeros(2, 3 + step), alone(None, row.clone())) for step, row in enumerate(scores)]
        assert reads == []
        assert drawing.broken == broken
    for step in range(2):
        p = scores[step].double().index_fill(1, torch.tensor([1, 4, 8]), -torch.inf).softmax(-1)
        assert (drawn[step].argmax(-1) == (p.cumsum(-1) <= 0.5).sum(-1)).all()
