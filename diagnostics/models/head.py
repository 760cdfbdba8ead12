"""The LM head, cut from its model: logits in float32, of as many positions at a time as are asked for."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from teachdiag.diagnostics.models.sources import ModelSource, read_config, reading
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.diagnostics.models.weights import head_names, stored_weight, without_weights
from teachdiag.diagnostics.processes.devices import without_autocast
from teachdiag.diagnostics.processes.parameters import whole

_BLOCK = (
    1024  # rows of a half-precision weight that are float32 at a time: they are multiplied while a cache holds them
)


@dataclass
class Head:
    """The LM head, with whatever the architecture does to its logits, which are float32 whatever type its weights have.

    Attributes:
        weight: shape (rows, width): the model's own parameter, not a copy, unless that is sharded.
        bias: shape (rows,) or None.
        scale: factor on the logits.
        softcap: logits z become softcap * tanh(z / softcap); None is off.
        size: leading ids that are kept.
        holes: ids among these that no tokenizer knows, whose logits are minus infinity; shape (n,), int64, or None.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    size: int
    holes: Tensor | None = None

    @property
    def rows(self) -> int:
        """Ids that the head itself has, padding included."""
        return self.weight.shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of shape (N, size), float32, from hidden states of shape (N, width) of any float type."""
        logits = self._linear(hidden, self.weight, self.bias)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.holes is None else logits.index_fill(1, self.holes, -torch.inf)

    def slope(
        self, hidden: Tensor, hidden_slope: Tensor, weight_slope: Tensor | None, bias_slope: Tensor | None
    ) -> Tensor:
        """Directional derivative of the logits, shape (N, size), float32.

        Args:
            hidden: shape (N, width).
            hidden_slope: derivative of `hidden` along the direction.
            weight_slope: the direction's part of `weight`, of its shape; None where the head stays as it is.
            bias_slope: the direction's part of `bias`, or None.
        """
        slope = self._linear(hidden_slope, self.weight, None)
        if weight_slope is not None:
            slope = slope + self._linear(hidden, weight_slope, bias_slope)
        if self.softcap is not None:
            capped = torch.tanh(self._linear(hidden, self.weight, self.bias) / self.softcap)
            slope = slope * (1 - capped.square())
        return slope if self.holes is None else slope.index_fill(1, self.holes, 0.0)

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        self.weight = self.weight.to(device)
        self.bias = None if self.bias is None else self.bias.to(device)
        self.holes = None if self.holes is None else self.holes.to(device)

    def in_float32(self) -> "Head":
        """Return the head with float32 weights, in which gradients of many tiles add up before they are rounded."""
        return replace(self, weight=self.weight.float(), bias=None if self.bias is None else self.bias.float())

    def follow(self) -> None:
        """Take on weights that have moved. Only a copy has to: these are the model's own parameters, or never move."""

    def return_gradient(self) -> None:
        """Give the weights' gradients to the model's parameters. Only a copy has to."""

    def _linear(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with without_autocast(hidden.device):
            logits = linear(hidden, weight[: self.size], None if bias is None else bias[: self.size])
        return logits if self.scale == 1.0 else logits * self.scale


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return hidden @ weight.T + bias, multiplied and added up in float32, where half-precision factors are exact.

    Without gradients a half-precision weight is never copied whole: on CUDA tensor cores take it as it is, if hidden
    states have its type; else a block of its rows is cast at a time.

    Args:
        hidden: shape (N, width), of any float type.
        weight: shape (rows, width), of any float type.
        bias: shape (rows,), or None.

    Returns:
        Shape (N, rows), float32.
    """
    followed = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if weight.dtype == torch.float32 or followed:
        return F.linear(hidden.float(), weight.float(), None if bias is None else bias.float())
    if weight.is_cuda and hidden.dtype == weight.dtype:
        logits = torch.mm(hidden, weight.T, out_dtype=torch.float32)
    else:
        logits = _by_blocks(hidden.float(), weight)
    return logits if bias is None else logits.add_(bias)


def _by_blocks(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = hidden.new_empty(len(hidden), len(weight))
    for start in range(0, len(weight), _BLOCK):
        rows = slice(start, start + _BLOCK)
        torch.mm(hidden, weight[rows].float().T, out=logits[:, rows])
    return logits


def head_of(model: Any, known: Known) -> Head:  # noqa: ANN401
    """Return a model's LM head, cut to the ids that its tokenizer knows.

    Weights that are sharded over processes are gathered, and gradients reach them.
    """
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    weight, bias = linear.weight, getattr(linear, "bias", None)
    return Head(
        weight=whole(weight),
        bias=None if bias is None else whole(bias),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
        size=known.size,
        holes=torch.tensor(known.holes, device=weight.device) if known.holes else None,
    )


def read_head(source: ModelSource, known: Known) -> Head:
    """Read the LM head alone from a model's files, cut to known ids; the rest of the model takes no memory.

    Raises:
        ModelError: the files hold no weight of that name.
    """
    config = read_config(source)
    with reading(source):
        model = without_weights(source, config)
    linear = model.get_output_embeddings()
    for part in ("weight", "bias"):
        if names := head_names(model, part):  # tied weights are stored under one of two names
            setattr(linear, part, torch.nn.Parameter(stored_weight(source, names), requires_grad=False))
    return head_of(model, known)
