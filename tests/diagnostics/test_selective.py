"""The selective trainer: TRL's own step where all is kept, a loss by brute force, one selection whatever the ranks."""

import json
from collections import defaultdict
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from architectures import save_architecture
from datasets import Dataset
from processes import in_processes
from tiny_pair import KNOWN, save_model
from trainers import ENDS, PROMPTS, WHOLE, Recording, make_trainer, train_and_write
from transformers import AutoModelForCausalLM
from trl import DistillationConfig, DistillationTrainer

from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
from teachdiag.errors import ContextError
from teachdiag.losses import LOSSES
from teachdiag.selectors import Selection

# TRL uses names that transformers renames in v6.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of heads whose padding has larger logits than any token, in both directions."""
    paths = [tmp_path_factory.mktemp("trained") / side for side in ("student", "teacher")]
    for path, seed in zip(paths, (1, 3), strict=True):
        save_model(path, seed)
        model = AutoModelForCausalLM.from_pretrained(path)
        with torch.no_grad():
            model.get_input_embeddings().weight[KNOWN:] *= 30
        model.save_pretrained(path)
    return str(paths[0]), str(paths[1])


class Plain(DistillationTrainer):
    """TRL's trainer on our rollouts."""

    rollout_seed, _known = 0, Known(KNOWN)
    _generate_single_turn = SelectiveDistillationTrainer._generate_single_turn


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_tokenize_prompts", ["prompts"]),
        ("_generate_single_turn", ["prompt_ids", "images", "multimodal_fields", "has_tool_images"]),
        ("_generate_and_score_completions", ["inputs"]),
        ("_compute_loss", ["unwrapped_student", "inputs", "num_items_in_batch"]),
        ("_get_last_hidden_state", ["unwrapped_model", "input_ids", "attention_mask", "logits_to_keep"]),
    ],
)
def test_trl_has_the_private_methods_that_ours_goes_by(method: str, parameters: list[str]) -> None:
    """A version of TRL that renames one, or its arguments, would sample or train by its own rules without a word."""
    for trainer in (DistillationTrainer, SelectiveDistillationTrainer):
        assert [*signature(getattr(trainer, method)).parameters][1 : len(parameters) + 1] == parameters
    assert method in vars(DistillationTrainer)


def _weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: own.detach().clone() for name, own in trainer.model.named_parameters()}


@pytest.mark.parametrize(("loss", "beta"), [("reverse_kl", 1.0), ("forward_kl", 0.0)])
def test_full_distillation_is_trls(tmp_path: Path, loss: str, beta: float) -> None:
    """On heads without padding, over which TRL takes its softmax."""
    models = tuple(save_model(tmp_path / name, seed, rows=KNOWN) for name, seed in (("student", 1), ("teacher", 3)))
    ours = make_trainer(models, tmp_path, Recording, selection=Selection("full"), loss=loss)
    theirs = make_trainer(models, tmp_path, Plain, beta=beta)
    for trainer in (ours, theirs):
        trainer.train()
    mine, total, apart = _weights(ours), 0, 0
    for name, weights in _weights(theirs).items():
        near = torch.isclose(mine[name], weights, rtol=1e-4, atol=3e-5)
        total, apart = total + near.numel(), apart + int((~near).sum())
    # AdamW's first step is a thousandth wherever a gradient is more than rounding, which padding elsewhere changes; of
    # the few that are rounding each processor makes something else.
    assert apart <= total / 2_000
    assert ours.state.log_history[0]["selection/keep"] == 1


def _by_brute_force(models: tuple[str, str], trainer: Recording) -> dict[str, np.ndarray]:
    """KLs and C (K=16) of every position of the recorded rollout batch, unpadded, float64, by sequence and position."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(path).double().eval() for path in models)
    found: dict[str, list[float]] = {"forward_kl": [], "reverse_kl": [], "compatibility": []}
    batch = trainer.batches[0]
    for prompt, own, mask, prompt_mask in zip(
        batch["prompt_ids"], batch["completion_ids"], batch["completion_mask"], batch["prompt_mask"], strict=True
    ):
        context, response = prompt[prompt_mask.bool()], own[mask.bool()]
        with torch.no_grad():
            logp, logq = (
                m(torch.cat([context, response])[None]).logits[0, len(context) - 1 : -1, :KNOWN].log_softmax(-1)
                for m in (student, teacher)
            )
        p, q = logp.exp(), logq.exp()
        found["forward_kl"] += (q * (logq - logp)).sum(-1).tolist()
        found["reverse_kl"] += (p * (logp - logq)).sum(-1).tolist()
        found["compatibility"] += [float(b[a.topk(16).indices].sum()) for a, b in zip(p, q, strict=True)]
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "llama", "gemma2"])  # learned, ALiBi and rotary positions
def test_padding_on_the_left_changes_nothing(tmp_path: Path, kind: str) -> None:
    """TRL pads prompts of unequal lengths; every position's KL is that of its own unpadded sequence."""
    models = tuple(save_architecture(tmp_path / str(seed), kind, seed) for seed in (1, 2))
    trainer = make_trainer(models, tmp_path, Recording, selection=Selection("full"), loss="forward_kl")
    trainer.train()
    truth = _by_brute_force(models, trainer)
    assert (trainer.batches[0]["prompt_mask"].sum(1).unique().numel()) > 1
    for name in ("forward_kl", "reverse_kl"):
        np.testing.assert_allclose(trainer.columns[0][name], truth[name], rtol=2e-5, atol=2e-6)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(truth["forward_kl"].mean(), rel=1e-5)


@pytest.mark.parametrize("loss_mean", ["positions", "sequences"])
def test_the_loss_is_the_mean_over_what_the_selector_keeps(
    models: tuple[str, str], tmp_path: Path, loss_mean: str
) -> None:
    selection = Selection("compatibility", budget=0.15)
    trainer = make_trainer(models, tmp_path, Recording, selection=selection, loss_mean=loss_mean)
    trainer.train()
    assert trainer.batches[0]["completion_ids"].max() < KNOWN
    truth = _by_brute_force(models, trainer)
    n = len(truth["compatibility"])
    best = np.argsort(-truth["compatibility"])[: int(np.ceil(0.15 * n))]
    sequences = trainer.columns[0]["context_id"]
    assert sorted(np.flatnonzero(trainer.weights[0].kept)) == sorted(best)
    if loss_mean == "positions":
        expected = truth["reverse_kl"][best].mean()
    else:
        means = [truth["reverse_kl"][best[sequences[best] == s]] for s in range(len(PROMPTS))]
        expected = np.mean([own.mean() if len(own) else 0.0 for own in means])
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(expected, rel=1e-5)
    assert logged["selection/keep"] == pytest.approx(len(best) / n)
    assert logged["selection/sequences_touched"] == len(set(sequences[best])) / len(PROMPTS)
    assert logged["selection/compatibility_kept"] == pytest.approx(truth["compatibility"][best].mean(), rel=1e-5)
    ends = np.isin(trainer.columns[0]["token_id"], ENDS)
    if ends.any():
        assert logged["selection/ends_kept"] == pytest.approx(np.isin(np.flatnonzero(ends), best).mean())


class Witness(Recording):
    """Keeps the gradient of the last step, and each micro-batch's states of the teacher beside those of a pass anew."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gradient: dict[str, torch.Tensor] = {}
        self.states: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _compute_loss(self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
        anew = self._taught(inputs, inputs["kept"])
        self.states.append((torch.cat(inputs["teacher_states"]), anew))
        return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)

    def _remember(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradient = {name: own.grad.clone() for name, own in self.model.named_parameters()}
        super()._remember(optimizer)


@pytest.mark.parametrize("loss", ["reverse_kl", "forward_kl", "jsd", "sampled_reverse_kl"])
@pytest.mark.parametrize("batches", [{}, WHOLE], ids=["two micro-batches", "one"])
def test_loss_and_gradient_are_those_of_a_teacher_that_is_asked_again(
    models: tuple[str, str], tmp_path: Path, loss: str, batches: dict[str, int]
) -> None:
    """Micro-batches are shuffled after scoring; the truth is float64, a sequence at a time and unpadded."""
    selection = Selection("learnable", budget=0.3)
    trainer = make_trainer(models, tmp_path, Witness, selection=selection, loss=loss, max_grad_norm=1e9, **batches)
    trainer.train()
    for kept, anew in trainer.states:
        torch.testing.assert_close(kept, anew, rtol=1e-5, atol=1e-5)
    student, teacher = (AutoModelForCausalLM.from_pretrained(path).double().eval() for path in models)
    own, options = LOSSES[loss], {"jsd_beta": 0.5} if loss == "jsd" else {}
    batch, weights = trainer.batches[0], trainer.weights[0]
    sequences, positions = (trainer.columns[0][name][weights.kept] for name in ("context_id", "position"))
    losses = []
    for sequence in set(sequences):
        prompt, response = batch["prompt_ids"][sequence], batch["completion_ids"][sequence]
        prompt = prompt[batch["prompt_mask"][sequence].bool()]
        rows = torch.from_numpy(positions[sequences == sequence])
        ids, predicting = torch.cat([prompt, response])[None], rows + len(prompt) - 1
        logp = student(ids).logits[0, predicting, :KNOWN].log_softmax(-1)
        with torch.no_grad():
            logq = teacher(ids).logits[0, predicting, :KNOWN].log_softmax(-1)
        losses.append(own.function(logp, logq, response[rows], **options))
    expected = torch.cat(losses).mean()
    expected.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in student.named_parameters():
        scale = float(weight.grad.abs().max())
        torch.testing.assert_close(trainer.gradient[name].double(), weight.grad, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("selector", ["learnable", "full"])
@pytest.mark.parametrize(
    ("batches", "students"), [({}, {False, True}), (WHOLE, {True})], ids=["two micro-batches", "one"]
)
def test_every_rollout_is_read_as_often_as_need_be(
    models: tuple[str, str], tmp_path: Path, selector: str, batches: dict[str, int], students: set[bool]
) -> None:
    """By the teacher once; by the student to be scored and to be trained, one pass where there is one micro-batch."""
    selection = Selection(selector, budget=0.2)
    trainer = make_trainer(models, tmp_path, Recording, selection=selection, max_steps=2, **batches)
    read: dict[tuple[str, bool], list[tuple[int, ...]]] = {}

    def watch(name: str, model: Any) -> None:
        def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if not kwargs["use_cache"]:  # rollouts use one
                rows = read.setdefault((name, torch.is_grad_enabled()), [])
                rows += map(tuple, kwargs["input_ids"].tolist())

        model.base_model.register_forward_pre_hook(note, with_kwargs=True)

    watch("teacher", trainer.teacher_model)
    watch("student", trainer.model)
    trainer.train()
    rollouts = []
    for batch in trainer.batches:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        padding = (1 - batch["prompt_mask"]).sum(1).tolist()
        rollouts += [tuple(own.roll(-n).tolist()) for own, n in zip(ids, padding, strict=True)]
        assert [own.shape for own in batch["teacher_states"]] == [(n, 32) for n in batch["kept"].sum(1).tolist()]
    assert len(rollouts) == 2 * len(PROMPTS)
    assert read.keys() == {("teacher", False)} | {("student", graded) for graded in students}
    for rows in read.values():
        assert sorted(rows) == sorted(rollouts)


def test_an_evaluation_spends_the_loss_on_every_position(models: tuple[str, str], tmp_path: Path) -> None:
    trainer = make_trainer(models, tmp_path, Recording, selection=Selection("learnable", budget=0.2))
    found = trainer.evaluate(Dataset.from_dict({"prompt": PROMPTS}))
    truth = _by_brute_force(models, trainer)["reverse_kl"]
    assert len(trainer.batches) == 1
    assert int(trainer.batches[0]["kept"].sum()) == len(truth)
    assert found["eval_loss"] == pytest.approx(truth.mean(), rel=1e-5)


@pytest.mark.slow
def test_two_processes_select_and_step_as_one(models: tuple[str, str], tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        done = in_processes(ranks, train_and_write, models, folder)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append((json.loads((folder / "kept.json").read_text()), torch.load(folder / "weights.pt")))
    (kept, weights), (kept_by_two, weights_by_two) = found
    assert kept == kept_by_two
    assert all(len(own) > 0 for own in kept)
    for name, own in weights.items():
        torch.testing.assert_close(own, weights_by_two[name], rtol=1e-4, atol=1e-6)


def test_a_teacher_that_gives_nan_is_named(models: tuple[str, str], tmp_path: Path) -> None:
    trainer = make_trainer(models, tmp_path, Recording, selection=Selection("learnable"))
    with torch.no_grad():
        next(trainer.teacher_model.parameters())[:] = float("nan")
    with pytest.raises(ContextError, match=r"step 0: .* is not finite at some position: the student or the teacher"):
        trainer.train()


def test_a_mask_that_ties_decide_is_said_once(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(models, tmp_path, Recording, selection=Selection("q3_tied:flat"), max_steps=2)
    trainer.train()
    said = capsys.readouterr().err
    assert said.count("ties decide 100% of the positions that q3_tied:flat keeps") == 1


@pytest.mark.parametrize(("bf16", "computed"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_student_computes_in_the_type_that_is_asked_for(
    models: tuple[str, str], tmp_path: Path, bf16: bool, computed: torch.dtype
) -> None:
    """In every pass, scored, trained or sampled; its weights, gradients and logits stay float32."""
    trainer = make_trainer(models, tmp_path, Recording, bf16=bf16)
    products, logits = set[torch.dtype](), set[torch.dtype]()
    for layer in trainer.model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, inputs, output: products.add(output.dtype))
    position_loss = trainer._position_loss
    trainer._position_loss = lambda own, *others: logits.add(own.dtype) or position_loss(own, *others)
    trainer.train()
    assert products == {computed}
    assert logits == {torch.float32}
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def test_ones_own_script_needs_nothing_but_the_trainer(models: tuple[str, str], tmp_path: Path) -> None:
    """As the README has it: models by their names, a selection, TRL's own arguments."""
    import teachdiag

    trainer = teachdiag.SelectiveDistillationTrainer(
        model=models[0],
        teacher_model=models[1],
        args=DistillationConfig(
            str(tmp_path), max_completion_length=6, max_steps=1, per_device_train_batch_size=2, logging_steps=1,
            bf16=False, use_cpu=True, report_to="none", save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]),
        selection=teachdiag.Selection("learnable", budget=0.1),
        loss="reverse_kl",
    )  # fmt: skip
    trainer.train()
    assert 0 < trainer.state.log_history[0]["selection/keep"] <= 0.3
    with pytest.raises(AttributeError, match="has no attribute 'Selektion'"):
        teachdiag.Selektion  # noqa: B018


def test_the_norm_of_a_step_is_taken_in_the_memory_of_what_was_before_it() -> None:
    """Exactly the norm of the difference, without another tensor of a weight's size."""
    weights = [torch.nn.Parameter(torch.randn(n, 30, generator=torch.Generator().manual_seed(n))) for n in (5, 700)]
    optimizer = torch.optim.SGD(weights, lr=0.3)
    for weight in weights:
        weight.grad = weight.detach().cos()
    trainer: Any = SimpleNamespace(_metrics={"train": defaultdict(list)}, accelerator=SimpleNamespace())
    trainer.accelerator.distributed_type = DistributedType.NO
    SelectiveDistillationTrainer._remember(trainer, optimizer)
    held = list(trainer._before)
    before = [old.clone() for old in held]
    optimizer.step()
    SelectiveDistillationTrainer._log_update(trainer, optimizer)
    squares = [(now.detach() - old).square() for now, old in zip(weights, before, strict=True)]
    assert trainer._metrics["train"]["selection/update_norm"] == [float(sum(s.sum() for s in squares)) ** 0.5]
    assert all(torch.equal(own, square) for own, square in zip(held, squares, strict=True))
    assert trainer._before == []
