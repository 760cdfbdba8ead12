"""The command line under FSDP2 without a GPU: accelerate shards on GPUs only, so it is told that two CPUs are some."""

import atexit
import sys
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from teachdiag.cli import main

_made = AcceleratorState.__init__


def _make(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    state = PartialState(cpu=True)._shared_state
    if state["distributed_type"] == DistributedType.MULTI_CPU:
        state["distributed_type"] = DistributedType.MULTI_GPU
    _made(self, *args, **kwargs)


if __name__ == "__main__":
    AcceleratorState.__init__ = _make  # type: ignore[method-assign]
    atexit.register(lambda: print(f"sharded: {AcceleratorState().distributed_type.value}", file=sys.stderr))
    main()
