"""What tests have every one of several processes do, beside whole commands."""

import gc
import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from stages import dying

from teachdiag import cli
from teachdiag.diagnostics.models import pair
from teachdiag.diagnostics.models.gguf_files import dequantised
from teachdiag.diagnostics.models.sharding import load_alone
from teachdiag.diagnostics.probes import probe_setup
from teachdiag.diagnostics.processes.group import is_first
from teachdiag.diagnostics.processes.parameters import local
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings


def command(*words: str) -> None:
    """Run a teachdiag command."""
    sys.argv = ["teachdiag", *words]
    cli.main()


def command_with_its_own_seed(*words: str) -> None:
    """Run a command with another --seed in each process."""
    command(*words, "--seed", os.environ["RANK"])


def command_killed_while_rescoring(calls: int, *words: str) -> None:
    """Run a command that dies after some calls of `rescore`."""
    probe_setup.rescore = dying(probe_setup.rescore, calls)  # type: ignore[assignment]
    command(*words)


def command_until_the_student_is_loaded(*words: str) -> None:
    """Run a probe's command until its student is loaded, and print how many of the teacher's weights are left then."""
    plain, weights = probe_setup.load_alone, []

    def load(*arguments: Any, master: bool = False, **options: Any) -> Any:
        if master:
            print(len(weights), sum(weight() is not None for weight in weights))
            raise ModelError("as planned")
        teacher = plain(*arguments, **options)
        weights.extend(weakref.ref(weight) for _, weight in teacher.parameters())
        return teacher

    probe_setup.load_alone = load
    gc.disable()  # it is not to be waited for
    command(*words)


def command_without_memory_in_one(*words: str) -> None:
    """Run a command of which process 1 cannot load a model."""
    whole = pair.load

    def load(*arguments: Any, **more: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise ModelError("out of memory")
        return whole(*arguments, **more)

    pair.load = load
    command(*words)


def print_where_it_is_dequantised(gguf: Path, cache: Path) -> None:
    """Print the folder of a GGUF file's weights, which is made where it is missing."""
    os.environ["TEACHDIAG_CACHE"] = str(cache)
    print(dequantised(gguf, "tiny", Reporter())[0])


def print_what_is_held(settings: CaptureSettings) -> None:
    """Print what autograd keeps of a pass, and of each parameter the shape, how much is here, if it has a gradient."""
    sources = pair.resolve_pair(settings, Reporter(quiet=True))
    student = load_alone(sources[0], "bfloat16", "cpu", shard=True, master=True)
    kept: list[tuple[int, ...]] = []
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        states = student.hidden(torch.arange(7)[None])
    for backward in (False, True):
        if backward:
            states.sum().backward()
        held.append([[list(p.shape), local(p).numel(), p.grad is not None] for _, p in student.parameters()])
    if is_first():
        print(json.dumps([kept, held]))
