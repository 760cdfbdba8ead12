"""Several processes on one run directory: the first one reads and writes, all of them learn what it found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from teachdiag.errors import InputError
from teachdiag.runs import writing

T = TypeVar("T")


def processes() -> PartialState:
    """Return what accelerate knows of the processes that share this run; they talk by gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


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
    if processes().num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    found: T = answer[0]
    return found


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


def shared_out(items: list[T]) -> list[T]:
    """Return this process's part of the items: every n-th of n processes."""
    state = processes()
    return items[state.process_index :: state.num_processes]


def together(parts: list[T], order: Callable[[T], Any]) -> list[T]:
    """Return the parts of all processes, in an order that does not depend on how many there are."""
    return sorted(gather_object(parts) if processes().num_processes > 1 else parts, key=order)
