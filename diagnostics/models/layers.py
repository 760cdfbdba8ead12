"""Parts of a model: what a text passes through; decoder layers taken out, or computed twice to save memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from teachdiag.errors import ModelError


def moved_by_text(model: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401 (a transformers model)
    """Every trainable parameter of a model's decoder and LM head once, by name, in a fixed order.

    A text never meets the others, as those of a wrapper's vision tower: no step on it moves them, and a random
    direction with a part in them would be a shorter one.
    """
    parts = (model.get_decoder(), model.get_output_embeddings())
    inside = tuple(f"{name}." for name, module in model.named_modules() if any(module is part for part in parts))
    for name, weight in model.named_parameters():
        if weight.requires_grad and name.startswith(inside):
            yield name, weight


def drop_layers(model: Any, name: str, dropped: tuple[int, ...]) -> None:  # noqa: ANN401 (a transformers model)
    """Take layers out of a model, in place; its configuration counts those that are left.

    Args:
        model: a transformers causal language model.
        name: what the user called it.
        dropped: zero-based decoder layers.

    Raises:
        ModelError: it has no such layers, or no others.
    """
    layers = _layers(model)
    if layers is None:
        raise ModelError(f"{name}: its decoder layers cannot be found, so none can be dropped")
    absent = [layer for layer in dropped if not 0 <= layer < len(layers)]
    if absent or len(dropped) >= len(layers):
        raise ModelError(f"--student-drop-layers {absent or 'all'}: {name} has layers 0 to {len(layers) - 1}")
    kept = [index for index in range(len(layers)) if index not in dropped]
    model.get_decoder().layers = torch.nn.ModuleList(layers[index] for index in kept)
    for position, layer in enumerate(model.get_decoder().layers):  # the cache is indexed by these
        layer.self_attn.layer_idx = position
    config = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    config.num_hidden_layers = len(kept)


@contextmanager
def recomputed(model: Any, name: str) -> Iterator[None]:  # noqa: ANN401
    """Keep, of a forward pass inside, only what goes into each layer; its backward pass computes the rest once more.

    The same operations run on the same numbers, so that no gradient changes. Chen et al. 2016, arXiv 1604.06174.

    Args:
        model: a transformers causal language model.
        name: what the user called it.

    Raises:
        ModelError: it has no such layers.
    """
    layers = _layers(model)
    if layers is None:
        raise ModelError(f"{name}: its decoder layers cannot be found, so --recompute cannot save what is in them")
    for layer in layers:  # in front of the class's own; hooks around it, as FSDP has them, run once
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _layers(model: Any) -> Any:  # noqa: ANN401
    return getattr(model.get_decoder(), "layers", None)
