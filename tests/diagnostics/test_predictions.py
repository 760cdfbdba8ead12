"""First-order predictions: against one backward pass a loss term in float64, against each other, against real steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from slow import loss_term_gradients
from tiny_pair import PROBE
from torch import Tensor

from teachdiag.artefacts import PREDICTIONS
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes.derivatives import Along, Term, choose_step, derivatives
from teachdiag.diagnostics.probes.teacher_states import TeacherStates, compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0, inner, random_direction
from teachdiag.diagnostics.probes.updates import Objective, gradient
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.errors import EstimationError
from teachdiag.progress import Reporter
from teachdiag.settings import ProbeSettings

LOSSES = ("reverse_kl", "forward_kl", "jsd", "sampled_reverse_kl")


@pytest.fixture
def contexts(run: Path) -> list[Context]:
    return list(read_contexts(run, Positions(5, "first")))[:4]


@pytest.fixture
def teacher(pair: Pair, contexts: list[Context], tmp_path: Path, quiet: Reporter) -> TeacherStates:
    return compute_teacher_states(pair.teacher, [contexts], 60, tmp_path / "teacher.npy", quiet)


def unit_direction(pair: Pair, seed: int = 0) -> list[Tensor]:
    direction = random_direction(pair.student, seed)
    norm = inner(direction, direction) ** 0.5
    return [d / norm for d in direction]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("step", "off"), [(1e-2, 3e-3), (None, 1e-5)], ids=["central", "jvp"])
def test_every_loss_terms_inner_product_is_that_of_autograd(
    pair: Pair,
    contexts: list[Context],
    teacher: TeacherStates,
    quiet: Reporter,
    loss: str,
    step: float | None,
    off: float,
) -> None:
    direction = unit_direction(pair)
    along = Along(pair.student, Theta0(pair.student), direction, step)
    found = derivatives(along, contexts, {"x": Term(position_loss(loss, {"jsd_beta": 0.5}), teacher)}, PROBE, quiet)
    truth = [
        sum((g * d.double()).sum().item() for g, d in zip(gradients, direction, strict=True))
        for c in contexts
        for gradients in loss_term_gradients(pair.student.source.path, pair.teacher.source.path, c, loss)
    ]
    expected = [(c.context_id, t) for c in contexts for t in range(len(c.response))]
    assert list(zip(found["context_id"].to_pylist(), found["position"].to_pylist(), strict=True)) == expected
    np.testing.assert_allclose(found["x"], truth, rtol=off, atol=off * np.abs(truth).max())


def test_central_differences_settle_on_the_exact_slope_and_on_what_a_small_step_does(
    pair: Pair, contexts: list[Context], teacher: TeacherStates, quiet: Reporter
) -> None:
    theta0, measure = Theta0(pair.student), position_loss("forward_kl", {})
    direction = gradient(pair.student, Objective(contexts, teacher, measure), PROBE, quiet)
    step, change = choose_step(Along(pair.student, theta0, direction, None), contexts, Term(measure, teacher), PROBE)
    assert change < 0.01
    exact, central = (
        derivatives(Along(pair.student, theta0, direction, h), contexts, {"x": Term(measure, teacher)}, PROBE, quiet)[
            "x"
        ]
        for h in (None, step)
    )
    np.testing.assert_allclose(central, exact, rtol=0.02, atol=0.01 * np.abs(exact.to_numpy()).max())
    # The mean of the derivatives along the gradient of the mean is its squared norm.
    assert exact.to_numpy().mean() == pytest.approx(inner(direction, direction), rel=1e-3)
    before = _mean_kl(pair, contexts, teacher)
    theta0.displace(direction, -1e-4)
    assert before - _mean_kl(pair, contexts, teacher) == pytest.approx(1e-4 * inner(direction, direction), rel=0.02)


def _mean_kl(pair: Pair, contexts: list[Context], teacher: TeacherStates) -> float:
    objective = Objective(contexts, teacher, position_loss("forward_kl", {}))
    with torch.no_grad():
        values = [
            objective.loss(pair.student.head(h), teacher.head(teacher.at(teacher.rows(b), h.device)), None)
            for b in objective.batches(60)
            for h in [b.gather(pair.student.hidden(b.input_ids("student", pair.student.device)), "student")]
        ]
    return torch.cat(values).double().mean().item()


def test_differences_that_do_not_settle_are_refused(
    pair: Pair, contexts: list[Context], teacher: TeacherStates
) -> None:
    along = Along(pair.student, Theta0(pair.student), unit_direction(pair), None)
    with pytest.raises(EstimationError, match="central differences do not settle"):
        choose_step(along, contexts, Term(lambda logits, *_: (1e5 * logits).sin().sum(-1), teacher), PROBE)


def test_the_heads_slope_is_its_difference_quotient() -> None:
    """With everything that an architecture may do to its logits: bias, scale, soft cap and padding."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    weight, weight_slope, bias, bias_slope = draw(12, 6), draw(12, 6), draw(12), draw(12)
    hidden, hidden_slope = draw(5, 6).float(), draw(5, 6).float()

    def logits(h: float) -> Tensor:
        moved = hidden.double() + h * hidden_slope.double()
        raw = 0.3 * (moved @ (weight + h * weight_slope).T + bias + h * bias_slope)
        return (4 * torch.tanh(raw / 4))[:, :9]

    head = Head(weight.float(), bias.float(), 0.3, 4.0, 9)
    torch.testing.assert_close(head(hidden).double(), logits(0.0), rtol=1e-4, atol=1e-4)
    slope = head.slope(hidden, hidden_slope, weight_slope.float(), bias_slope.float())
    quotient = (logits(1e-5) - logits(-1e-5)) / 2e-5
    torch.testing.assert_close(slope.double(), quotient, rtol=1e-3, atol=1e-4)


@pytest.mark.device
@pytest.mark.parametrize("method", ["central", "one-sided", "jvp"])
def test_the_probe_predicts_the_gain_of_a_small_step(
    run: Path, device: torch.device, quiet: Reporter, method: str
) -> None:
    settings = ProbeSettings(kind="predicted", name="p", method=method, batch_tokens=100, tile_positions=7)
    results = run_probe(run, replace(settings, device=str(device)), quiet)
    table = PREDICTIONS.read(run / "predictions/p")
    assert set(table["split"]) == {"bank"}
    assert table["bank_inner"].isna().all()
    measured = table[["gain_at_1", "gain_at_2", "gain_at_4", "gain_at_8"]].to_numpy()
    np.testing.assert_allclose(measured[:, 0].mean(), results["mean_gain"]["1/1"], rtol=1e-4)
    for column, share in enumerate((1, 2, 4, 8)):
        r2 = (
            1
            - np.square(measured[:, column] - table["predicted_gain"] / share).sum()
            / np.square(measured[:, column] - measured[:, column].mean()).sum()
        )
        assert r2 == pytest.approx(results["r2"][f"1/{share}"], abs=1e-4)
        assert r2 > 0.99
    assert (results["step"]["difference_step"] is None) == (method == "jvp")


def test_the_predicted_step_is_the_one_step_probes(run: Path, quiet: Reporter) -> None:
    step = run_probe(run, PROBE, quiet)["updates"]["one_step"]
    settings = ProbeSettings(kind="predicted", name="q", learning_rate=1e-4, batch_tokens=100, tile_positions=7)
    assert run_probe(run, settings, quiet)["mean_gain"]["1/1"] == pytest.approx(step["mean_gain"], rel=1e-3)
    assert isinstance(PREDICTIONS.read_arrow(run / "predictions/q"), pa.Table)
