"""Every family of architectures: columns, a gradient and samples against plain float64 transformers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import slow
import torch
from architectures import save_architecture
from tiny_pair import KNOWN, PROBE
from transformers import AutoModelForCausalLM

from teachdiag.artefacts import GAINS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.models.pair import Pair, load_pair, resolve_pair
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.updates import gradient, step_objective
from teachdiag.diagnostics.scoring.tiles import score
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, Sampling

KINDS = ["llama", "qwen3", "gemma2", "gemma3_text", "qwen3_moe", "mixtral", "gpt2", "opt", "bloom", "gemma3"]
QUIET = Reporter(quiet=True)
CONTEXTS = [  # of unequal lengths, so that one is padded, and longer than the sliding windows
    Context(0, "a", "bank", tuple(range(60, 70)), tuple(range(60, 70)), (3, 200, 17, 17, 90)),
    Context(1, "b", "bank", (70, 71), (70, 71), (9, 8, 7)),
]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    student, teacher = (save_architecture(folder / str(seed), request.param, seed) for seed in (1, 2))
    return load_pair(
        resolve_pair(CaptureSettings(student=student, teacher=teacher), QUIET), "float32", "cpu", master=True
    )


@pytest.fixture(scope="module")
def exact(pair: Pair) -> list[torch.nn.Module]:
    """Both models in float64, experts one by one: torch's grouped products know no float64."""
    models = []
    for model in (pair.student, pair.teacher):
        plain = AutoModelForCausalLM.from_pretrained(model.source.path, dtype=torch.float64)
        if hasattr(plain, "set_experts_implementation"):
            plain.set_experts_implementation("eager")
        models.append(plain.eval())
    return models


def test_columns_are_those_of_whole_unpadded_passes(pair: Pair, exact: list[torch.nn.Module]) -> None:
    batch = Batch(tuple(CONTEXTS))  # of several lengths, so that some are padded
    columns = score(pair.student, pair.teacher, batch, 3)
    for row, (number, t) in enumerate(zip(batch.context_ids, batch.positions, strict=True)):
        context = CONTEXTS[number]
        ids = torch.tensor([context.student_prompt + context.response[:t]])
        with torch.no_grad():
            z, w = (model(input_ids=ids).logits[0, -1, :KNOWN].numpy() for model in exact)
        for name, truth in slow.position_columns(z, w, context.response[t]).items():
            assert columns[name][row] == pytest.approx(truth, rel=2e-4, abs=5e-6), name
        assert columns["student_topk_ids"][row].tolist() == slow.top(z, 32)


def test_a_gradient_is_that_of_the_plain_loss(pair: Pair, exact: list[torch.nn.Module], tmp_path: Path) -> None:
    teacher = compute_teacher_states(pair.teacher, [CONTEXTS], 1000, tmp_path / "states.npy", QUIET)
    found = gradient(pair.student, step_objective(CONTEXTS, teacher, PROBE), PROBE, QUIET)
    values = []
    for context in CONTEXTS:
        logp, logq = (slow.plain_logp(model, context, "student", KNOWN) for model in exact)
        values += list((logp.exp() * (logp - logq.detach())).sum(-1))
    own = dict(exact[0].named_parameters())
    parts = torch.autograd.grad(torch.stack(values).mean(), list(own.values()), allow_unused=True)
    truth = {name: part for name, part in zip(own, parts, strict=True) if part is not None}
    size = torch.cat([part.flatten() for part in truth.values()]).norm()
    moved = [name for name, _ in pair.student.parameters()]
    assert truth.keys() <= set(moved)  # what no text passes through, as a vision tower, has no gradient, and no part
    assert not any("vision" in name or "projector" in name for name in moved)
    for name, part in zip(moved, found, strict=True):
        assert (part.double() - truth.get(name, 0)).norm() < 1e-4 * size, name


def test_padding_on_the_left_changes_no_sample(pair: Pair) -> None:
    prompts, seeds = [c.student_prompt for c in CONTEXTS], [5, 6]
    draw: Callable[..., list] = lambda p, s: sample(pair.student, p, s, Sampling(1.0, 1.0, 0, 6))  # noqa: E731
    together = draw(prompts, seeds)
    assert together == [draw([p], [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert all(token < KNOWN for rollout in together for token in rollout.token_ids)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["all", "lora:r=2,target=q_proj+v_proj"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "gemma3"])
def test_experts_and_multimodal_wrappers_go_through_the_stages(
    kind: str, train: str, tiny_settings: CaptureSettings, tmp_path: Path
) -> None:
    student, teacher = (save_architecture(tmp_path / str(seed), kind, seed) for seed in (1, 2))
    run = tmp_path / "run"
    run_capture(run, replace(tiny_settings, student=student, teacher=teacher, bank_prompts=4, update_prompts=3), QUIET)
    results = run_probe(run, replace(PROBE, train=train), QUIET)
    step = results["updates"]["one_step"]
    assert step["update_norm"] > 0
    assert step["mean_gain"] != 0
    assert (results["trained"]["parameters"] == results["trained"]["of"]) == (train == "all" and kind != "gemma3")
    key = ["context_id", "position"]
    before = GAINS.read(run / "gains/p").set_index(key)["forward_kl_before"]
    bank = POSITIONS.read(run / "positions").query("split == 'bank'").set_index(key)["forward_kl"]
    assert before.to_numpy() == pytest.approx(bank.reindex(before.index).to_numpy(), rel=1e-4, abs=1e-5)
