"""What the models' device may not change: every test here compares it with float64 on the CPU.

They run on the CPU wherever the suite does, and on a GPU with `pytest -m device --device cuda`.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow
import torch
from tiny_pair import KNOWN, PROBE
from torch import Tensor

from teachdiag.artefacts import GAINS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.models.alignment import Batch, Context, batched
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes.derivatives import Along, Term, derivatives
from teachdiag.diagnostics.probes.shuffles import shuffle_teacher
from teachdiag.diagnostics.probes.teacher_states import TeacherStates, compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0, inner, random_direction
from teachdiag.diagnostics.probes.updates import gradient, optimize, step_objective
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.diagnostics.scoring.tiles import States, rescore, score
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, Sampling

pytestmark = pytest.mark.device

Load = Callable[..., Pair]
Exact = Callable[[Any], Any]


@pytest.fixture
def contexts(captured_once: Path) -> list[Context]:
    """A context of each of three prompts."""
    return list(read_contexts(captured_once, Positions(6, "first")))[:3]


@pytest.fixture
def states(tmp_path: Path, contexts: list[Context], quiet: Reporter) -> Callable[[Pair], TeacherStates]:
    return lambda pair: compute_teacher_states(pair.teacher, [contexts], 60, tmp_path / "teacher.npy", quiet)


def weights(pair: Pair) -> list[Tensor]:
    """Copies on the CPU of the student's present weights."""
    return [p.detach().to("cpu", copy=True) for _, p in pair.student.parameters()]


def logp(model: Any, context: Context, side: str) -> Tensor:
    with torch.no_grad():
        return slow.plain_logp(model, context, side, KNOWN)


def mean_loss(student: Any, teacher: Any, contexts: list[Context]) -> Tensor:
    """Mean reverse KL over the positions of some contexts, by float64 models; gradients flow to the student."""
    terms = []
    for c in contexts:
        ours, theirs = slow.plain_logp(student, c, "student", KNOWN), logp(teacher, c, "teacher")
        terms += [slow.LOSSES["reverse_kl"](ours[t], theirs[t], c.response[t]) for t in range(len(c.response))]
    return torch.stack(terms).mean()


def relative(found: list[Tensor], truth: list[Tensor]) -> float:
    """Euclidean length of the error, by that of the truth."""
    error = sum((f.cpu().double() - t).square().sum() for f, t in zip(found, truth, strict=True))
    return float((error / sum(t.square().sum() for t in truth)) ** 0.5)


def test_statistics(load: Load, exact: Exact, precision: Any, contexts: list[Context]) -> None:
    pair = load(master=False)
    student, teacher = exact(pair.student), exact(pair.teacher)
    for batch in batched(contexts, 60):
        columns = score(pair.student, pair.teacher, batch, 5)
        row = 0
        for context in batch.contexts:
            ours, theirs = logp(student, context, "student").numpy(), logp(teacher, context, "teacher").numpy()
            for t, token in enumerate(context.response):
                for name, value in slow.position_columns(ours[t], theirs[t], token).items():
                    stepwise = ("overlap", "jaccard", "teacher_top1", "compatibility_bound")  # of which id is in a list
                    if precision.nats < 1e-3 or not name.startswith(stepwise):
                        assert columns[name][row] == pytest.approx(value, abs=precision.nats, rel=1e-3), (name, t)
                row += 1


def test_a_step_and_the_way_back(
    load: Load, exact: Exact, precision: Any, contexts: list[Context], states: Callable, device: torch.device
) -> None:
    """Gradient, step, and what rescoring finds after it; then theta0 again, bit for bit."""
    pair = load(master=True)
    teacher, taught, start = exact(pair.teacher), states(pair), weights(pair)
    quiet, objective = Reporter(quiet=True), step_objective(contexts, taught, PROBE)
    theta0, before = Theta0(pair.student), exact(pair.student)
    along = gradient(pair.student, objective, PROBE, quiet)
    truth = torch.autograd.grad(mean_loss(before, teacher, contexts), list(before.parameters()))
    assert {part.device.type for part in along} == {device.type}
    assert relative(along, list(truth)) < precision.relative
    step = optimize(pair.student, [objective], PROBE, theta0, quiet)
    moved = [now.double() - then.double() for now, then in zip(weights(pair), start, strict=True)]
    assert step.update_norm == pytest.approx(float(sum(m.square().sum() for m in moved)) ** 0.5, rel=1e-5)
    after = exact(pair.student)
    for batch in batched(contexts, 60):
        hidden, theirs = pair.student.hidden_rows(batch, "student"), taught.at(taught.rows(batch), device)
        both = States(hidden, pair.student.head, theirs, pair.teacher.head)
        found = rescore(both, batch, 4, pair.student.tokenizer)["reverse_kl"].mean()
        assert found == pytest.approx(mean_loss(after, teacher, list(batch.contexts)).item(), abs=precision.nats)
    with pytest.raises(RuntimeError, match="not restored"):
        theta0.verify()
    theta0.restore()
    theta0.verify()
    assert all(torch.equal(now, then) for now, then in zip(weights(pair), start, strict=True))


def test_placebos(load: Load, precision: Any, contexts: list[Context], states: Callable, device: torch.device) -> None:
    """Random directions are the CPU's to the last bit, placebos have the length asked for, rows are dealt whole."""
    pair = load(master=True)
    theta0, start = Theta0(pair.student), weights(pair)
    direction = random_direction(pair.student, 7)
    generator = torch.Generator().manual_seed(7)
    for part, now in zip(direction, start, strict=True):
        assert part.device.type == device.type
        assert torch.equal(part.cpu(), torch.randn(now.shape, generator=generator))
    length = inner(direction, direction) ** 0.5
    assert length == pytest.approx(float(sum(d.double().square().sum() for d in direction)) ** 0.5, rel=1e-6)
    theta0.displace(direction, 1.0)
    theta0.stretch(0.1 / length)
    assert theta0.distance() == pytest.approx(0.1, rel=1e-4)
    theta0.restore()
    theta0.verify()
    taught = states(pair)
    entropy = np.arange(len(taught.states), dtype=float)
    dealt = shuffle_teacher(taught, contexts, entropy, 0)
    batch = Batch(tuple(contexts))
    rows = dealt.rows(batch)
    assert not (rows == taught.rows(batch)).any()
    assert set(rows) == set(taught.rows(batch))
    assert torch.equal(dealt.at(rows, device).float().cpu(), torch.from_numpy(taught.states[rows]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own use of TorchScript in forward mode
@pytest.mark.parametrize("step", [1e-2, None], ids=["central", "jvp"])
def test_predictions(
    load: Load, exact: Exact, precision: Any, contexts: list[Context], states: Callable, step: float | None
) -> None:
    if precision.tf32 and step:
        pytest.skip("TF32 rounds more than a central difference measures, and the probe refuses it")
    pair = load(master=True)
    pair.student.half = None  # as the probe has it
    student, teacher, taught = exact(pair.student), exact(pair.teacher), states(pair)
    raw = random_direction(pair.student, 3)
    direction = [part / inner(raw, raw) ** 0.5 for part in raw]
    term = Term(position_loss("reverse_kl", {}), taught)
    along = Along(pair.student, Theta0(pair.student), direction, step)
    found = derivatives(along, contexts, {"loss": term}, PROBE, Reporter(quiet=True))["loss"].to_numpy()
    truth = []
    for c in contexts:
        ours, theirs = slow.plain_logp(student, c, "student", KNOWN), logp(teacher, c, "teacher")
        for t in range(len(c.response)):
            loss = slow.LOSSES["reverse_kl"](ours[t], theirs[t], c.response[t])
            slopes = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True)
            truth.append(sum((g * d.cpu().double()).sum().item() for g, d in zip(slopes, direction, strict=True)))
    off = max(precision.relative, 5e-3)
    np.testing.assert_allclose(found, truth, rtol=off, atol=off * np.abs(truth).max())


def test_sampling(load: Load, exact: Exact, precision: Any, contexts: list[Context]) -> None:
    """Each token is the one at whose place in the cumulative distribution the rollout's next number lies."""
    pair = load(master=False)
    student, seeds, off = exact(pair.student), [11, 12, 13], precision.nats / 4  # the steepest a probability can be
    rollouts = sample(pair.student, [c.student_prompt for c in contexts], seeds, Sampling(1.0, 1.0, 0, 12))
    for context, seed, rollout in zip(contexts, seeds, rollouts, strict=True):
        uniforms = np.random.default_rng(seed).random(12)
        told = logp(student, replace(context, response=rollout.token_ids), "student").exp().numpy()
        for p, u, token in zip(told, uniforms, rollout.token_ids, strict=False):
            assert p[:token].sum() - off <= u <= p[: token + 1].sum() + off


def test_activation_checkpoints(load: Load, precision: Any, contexts: list[Context], states: Callable) -> None:
    pair = load(master=True)
    objective, quiet = step_objective(contexts, states(pair), PROBE), Reporter(quiet=True)
    plain = gradient(pair.student, objective, PROBE, quiet)
    again = gradient(pair.student, objective, replace(PROBE, recompute=True), quiet)
    assert relative(again, [part.cpu().double() for part in plain]) < precision.relative / 10


@pytest.mark.slow
def test_stages(
    tmp_path: Path, captured_once: Path, tiny_settings: CaptureSettings, device: torch.device, quiet: Reporter
) -> None:
    """The same contexts captured and probed here and on the CPU, in other batches and float32."""
    there, here = Path(shutil.copytree(captured_once, tmp_path / "there")), tmp_path / "here"
    brought = replace(tiny_settings, prompts="", contexts=str(captured_once / "contexts"), batch_tokens=60)
    run_capture(here, replace(brought, device=str(device)), quiet)
    run_probe(here, replace(PROBE, batch_tokens=60, device=str(device)), quiet)
    run_probe(there, PROBE, quiet)
    ours, theirs = (POSITIONS.read(run / "positions") for run in (here, there))
    for name in ("forward_kl", "reverse_kl", "student_entropy", "compatibility_k16", "logit_alignment"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)
    for table in ("p", "p.shuffled_teacher", "p.random_direction"):
        ours, theirs = (GAINS.read(run / "gains" / table)["gain"] for run in (here, there))
        np.testing.assert_allclose(ours, theirs, atol=max(2e-4, 0.05 * float(theirs.abs().max())), err_msg=table)
