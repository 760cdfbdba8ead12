"""Isolated steps: the draw of positions, and every number against float64 autograd and explicit steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import LOSSES, loss_term_gradients, plain_logp
from stages import Killed, dying, tables
from tiny_pair import KNOWN
from torch import Tensor
from transformers import AutoModelForCausalLM

from teachdiag.artefacts import ISOLATED
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import isolated as isolated_kind
from teachdiag.diagnostics.probes.isolated import draw_positions
from teachdiag.errors import EstimationError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings

SETTINGS = {"kind": "isolated", "name": "i", "batch_tokens": 100, "tile_positions": 7, "fix_contexts": 2}


def synthetic(n: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    kl = rng.exponential(size=n)
    c = np.minimum(1, rng.uniform(0.5, 1.2, n))  # a third of them tied at 1
    return pa.table({"forward_kl": kl, "compatibility_k16": c, "y": kl * (2 - c)})


@given(st.integers(60, 400), st.integers(0, 100), st.data())
@settings(max_examples=30)
def test_weights_stand_for_every_position(n: int, seed: int, data: st.DataObject) -> None:
    sample = data.draw(st.integers(31, n))
    drawn = draw_positions(synthetic(n, seed), sample, seed)
    assert drawn.num_rows == sample
    weight, stratum = drawn["weight"].to_numpy(), drawn["stratum"].to_numpy()
    assert weight.sum() == pytest.approx(n)
    taken = np.bincount(stratum)[np.unique(stratum)]
    short = weight > 1 + 1e-9  # strata that were not taken whole have nearly the same number
    if short.any():
        counts = np.bincount(stratum)[np.unique(stratum[short])]
        assert counts.max() - counts.min() <= 1 + 0 * taken.sum()


def test_weighted_means_are_unbiased_for_the_bank() -> None:
    bank = synthetic(900, 1)
    means = []
    for seed in range(300):
        drawn = draw_positions(bank, 60, seed)
        means.append(np.average(drawn["y"].to_numpy(), weights=drawn["weight"].to_numpy()))
    error = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - bank["y"].to_numpy().mean()) < 4 * error
    assert np.std(means) < np.std(bank["y"].to_numpy()) / np.sqrt(60)  # and the strata pay


def test_too_small_and_too_large_samples_are_refused() -> None:
    for sample in (5, 1000):
        with pytest.raises(EstimationError, match="--sample"):
            draw_positions(synthetic(100, 0), sample, 0)
    assert draw_positions(synthetic(100, 0), 0, 0)["weight"].to_numpy().tolist() == [1.0] * 100


class Truth:
    """Explicit isolated steps on float64 models."""

    def __init__(self, capture: CaptureSettings, contexts: dict[int, Context], fix: list[int], loss: str) -> None:
        self.capture, self.contexts, self.loss = capture, contexts, loss
        self.fix = [contexts[i] for i in fix]
        self.model = AutoModelForCausalLM.from_pretrained(capture.student, dtype=torch.float64)
        self.theta0 = [p.detach().clone() for p in self.model.parameters()]
        teacher = AutoModelForCausalLM.from_pretrained(capture.teacher, dtype=torch.float64)
        self.taught = {i: plain_logp(teacher, c, "teacher", KNOWN).detach() for i, c in contexts.items()}

    def kls(self, context: Context) -> Tensor:
        logp = plain_logp(self.model, context, "student", KNOWN)
        return torch.stack(
            [LOSSES["forward_kl"](p, q, 0) for p, q in zip(logp, self.taught[context.context_id], strict=True)]
        )

    def fix_kl(self) -> Tensor:
        return torch.cat([self.kls(c) for c in self.fix]).mean()

    def gradient(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, list(self.model.parameters())))

    def step(self, along: list[Tensor], eta: float) -> None:
        with torch.no_grad():
            for parameter, start, g in zip(self.model.parameters(), self.theta0, along, strict=True):
                parameter.copy_(start - eta * g)


def dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum((x * y).sum().item() for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.device
@pytest.mark.parametrize(("loss", "match"), [("reverse_kl", "rate"), ("sampled_reverse_kl", "norm")])
def test_every_number_is_that_of_an_explicit_step(
    run: Path, tiny_settings: CaptureSettings, device: torch.device, quiet: Reporter, loss: str, match: str
) -> None:
    rate = 3e-3 if match == "norm" else 2e-4
    probe = ProbeSettings(**SETTINGS, loss=loss, match=match, sample=30, learning_rate=rate, device=str(device))
    results = run_probe(run, probe, quiet)
    rows = ISOLATED.read(run / "isolated/i")
    contexts = {c.context_id: c for c in read_contexts(run, Positions.of(tiny_settings))}
    truth = Truth(tiny_settings, contexts, results["fix_contexts"], loss)
    fix_gradient, fix_before = truth.gradient(truth.fix_kl()), truth.fix_kl().item()
    for row in rows.iloc[::4].itertuples():
        context, t = contexts[row.context_id], row.position
        along = loss_term_gradients(tiny_settings.student, tiny_settings.teacher, context, loss)[t]
        eta = rate / dot(along, along) ** 0.5 if match == "norm" else rate
        own = dot(truth.gradient(truth.kls(context)[t]), along)
        before = truth.kls(context)[t].item()
        truth.step(along, eta)
        gain, fix_gain = before - truth.kls(context)[t].item(), fix_before - truth.fix_kl().item()
        truth.step(along, 0.0)
        near = lambda x, scale: pytest.approx(x, rel=2e-2, abs=scale)  # noqa: E731
        assert row.step_size == pytest.approx(eta, rel=1e-3)
        assert row.gradient_norm_sq == pytest.approx(dot(along, along), rel=1e-3)
        assert row.forward_kl_before == pytest.approx(before, rel=1e-4, abs=1e-5)
        assert row.gain == near(gain, 1e-5)
        assert row.own_inner == near(own, 1e-5 / eta)
        assert row.fix_before == pytest.approx(fix_before, rel=1e-5)
        assert row.fix_gain == near(fix_gain, 2e-6)
        assert row.fix_inner == near(dot(fix_gradient, along), 1e-3)
        assert row.own_remainder == pytest.approx(row.gain - row.step_size * row.own_inner, abs=1e-6)
        assert row.fix_remainder == pytest.approx(row.fix_gain - row.step_size * row.fix_inner, abs=1e-6)
    assert 0 <= results["noise_floor"] < 1e-4
    assert 0 <= results["fix_noise_floor"] < 1e-5


def test_l_fix_shares_no_prompt_with_a_loss_term(run: Path, quiet: Reporter) -> None:
    probe = ProbeSettings(**SETTINGS, sample_from="update", sample=0)
    fix = run_probe(run, probe, quiet)["fix_contexts"]
    rows = ISOLATED.read(run / "isolated/i")
    prompts = {c.context_id: c.prompt_id for c in read_contexts(run, Positions(10, "first"))}
    assert len(fix) == 2
    assert not {prompts[i] for i in fix} & set(rows["prompt_id"])
    assert set(rows["split"]) == {"update"}
    assert set(rows["weight"]) == {1.0}


@pytest.mark.slow
def test_a_killed_probe_continues_at_the_next_context(
    run: Path, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    probe = ProbeSettings(**SETTINGS, sample=30)
    run_probe(whole, probe, quiet)
    with monkeypatch.context() as patch:
        patch.setattr(isolated_kind, "steps_in_context", dying(isolated_kind.steps_in_context, 3))
        with pytest.raises(Killed):
            run_probe(run, probe, quiet)
    taken: list[int] = []
    steps = isolated_kind.steps_in_context
    monkeypatch.setattr(isolated_kind, "steps_in_context", lambda *a: taken.append(1) or steps(*a))
    run_probe(run, probe, quiet)
    contexts = ISOLATED.read(run / "isolated/i")["context_id"].nunique()
    assert len(taken) == contexts - 3
    assert tables(run) == tables(whole)
    assert json.loads((run / "probes/i.json").read_text()) == json.loads((whole / "probes/i.json").read_text())


def test_options_of_other_kinds_are_refused() -> None:
    with pytest.raises(SettingsError, match="--masks belongs to --kind lds, not to isolated"):
        ProbeSettings(kind="isolated", masks=7)
    with pytest.raises(SettingsError, match="--optimizer is 'adamw': it must be 'sgd'"):
        ProbeSettings(kind="isolated", optimizer="adamw")
    with pytest.raises(SettingsError, match="--student-after"):
        ProbeSettings(kind="checkpoint")
