"""Several processes as torchrun starts them, forked by a server that has imported the models' libraries already."""

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

from torch.distributed import TCPStore

_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "transformers.models.qwen3.modeling_qwen3",
        "teachdiag.diagnostics.capture",
        "teachdiag.diagnostics.probe",
        "teachdiag.diagnostics.training.selective_trainer",
        "torch.distributed.fsdp",
    ]
)


def in_processes(count: int, target: Callable[..., object], *arguments: Any) -> CompletedProcess[str]:
    """Call a function in processes that find one another; when one fails, the others are ended, as by torchrun.

    Args:
        count: processes, numbered by RANK.
        target: a function of a module, so that it can be named to another process.
        arguments: what it is given.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with TemporaryDirectory() as folder:
        ranks = [
            _SERVER.Process(target=_rank, args=(Path(folder), rank, count, store.port, target, arguments))
            for rank in range(count)
        ]
        for rank in ranks:
            rank.start()
        running = {rank.sentinel: rank for rank in ranks}
        while running:
            ended = [running.pop(sentinel).exitcode for sentinel in wait(list(running), timeout=300)]
            if any(ended) or not ended:
                for other in running.values():
                    other.join(5)  # which may be about to say why, on a busy machine
                    other.terminate()
        codes = [rank.exitcode for rank in ranks]
        out, err = ("".join(Path(folder, f"{name}-{n}").read_text() for n in range(count)) for name in ("out", "err"))
    return CompletedProcess(ranks, max(map(abs, codes)), out, err)


def _rank(
    folder: Path, rank: int, count: int, port: int, target: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    here |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in here.items()})
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        with (folder / f"{name}-{rank}").open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    target(*arguments)
