"""Parameters, whole or sharded over processes (FSDP2): a process's own part of them, and the whole."""

from collections.abc import Iterable

from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, distribute_tensor


def are_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether parameters are sharded, so that each process holds only a part of them."""
    return any(isinstance(parameter, DTensor) for parameter in parameters)


def local(parameter: Tensor) -> Tensor:
    """Return this process's shard of a parameter; the parameter itself where it is not sharded."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def whole(parameter: Tensor) -> Tensor:
    """Gather a parameter, which all processes do together; return the parameter itself where it is not sharded."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Lay a tensor out as a parameter of its shape is: on the same device, and sharded if that is.

    Args:
        parameter: sharded or not.
        tensor: whole, and the same in every process, so that nothing is sent.
    """
    if not isinstance(parameter, DTensor):
        return tensor.to(parameter.device)
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def add_to_gradient(parameter: Tensor, gradient: Tensor) -> None:
    """Add what the processes found, all of it summed, to the `.grad` of a sharded parameter.

    Args:
        parameter: sharded.
        gradient: this process's gradient, of the whole parameter's shape.
    """
    assert isinstance(parameter, DTensor), "gradients of whole parameters are summed where they are"
    gradient = DTensor.from_local(gradient, parameter.device_mesh, [Partial()])
    summed = gradient.redistribute(placements=parameter.placements)
    parameter.grad = summed if parameter.grad is None else parameter.grad + summed
