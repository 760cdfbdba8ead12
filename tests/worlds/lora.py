"""LoRA adapters of tiny models, as peft saves them; and what they make of their models, by hand in float64."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def save_adapter(folder: Path, model: str, seed: int, size: float = 0.3, **config: Any) -> str:
    """Save an adapter of random A and B, on every linear layer but the head where nothing else is said."""
    torch.manual_seed(seed)
    options = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by names that v6 drops
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**options))
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if ".lora_B." in name:
                    weight.normal_(std=size)
        wrapped.save_pretrained(folder)
    return str(folder)


def low_rank(folder: str | Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and scale of every adapted layer by the name of its weight, float64, from an adapter's files."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    held = load_file(Path(folder) / "adapter_model.safetensors")
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    found = {}
    for name in held:
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            a, b = held[name].double(), held[f"{layer}.lora_B.weight"].double()
            found[layer.removeprefix("base_model.model.") + ".weight"] = (a, b, scale)
    return found


def merged(model: str, folder: str | Path) -> PreTrainedModel:
    """The model with W + scale B A in the place of W, float64."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for name, (a, b, scale) in low_rank(folder).items():
            weights[name] += scale * (b @ a)
    return plain.eval()


def save_merged(to: Path, model: str, folder: str | Path) -> str:
    """Save what an adapter makes of its model, in float32."""
    merged(model, folder).float().save_pretrained(to)
    AutoTokenizer.from_pretrained(model).save_pretrained(to)
    return str(to)
