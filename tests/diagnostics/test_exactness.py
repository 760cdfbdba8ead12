"""Float32 statistics over wide vocabularies, and of nearly equal distributions, against float64 on the same logits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from teachdiag.diagnostics.models.alignment import Batch, Context, batched, relaid
from teachdiag.diagnostics.models.pair import Pair, load_pair, resolve_pair
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.diagnostics.scoring.statistics import divergences, log_probabilities, statistics
from teachdiag.diagnostics.scoring.tiles import Columns, score
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

TEXT = "Q: Natalia sold 48 clips in April, and half as many in May. How many in all?\nA: In May she sold 48 / 2 = 24."


@pytest.fixture(scope="module")
def pair() -> Pair:
    settings = CaptureSettings(student="embedded", teacher="embedded", student_drop_layers="20")
    return load_pair(resolve_pair(settings, Reporter(quiet=True)), "float32", "cpu")


@pytest.fixture(scope="module")
def contexts(pair: Pair) -> list[Context]:
    """One short text, cut in several ways into prompt and response."""
    ids = tuple(pair.student.tokenizer(TEXT)["input_ids"])
    return [Context(i, "p", "bank", ids[i:at], ids[i:at], ids[at : at + 12]) for i, at in enumerate((20, 5, 29))]


@pytest.fixture(scope="module")
def real(pair: Pair) -> Tensor:
    """The embedded model's logits over its 49,152 ids at every token of a short text."""
    ids = tuple(pair.teacher.tokenizer(TEXT)["input_ids"])
    (batch,) = batched([Context(0, "p", "bank", ids[:1], ids[:1], ids[1:])], 1000)
    with torch.no_grad():
        return pair.teacher.head(pair.teacher.hidden_rows(batch, "teacher"))


@pytest.fixture(scope="module")
def wide() -> Tensor:
    """Logits over 262,144 ids with the heavy tail of real ones: Zipf's law at several temperatures, disturbed."""
    generator = torch.Generator().manual_seed(0)
    zipf = -1.1 * torch.arange(1, 2**18 + 1).log()[torch.randperm(2**18, generator=generator)]
    return zipf * torch.tensor([[0.5], [1.0], [1.5], [2.5]]) + 1.5 * torch.randn(4, 2**18, generator=generator) + 12


def truths(z: Tensor, w: Tensor) -> dict[str, Tensor]:
    logp, logq = z.double().log_softmax(-1), w.double().log_softmax(-1)
    p, q = logp.exp(), logq.exp()
    logm, reverse = ((p + q) / 2).log(), (p * (logp - logq)).sum(-1)
    listed = [set(a.tolist()) | set(b.tolist()) for a, b in zip(p.topk(32).indices, q.topk(32).indices, strict=True)]
    return {
        "student_entropy": -(p * logp).sum(-1),
        "teacher_entropy": -(q * logq).sum(-1),
        "forward_kl": (q * (logq - logp)).sum(-1),
        "reverse_kl": reverse,
        "jsd": (p * (logp - logm) + q * (logq - logm)).sum(-1) / 2,
        "logit_alignment": ((p - q) * p * (logp - logq - reverse[:, None])).sum(-1),
        "forward_logit_energy": (p - q).square().sum(-1),
        "compatibility_k16": q.gather(1, p.topk(16).indices).sum(-1),
        "tail_mass": torch.stack([1 - row[list(ids)].sum() for row, ids in zip(q, listed, strict=True)]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("place", ["real", pytest.param("wide", marks=pytest.mark.device)])
@pytest.mark.parametrize(
    ("apart", "divergence", "mass"),
    [(1.0, 3e-6, 1e-5), (0.03, 1e-4, 3e-4), (0.002, 2e-3, 5e-3)],  # KL of about 0.5, 5e-4 and 2e-6
)
def test_every_scalar_has_the_digits_that_its_logits_allow(
    request: pytest.FixtureRequest, device: torch.device, place: str, apart: float, divergence: float, mass: float
) -> None:
    z = request.getfixturevalue(place)
    w = z + apart * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = z.to(device), w.to(device)
    columns = statistics(ours, theirs, torch.zeros(len(z), dtype=torch.long, device=device)) | divergences(ours, theirs)
    for name, truth in truths(z, w).items():
        relative, absolute = divergence, 0.0
        if name in ("logit_alignment", "forward_logit_energy"):
            relative, absolute = mass, 1e-8
        elif name in ("student_entropy", "teacher_entropy", "compatibility_k16", "tail_mass"):
            relative, absolute = 1e-6, 5e-7
        torch.testing.assert_close(
            columns[name].double().cpu(), truth, rtol=relative, atol=absolute, msg=f"{name}: {{}}".format
        )


@pytest.mark.parametrize("place", ["real", "wide"])
def test_probabilities_sum_to_one_and_so_do_gradients(request: pytest.FixtureRequest, place: str) -> None:
    z = request.getfixturevalue(place)[:4].clone().requires_grad_()
    logp = log_probabilities(z)
    assert (logp.detach().double().exp().sum(-1) - 1).abs().max() < 5e-7
    exact = z.detach().double().requires_grad_()
    upstream = torch.randn(z.shape, generator=torch.Generator().manual_seed(2)).abs()
    (logp * upstream).sum().backward()
    (exact.log_softmax(-1) * upstream.double()).sum().backward()
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=1e-5, atol=3e-6)


@pytest.mark.device
@pytest.mark.parametrize("loss", ["reverse_kl", "forward_kl", "jsd", "sampled_reverse_kl"])
def test_losses_have_exact_gradients_over_a_wide_vocabulary(wide: Tensor, device: torch.device, loss: str) -> None:
    measure = position_loss(loss, {"jsd_beta": 0.5})
    teacher = wide + 0.3 * torch.randn(wide.shape, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(len(wide))
    found = []
    for z, w in ((wide.clone().to(device), teacher.to(device)), (wide.double(), teacher.double())):
        z.requires_grad_()
        measure(z, w, tokens.to(z.device)).sum().backward()
        found.append(z.grad.double().cpu())
    error, size = (found[0] - found[1]).norm(dim=-1), found[1].norm(dim=-1)
    assert (error < 1e-5 * size).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own use of TorchScript in forward mode
def test_log_probabilities_are_those_of_torch_in_forward_and_backward_mode() -> None:
    z = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(log_probabilities, z, check_forward_ad=True)
    torch.testing.assert_close(log_probabilities(z), z.log_softmax(-1), rtol=1e-14, atol=1e-14)


def scored(pair: Pair, batches: list[Batch], tile: int) -> Columns:
    """Columns of all batches, by context and position."""
    found = [score(pair.student, pair.teacher, batch, tile) for batch in batches]
    keys = [np.concatenate([getattr(b, name) for b in batches]) for name in ("positions", "context_ids")]
    order = np.lexsort(keys)
    return {name: np.concatenate([columns[name] for columns in found])[order] for name in found[0]}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "tile"), [("alone", 256), ("together", 7), ("together", 1), ("relaid", 256)])
def test_layouts_move_nothing_by_more_than_a_tenth_of_a_millinat(
    pair: Pair, contexts: list[Context], layout: str, tile: int
) -> None:
    usual = scored(pair, batched(contexts, 1000), 256)
    layouts = {
        "alone": batched(contexts, 1),
        "together": batched(contexts, 1000),
        "relaid": relaid(contexts, 1000, 8192),
    }
    again = scored(pair, layouts[layout], tile)
    for own in ("student", "teacher"):
        ids, others = usual[f"{own}_topk_ids"], again[f"{own}_topk_ids"]
        apart = -np.diff(usual[f"{own}_topk_logp"])
        nearest = np.minimum(np.insert(apart, 0, np.inf, axis=1), np.append(apart, apart[:, -1:], axis=1))
        assert ((ids == others) | (nearest < 1e-4))[:, :-1].all()  # the last may change places with what is not listed
    for name, values in usual.items():
        if not name.endswith("ids") and "_at_" not in name and name != "hidden_norm_sq":
            np.testing.assert_allclose(again[name], values, rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(again["hidden_norm_sq"], usual["hidden_norm_sq"], rtol=1e-5)


def test_the_order_of_contexts_moves_nothing(pair: Pair, contexts: list[Context]) -> None:
    usual, turned = (scored(pair, batched(given, 1000), 256) for given in (contexts, contexts[::-1]))
    for name, values in usual.items():
        np.testing.assert_array_equal(values, turned[name], err_msg=name)
