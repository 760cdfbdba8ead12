"""No tensor is made on another device than those it meets: device 'meta' has no memory, and refuses to meet the CPU."""

import numpy as np
import pytest
import torch
from torch import Tensor

from teachdiag.diagnostics.contexts.sampling import KnownAlone, SeededSampling
from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.diagnostics.scoring.statistics import candidates, divergences, statistics
from teachdiag.losses import LOSSES

ELSEWHERE = torch.device("meta")
ROWS, WIDTH, POSITIONS = 1100, 8, 5


def some(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=kind, device=ELSEWHERE)


@pytest.fixture
def tokens() -> Tensor:
    return some(POSITIONS, kind=torch.long)


def test_the_device_refuses_to_meet_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="device"):
        some(3) + torch.ones(3)


def test_statistics(tokens: Tensor) -> None:
    z, w = some(POSITIONS, ROWS), some(POSITIONS, ROWS)
    columns = statistics(z, w, tokens) | divergences(z, w) | candidates(z, tokens)
    assert {values.device for values in columns.values()} == {ELSEWHERE}


@pytest.mark.parametrize("loss", list(LOSSES))
def test_losses_and_their_gradients(loss: str, tokens: Tensor) -> None:
    z = some(POSITIONS, ROWS).requires_grad_()
    position_loss(loss, {"jsd_beta": 0.5})(z, some(POSITIONS, ROWS), tokens).sum().backward()
    assert z.grad is not None
    assert z.grad.device == ELSEWHERE


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_heads(weights: torch.dtype, states: torch.dtype) -> None:
    head = Head(torch.empty(ROWS, WIDTH, dtype=weights), torch.empty(ROWS, dtype=weights), 0.5, 30.0, ROWS - 3)
    head.holes = torch.tensor([1, 2])
    head.to(ELSEWHERE)
    hidden = some(POSITIONS, WIDTH, kind=states)
    for made in (head(hidden), head.in_float32().slope(hidden, hidden, some(ROWS, WIDTH), some(ROWS))):
        assert (made.shape, made.dtype, made.device) == ((POSITIONS, ROWS - 3), torch.float32, ELSEWHERE)


def test_batches() -> None:
    contexts = [Context(i, f"p/{i}", "bank", (1,) * n, (1,) * n, (2, 3)) for i, n in enumerate((3, 5))]
    batch = Batch(tuple(contexts))
    ids = batch.input_ids("student", ELSEWHERE)
    assert ids.device == ELSEWHERE
    assert batch.gather(some(*ids.shape, WIDTH), "student").device == ELSEWHERE


def test_sampling() -> None:
    drawing = SeededSampling(np.zeros((POSITIONS, 4)), prompt_length=2, device=ELSEWHERE)
    scores = KnownAlone(Known(ROWS - 3, (1,)), ELSEWHERE)(some(POSITIONS, 3, kind=torch.long), some(POSITIONS, ROWS))
    assert drawing(some(POSITIONS, 3, kind=torch.long), scores).device == ELSEWHERE
