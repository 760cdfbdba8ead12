"""The LM head's product without a float32 copy of half-precision weights, against float64 on the same numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import batched
from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.pair import load_pair, resolve_pair
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

ROWS, WIDTH, POSITIONS = 2500, 96, 5  # ids that fill no whole number of blocks
EPSILON = 2.0**-24  # half a unit in the last place of float32


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bound(hidden: Tensor, head: Head) -> Tensor:
    """Largest error of a float32 inner product of that many terms, in any order (Higham 2002, Eq. 3.5), and a bias."""
    sizes = hidden.double().abs() @ head.weight.double()[: head.size].abs().T  # (positions, ids)
    return (WIDTH + 2) * EPSILON * (sizes + (0 if head.bias is None else head.bias.double()[: head.size].abs()))


@pytest.mark.device
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("states", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
def test_logits_of_half_precision_are_exact_to_float32(
    device: torch.device, weights: torch.dtype, states: torch.dtype, biased: bool
) -> None:
    bias = drawn(ROWS, seed=2).to(weights) if biased else None
    head = Head(drawn(ROWS, WIDTH, seed=0).to(weights), bias, 1.0, None, ROWS - 7)
    hidden = drawn(POSITIONS, WIDTH, seed=1).to(states)
    exact = hidden.double() @ head.weight.double()[: head.size].T
    exact = exact if bias is None else exact + bias.double()[: head.size]
    largest = bound(hidden, head)
    head.to(device)
    logits = head(hidden.to(device))
    assert (logits.dtype, logits.device.type) == (torch.float32, device.type)
    assert ((logits.cpu().double() - exact).abs() <= largest).all()


def test_an_autocast_around_the_caller_rounds_nothing() -> None:
    for kind in (torch.float32, torch.bfloat16):
        head, hidden = Head(drawn(ROWS, WIDTH, seed=0).to(kind), None, 1.0, None, ROWS), drawn(2, WIDTH, seed=1)
        plain = head(hidden)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(head(hidden), plain)


def test_scale_cap_and_holes_come_after_the_product() -> None:
    holes = torch.tensor([3, 2400])
    head = Head(drawn(ROWS, WIDTH, seed=0).bfloat16(), None, 0.5, 30.0, ROWS, holes)
    hidden = drawn(POSITIONS, WIDTH, seed=1).bfloat16()
    logits = head(hidden)
    capped = 30 * torch.tanh(0.5 * (hidden.double() @ head.weight.double().T) / 30)
    assert torch.isinf(logits[:, holes]).all()
    known = torch.ones(ROWS, dtype=torch.bool).index_fill(0, holes, False)
    torch.testing.assert_close(logits[:, known].double(), capped[:, known], rtol=1e-5, atol=1e-5)


def test_gradients_through_half_precision_weights_are_those_of_float32() -> None:
    weight, hidden = drawn(ROWS, WIDTH, seed=0).bfloat16(), drawn(POSITIONS, WIDTH, seed=1).bfloat16()
    upstream, found = drawn(POSITIONS, ROWS, seed=2), []
    for kind in (torch.bfloat16, torch.float64):
        w, h = (part.clone().to(kind).requires_grad_() for part in (weight, hidden))
        logits = h @ w.T if kind == torch.float64 else Head(w, None, 1.0, None, ROWS)(h)
        (logits * upstream).sum().backward()
        found.append((w.grad.double(), h.grad.double()))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=2.0**-8, atol=1e-3)  # rounded to bfloat16 once, at the end


def test_gradients_of_many_tiles_are_rounded_once() -> None:
    """A thousand small gradients after a large one: in bfloat16, one after the other, they would all be lost."""
    weight = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    head = Head(weight, None, 1.0, None, 1).in_float32()
    tiles = [torch.tensor([[256.0]]), *(torch.tensor([[0.25]]) for _ in range(1024))]
    torch.stack([head(tile).sum() for tile in tiles]).sum().backward()
    assert weight.grad.item() == 512


@pytest.mark.device
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_keep_their_heads_and_lose_no_digit_behind_them(
    tiny_settings: CaptureSettings,
    captured_once: Path,
    tmp_path: Path,
    device: torch.device,
    quiet: Reporter,
    dtype: str,
) -> None:
    """No copy of the head; logits as exact as float32 has them; states that come back from disk as they were."""
    pair = load_pair(resolve_pair(tiny_settings, quiet), dtype, str(device))
    contexts = list(read_contexts(captured_once, Positions(6, "first")))[:3]
    states = compute_teacher_states(pair.teacher, [contexts], 60, tmp_path / "teacher.npy", quiet)
    for model in (pair.student, pair.teacher):
        assert model.head.weight is model.model.get_output_embeddings().weight
        assert model.head.weight.dtype == getattr(torch, dtype)
    for batch in batched(contexts, 60):
        hidden = pair.teacher.hidden_rows(batch, "teacher")
        kept = states.at(states.rows(batch), device)
        assert kept.dtype == hidden.dtype
        assert torch.equal(kept, hidden)
        with torch.no_grad():
            logits = pair.teacher.head(kept)
        weight = pair.teacher.head.weight.detach().cpu().double()[: pair.teacher.head.size]
        exact, sizes = hidden.cpu().double() @ weight.T, hidden.cpu().double().abs() @ weight.abs().T
        assert ((logits.cpu().double() - exact).abs() <= (hidden.shape[1] + 2) * EPSILON * sizes).all()
