"""Probes that move an adapter alone: the chain rule on the merged model in float64, and theta0 to the last bit."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lora import low_rank, merged, save_adapter, save_merged
from slow import loss_term_gradients, plain_logp
from tiny_pair import EFFICIENCY_PROBE, KNOWN, PROBE
from torch import Tensor
from transformers import AutoModelForCausalLM

from teachdiag.artefacts import GAINS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.pair import load_pair, resolve_pair
from teachdiag.diagnostics.models.sources import resolve
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes.derivatives import Along, Term, derivatives
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0, random_direction
from teachdiag.diagnostics.probes.trained import choose_weights
from teachdiag.diagnostics.probes.updates import gradient, step_objective
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.errors import ModelError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings

QUIET = Reporter(quiet=True)
SGD = replace(PROBE, optimizer="sgd", learning_rate=0.02)
FRESH = "lora:r=2,alpha=3,target=q_proj+down_proj"
Space = dict[str, Tensor]  # by the names of the adapter's weights in files


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, student_path: str) -> str:
    return save_adapter(tmp_path_factory.mktemp("adapters") / "a", student_path, seed=3)


@pytest.fixture(scope="module")
def merged_path(tmp_path_factory: pytest.TempPathFactory, student_path: str, adapter: str) -> str:
    return save_merged(tmp_path_factory.mktemp("models") / "merged", student_path, adapter)


@pytest.fixture(scope="module")
def adapted_settings(tiny_settings: CaptureSettings, adapter: str) -> CaptureSettings:
    return replace(tiny_settings, student_adapter=adapter)


@pytest.fixture(scope="module")
def adapted_once(tmp_path_factory: pytest.TempPathFactory, adapted_settings: CaptureSettings) -> Path:
    run = tmp_path_factory.mktemp("adapted") / "run"
    run_capture(run, adapted_settings, QUIET)
    return run


@pytest.fixture
def adapted_run(adapted_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapted_once, tmp_path / "adapted"))


def checkpoint(after: str, name: str = "") -> ProbeSettings:
    return ProbeSettings(kind="checkpoint", name=name, student_after=after, draws=1, batch_tokens=100, tile_positions=7)


def chained(gradients: dict[str, Tensor], adapter: str) -> Space:
    """Gradient by A and B, from those by the merged weights: W + s B A has dA = s B' G and dB = s G A'."""
    space = {}
    for name, (a, b, scale) in low_rank(adapter).items():
        layer = name.removesuffix(".weight")
        space[f"{layer}.lora_A.weight"] = scale * b.T @ gradients[name]
        space[f"{layer}.lora_B.weight"] = scale * gradients[name] @ a.T
    return space


def in_files(student: LanguageModel, parts: list[Tensor]) -> Space:
    names = [name.replace(".default.", ".") for name, _ in student.parameters()]
    return dict(zip(names, parts, strict=True))


def test_gradients_and_derivatives_are_the_chain_rules(
    adapted_once: Path, adapted_settings: CaptureSettings, adapter: str, merged_path: str, tmp_path: Path
) -> None:
    contexts = list(read_contexts(adapted_once, Positions(4, "first")))[:2]
    pair = load_pair(resolve_pair(adapted_settings, QUIET), "float32", "cpu", master=True)
    teacher = compute_teacher_states(pair.teacher, [contexts], 60, tmp_path / "teacher.npy", QUIET)
    names = [name for name, _ in AutoModelForCausalLM.from_pretrained(merged_path).named_parameters()]
    terms = [
        chained(dict(zip(names, parts, strict=True)), adapter)
        for c in contexts
        for parts in loss_term_gradients(merged_path, pair.teacher.source.path, c, "reverse_kl")
    ]
    found = in_files(pair.student, gradient(pair.student, step_objective(contexts, teacher, PROBE), PROBE, QUIET))
    assert found.keys() == terms[0].keys()
    for name, part in found.items():
        truth = torch.stack([term[name] for term in terms]).mean(0)
        torch.testing.assert_close(part.double(), truth, rtol=1e-3, atol=1e-5, msg=name)
    direction = random_direction(pair.student, 0)
    scaled = [part / 20 for part in direction]
    along = in_files(pair.student, scaled)
    truths = [sum((term[n] * along[n].double()).sum().item() for n in along) for term in terms]
    loss = Term(position_loss("reverse_kl", {}), teacher)
    for step, off in ((5e-3, 5e-3), (None, 1e-4)):  # central differences, and forward mode
        slopes = derivatives(
            Along(pair.student, Theta0(pair.student), scaled, step), contexts, {"x": loss}, PROBE, QUIET
        )
        np.testing.assert_allclose(slopes["x"], truths, rtol=off, atol=off * np.abs(truths).max())


def test_a_step_gains_what_it_gains_by_hand(
    adapted_run: Path, student_path: str, teacher_path: str, adapter: str, merged_path: str
) -> None:
    results = run_probe(adapted_run, SGD, QUIET)
    contexts = list(read_contexts(adapted_run, Positions(10, "first")))
    update, bank = ([c for c in contexts if c.split == split] for split in ("update", "bank"))
    teacher = AutoModelForCausalLM.from_pretrained(teacher_path, dtype=torch.float64)
    before = merged(student_path, adapter)
    losses = [mean_terms(before, teacher, c, reverse=True) for c in update]
    mean = torch.cat(losses).mean()
    weights = dict(before.named_parameters())
    parts = torch.autograd.grad(mean, list(weights.values()), allow_unused=True)
    steps = chained(dict(zip(weights, parts, strict=True)), adapter)
    after = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float64)
    held = dict(after.named_parameters())
    with torch.no_grad():
        for name, (a, b, scale) in low_rank(adapter).items():
            layer = name.removesuffix(".weight")
            moved = [w - 0.02 * steps[f"{layer}.lora_{w_name}.weight"] for w, w_name in ((b, "B"), (a, "A"))]
            held[name] += scale * moved[0] @ moved[1]
        gains = [mean_terms(before, teacher, c) - mean_terms(after, teacher, c) for c in bank]
    table = GAINS.read(adapted_run / "gains/p").sort_values(["context_id", "position"])
    truth = torch.cat(gains).numpy()
    assert table["gain"].to_numpy() == pytest.approx(truth, rel=5e-3, abs=2e-5)
    assert np.abs(truth).max() > 1e-3
    norm = sum(part.square().sum().item() for part in steps.values()) ** 0.5
    taken = results["updates"]
    assert taken["one_step"]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert taken["one_step"]["update_norm"] == pytest.approx(0.02 * norm, rel=1e-4)
    assert taken["random_direction"]["update_norm"] == pytest.approx(0.02 * norm, rel=1e-4)
    moved_weights = sum(part.numel() for part in steps.values())
    assert results["trained"] == {
        "parameters": moved_weights,
        "of": moved_weights + sum(w.numel() for w in weights.values()),
    }


def mean_terms(student: torch.nn.Module, teacher: torch.nn.Module, c: Context, reverse: bool = False) -> Tensor:
    """Forward KL of every position of a context, or reverse KL: shape (positions,), nats."""
    p, q = plain_logp(student, c, "student", KNOWN), plain_logp(teacher, c, "teacher", KNOWN).detach()
    return (p.exp() * (p - q)).sum(-1) if reverse else (q.exp() * (q - p)).sum(-1)


def test_a_fresh_adapter_changes_no_bit_and_theta0_comes_back(student_path: str) -> None:
    ids = torch.arange(40).reshape(2, 20)
    drawn: dict[int, list[Tensor]] = {}
    for seed in (0, 0, 1):
        student = load(resolve(student_path, "main", (), QUIET), "float32", "cpu", master=True)
        whole = student.hidden(ids)
        choose_weights(student, ProbeSettings(train=FRESH, seed=seed))
        names = [name for name, _ in student.parameters()]
        assert len(names) == 2 * 2
        assert all("lora_B" in name and ("q_proj" in name or "down_proj" in name) for name in names)
        assert torch.equal(student.hidden(ids), whole)
        weights = [weight.clone() for name, weight in student.model.named_parameters() if "lora_A" in name]
        same = seed in drawn and all(map(torch.equal, weights, drawn[seed]))
        assert same == (seed in drawn)
        drawn[seed] = weights
    assert not torch.equal(drawn[0][0], drawn[1][0])
    frozen = {n: w.clone() for n, w in student.model.named_parameters() if not w.requires_grad}
    theta0 = Theta0(student)
    theta0.displace(random_direction(student, 5), 0.1)
    assert not torch.equal(student.hidden(ids), whole)
    theta0.restore()
    theta0.verify()
    assert torch.equal(student.hidden(ids), whole)
    assert all(torch.equal(w, frozen[n]) for n, w in student.model.named_parameters() if n in frozen)


def test_over_several_steps_all_of_a_fresh_adapter_moves(run: Path) -> None:
    results = run_probe(run, replace(SGD, train=FRESH, steps=2, update_contexts=2), QUIET)
    assert results["trained"]["parameters"] == 2 * 2 * (32 + 32) + 2 * 2 * (32 + 64)


@pytest.mark.parametrize(
    "settings",
    [
        replace(EFFICIENCY_PROBE, train=FRESH),
        ProbeSettings(kind="isolated", sample=40, train=FRESH, batch_tokens=100, tile_positions=7),
    ],
    ids=lambda settings: settings.kind,
)
def test_other_kinds_step_on_a_fresh_adapter_too(run: Path, settings: ProbeSettings) -> None:
    results = run_probe(run, settings, QUIET)
    assert results["trained"]["parameters"] == 2 * 2 * (32 + 32)  # of B, out of q_proj and down_proj


def test_what_the_student_does_not_have_is_refused(run: Path, adapted_run: Path) -> None:
    with pytest.raises(SettingsError, match="--train adapter: the student of this run has none"):
        run_probe(run, replace(PROBE, train="adapter"), QUIET)
    for train in ("all", FRESH):
        with pytest.raises(SettingsError, match=re.escape(f"--train {train}: the student of this run has an adapter")):
            run_probe(adapted_run, replace(PROBE, train=train), QUIET)
    with pytest.raises(ModelError, match="has no linear layer called x_proj"):
        run_probe(run, replace(PROBE, train="lora:target=q_proj+x_proj"), QUIET)


@pytest.mark.parametrize(
    "train", ["lora:r=0", "lora:r=a", "lora:rank=2", "lora:r=2,r=3", "lora:target=", "lora:r", "B"]
)
def test_an_adapter_that_cannot_be_made_is_refused(train: str) -> None:
    with pytest.raises(SettingsError, match="--train"):
        ProbeSettings(train=train)


def test_a_checkpoint_may_be_an_adapter(
    run: Path, adapted_run: Path, student_path: str, adapter: str, merged_path: str, tmp_path: Path
) -> None:
    whole, other = (
        run_probe(run, checkpoint(after, name), QUIET) for name, after in (("m", merged_path), ("a", adapter))
    )
    moved = sum((s * b @ a).square().sum().item() for a, b, s in low_rank(adapter).values()) ** 0.5
    for results in (whole, other):
        assert results["updates"]["checkpoint"]["update_norm"] == pytest.approx(moved, rel=1e-4)
    gains = [GAINS.read(run / "gains" / name)["gain"].to_numpy() for name in ("m", "a")]
    assert gains[0] == pytest.approx(gains[1], rel=1e-3, abs=1e-5)
    later = save_adapter(tmp_path / "later", student_path, seed=8)
    results = run_probe(adapted_run, checkpoint(later), QUIET)
    (ours, theirs), distance = (low_rank(folder) for folder in (adapter, later)), 0.0
    for name in ours:
        distance += sum((x - y).square().sum().item() for x, y in zip(ours[name][:2], theirs[name][:2], strict=True))
    assert results["updates"]["checkpoint"]["update_norm"] == pytest.approx(distance**0.5, rel=1e-4)


def test_the_command_line_takes_the_space(refused: Callable[..., str], run: Path) -> None:
    assert "the student of this run has none" in refused("probe", "--run", run, "--train", "adapter")
