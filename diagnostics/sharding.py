"""Models larger than one device: FSDP2 shards their decoder layers over the processes; LM heads stay whole in each.

A sharded forward pass gathers each layer's weights from all processes, so these must take every pass together
(`processes.in_step`).
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from teachdiag.diagnostics.models import LanguageModel, load
from teachdiag.diagnostics.pair import Pair
from teachdiag.diagnostics.processes import joined, processes
from teachdiag.diagnostics.sources import ModelSource
from teachdiag.errors import ModelError


def load_sharded_pair(sources: tuple[ModelSource, ModelSource], dtype: str, vocabulary: int) -> Pair:
    """Load both models into memory, and keep this process's shard of each on its device.

    Args:
        sources: student and teacher.
        dtype: type of the weights.
        vocabulary: number of leading ids that they share.

    Raises:
        ModelError: one cannot be loaded, or has no layers to shard.
    """
    with joined():  # before anything collective
        models = [load(source, dtype, "cpu") for source in sources]
    student, teacher = (_sharded(model) for model in models)
    student.head.size = teacher.head.size = vocabulary
    return Pair(student, teacher, vocabulary)


def _sharded(model: LanguageModel) -> LanguageModel:
    state, decoder = processes(), model.model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ModelError(f"{model.name}: its decoder layers cannot be found, so it cannot be sharded")
    # The head may be the parameter that embeds tokens, whose memory is about to be cut.
    model.head.weight = model.head.weight.detach().clone()
    model.head.to(state.device)
    head = model.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(model.head.weight.to(head.weight.dtype), requires_grad=False)
    if head.bias is not None:
        head.bias = torch.nn.Parameter(head.bias.to(state.device), requires_grad=False)
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(decoder, mesh=mesh)
    return model
