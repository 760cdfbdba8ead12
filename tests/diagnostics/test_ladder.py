"""The step ladder: slopes and R2 against float64 written out, the rate that 'auto' takes, and when nobody can tell."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stages import Killed, dying, tables
from tiny_pair import PROBE
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from teachdiag.artefacts import GAINS
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import probe_setup
from teachdiag.diagnostics.probes.ladder import RUNGS, judged, measured
from teachdiag.errors import EstimationError, RunError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings

AUTO = replace(PROBE, learning_rate="auto")
FAR = 0.05  # a nominal rate of AdamW that is far too large for the tiny pair


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    _begin_ladders_at(FAR, monkeypatch)


def _begin_ladders_at(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = property(lambda self: rate if self.learning_rate == "auto" else float(self.learning_rate))
    monkeypatch.setattr(ProbeSettings, "step_size", longest)


def test_slopes_and_r2_are_those_of_float64(
    run: Path, tiny_settings: CaptureSettings, pair: Pair, quiet: Reporter
) -> None:
    """One SGD step: its gradient, the slope of every position's gain, and the gains, in plain transformers."""
    rate = 0.04
    found = run_probe(run, replace(PROBE, optimizer="sgd", learning_rate=rate), quiet)["ladder"]
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path).double().eval()
        for path in (tiny_settings.student, tiny_settings.teacher)
    )
    size = pair.vocabulary
    contexts = list(read_contexts(run, Positions.of(tiny_settings)))
    weights = {name: p.detach() for name, p in student.named_parameters()}

    def logps(split: str, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        p, q = [], []
        for c in (c for c in contexts if c.split == split):
            ids, rows = torch.tensor([c.student_prompt + c.response]), slice(len(c.student_prompt) - 1, -1)
            p.append(functional_call(student, given, (ids,)).logits[0, rows, :size].log_softmax(-1))
            q.append(teacher(ids).logits[0, rows, :size].detach().log_softmax(-1))
        return torch.cat(p), torch.cat(q)

    def forward_kl(given: dict[str, torch.Tensor]) -> torch.Tensor:
        p, q = logps("bank", given)
        return (q.exp() * (q - p)).sum(-1)

    cut = {name: w.clone().requires_grad_() for name, w in weights.items()}
    p, q = logps("update", cut)
    gradients = torch.autograd.grad((p.exp() * (p - q)).sum(-1).mean(), list(cut.values()))
    step = {name: -rate * g for name, g in zip(cut, gradients, strict=True)}

    def moved(share: float) -> torch.Tensor:
        with torch.no_grad():
            return forward_kl({name: weights[name] + share * step[name] for name in weights})

    before, slope = moved(0.0), (moved(2e-3) - moved(-2e-3)) / 4e-3  # Qwen3 normalises in float32, whatever its weights
    for rung in found["rungs"]:
        share = rung["share"]
        gain = before - moved(share)
        left = (gain + share * slope).square().sum() / (gain - gain.mean()).square().sum()
        assert rung["mean_gain"] == pytest.approx(gain.mean().item(), rel=1e-3)
        assert rung["first_order_gain"] == pytest.approx(-share * slope.mean().item(), rel=5e-3)
        assert rung["r2"] == pytest.approx(1 - left.item(), abs=5e-3)
    assert [rung["share"] for rung in found["rungs"]] == list(RUNGS[: len(found["rungs"])])
    assert found["short_enough"] is False
    assert found["longest"] < rate


@pytest.mark.usefixtures("far")
def test_auto_is_the_longest_step_that_first_order_explains(run: Path, quiet: Reporter) -> None:
    results = run_probe(run, AUTO, quiet)
    ladder = results["ladder"]
    r2 = {rung["learning_rate"]: rung["r2"] for rung in ladder["rungs"]}
    rate = ladder["learning_rate"]
    assert rate == ladder["longest"] < FAR
    assert r2[rate] >= 0.95 > r2[2 * rate]
    assert results["updates"]["one_step"]["mean_gain"] > 0
    assert results["updates"]["random_direction"]["update_norm"] == pytest.approx(
        results["updates"]["one_step"]["update_norm"], rel=1e-4
    )
    explicit = run_probe(run, replace(PROBE, name="q", learning_rate=rate, weight_decay=0.0), quiet)
    assert explicit["ladder"]["short_enough"]
    for placebo in ("", ".shuffled_teacher", ".random_direction"):
        a, b = (GAINS.read(run / f"gains/{name}{placebo}")["gain"] for name in "pq")
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-6)


@pytest.mark.usefixtures("far")
def test_a_smaller_rate_is_a_shorter_step_with_weight_decay_too(run: Path, quiet: Reporter) -> None:
    given = replace(AUTO, weight_decay=0.3)
    rate = run_probe(run, given, quiet)["ladder"]["learning_rate"]
    run_probe(run, replace(given, name="q", learning_rate=rate), quiet)
    a, b = (GAINS.read(run / "gains" / name)["gain"] for name in "pq")
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("far")
def test_a_killed_ladder_ends_with_the_same_bytes(
    run: Path, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch, tiny_settings: CaptureSettings
) -> None:
    calls = 0
    plain = probe_setup.rescore

    def counting(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        return plain(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(probe_setup, "rescore", counting)
        run_probe(run, AUTO, quiet)
    whole = tables(run), (run / "probes/p.json").read_bytes()
    for folder in ("gains", "probes"):
        (run / folder).rename(tmp_path / folder)
    for after in range(7, calls, 11):  # killed again and again, each time a little later
        with monkeypatch.context() as patch:
            patch.setattr(probe_setup, "rescore", dying(plain, 11 if after > 7 else after))
            with pytest.raises(Killed):
                run_probe(run, AUTO, quiet)
    run_probe(run, AUTO, quiet)
    assert (tables(run), (run / "probes/p.json").read_bytes()) == whole


def test_a_step_drowned_by_rounding_is_not_passed(run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_probe(run, replace(PROBE, learning_rate=1e-9), quiet)["ladder"]
    assert found["short_enough"] is None
    assert found["longest"] is None
    assert found["rungs"][0]["r2"] is None
    _begin_ladders_at(1e-9, monkeypatch)
    with pytest.raises(EstimationError, match=r"even at 1e-09 rounding makes up \d+% of the variance of its gain"):
        run_probe(run, replace(AUTO, name="q"), quiet)
    with pytest.raises(RunError, match="--update-contexts asks for 99"):
        run_probe(run, replace(PROBE, name="many", update_contexts=99), quiet)
    assert [note.stem for note in (run / "probes").iterdir()] == ["p"]  # what is refused leaves nothing
    assert not any((run / "scratch").iterdir())


@pytest.mark.parametrize(
    ("curvature", "noise", "longest"),
    [
        (0.1, 0.0, 1.0),
        (1.0, 0.0, 2.0**-3),
        (100.0, 0.0, 2.0**-9),
        (1e6, 0.0, None),  # first order is nowhere to be seen
        (1.0, 1e-3, 2.0**-3),
        (0.1, 0.3, None),
        (100.0, 1e-2, None),  # rounding comes first
    ],
)
def test_rungs_of_a_known_law(curvature: float, noise: float, longest: float | None) -> None:
    """Gain a s + curvature b s^2, a and b standard normal, so that first order leaves about (curvature s)^2 of it."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4000))

    def gain_at(share: float) -> np.ndarray:
        return a * share + curvature * b * share**2 + noise * rng.normal(size=4000)

    found = judged(*measured(gain_at, noise**2), noise**2, 1.0)
    assert found["longest"] == longest
    first = found["rungs"][0]
    if longest is None:
        assert first["r2"] is None
        assert first["short_enough"] is (None if curvature < 1 else False)
    else:
        assert first["r2"] == pytest.approx(1 - curvature**2 / (1 + curvature**2), rel=0.1, abs=0.02)
        assert found["rungs"][-1]["share"] == longest / 2
