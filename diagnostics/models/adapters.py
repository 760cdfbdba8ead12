"""LoRA adapters on their models: checked against the architecture, put on, made afresh, merged.

peft puts them into linear layers, W + scale B A (arXiv 2106.09685, section 4.1). The model stays the one that
transformers made, with its own weights frozen; the adapter's are float32 whatever the model's are.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from teachdiag.adapters import ADAPTER_WEIGHTS, adapter_config, shape_of
from teachdiag.diagnostics.models.layers import drop_layers
from teachdiag.diagnostics.models.sources import ModelSource, read_config, reading
from teachdiag.diagnostics.models.weights import few, without_weights
from teachdiag.errors import InputError, ModelError, cause
from teachdiag.settings.lora import ALL_LINEAR, Lora

_PREFIX, _NAME = "base_model.model.", ".default."  # what peft's files have in front, and its modules in the middle


def check_adapter(source: ModelSource) -> None:
    """Compare names and shapes of an adapter's weights, if there is one, with those that its model takes.

    Raises:
        ModelError: they are not the same, or the adapter cannot be read or put on.
    """
    adapter = source.adapter
    if adapter is None:
        return
    wanted = {name: list(weight.shape) for name, weight in _weights(in_shape(source)).items()}
    with _putting(adapter.name, source.name), safe_open(adapter.folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
        held = {name.removeprefix(_PREFIX): tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    misshapen = [name for name in wanted.keys() & held.keys() if wanted[name] != held[name]]
    faults = {
        "lacks": wanted.keys() - held.keys(),
        "has, beyond what its configuration says,": held.keys() - wanted.keys(),
        "has in another shape": misshapen,
    }
    if complaints := [f"{fault} {few(names)}" for fault, names in faults.items() if names]:
        raise ModelError(
            f"adapter {adapter.name!r} does not fit model {source.name!r}: it {'; it '.join(complaints)}: give the "
            "model that it was trained on"
        )


def in_shape(source: ModelSource, fresh: Lora | None = None) -> Any:  # noqa: ANN401 (a transformers model)
    """Make a model as it will be loaded, without memory: fewer layers, and its adapter on it, or a fresh one.

    Raises:
        ModelError: an adapter cannot be put on it.
    """
    with reading(source):
        model = without_weights(source, read_config(source))
    if source.dropped_layers:
        drop_layers(model, source.name, source.dropped_layers)
    if source.adapter:
        with _putting(source.adapter.name, source.name):
            _inject(model, shape_of(adapter_config(source.adapter.folder)))
    elif fresh:
        put_fresh_on(model, source.name, fresh, seed=0)
    return model


def put_on(model: Any, source: ModelSource) -> None:  # noqa: ANN401 (a transformers model)
    """Put a model's adapter on it, in place; it alone is trainable then.

    Raises:
        ModelError: it does not fit, or cannot be read.
    """
    adapter = source.adapter
    assert adapter is not None, "whoever calls this has an adapter"
    check_adapter(source)
    with _putting(adapter.name, source.name):
        _inject(model, shape_of(adapter_config(adapter.folder)))
        stored = load_file(adapter.folder / ADAPTER_WEIGHTS)
    held = {name.removeprefix(_PREFIX): weight for name, weight in stored.items()}
    for name, weight in _weights(model).items():
        weight.data.copy_(held[name])


def put_fresh_on(model: Any, name: str, lora: Lora, seed: int, *, whole: bool = True) -> None:  # noqa: ANN401
    """Put a new adapter on a model, in place: B is 0, so that no logit changes; A is drawn, the same on every device.

    Args:
        model: a transformers causal language model.
        name: what the user called it.
        lora: which adapter.
        seed: of A.
        whole: whether A is trainable too.

    Raises:
        ModelError: the model has no linear layer of a name that is asked for, or it is the embeddings or the head.
    """
    with _putting("that is asked for", name), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, lora.options)
    adapted = [f".{layer}" for layer, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    unmatched = [t for t in lora.target if t != ALL_LINEAR and not any(a.endswith(f".{t}") for a in adapted)]
    if unmatched:
        raise ModelError(f"model {name!r} has no linear layer called {few(unmatched)}: give others to train")
    for part, weight in model.named_parameters():
        if ".lora_A." in part:
            weight.requires_grad_(whole)


def merge(model: Any) -> None:  # noqa: ANN401
    """Add a model's adapter to its weights, in place, and take it off: all of them are trainable then."""
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge()
        model.set_submodule(name, module.get_base_layer())
    model.requires_grad_(True)


def _inject(model: Any, options: dict[str, Any]) -> None:  # noqa: ANN401
    """Put an adapter of some shape on a model, by peft's initialisation, which draws from torch's generator on the CPU.

    Raises:
        ValueError: nothing is where it should go, or what is there is none of the linear layers inside the model.
    """
    empty = model.device.type == "meta"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is refused below, or shows in names and shapes
        inject_adapter_in_model(LoraConfig(**options, task_type="CAUSAL_LM"), model, low_cpu_mem_usage=empty)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        raise ValueError("it changes the embeddings or the LM head, which is not supported")
    adapted = ((name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    if strange := [name for name, module in adapted if not isinstance(module, LoraLinear)]:  # as fused experts are
        raise ValueError(f"{few(strange)} is no linear layer: name those that are, such as q_proj")
    for weight in _weights(model).values():
        weight.data = weight.data.float()


def _weights(model: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """Weights of the adapter that is on a model, by their names in files, without what peft has in front of these."""
    return {name.replace(_NAME, "."): weight for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def _putting(adapter: str, model: str) -> Iterator[None]:
    """Say in one sentence what peft and safetensors raise where an adapter is not what it should be."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each of them has errors of its own
        raise ModelError(f"the adapter {adapter} cannot be put on model {model!r}: {cause(error)}") from error
