"""What a checkpoint's files hold, against what its architecture wants: nothing may be missing, surplus or misshapen."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from teachdiag.diagnostics.models.sources import ModelSource, read_config, reading, resolve, stored_file
from teachdiag.errors import ModelError, cause
from teachdiag.progress import Reporter
from teachdiag.tables import file_digest

_WHOLE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_FILES = (_WHOLE, f"{_WHOLE}.index.json", _PICKLED, f"{_PICKLED}.index.json")  # in the order of transformers' choice
_PACKED = torch.int8  # stands for every type that only a quantiser reads
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHOWN = 4  # keys that an error lists

# What torch.compile, FSDP and activation checkpointing put into the names of what they wrap, wherever that is, and
# what DataParallel and DeepSpeed put in front of all. No architecture names a module of its own like that.
_INSIDE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_IN_FRONT = _INSIDE | {"module"}


def resolve_whole(
    name: str, revision: str, dropped_layers: tuple[int, ...], reporter: Reporter, trusted: bool
) -> ModelSource:
    """Find a model as `resolve` does, and check its weights where they are here: the Hub's are checked when loaded.

    Raises:
        ModelError: as `resolve` and `check_weights`.
    """
    source = resolve(name, revision, dropped_layers, reporter, trusted)
    check_weights(source, download=False)
    return source


def weight_files(source: ModelSource, download: bool = True) -> list[Path]:
    """Files of a model's weights, those that transformers reads; none where some are still on the Hub, and stay there.

    Raises:
        ModelError: the model has none, or not all that it lists.
    """
    settled = download or Path(source.path).is_dir()
    with reading(source):
        for name in _FILES:
            path = stored_file(source, name, download)
            if path is None:
                continue
            if not name.endswith(".json"):
                return [path]
            shard_names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
            shards = {shard_name: stored_file(source, shard_name, download) for shard_name in shard_names}
            if lacking := [shard_name for shard_name, shard in shards.items() if shard is None]:
                if settled:
                    raise ModelError(f"model {source.name!r} lacks {few(lacking)}, which its {name} lists")
                return []
            return [shard for shard in shards.values() if shard]
    if settled:
        raise ModelError(f"model {source.name!r} has no weights: there is none of {', '.join(_FILES)}")
    return []


def stored_weight(source: ModelSource, names: Collection[str]) -> Tensor:
    """Read one weight from a model's files: the first that is there of some plain names.

    Raises:
        ModelError: there is none, or a file cannot be read.
    """
    for file in weight_files(source):
        with reading(source):
            if file.suffix != ".safetensors":
                held = {plain_name(name): weight for name, weight in _unpickled(file, "cpu").items()}
                weights = [held[name] for name in names if name in held]
            else:
                with safe_open(file, framework="pt") as tensors:
                    stored = [name for name in tensors.keys() if plain_name(name) in names]  # noqa: SIM118
                    weights = [tensors.get_tensor(name) for name in stored[:1]]
        if weights:
            weight: Tensor = weights[0]
            return weight
    raise ModelError(f"model {source.name!r} has no weight {' or '.join(names)}")


def plain_name(name: str) -> str:
    """Name of a weight without what wrappers of its model put into it."""
    parts = name.split(".")
    while parts[0] in _IN_FRONT and len(parts) > 1:
        parts = parts[1:]
    return ".".join(part for part in parts if part not in _INSIDE)


def check_weights(source: ModelSource, download: bool = True) -> dict[str, str]:
    """Compare names and shapes of the stored weights with the architecture's, without loading any.

    Args:
        source: the model.
        download: whether files that are not here are fetched from the Hub; else such a model is not checked yet.

    Returns:
        Patterns of prefixes that wrappers left in the names, and what these were before, as `from_pretrained` takes
        them. Whoever reads the files in another way has to take them off.

    Raises:
        ModelError: weights are missing, surplus or misshapen, or cannot be told apart; the message names them.
    """
    files = weight_files(source, download)
    if not files:
        return {}
    _refuse_damaged(source, files)
    stored, config = _stored(source, files), read_config(source)
    plain = {plain_name(name): weight for name, weight in stored.items()}
    if len(plain) < len(stored):
        repeated = [name for name, times in Counter(map(plain_name, stored)).items() if times > 1]
        raise ModelError(f"model {source.name!r} has {few(repeated)} twice: under a wrapper's name and without it")
    if not getattr(config, "quantization_config", None):  # the shapes are the quantiser's then
        _check_names(source, config, plain)
    return _key_mapping(stored)


def _check_names(source: ModelSource, config: Any, plain: dict[str, Tensor]) -> None:  # noqa: ANN401
    packed = [name for name, held in plain.items() if name.endswith(".weight") and held.dtype not in _TYPES.values()]
    if packed:
        raise ModelError(
            f"model {source.name!r} has weights of whole numbers or 8 bits ({few(packed)}), and no "
            "quantization_config in its config.json that says what they stand for: save it dequantised"
        )
    with reading(source):
        model = without_weights(source, config)
        _, report = type(model).from_pretrained(
            None,
            config=config,
            state_dict=plain,
            device_map={"": torch.device("meta")},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    refuse_misfits(source, report)
    tied = [name for name in head_names(model) if name in plain]
    if len(tied) > 1 and not torch.equal(*(stored_weight(source, [name]) for name in tied[:2])):
        raise ModelError(
            f"model {source.name!r} has different values for {' and '.join(tied)}, which are one weight by its "
            'config.json: put "tie_word_embeddings": false there if it was trained so'
        )


def without_weights(source: ModelSource, config: Any) -> Any:  # noqa: ANN401
    """Make a model of a configuration whose weights have names and shapes, and no memory (device 'meta')."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=source.trusted)


def head_names(model: Any, part: str = "weight") -> list[str]:  # noqa: ANN401
    """Names of the LM head's weight or bias: several, where it is tied to another weight, none where there is none."""
    head = getattr(model.get_output_embeddings(), part, None)
    return [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is head]


def _key_mapping(names: Iterable[str]) -> dict[str, str]:
    """Patterns of wrappers' prefixes; the longest first, as each is applied to what the one before it has left."""
    stems: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        wrapped = [index for index, part in enumerate(parts[:-1]) if part in _IN_FRONT]
        if wrapped and plain_name(name) != name:
            stem = ".".join(parts[: wrapped[-1] + 1]) + "."
            stems[stem] = plain_name(f"{stem}x")[:-1]
    return {f"^{re.escape(stem)}": stems[stem] for stem in sorted(stems, key=len, reverse=True)}


def refuse_misfits(source: ModelSource, report: Mapping[str, Collection[Any]]) -> None:
    """Refuse a model whose loading report is not empty; it leaves out what the architecture knows it can do without.

    Raises:
        ModelError: weights are missing, surplus or of another shape; the message names the first of each.
    """
    shapes = [f"{name} ({tuple(ours)}, not {tuple(wanted)})" for name, ours, wanted in report["mismatched_keys"]]
    faults = {
        "lack": report["missing_keys"],
        "have, beyond what its architecture knows,": report["unexpected_keys"],
        "have in another shape than its config.json says": shapes,
        "cannot be read:": report["error_msgs"],
    }
    complaints = [f"{fault} {few(names)}" for fault, names in faults.items() if names]
    if complaints:
        raise ModelError(
            f"model {source.name!r} does not fit its config.json: its weights {'; they '.join(complaints)}: it would "
            "run on random numbers, or without weights that it was trained with; save it whole, under the names of its "
            "architecture"
        )


def forget_wrappers(model: Any, mapping: Mapping[str, str]) -> None:  # noqa: ANN401
    """Let a model that was loaded by a `key_mapping` be saved under its own names: transformers would undo it then."""
    if mapping:
        used = model._weight_conversions
        model._weight_conversions = [one for one in used if mapping.keys().isdisjoint(one.source_patterns)]


def _refuse_damaged(source: ModelSource, files: Iterable[Path]) -> None:
    """Refuse a file of the Hub's cache that is not what its name says: large ones lie there by their SHA-256."""
    for file in files:
        blob = file.resolve()
        if (
            file.is_symlink()
            and re.fullmatch("[0-9a-f]{64}", blob.name)
            and _digest(blob, blob.stat().st_mtime_ns) != blob.name
        ):
            raise ModelError(f"model {source.name!r}: {file.name} in the cache is damaged: delete {blob}")


@cache
def _digest(blob: Path, written: int) -> str:
    """SHA-256 of a file, read once a process: a model is checked when it is pinned, and again when it is loaded."""
    return file_digest(blob)


def _stored(source: ModelSource, files: Iterable[Path]) -> dict[str, Tensor]:
    """Every weight by its name in the files, without memory of its own (device 'meta')."""
    weights: dict[str, Tensor] = {}
    for file in files:
        held = _read_names(source, file)
        if repeated := weights.keys() & held.keys():
            raise ModelError(f"model {source.name!r} has {few(repeated)} in more than one of its files of weights")
        weights |= held
    return weights


def _read_names(source: ModelSource, file: Path) -> dict[str, Tensor]:
    """Read names and shapes of one file's weights."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return {name: _outline(tensors.get_slice(name)) for name in tensors.keys()}  # noqa: SIM118
        held = _unpickled(file, "meta")
    except Exception as error:  # a pickle can raise anything
        advice = "fetch or save it again" if file.suffix == ".safetensors" else "save the model as safetensors"
        raise ModelError(
            f"model {source.name!r} cannot be loaded: {file.name} cannot be read ({cause(error)}): {advice}"
        ) from error
    if not isinstance(held, dict) or not all(isinstance(weight, Tensor) for weight in held.values()):
        raise ModelError(f"model {source.name!r}: {file.name} holds something else than tensors by their names")
    return dict(held)


def _unpickled(file: Path, device: str) -> Any:  # noqa: ANN401 (whatever was pickled)
    return torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file))


def _outline(weight: Any) -> Tensor:  # noqa: ANN401 (a slice of safetensors)
    return torch.empty(weight.get_shape(), dtype=_TYPES.get(weight.get_dtype(), _PACKED), device="meta")


def few(names: Iterable[Any]) -> str:
    """The first of some names, and how many more there are."""
    listed = sorted(map(str, names))
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
