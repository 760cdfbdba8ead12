"""Models larger than one device: FSDP2 shards them over the processes; of an LM head each process has a whole copy.

A sharded forward or backward pass gathers each layer's weights from all processes, so these must take every pass
together (`processes.in_step`).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import checkpoint

from teachdiag.diagnostics.models.head import Head
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.pair import Pair, load_pair
from teachdiag.diagnostics.models.sources import ModelSource, Sources
from teachdiag.diagnostics.processes.collectives import joined
from teachdiag.diagnostics.processes.group import processes
from teachdiag.diagnostics.processes.parameters import add_to_gradient, whole
from teachdiag.errors import ModelError


@dataclass(kw_only=True)
class GatheredHead(Head):
    """A copy of an LM head whose own weights are sharded, and move.

    Attributes:
        module: the head in its model.
    """

    module: Any

    def follow(self) -> None:
        """Gather the weights as they are now, which all processes do together."""
        for name in ("weight", "bias"):
            parameter = getattr(self.module, name, None)
            if parameter is not None:
                setattr(self, name, whole(parameter).detach().requires_grad_())

    def return_gradient(self) -> None:
        """Give the sum of what reached the copies of all processes, which do this together, to the sharded weights."""
        for name in ("weight", "bias"):
            copy = getattr(self, name)
            if copy is not None:
                gradient = torch.zeros_like(copy) if copy.grad is None else copy.grad
                add_to_gradient(getattr(self.module, name), gradient)
                copy.grad = None


def load_over_processes(sources: Sources, dtype: str, device: str, *, shard: bool) -> Pair:
    """Load both models in every process, as `load_pair` does, and shard them if that is asked for.

    Args:
        sources: student and teacher.
        dtype: type of the weights.
        device: torch device; what is sharded is read on the CPU first.
        shard: keep only this process's shard of each on its device.

    Raises:
        ModelError: one cannot be loaded, they do not share a vocabulary, or one has no layers to shard.
    """
    with joined():  # before anything collective
        pair = load_pair(sources, dtype, "cpu" if shard else device)
    if shard:
        _shard(pair.student, updated=False)
        if pair.teacher is not pair.student:
            _shard(pair.teacher, updated=False)
    return pair


def load_alone(source: ModelSource, dtype: str, device: str, *, shard: bool, master: bool = False) -> LanguageModel:
    """Load one model in every process, as `load` does, and shard it if that is asked for.

    Args:
        source: the model.
        dtype: type of the weights, or of the forward computation with `master`.
        device: torch device; what is sharded is read on the CPU first.
        shard: keep only this process's shard on its device.
        master: keep the weights in float32, to be updated.

    Raises:
        ModelError: it cannot be loaded, or has no layers to shard.
    """
    with joined():
        model = load(source, dtype, "cpu" if shard else device, master=master)
    if shard:
        _shard(model, updated=master)
    return model


def _shard(model: LanguageModel, updated: bool) -> None:
    """Shard a model's decoder; of one that is to be updated, every parameter."""
    state, decoder = processes(), model.model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ModelError(f"{model.name}: its decoder layers cannot be found, so it cannot be sharded")
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    head, embedding = model.model.get_output_embeddings(), model.model.get_input_embeddings()
    tied = head.weight is embedding.weight
    if not updated:
        _keep_head_whole(model, head, state.device)
    for layer in layers:
        if updated:
            # Runs again on the way back: autograd would keep every layer's weights, as cast to half precision.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        fully_shard(layer, mesh=mesh)
    fully_shard(decoder, mesh=mesh, reshard_after_forward=updated or None)
    if updated:
        if tied:
            head.weight = embedding.weight  # sharded by now
        fully_shard(model.model, mesh=mesh, ignored_params={head.weight} if tied else None)
        _sum_gradients(model.model)
        model.head = GatheredHead(**vars(model.head), module=head)
        model.head.follow()


def _keep_head_whole(model: LanguageModel, head: Any, device: torch.device) -> None:  # noqa: ANN401
    # The head may be the parameter that embeds tokens, whose memory is about to be cut.
    model.head.weight = model.head.weight.detach().clone()
    model.head.to(device)
    head.weight = torch.nn.Parameter(model.head.weight, requires_grad=False)
    if head.bias is not None:
        head.bias = torch.nn.Parameter(head.bias.to(device), requires_grad=False)


def _sum_gradients(model: torch.nn.Module) -> None:
    """Let gradients be summed over processes, which share one mean loss, where FSDP2 would average them."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo can only sum
