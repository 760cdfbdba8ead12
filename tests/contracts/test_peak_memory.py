"""Peak memory against what a process is known to hold."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from teachdiag import peak_memory as module
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


def test_a_name_that_is_cut_inside_a_letter_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_bytes("Name:\tpythö".encode()[:-1] + b"\nVmHWM:\t     123 kB\n")
    monkeypatch.setattr(module, "_STATUS", status)
    assert peak_memory() == 123 * 1024
