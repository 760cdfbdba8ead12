"""The group of processes that share a run: who there are, and which of them does what.

Started by `torchrun` or `accelerate launch`; one process alone is the simplest case. What a process computes never
depends on how many there are, except that a gradient summed over processes is summed in another order.
"""

from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState

from teachdiag.errors import SettingsError

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # a process that has finished its share waits this long for the slowest one


def processes() -> PartialState:
    """Return what accelerate knows of the processes that share this run; they talk by gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)


def many() -> bool:
    """Whether there is more than one process."""
    return bool(processes().num_processes > 1)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return bool(processes().is_main_process)


def in_share(number: int) -> bool:
    """Whether a numbered piece of work falls to this process, whatever is done already."""
    state = processes()
    return bool(number % state.num_processes == state.process_index)


def share_of(items: list[T]) -> list[T]:
    """Return this process's share of the items: every n-th of n processes."""
    return [item for number, item in enumerate(items) if in_share(number)]


def refuse_sharding_alone(stage: str) -> None:
    """Refuse --shard-model of a stage that runs in one process.

    Raises:
        SettingsError: it does.
    """
    if not many():
        raise SettingsError(
            "--shard-model shares each model over processes, and there is one: start several, as in `torchrun "
            f"--nproc-per-node 8 -m -- teachdiag {stage} ...`"
        )
