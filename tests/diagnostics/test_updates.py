"""Losses, gradients, steps, placebos and the way back, against autograd and torch written out plainly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pair import save_model
from torch import Tensor

from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.models.sources import resolve
from teachdiag.diagnostics.probes import updates
from teachdiag.diagnostics.probes.gains import gain_columns
from teachdiag.diagnostics.probes.shuffles import shuffle_rollouts, shuffle_teacher
from teachdiag.diagnostics.probes.teacher_states import TeacherStates, compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0, inner, random_direction
from teachdiag.diagnostics.probes.updates import (
    accumulate_gradient,
    optimize,
    step_objective,
)
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.errors import EstimationError, SettingsError
from teachdiag.losses import forward_kl, generalised_jsd, reverse_kl, sampled_reverse_kl
from teachdiag.progress import Reporter
from teachdiag.settings import ProbeSettings
from teachdiag.settings.base import Optimizer

LOSSES = ("reverse_kl", "forward_kl", "jsd", "sampled_reverse_kl")


def logps(seed: int, n: int = 4, v: int = 30, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    z, w = torch.randn(2, n, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return z.log_softmax(-1), w.log_softmax(-1)


def test_losses_match_torch_and_their_limits() -> None:
    logp, logq = logps(0)
    ours = reverse_kl(logp, logq), forward_kl(logp, logq)
    theirs = [
        torch.nn.functional.kl_div(a, b, log_target=True, reduction="none").sum(-1)
        for a, b in ((logq, logp), (logp, logq))
    ]
    torch.testing.assert_close(ours, tuple(theirs))
    m = ((logp.exp() + logq.exp()) / 2).log()
    torch.testing.assert_close(
        generalised_jsd(logp, logq, 0.5), (reverse_kl(logp, m) + forward_kl(m, logq)) / 2, rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(generalised_jsd(logp, logq, 1e-9) / 1e-9, forward_kl(logp, logq), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        generalised_jsd(logp, logq, 1 - 1e-9) / 1e-9, reverse_kl(logp, logq), rtol=1e-3, atol=1e-4
    )


@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
@settings(max_examples=30)
def test_generalised_jsd_is_bounded(seed: int, beta: float) -> None:
    """It cannot exceed the entropy of its mixture's coin; a mixture of logs instead of probabilities does."""
    value = generalised_jsd(*logps(seed, scale=40.0), beta)
    assert (value >= -1e-9).all()
    assert (value <= -beta * np.log(beta) - (1 - beta) * np.log(1 - beta) + 1e-6).all()


def test_sampled_loss_has_the_gradient_of_reverse_kl_in_expectation() -> None:
    logp, logq = logps(1, n=1, v=12)
    z = logp.clone().requires_grad_()
    reverse_kl(z.log_softmax(-1), logq).sum().backward()
    exact = z.grad
    expected = torch.zeros_like(z)
    for token in range(12):
        y = logp.clone().requires_grad_()
        sampled_reverse_kl(y.log_softmax(-1), logq, torch.tensor([token])).sum().backward()
        expected += logp.exp()[0, token] * y.grad
    torch.testing.assert_close(expected, exact)


@pytest.fixture
def contexts() -> list[Context]:
    rng = np.random.default_rng(4)
    draw = lambda n: tuple(rng.integers(0, 256, n).tolist())  # noqa: E731
    return [
        Context(i, f"p/{i}", "update", draw(n), draw(m), draw(r))
        for i, (n, m, r) in enumerate([(5, 5, 7), (9, 12, 3), (4, 8, 6)])
    ]


@pytest.fixture
def teacher(pair: Pair, contexts: list[Context], tmp_path: Path, quiet: Reporter) -> TeacherStates:
    return compute_teacher_states(pair.teacher, [contexts], 60, tmp_path / "teacher.npy", quiet)


def plain_gradients(
    pair: Pair, contexts: list[Context], loss: str, kept: dict[int, np.ndarray] | None = None
) -> tuple[float, dict[str, Tensor]]:
    """One whole forward pass a context, whole logits, one backward pass of the mean loss."""
    measure = position_loss(loss, {"jsd_beta": 0.5})
    losses = []
    for c in contexts:
        rows = []
        for model, prompt in ((pair.student.model, c.student_prompt), (pair.teacher.model, c.teacher_prompt)):
            logits = model(torch.tensor([prompt + c.response])).logits[0, :, : pair.vocabulary]
            rows.append(logits[len(prompt) - 1 : len(prompt) - 1 + len(c.response)])
        of_context = measure(rows[0], rows[1].detach(), torch.tensor(c.response))
        losses.append(of_context if kept is None else of_context[kept[c.context_id]])
    mean = torch.cat(losses).mean()
    names, parameters = zip(*pair.student.parameters(), strict=True)
    return mean.item(), dict(zip(names, torch.autograd.grad(mean, parameters), strict=True))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("batch_tokens", "tile"), [(10_000, 1000), (25, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_tiled_gradient_is_the_plain_gradient(
    pair: Pair,
    contexts: list[Context],
    teacher: TeacherStates,
    quiet: Reporter,
    loss: str,
    batch_tokens: int,
    tile: int,
    masked: bool,
) -> None:
    kept = {0: np.array([1, 4, 5]), 1: np.array([], int), 2: np.array([0])} if masked else None
    mean, truth = plain_gradients(pair, contexts, loss, kept)
    probe = ProbeSettings(loss=loss, batch_tokens=batch_tokens, tile_positions=tile)
    objective = step_objective(contexts, teacher, probe, kept)
    assert accumulate_gradient(pair.student, objective, probe, quiet) == pytest.approx(mean, rel=1e-4)
    for name, parameter in pair.student.parameters():
        torch.testing.assert_close(parameter.grad, truth[name], rtol=1e-3, atol=1e-5, msg=name)


def test_tokens_of_tools_and_users_are_read_and_never_stepped_on(
    pair: Pair, contexts: list[Context], tmp_path: Path, quiet: Reporter
) -> None:
    """A step on masked responses is that on the same positions of whole ones, and a selector keeps some of these."""
    own = {0: np.array([0, 1, 5, 6]), 1: np.array([2]), 2: np.array([1, 3])}
    masked = [c.keeping(own[c.context_id]) for c in contexts]
    teacher = compute_teacher_states(pair.teacher, [masked], 60, tmp_path / "teacher.npy", quiet)
    assert len(teacher.states) == 7
    probe = ProbeSettings(batch_tokens=25, tile_positions=2)
    for kept in (None, {0: np.array([1, 6]), 1: np.array([2]), 2: np.array([], int)}):
        mean, truth = plain_gradients(pair, contexts, "reverse_kl", kept or own)
        objective = step_objective(masked, teacher, probe, kept)
        assert objective.positions == sum(map(len, (kept or own).values()))
        assert accumulate_gradient(pair.student, objective, probe, quiet) == pytest.approx(mean, rel=1e-4)
        for name, parameter in pair.student.parameters():
            torch.testing.assert_close(parameter.grad, truth[name], rtol=1e-3, atol=1e-5, msg=name)
            parameter.grad = None


def test_recomputed_layers_change_no_bit_and_keep_less(
    pair: Pair, contexts: list[Context], teacher: TeacherStates, quiet: Reporter
) -> None:
    def taken(recompute: bool) -> tuple[list[Tensor], int]:
        probe, kept = ProbeSettings(batch_tokens=25, recompute=recompute), 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            accumulate_gradient(pair.student, step_objective(contexts, teacher, probe), probe, quiet)
        found = [p.grad for _, p in pair.student.parameters()]
        for _, parameter in pair.student.parameters():
            parameter.grad = None
        return found, kept

    (plain, plenty), (again, few) = taken(False), taken(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert few < plenty
    assert not any("forward" in vars(layer) for layer in pair.student.model.get_decoder().layers)


def test_a_masked_step_reads_no_further_than_its_last_position(contexts: list[Context], teacher: TeacherStates) -> None:
    kept = {0: np.array([1, 2]), 1: np.array([], int), 2: np.array([0])}
    batches = step_objective(contexts, teacher, ProbeSettings(), kept).batches(10_000)
    read = {c.context_id: len(c.inputs("student")) - len(c.student_prompt) for b in batches for c in b.contexts}
    assert read == {0: 2, 2: 0}


def test_first_adamw_step_has_its_closed_form(
    pair: Pair, contexts: list[Context], teacher: TeacherStates, quiet: Reporter
) -> None:
    """-lr * (g / (|g| + eps) + decay * theta): bias correction makes of the first step the gradient's sign."""
    _, truth = plain_gradients(pair, contexts, "reverse_kl")
    before = {name: p.detach().clone() for name, p in pair.student.parameters()}
    probe = ProbeSettings(learning_rate=1e-3, weight_decay=0.1)
    theta0 = Theta0(pair.student)
    step = optimize(pair.student, [step_objective(contexts, teacher, probe)], probe, theta0, quiet)
    total = 0.0
    for name, parameter in pair.student.parameters():
        g = truth[name]
        moved = (parameter - before[name]).detach()
        clear = g.abs() > 1e-4  # elsewhere rounding of g decides
        expected = -1e-3 * (g / (g.abs() + 1e-8) + 0.1 * before[name])
        torch.testing.assert_close(moved[clear], expected[clear], rtol=1e-2, atol=1e-6)
        total += moved.double().square().sum().item()
    assert step.update_norm == pytest.approx(total**0.5, rel=1e-5)
    assert step.gradient_norm == pytest.approx(sum(g.square().sum().item() for g in truth.values()) ** 0.5, rel=1e-3)
    assert step.positions == sum(len(c.response) for c in contexts)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "clip_norm": 0.01}])
def test_a_step_is_that_of_torch_bit_for_bit(
    pair: Pair,
    contexts: list[Context],
    teacher: TeacherStates,
    tmp_path: Path,
    quiet: Reporter,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: Optimizer,
    options: dict[str, float],
) -> None:
    """One optimizer of all parameters, written out, against rows of them at a time, of a length that no vector has."""
    monkeypatch.setattr(updates, "_BLOCK", 100)
    source = resolve(save_model(tmp_path / "odd", seed=5, intermediate_size=63), "main", (), quiet)
    student = load(source, "float32", "cpu", master=True)
    parameters = [p for _, p in student.parameters()]
    for parameter in parameters:
        parameter.data = parameter.data.clone()  # out of the file, which is mapped
    probe = ProbeSettings(optimizer=optimizer, learning_rate=1e-3, **options)
    objective = step_objective(contexts, teacher, probe)
    theta0 = Theta0(student)
    step = optimize(student, [objective], probe, theta0, quiet)
    ours = [p.detach().clone() for p in parameters]
    assert not theta0.mapped
    assert all(p.grad is None for p in parameters)
    theta0.restore()
    theta0.verify()
    theta0.leave()
    accumulate_gradient(student, objective, probe, quiet)
    norm = torch.nn.utils.clip_grad_norm_(parameters, probe.clip_norm or float("inf"))
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    kind(parameters, lr=1e-3, weight_decay=probe.weight_decay, foreach=False).step()
    assert all(torch.equal(mine, p) for mine, p in zip(ours, parameters, strict=True))
    assert step.gradient_norm == norm.item()
    assert step.update_norm == theta0.distance() > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_several_steps_are_those_of_torch(
    pair: Pair, contexts: list[Context], teacher: TeacherStates, quiet: Reporter, optimizer: str
) -> None:
    """Three steps with one optimizer state, on other contexts each, written out plainly."""
    probe = ProbeSettings(optimizer=optimizer, learning_rate=1e-3, steps=3)
    batches = [contexts[:2], contexts[1:], contexts]
    theta0 = Theta0(pair.student)
    optimize(pair.student, (step_objective(b, teacher, probe) for b in batches), probe, theta0, quiet)
    ours = [p.detach().clone() for _, p in pair.student.parameters()]
    theta0.restore()
    theta0.leave()
    parameters = [p for _, p in pair.student.parameters()]
    torch_step = (torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD)(parameters, lr=1e-3, weight_decay=0)
    for batch in batches:
        truth = plain_gradients(pair, batch, "reverse_kl")[1]
        for name, parameter in pair.student.parameters():
            parameter.grad = truth[name]
        torch_step.step()
    torch.testing.assert_close(ours, [p.detach() for p in parameters], rtol=1e-3, atol=3e-5)


def test_sgd_step_is_clipped(pair: Pair, contexts: list[Context], teacher: TeacherStates, quiet: Reporter) -> None:
    probe = ProbeSettings(optimizer="sgd", learning_rate=0.5, clip_norm=0.01)
    objective = step_objective(contexts, teacher, probe)
    step = optimize(pair.student, [objective], probe, Theta0(pair.student), quiet)
    assert step.gradient_norm > 0.01
    assert step.update_norm == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_a_step_that_is_not_finite_is_refused(
    pair: Pair, contexts: list[Context], teacher: TeacherStates, quiet: Reporter
) -> None:
    with torch.no_grad():
        pair.student.model.model.norm.weight[0] = float("nan")
    theta0 = Theta0(pair.student)
    with pytest.raises(SettingsError, match="the step is not finite"):
        optimize(pair.student, [step_objective(contexts, teacher, ProbeSettings())], ProbeSettings(), theta0, quiet)


def test_theta0_comes_back_bit_for_bit(pair: Pair) -> None:
    before = [p.detach().clone() for _, p in pair.student.parameters()]
    theta0 = Theta0(pair.student)
    now = lambda: [p.detach() for _, p in pair.student.parameters()]  # noqa: E731
    direction = random_direction(pair.student, seed=3)
    length = inner(direction, direction) ** 0.5
    theta0.displace(direction, 0.25 / length)
    assert theta0.distance() == pytest.approx(0.25, rel=1e-5)
    torch.testing.assert_close(now(), [p + d * (0.25 / length) for p, d in zip(before, direction, strict=True)])
    with pytest.raises(RuntimeError, match="not restored"):
        theta0.verify()
    theta0.stretch(0.5)
    assert theta0.distance() == pytest.approx(0.125, rel=1e-4)
    torch.testing.assert_close(theta0.displacement(), [d * (0.125 / length) for d in direction], rtol=1e-3, atol=1e-7)
    theta0.restore()
    assert all(torch.equal(p, q) for p, q in zip(now(), before, strict=True))
    theta0.leave()
    with torch.no_grad():
        next(iter(pair.student.parameters()))[1].add_(1)
    theta0.restore()
    theta0.verify()
    other = random_direction(pair.student, seed=4)
    assert not torch.equal(other[0], direction[0])  # the seed is wired


def fake_states(lengths: list[int]) -> tuple[TeacherStates, list[Context]]:
    contexts = [Context(i, f"p/{i}", "update", (1,), (1,), (0,) * n) for i, n in enumerate(lengths)]
    starts = np.cumsum([0, *lengths])
    head = Head(torch.zeros(1, 1), None, 1.0, None, 1)
    first, kept = {i: int(s) for i, s in enumerate(starts[:-1])}, {c.context_id: c.positions for c in contexts}
    return TeacherStates(np.zeros((starts[-1], 1)), first, kept, head), contexts


@given(st.lists(st.integers(1, 20), min_size=2, max_size=12), st.integers(0, 1000))
def test_shuffled_teacher_rows_all_leave_their_context(lengths: list[int], seed: int) -> None:
    states, contexts = fake_states(lengths)
    entropy = np.random.default_rng(seed).exponential(size=sum(lengths)).round(1)  # with ties
    if 2 * max(lengths) > sum(lengths):
        with pytest.raises(EstimationError, match="use more update contexts"):
            shuffle_teacher(states, contexts, entropy, seed)
        return
    stand_in = shuffle_teacher(states, contexts, entropy, seed).stand_in
    owner = np.repeat(np.arange(len(lengths)), lengths)
    assert sorted(stand_in) == list(range(sum(lengths)))
    assert (owner[stand_in] != owner).all()


def test_shuffled_teacher_rows_keep_their_entropy() -> None:
    states, contexts = fake_states([40] * 25)
    entropy = np.random.default_rng(0).exponential(size=1000)
    first, second = (shuffle_teacher(states, contexts, entropy, seed).stand_in for seed in (0, 1))
    order = np.argsort(np.argsort(entropy))
    assert (order[first] // 100 == order // 100).all()  # within its decile
    assert (first != second).mean() > 0.9


def test_shuffled_teacher_rows_leave_their_prompt_too() -> None:
    states, contexts = fake_states([10] * 8)
    contexts = [replace(c, prompt_id=f"p/{c.context_id // 2}") for c in contexts]  # two responses a prompt
    stand_in = shuffle_teacher(states, contexts, np.zeros(80), 0).stand_in
    assert (stand_in // 20 != np.arange(80) // 20).all()


def test_shuffling_leaves_other_contexts_alone() -> None:
    states, contexts = fake_states([3, 3, 3, 3])
    stand_in = shuffle_teacher(states, contexts[2:], np.zeros(6), 0).stand_in
    assert stand_in[:6].tolist() == list(range(6))
    assert set(stand_in[6:9]) == {9, 10, 11}


@given(st.lists(st.integers(1, 4), min_size=2, max_size=9), st.integers(0, 1000))
def test_shuffled_rollouts_all_leave_their_prompt(responses: list[int], seed: int) -> None:
    contexts = [
        Context(10 * p + r, f"p/{p}", "update", (p,) * (p + 1), (p,), (100 * p + r,) * 20)
        for p, n in enumerate(responses)
        for r in range(n)
    ]
    if 2 * max(responses) > sum(responses):
        with pytest.raises(EstimationError, match="use more update contexts"):
            shuffle_rollouts(contexts, 24, -1, seed)
        return
    dealt = shuffle_rollouts(contexts, 24, -1, seed)
    assert all(c.response[0] // 100 != c.student_prompt[0] for c in dealt)
    assert sorted(c.response[0] for c in dealt) == sorted(c.response[0] for c in contexts)
    assert sorted(c.student_prompt for c in dealt) == sorted(c.student_prompt for c in contexts)
    assert all(len(c.inputs("student")) <= 24 for c in dealt)
    assert len({c.context_id for c in dealt}) == len(dealt)
    assert max(c.context_id for c in dealt) == -1


def kls(forward: list[float], reverse: list[float]) -> pa.Table:
    return pa.table({"forward_kl": np.array(forward, np.float32), "reverse_kl": np.array(reverse, np.float32)})


def test_gains_by_hand() -> None:
    before, after = kls([1.0, 0.5, 1e-5, 0.0], [2.0, 0.5, 0.1, 0.0]), kls([0.75, 1.0, 2e-5, 0.0], [1.0, 0.5, 0.2, 0.0])
    columns = gain_columns(before, after, noise=np.array([0, 0.01, 0, 0], np.float32), floor=1e-4)
    assert columns["gain"].tolist() == pytest.approx([0.25, -0.5, -1e-5, 0.0])
    assert columns["gain_reverse"].tolist() == pytest.approx([1.0, 0.0, -0.1, 0.0])
    assert columns["gain_relative"].to_pylist() == [pytest.approx(0.25), pytest.approx(-1.0), None, None]
    assert columns["gain_log"].to_pylist() == [pytest.approx(np.log(4 / 3)), pytest.approx(-np.log(2)), None, None]
    noisier = gain_columns(before, after, noise=np.array([0, 0.06, 0, 0], np.float32), floor=1e-4)
    assert noisier["gain_relative"].null_count == 3  # 0.5 is under ten times its own noise


def test_an_update_of_nothing_gains_exactly_nothing() -> None:
    columns = gain_columns(kls([0.3], [0.2]), kls([0.3], [0.2]), np.zeros(1, np.float32), 0.0)
    assert all(columns[name][0] == 0 for name in ("gain", "gain_reverse"))
    assert [columns[name].to_pylist() for name in ("gain_relative", "gain_log")] == [[0.0], [0.0]]
