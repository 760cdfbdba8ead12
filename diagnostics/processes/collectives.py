"""What processes do together: the first acts for all, errors reach everybody, results are gathered and summed.

Every process must call these at the same point of its work, or the others wait for it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from teachdiag.diagnostics.processes.group import is_first, many, processes
from teachdiag.diagnostics.processes.parameters import are_sharded
from teachdiag.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


def on_first(action: Callable[P, T]) -> Callable[P, T]:
    """Make of an action one that the first process takes: every process returns what it returned.

    What is called inside must not itself be something that processes do together.

    Raises:
        InputError: the first process raised one; every process raises it.
    """

    @wraps(action)
    def by_first(*args: P.args, **kwargs: P.kwargs) -> T:
        outcome: list[Any] = [None, None]  # what it returned, what it raised
        if is_first():
            try:
                outcome[0] = action(*args, **kwargs)
            except InputError as error:
                outcome[1] = error
        if many():
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    return by_first


@contextmanager
def joined() -> Iterator[None]:
    """Wait, at the end of a piece of shared work, until every process has done its share.

    Raises:
        InputError: some process raised one; every process raises the same.
    """
    local: InputError | None = None
    try:
        yield
    except InputError as error:
        if not many():
            raise
        local = error
    if many():
        raised = [error for error in gather_object([local]) if error is not None]
        if raised:
            raise raised[0]


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


def gathered_rows(tables: list[pa.Table]) -> pa.Table:
    """Return the rows that all processes have, in no order that means anything."""
    parts = gather_object([pa.concat_tables(tables) if tables else None]) if many() else tables
    return pa.concat_tables([part for part in parts if part is not None])


def gathered(parts: list[T], order: Callable[[T], Any]) -> list[T]:
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
