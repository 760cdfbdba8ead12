"""LoRA adapters as peft saves them (arXiv 2106.09685), looked at without torch, before any model is found."""

from pathlib import Path
from typing import Any

from teachdiag.errors import ModelError, cause
from teachdiag.jsontext import parse_json
from teachdiag.settings.base import shown

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SHAPE = {  # of a configuration: what a low-rank update of linear layers depends on
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
}
_NO_MATTER = {  # on which it does not depend once it is trained
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "inference_mode", "lora_dropout"),
    *("peft_type", "peft_version", "qalora_group_size", "megatron_core", "ensure_weight_tying"),
}
_PLAIN = {  # values of others that mean a plain update, beside those that switch something off
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),  # others change the weights of the model itself
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model beside it."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").exists()


def local_adapter(name: str) -> Path:
    """Return the folder of a plain LoRA adapter.

    Raises:
        ModelError: there is none, or it is an adapter of another kind.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise ModelError(
            f"adapter {shown(name)} is no folder here: give the one that peft's save_pretrained wrote; one on the Hub "
            "is fetched by `hf download ID --local-dir FOLDER`"
        )
    config = adapter_config(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"adapter {name!r} has no {ADAPTER_WEIGHTS}: save it again by peft's save_pretrained")
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise ModelError(f"adapter {name!r} is {kind}, and only LORA is read: merge it into its model, and give that")
    unread = sorted(option for option, value in config.items() if not _is_plain(option, value))
    if unread:
        raise ModelError(
            f"adapter {name!r} has {', '.join(unread)}, and only plain low-rank updates of linear layers are read: "
            "merge it into its model (peft's merge_and_unload, then save_pretrained), and give that"
        )
    return folder


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return an adapter's configuration.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        raise ModelError(f"adapter {str(folder)!r} has no {ADAPTER_CONFIG}: give a folder that peft saved one to")
    try:
        config = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({cause(error)}): save the adapter again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} is no JSON object: save the adapter again")
    return config


def shape_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return what decides, of a plain adapter's configuration, where it is and how it is scaled: options of peft's."""
    return {option: value for option, value in config.items() if option in _SHAPE}


def _is_plain(option: str, value: object) -> bool:
    return option in _SHAPE | _NO_MATTER or not value or value in _PLAIN.get(option, ())
