"""Several processes on one run directory: they share the work out, the first speaks for all, errors reach everybody.

Started by `torchrun` or `accelerate launch`; one process alone is the simplest case of it. What a process computes
never depends on how many there are, except that a gradient summed over processes is summed in another order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from teachdiag.diagnostics.processes.devices import pick_device
from teachdiag.diagnostics.processes.parameters import are_sharded
from teachdiag.errors import InputError, SettingsError
from teachdiag.runs import Stage, writing
from teachdiag.settings import flag

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


def on_first(action: Callable[[], T]) -> T:
    """Let the first process act; every process returns what it returned.

    Raises:
        InputError: the first process raised one; every process raises it.
    """
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = action()
        except InputError as error:
            answer[1] = error
    if many():
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    found: T = answer[0]
    return found


@contextmanager
def joined() -> Iterator[None]:
    """Wait, at the end of a piece of shared work, until every process has done its share.

    Raises:
        InputError: some process raised one; every process raises the same.
    """
    mine: InputError | None = None
    try:
        yield
    except InputError as error:
        if not many():
            raise
        mine = error
    if many():
        raised = [error for error in gather_object([mine]) if error is not None]
        if raised:
            raise raised[0]


@contextmanager
def writing_first(run: Path) -> Iterator[None]:
    """Let the first process hold the run directory.

    Raises:
        RunError: it cannot be held; every process raises it.
    """
    held = writing(run)
    on_first(held.__enter__)
    try:
        yield
    finally:
        if is_first():
            held.__exit__(None, None, None)


def timed_by_first(stage: Stage) -> AbstractContextManager[None]:
    """Let the first process record when a stage began and ended."""
    return stage.timed() if is_first() else nullcontext()


def own_device(name: str) -> str:
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


def agree(settings: Mapping[str, Any]) -> None:
    """Refuse processes that were started with different settings.

    Raises:
        SettingsError: they were; the message names the first option that differs, and its values.
    """
    if not many():
        return
    everybody = gather_object([dict(settings)])
    for name in settings:
        values = [theirs.get(name) for theirs in everybody]
        if any(value != values[0] for value in values):
            told = ", ".join(f"{value!r} in process {number}" for number, value in enumerate(values))
            raise SettingsError(f"the processes were started with different settings: {flag(name)} is {told}")


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


@contextmanager
def in_step(idle: Callable[[], object], sharded: bool) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Yield what runs one piece of work, so that passes through sharded models, which all processes take, pair up.

    Args:
        idle: a piece of work to be done for nothing, while others still have some.
        sharded: whether that is needed; else a piece is just run.
    """

    def run(piece: Callable[[], T]) -> T:
        if sharded:
            _anyone(True)
        return piece()

    try:
        yield run
    except InputError:
        _idle_along(idle, sharded)
        raise
    _idle_along(idle, sharded)


def _idle_along(idle: Callable[[], object], sharded: bool) -> None:
    while sharded and _anyone(False):
        with suppress(InputError):  # whose piece of work it is tells of it
            idle()


def _anyone(working: bool) -> bool:
    """Whether any process goes on."""
    count = torch.tensor(int(working), device=processes().device)
    torch.distributed.all_reduce(count)
    return bool(count > 0)


def is_mine(number: int) -> bool:
    """Whether a numbered piece of work falls to this process, whatever is done already."""
    state = processes()
    return bool(number % state.num_processes == state.process_index)


def shared_out(items: list[T]) -> list[T]:
    """Return this process's part of the items: every n-th of n processes."""
    return [item for number, item in enumerate(items) if is_mine(number)]


def whole(tables: list[pa.Table]) -> pa.Table:
    """Return the rows that all processes found, in no order that means anything."""
    parts = gather_object([pa.concat_tables(tables) if tables else None]) if many() else tables
    return pa.concat_tables([part for part in parts if part is not None])


def together(parts: list[T], order: Callable[[T], Any]) -> list[T]:
    """Return the parts of all processes, in an order that does not depend on how many there are."""
    return sorted(gather_object(parts) if many() else parts, key=order)


def summed(value: float) -> float:
    """Return the sum of a number over processes, in float64."""
    if not many():
        return value
    total = torch.tensor(value, dtype=torch.float64, device=processes().device)
    torch.distributed.all_reduce(total)
    return float(total)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up every parameter's `.grad` over processes; one that no process has a gradient of keeps none.

    Those of sharded parameters are such sums already.
    """
    known = list(parameters)
    if not many() or are_sharded(known):
        return
    reached = torch.tensor([p.grad is not None for p in known], dtype=torch.int32, device=processes().device)
    torch.distributed.all_reduce(reached, torch.distributed.ReduceOp.MAX)
    for parameter, anywhere in zip(known, reached.tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
