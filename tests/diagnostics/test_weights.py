"""What a checkpoint's files hold is what runs: against transformers' own loading of a checkpoint without fault."""

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pair import byte_tokenizer, save_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from teachdiag.cache import made_once
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.engines.vllm_launch import engine_arguments, weights
from teachdiag.diagnostics.evaluate import run_evaluation
from teachdiag.diagnostics.models.head import read_head
from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.pair import resolve_pair
from teachdiag.diagnostics.models.sources import outline, resolve
from teachdiag.diagnostics.models.weights import check_weights, resolve_whole
from teachdiag.errors import ModelError, RunError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, EvaluateSettings
from teachdiag.tables import file_digest

QUIET = Reporter(quiet=True)
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied model: its LM head is a weight of its own."""
    folder = tmp_path_factory.mktemp("clean") / "model"
    save_model(folder, seed=1, tie_word_embeddings=False)
    return folder


@pytest.fixture(scope="module")
def truth(clean: Path) -> Weights:
    return dict(AutoModelForCausalLM.from_pretrained(clean).named_parameters())


def with_weights(clean: Path, folder: Path, change: Callable[[Weights], Weights]) -> str:
    """A copy of a checkpoint whose weights are changed."""
    shutil.copytree(clean, folder)
    save_file(change(load_file(clean / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def inside(part: str, *places: str) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for place in places:
            name = name.replace(place, f"{place}{part}.")
        return name

    return rename


WRAPPERS = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "parallel": lambda name: f"module.{name}",
    "both": lambda name: f"_orig_mod.module.{name}",
    "both, the other way": lambda name: f"module._orig_mod.{name}",
    "twice": lambda name: f"module.module.{name}",
    "the decoder alone": lambda name: name.replace("model.", "model._orig_mod.", 1),
    "every layer": inside("_orig_mod", "layers.0.", "layers.1."),
    "one layer, and all": lambda name: "_orig_mod." + inside("_orig_mod", "layers.1.")(name),
    "sharded": lambda name: "_fsdp_wrapped_module." + inside("_fsdp_wrapped_module", "layers.0.", "layers.1.")(name),
    "checkpointed": inside("_checkpoint_wrapped_module", "layers.0.", "layers.1."),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_names_are_taken_off_exactly(
    clean: Path, truth: Weights, wrapper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = WRAPPERS[wrapper]
    path = with_weights(clean, tmp_path / "m", lambda held: {rename(name): weight for name, weight in held.items()})
    source = resolve_whole(path, "main", (), QUIET, False)
    model = load(source, "float32", "cpu")
    for name, parameter in model.parameters():
        assert torch.equal(parameter, truth[name])
    assert torch.equal(read_head(source, model.known).weight, model.head.weight)
    model.model.save_pretrained(tmp_path / "again")  # as trained students are
    assert load_file(tmp_path / "again/model.safetensors").keys() == load_file(clean / "model.safetensors").keys()
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path / "cache"))
    served = load_file(Path(weights(source, QUIET)) / "model.safetensors")  # what vLLM and Ray read
    assert served.keys() == truth.keys()
    assert all(torch.equal(served[name], truth[name]) for name in truth)


def lost(part: str) -> Callable[[Weights], Weights]:
    return lambda held: {name: weight for name, weight in held.items() if part not in name}


FAULTS = {
    "a lost layer": (lost("layers.1."), r"lack model.layers.1.*and 7 more"),
    "no LM head": (lost("lm_head"), "lack lm_head.weight"),
    "one lost weight": (lost("model.norm"), "lack model.norm.weight"),
    "integers": (lambda held: {n: (100 * w).to(torch.int8) for n, w in held.items()}, r"whole numbers or 8 bits"),
    "8 bits": (lambda held: {n: w.to(torch.float8_e4m3fn) for n, w in held.items()}, r"no quantization_config"),
    "a surplus layer": (
        lambda held: held | {n.replace("rs.1", "rs.2"): w.clone() for n, w in held.items() if "rs.1" in n},
        r"have, beyond.*model.layers.2.*and 7 more",
    ),
    "an unknown prefix": (
        lambda held: {f"base_model.model.{name}": weight for name, weight in held.items()},
        "lack lm_head.weight.*beyond.*base_model.model",
    ),
    "another shape": (
        lambda held: held | {"model.norm.weight": torch.ones(16)},
        r"another shape.*model.norm.weight \(\(16,\), not \(32,\)\)",
    ),
    "twice": (
        lambda held: held | {"_orig_mod.model.norm.weight": torch.ones(32)},
        "model.norm.weight twice",
    ),
    "nothing": (lambda held: {}, "lack"),
    "an adapter among them": (
        lambda held: held | {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)},
        "beyond.*lora_A",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys(clean: Path, fault: str, tmp_path: Path) -> None:
    change, told = FAULTS[fault]
    path = with_weights(clean, tmp_path / "m", change)
    source = resolve(path, "main", (), QUIET)
    for refuse in (check_weights, lambda found: weights(found, QUIET)):  # before any is loaded, and for engines
        with pytest.raises(ModelError, match=told):
            refuse(source)
    with pytest.raises(ModelError):
        load(source, "float32", "cpu")
    with pytest.raises(ModelError, match=told):
        resolve_pair(CaptureSettings(student=str(clean), teacher=path), QUIET)


def test_what_an_architecture_can_do_without_is_no_fault(clean: Path, tmp_path: Path) -> None:
    """A tied head that is absent, or there twice with the same values; buffers that older versions saved."""
    tied = tmp_path / "tied"
    save_model(tied, seed=1)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    check_weights(resolve(str(tied), "main", (), QUIET))
    both = with_weights(
        tied, tmp_path / "both", lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}
    )
    load(resolve_whole(both, "main", (), QUIET, False), "float32", "cpu")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    old = with_weights(clean, tmp_path / "old", lambda held: held | {name: torch.ones(4)})
    load(resolve_whole(old, "main", (), QUIET, False), "float32", "cpu")


def test_two_different_heads_of_a_tied_model_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "tied", seed=1)
    two = with_weights(
        tmp_path / "tied", tmp_path / "two", lambda h: h | {"lm_head.weight": h["model.embed_tokens.weight"] + 1}
    )
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        load(resolve(two, "main", (), QUIET), "float32", "cpu")


def test_sharded_and_pickled_weights_are_read(clean: Path, truth: Weights, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(clean)
    shutil.copytree(clean, tmp_path / "shards")
    (tmp_path / "shards/model.safetensors").unlink()
    model.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    shutil.copytree(clean, tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").unlink()
    held = {f"module.{name}": weight for name, weight in load_file(clean / "model.safetensors").items()}
    torch.save(held, tmp_path / "pickled/pytorch_model.bin")
    for folder in ("shards", "pickled"):
        source = resolve_whole(str(tmp_path / folder), "main", (), QUIET, False)
        assert all(torch.equal(p, truth[name]) for name, p in load(source, "float32", "cpu").parameters())
    next((tmp_path / "shards").glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002.*which its model.safetensors.index.json lists"):
        resolve_whole(str(tmp_path / "shards"), "main", (), QUIET, False)


class Loud:
    """Pickled, it would print."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("this ran",)


@pytest.mark.parametrize("content", [Loud(), {"model": {"model.norm.weight": torch.ones(2)}}, b"nothing", [1.0]])
def test_a_pickle_of_something_else_is_one_sentence(
    clean: Path, content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(clean, tmp_path / "m")
    (tmp_path / "m/model.safetensors").unlink()
    file = tmp_path / "m/pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ModelError, match=r"pytorch_model.bin (cannot be read|holds something else)") as found:
        resolve_whole(str(tmp_path / "m"), "main", (), QUIET, False)
    assert "\n" not in str(found.value)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_is_not_left_out(clean: Path, beside: bool, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(clean, folder) if beside else folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter.*--student-adapter"):
        resolve(str(folder), "main", (), QUIET)


def test_experts_are_checked_one_by_one(tmp_path: Path) -> None:
    """They are stacked into one weight when they are loaded."""
    sizes = {"vocab_size": 264, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "head_dim": 8}
    config = Qwen3MoeConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2
    )
    model = Qwen3MoeForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "moe")
    byte_tokenizer().save_pretrained(tmp_path / "moe")
    wrapped = with_weights(
        tmp_path / "moe", tmp_path / "wrapped", lambda held: {f"module.{name}": held[name] for name in held}
    )
    loaded = load(resolve_whole(wrapped, "main", (), QUIET, False), "float32", "cpu")
    assert all(torch.equal(p, q) for (_, p), q in zip(loaded.parameters(), model.parameters(), strict=True))
    short = with_weights(tmp_path / "moe", tmp_path / "short", lost("layers.1.mlp.experts.2."))
    with pytest.raises(ModelError):
        resolve_whole(short, "main", (), QUIET, False)


def test_another_architectures_rules_are_its_own(tmp_path: Path) -> None:
    """GPT-2 files may begin at the decoder, and hold masks as buffers."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    model.save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    bare = with_weights(
        tmp_path / "m",
        tmp_path / "bare",
        lambda held: (
            {n.removeprefix("transformer."): w for n, w in held.items()} | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}
        ),
    )
    loaded = load(resolve_whole(bare, "main", (), QUIET, False), "float32", "cpu")
    assert all(torch.equal(p, q) for (_, p), q in zip(loaded.parameters(), model.parameters(), strict=True))


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=264, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError):
        load(resolve(str(tmp_path), "main", (), QUIET), "float32", "cpu")


def test_a_tokenizer_of_another_model_is_refused(manifest_path: str, tmp_path: Path) -> None:
    path = save_model(tmp_path / "m", 1, rows=200, pad_token_id=None, eos_token_id=None)
    settings = EvaluateSettings(models=[path], prompts=manifest_path, eval_prompts=2)
    with pytest.raises(ModelError, match=r"emits id 256, but its LM head has only 200 rows: is it another model's"):
        run_evaluation(tmp_path / "run", settings, QUIET)
    assert not (tmp_path / "run/evaluate.json").exists()


def test_a_refused_pair_leaves_no_run(clean: Path, tiny_settings: CaptureSettings, tmp_path: Path) -> None:
    path = with_weights(clean, tmp_path / "m", lost("layers.1."))
    with pytest.raises(ModelError, match="lack"):
        run_capture(tmp_path / "run", replace(tiny_settings, student=path), QUIET)
    assert not (tmp_path / "run/capture.json").exists()


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", "[]", "cannot be loaded"),
        ("config.json", json.dumps({"model_type": "no such"}), "no such"),
        ("config.json", json.dumps({"model_type": "qwen3", "hidden_size": "many"}), "cannot be loaded"),
        ("tokenizer.json", "{", "cannot be loaded"),
        ("tokenizer.json", "{}", "cannot be loaded"),
        ("generation_config.json", "{", "generation_config.json"),
        ("model.safetensors", "", "cannot be read"),
    ],
)
def test_a_broken_file_is_one_sentence(clean: Path, file: str, content: str, told: str, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "m")
    (tmp_path / "m" / file).write_text(content)
    source = resolve(str(tmp_path / "m"), "main", (), QUIET)
    with pytest.raises(ModelError, match=told) as found:
        load(source, "float32", "cpu")
    assert "\n" not in str(found.value)


OWN_CODE = """
from pathlib import Path
from transformers import Qwen3Config, Qwen3ForCausalLM
Path({marker!r}).touch()
class OwnConfig(Qwen3Config):
    model_type = "own"
class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def coded(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A checkpoint that brings code, which leaves a marker where it runs; and standard input says yes to anything."""
    folder, marker = tmp_path / "coded", tmp_path / "ran"
    shutil.copytree(clean, folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    return str(folder), marker


def test_code_of_a_checkpoint_runs_only_with_its_flag(
    coded: tuple[str, Path],
    clean: Path,
    truth: Weights,
    tiny_settings: CaptureSettings,
    manifest_path: str,
    tmp_path: Path,
) -> None:
    path, marker = coded
    told = "brings code of its own, which runs only with --trust-remote-code"
    settings = replace(tiny_settings, student=path, teacher=str(clean))
    protocol = {"prompts": manifest_path, "eval_prompts": 2, "eval_max_new_tokens": 4}
    for refuse in (
        lambda: run_capture(tmp_path / "run", settings, QUIET),
        lambda: run_evaluation(tmp_path / "eval", EvaluateSettings(models=[path], **protocol), QUIET),
        lambda: outline(resolve(path, "main", (), QUIET)),
        lambda: weights(resolve(path, "main", (), QUIET), QUIET),
        lambda: load(resolve(path, "main", (), QUIET), "float32", "cpu"),
    ):
        with pytest.raises(ModelError, match=told):
            refuse()
    assert not marker.exists()
    source = resolve_pair(replace(settings, trust_remote_code=True), QUIET)[0]
    outline(source)
    assert all(torch.equal(p, truth[name]) for name, p in load(source, "float32", "cpu").parameters())
    assert marker.exists()
    assert engine_arguments(source, settings, 8, True)["trust_remote_code"]


def test_the_cache_holds_what_was_written_or_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path))
    made: list[Path] = []

    def make(part: Path) -> None:
        made.append(part)
        (part / "weights").write_bytes(b"1" * 1000)

    stale = tmp_path / "model.part"
    stale.mkdir()
    (stale / "left by a kill").touch()
    folder, digest = made_once("model", make)
    assert not stale.exists()
    assert {file.name for file in folder.iterdir()} == {"SHA256SUMS", "weights"}
    assert made_once("model", make) == (folder, digest)
    assert len(made) == 1
    file = folder / "weights"
    times = file.stat()
    file.write_bytes(b"1" * 500 + bytes(500))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk would
    assert made_once("model", make) == (folder, digest)
    assert file.read_bytes() == b"1" * 1000
    (folder / "SHA256SUMS").write_text("")
    assert made_once("model", make) == (folder, digest)
    assert len(made) == 3

    def die(part: Path) -> None:
        (part / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once("other", die)
    assert {file.name for file in tmp_path.iterdir()} == {"model", "model.lock", "other.lock"}
    monkeypatch.setenv("TEACHDIAG_CACHE", "/proc/nowhere")
    with pytest.raises(RunError, match="set TEACHDIAG_CACHE to another folder"):
        made_once("model", make)


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)


def test_a_hub_out_of_reach_is_asked_once_and_its_cache_is_read(
    silent_hub: None, clean: Path, truth: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"own/model.*nor in the local cache, and the Hub cannot be reached: Name or"):
        resolve("own/model", "main", (), QUIET)
    commit, place = "0" * 40, tmp_path / "models--own--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    shutil.copytree(clean, place / "snapshots" / commit)
    blob = place / "blobs" / file_digest(clean / "model.safetensors")
    blob.parent.mkdir()
    linked = place / "snapshots" / commit / "model.safetensors"
    linked.rename(blob)
    linked.symlink_to(blob)
    source = resolve_whole("own/model", "main", (), QUIET, False)
    assert source.revision == source.digest == commit
    assert all(torch.equal(p, truth[name]) for name, p in load(source, "float32", "cpu").parameters())
    blob.write_bytes(blob.read_bytes()[:-4] + bytes(4))
    with pytest.raises(ModelError, match=r"model.safetensors in the cache is damaged: delete .*blobs"):
        resolve_whole("own/model", "main", (), QUIET, False)


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (["config.json", "adapter_config.json"], "holds an adapter"),
        (["model-q4.gguf"], "has GGUF files and no config.json: give the path of one of them"),
        (["README.md"], "has no config.json: give the folder"),
    ],
)
def test_what_the_hub_lists_is_read(listed: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(sha="0" * 40, siblings=[SimpleNamespace(rfilename=name) for name in listed])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: found)
    with pytest.raises(ModelError, match=told):
        resolve("own/model", "main", (), QUIET)


def test_files_that_are_no_model_folders_are_told_what_is(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    for name, told in (
        (str(tmp_path / "m.gguf"), "is a file: give the folder of a causal language model"),
        ("elsewhere/m.gguf", "does not exist: give the folder"),
        (str(tmp_path / "none"), "does not exist: give the folder"),
        (str(tmp_path), "has GGUF files and no config.json"),
    ):
        with pytest.raises(ModelError, match=told):
            resolve(name, "main", (), QUIET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config.json: give the folder"):
        resolve(str(tmp_path / "empty"), "main", (), QUIET)
