"""Numbers are read off a device once, however many parameters they are summed over: each read lets a GPU run dry."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

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
