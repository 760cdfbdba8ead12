"""Where models run: which device, and what of the machine decides the last digits of the numbers."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from teachdiag.diagnostics.processes.group import many, processes
from teachdiag.errors import SettingsError, cause


def pick_device(name: str) -> str:
    """Resolve 'auto', and refuse a device that is not there.

    Raises:
        SettingsError: torch knows no such device, or cannot use it here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"--device {name!r} cannot be used here: {cause(error)}") from error
    return name


def process_device(name: str) -> str:
    """Resolve a --device for this process.

    Raises:
        SettingsError: it cannot be used here, or not by several processes, each of which has a device of its own.
    """
    device = pick_device(name)
    if many() and device != processes().device.type:
        raise SettingsError(
            f"--device {name}: each process has a {processes().device.type} device of its own: leave it out"
        )
    return device


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switch off what may be on around a caller's loop, and would round products and sums to half precision."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def machine_facts(device: str) -> dict[str, Any]:
    """What decides the last digits of the numbers beside the versions: the device, and the threads of a CPU."""
    if device.startswith("cuda"):
        return {"device": device, "device_name": torch.cuda.get_device_name(device)}
    return {"device": device, "device_name": device, "threads": torch.get_num_threads()}
