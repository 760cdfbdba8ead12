"""LoRA adapters: numbers are those of the merged model in float64, and what is more than a plain one is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import slow
import torch
from lora import merged, save_adapter, save_merged
from safetensors.torch import load_file, save_file
from tiny_pair import KNOWN, PROBE, save_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from teachdiag.artefacts import CONTEXTS, EVAL_SCORES, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.evaluate import run_evaluation
from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.pair import adapted, load_pair, resolve_pair
from teachdiag.diagnostics.models.weights import resolve_whole
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.scoring.tiles import score
from teachdiag.errors import ModelError, RunError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings, EvaluateSettings

QUIET = Reporter(quiet=True)
CONTEXTS_READ = (
    Context(0, "a", "bank", tuple(range(60, 70)), tuple(range(60, 70)), (3, 200, 17, 17, 90)),
    Context(1, "b", "bank", (70, 71), (70, 71), (9, 8, 7)),
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, student_path: str) -> str:
    return save_adapter(tmp_path_factory.mktemp("adapters") / "student", student_path, seed=3)


@pytest.fixture(scope="module")
def with_adapter(tiny_settings: CaptureSettings, adapter: str) -> CaptureSettings:
    return replace(tiny_settings, student_adapter=adapter)


@pytest.fixture(scope="module")
def captured_with_adapter(tmp_path_factory: pytest.TempPathFactory, with_adapter: CaptureSettings) -> Path:
    run = tmp_path_factory.mktemp("captured") / "run"
    run_capture(run, with_adapter, QUIET)
    return run


def assert_columns(settings: CaptureSettings, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    pair = load_pair(resolve_pair(settings, QUIET), "float32", "cpu")
    batch = Batch(CONTEXTS_READ)
    columns = score(pair.student, pair.teacher, batch, 3)
    for row, (number, t) in enumerate(zip(batch.context_ids, batch.positions, strict=True)):
        context = CONTEXTS_READ[number]
        ids = torch.tensor([context.student_prompt + context.response[:t]])
        with torch.no_grad():
            z, w = (model(input_ids=ids).logits[0, -1, :KNOWN].numpy() for model in (student, teacher))
        for name, truth in slow.position_columns(z, w, context.response[t]).items():
            assert columns[name][row] == pytest.approx(truth, rel=2e-4, abs=5e-6), name


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]}])
def test_a_student_with_an_adapter_is_the_merged_model(
    tiny_settings: CaptureSettings, student_path: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    adapter = save_adapter(tmp_path / "a", student_path, seed=4, **options)
    settings = replace(tiny_settings, teacher=student_path, student_adapter=adapter)  # learns from its own base
    plain = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float64)
    assert_columns(settings, merged(student_path, adapter), plain)


def test_so_is_a_teacher(tiny_settings: CaptureSettings, student_path: str, adapter: str) -> None:
    settings = replace(tiny_settings, teacher=student_path, teacher_adapter=adapter)
    plain = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float64)
    assert_columns(settings, plain, merged(student_path, adapter))


def test_in_half_precision_the_adapter_stays_float32(with_adapter: CaptureSettings) -> None:
    source = resolve_pair(with_adapter, QUIET)[0]
    model = load(source, "bfloat16", "cpu")
    assert {weight.dtype for _, weight in model.parameters()} == {torch.float32}
    assert {weight.dtype for name, weight in model.model.named_parameters() if "lora_" not in name} == {torch.bfloat16}


def test_a_capture_is_that_of_the_merged_model(
    captured_with_adapter: Path, with_adapter: CaptureSettings, student_path: str, adapter: str, tmp_path: Path
) -> None:
    whole = replace(with_adapter, student=save_merged(tmp_path / "m", student_path, adapter), student_adapter="")
    run_capture(tmp_path / "run", whole, QUIET)
    ours, theirs = (CONTEXTS.read(run / "contexts") for run in (captured_with_adapter, tmp_path / "run"))
    assert ours["response_token_ids"].map(list).tolist() == theirs["response_token_ids"].map(list).tolist()
    ours, theirs = (POSITIONS.read(run / "positions") for run in (captured_with_adapter, tmp_path / "run"))
    for column in ("forward_kl", "reverse_kl", "compatibility_k16", "student_entropy"):
        assert ours[column].to_numpy() == pytest.approx(theirs[column].to_numpy(), rel=1e-3, abs=1e-5)


def test_its_record_holds_the_adapter_which_must_stay_what_it_was(
    captured_with_adapter: Path, adapter: str, tmp_path: Path
) -> None:
    facts = Stage(captured_with_adapter, "capture").record()["inputs"]
    assert facts["student"]["adapter"]["name"] == adapter
    assert "adapter" not in facts["teacher"]
    run = Path(shutil.copytree(captured_with_adapter, tmp_path / "run"))
    file = Path(adapter) / "adapter_model.safetensors"
    held = load_file(file)
    save_file({name: 2 * weight for name, weight in held.items()}, file)
    with pytest.raises(RunError, match=r"captured with another student: digest of the adapter of .* was"):
        run_probe(run, PROBE, QUIET)
    save_file(held, file)


def test_two_of_the_same_adapter_have_nothing_to_learn(
    with_adapter: CaptureSettings, student_path: str, adapter: str, tmp_path: Path
) -> None:
    same = replace(with_adapter, teacher=student_path, teacher_adapter=adapter)
    with pytest.raises(ModelError, match="nothing to learn"):
        run_capture(tmp_path / "run", same, QUIET)


def test_it_is_put_on_what_is_left_of_its_model(student_path: str, tmp_path: Path) -> None:
    pruned = resolve_whole(student_path, "main", (0,), QUIET, False)
    model = load(pruned, "float32", "cpu")
    model.model.save_pretrained(tmp_path / "pruned")
    adapter = save_adapter(tmp_path / "a", str(tmp_path / "pruned"), 5, target_modules=["v_proj"])
    amend(adapter, base_model_name_or_path=student_path)
    found = load(adapted(pruned, adapter, QUIET), "float32", "cpu")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        truth = merged(str(tmp_path / "pruned"), adapter)(ids).logits[0, :, :KNOWN]
        logits = found.head(found.hidden(ids)[0])
    assert logits.numpy() == pytest.approx(truth.numpy(), abs=1e-4)


def amend(adapter: str, **changes: object) -> None:
    file = Path(adapter) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no adapter_config.json": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "broken": (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config.json cannot be read"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "IA3": (lambda f: amend(str(f), peft_type="IA3"), "is IA3, and only LORA is read: merge it"),
    "DoRA": (lambda f: amend(str(f), use_dora=True), "has use_dora, and only plain low-rank updates"),
    "PiSSA": (lambda f: amend(str(f), init_lora_weights="pissa"), "has init_lora_weights, and only"),
    "modules_to_save": (lambda f: amend(str(f), modules_to_save=["lm_head"]), "has modules_to_save, and only"),
    "of the future": (lambda f: amend(str(f), use_novel_trick=True), "has use_novel_trick, and only"),
    "resized embeddings": (
        lambda f: save_file(
            load_file(f / "adapter_model.safetensors") | {"base_model.model.lm_head.weight": torch.ones(300, 32)},
            f / "adapter_model.safetensors",
        ),
        r"does not fit model .*: it has, beyond what its configuration says, lm_head.weight",
    ),
    "of another shape": (lambda f: amend(str(f), r=4), r"has in another shape .* and 24 more: give the model that"),
    "of a larger model": (
        lambda f: save_file(
            {n.replace("layers.1.", "layers.2."): w for n, w in load_file(f / "adapter_model.safetensors").items()},
            f / "adapter_model.safetensors",
        ),
        r"lacks model.layers.1.* it has, beyond .*model.layers.2",
    ),
    "no safetensors": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x"), "cannot be put on model"),
    "nowhere": (lambda f: amend(str(f), target_modules=["c_attn"]), r"cannot be put on model .*c_attn.* not found"),
    "on the embeddings": (lambda f: amend(str(f), target_modules=["embed_tokens"]), "changes the embeddings or the LM"),
    "on the head": (lambda f: amend(str(f), target_modules=["lm_head", "q_proj"]), "changes the embeddings or the LM"),
    "of another model": (lambda f: amend(str(f), base_model_name_or_path=str(f.parent / "other")), "is one of model"),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_an_adapter_that_is_not_understood_is_refused(
    tiny_settings: CaptureSettings, adapter: str, fault: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "a"))
    save_model(tmp_path / "other", seed=9)
    spoil, why = REFUSALS[fault]
    spoil(folder)
    with pytest.raises(ModelError, match=why):
        resolve_pair(replace(tiny_settings, student_adapter=str(folder)), QUIET)


def test_where_its_model_went_cannot_be_told_is_said(
    tiny_settings: CaptureSettings, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "a"))
    amend(str(folder), base_model_name_or_path="somebody/model")
    resolve_pair(replace(tiny_settings, student_adapter=str(folder)), Reporter())
    assert "says that it is one of somebody/model, which is taken to be" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"engine": "vllm", "student_adapter": "a"}, "--student-adapter cannot be read with vLLM"),
        ({"engine": "ray", "teacher_adapter": "a"}, "--teacher-adapter cannot be read with vLLM and Ray"),
        ({"teacher_engine": "vllm", "teacher_adapter": "a"}, "--teacher-adapter cannot be read with vLLM"),
        ({"shard_model": True, "student_adapter": "a"}, "--student-adapter cannot be read with --shard-model"),
    ],
)
def test_engines_that_run_models_elsewhere_take_no_adapter(options: dict[str, Any], name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        CaptureSettings(student="a", teacher="b", **options)
    CaptureSettings(student="a", teacher="b", engine="vllm", teacher_adapter="a")  # the teacher is here


def test_before_models_are_imported_it_is_looked_at(
    refused: Callable[..., str], student_path: str, teacher_path: str, tmp_path: Path
) -> None:
    pair = ("--student", student_path, "--teacher", teacher_path)
    run = ("capture", "--run", tmp_path / "run", *pair, "--student-adapter")
    assert "is no folder here" in refused(*run, "nowhere")
    assert "has no adapter_config.json" in refused(*run, teacher_path)


def test_an_adapter_is_judged_on_the_model_that_it_names(
    adapter: str, student_path: str, manifest_path: str, tmp_path: Path
) -> None:
    whole = save_merged(tmp_path / "merged", student_path, adapter)
    settings = EvaluateSettings(
        models=[adapter, whole], prompts=manifest_path, eval_prompts=3, eval_max_new_tokens=8, device="cpu"
    )
    run_evaluation(tmp_path / "run", settings, QUIET)
    scores = EVAL_SCORES.read(tmp_path / "run/eval_scores").drop(columns="arm")
    ours, theirs = (scores.iloc[half].reset_index(drop=True) for half in (slice(6), slice(6, None)))
    assert ours.equals(theirs)
    nameless = Path(shutil.copytree(adapter, tmp_path / "nameless"))
    amend(str(nameless), base_model_name_or_path=None)
    with pytest.raises(ModelError, match="does not name its model"):
        run_evaluation(tmp_path / "other", replace(settings, models=[str(nameless)]), QUIET)
