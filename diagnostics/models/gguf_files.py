"""Models that come as one GGUF file: dequantised once, to float32 weights beside their tokenizer.

Float32, because quantised values are products of a half-precision scale and a small integer, which neither half
precision type holds: this way the folder is the file's own model, and every block's values are exactly its own.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from teachdiag.cache import cache_folder, made_once
from teachdiag.errors import InputError, ModelError, cause
from teachdiag.progress import Reporter


def dequantised(gguf: Path, name: str, reporter: Reporter) -> tuple[Path, str]:
    """Return the folder of a file's model in the cache, made on first use, and the SHA-256 of its content.

    Args:
        gguf: the file.
        name: of the folder, with a digest of the file in it.
        reporter: told where it is made.

    Raises:
        ModelError: as `dequantise`.
        RunError: the cache cannot be written.
    """

    def make(part: Path) -> None:
        reporter.say(f"Dequantising {gguf.name} once, into {cache_folder() / name}")
        dequantise(gguf, part)

    return made_once(name, make)


def dequantise(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file into a folder, as transformers reads it: weights, tokenizer, chat template.

    Ids that the file calls unused are padding of the LM head. They are left out of the tokenizer, so that, like every
    other padding, they take no part in any softmax.

    Raises:
        ModelError: the GGUF reader is not installed, the file does not hold a whole model that transformers reads, or
            holds something that transformers would leave out.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {gguf.name} needs gguf: pip install 'teachdiag[gguf]'")
    try:
        _write_model(gguf, folder)
    except InputError:
        raise
    except Exception as error:  # of transformers, gguf and tokenizers, each of which has its own
        raise ModelError(f"GGUF file {gguf} cannot be read by transformers: {cause(error)}") from error


def _write_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model, report = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
    )
    if lacking := sorted(report["missing_keys"]):  # as one part of a split file does
        raise ModelError(
            f"GGUF file {gguf} holds no whole model: it lacks {lacking[0]}; give one file with all weights"
        )
    _refuse_left_out(gguf, model)
    # The weights are plain float32 now; these marks of their origin would forbid saving them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if unused := _unused_ids(gguf):
        _forget(unused, folder / "tokenizer.json")


def _refuse_left_out(gguf: Path, model: Any) -> None:  # noqa: ANN401 (a transformers model)
    """Refuse a file of which transformers passes something over without a word: it would be another model."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    architecture = reader.fields["general.architecture"].contents()
    scaling = reader.fields.get(f"{architecture}.rope.scaling.type")
    kind = "none" if scaling is None else str(scaling.contents())
    if kind != "none" and kind not in json.dumps(getattr(model.config, "rope_parameters", None), default=str):
        raise ModelError(
            f"GGUF file {gguf} scales its positions ({kind}), which transformers leaves out: give the folder or Hub id "
            "of the model that the file was made of"
        )
    held = sum(int(tensor.n_elements) for tensor in reader.tensors)
    read = sum({weight.data_ptr(): weight.numel() for weight in model.state_dict().values()}.values())  # tied: once
    if held != read:
        freqs = next((f", {t.name} among them" for t in reader.tensors if t.name.startswith("rope_freqs")), "")
        raise ModelError(
            f"GGUF file {gguf} holds {held:,} values, of which transformers makes a model of {read:,}{freqs}: give the "
            "folder or Hub id of the model that the file was made of"
        )


def _unused_ids(gguf: Path) -> set[int]:
    from gguf import GGUFReader, TokenType

    kinds = GGUFReader(gguf).fields["tokenizer.ggml.token_type"].contents()
    return {index for index, kind in enumerate(kinds) if kind == TokenType.UNUSED}


def _forget(ids: set[int], file: Path) -> None:
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: index for token, index in vocabulary.items() if index not in ids}
    file.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8")
