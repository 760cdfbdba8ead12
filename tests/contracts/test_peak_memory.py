"""Peak memory against what a process is known to hold."""

import subprocess
import sys

import numpy as np

from teachdiag.peak_memory import peak_memory

_PRINTED = "from teachdiag.peak_memory import peak_memory; {}; print(peak_memory())"


def _of_child(work: str) -> int:
    child = subprocess.run([sys.executable, "-c", _PRINTED.format(work)], capture_output=True, text=True, check=True)
    return int(child.stdout)


def test_a_peak_is_that_of_the_process_itself() -> None:
    """Neither what has been freed again is forgotten, nor what the process held that started this one is counted."""
    held = np.ones(60_000_000)  # 480 MB
    assert peak_memory() > held.nbytes
    idle = _of_child("pass")
    assert idle < held.nbytes / 4
    assert 1.9e8 < _of_child("del [bytearray(200_000_000)][:]") - idle < 2.2e8
