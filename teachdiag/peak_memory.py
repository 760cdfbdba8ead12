"""How much memory this process has taken at its fullest."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")  # of Linux


def peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes.

    On Linux as the kernel counts it since the program began: `ru_maxrss` begins at the peak of the process that started
    this one.
    """
    if _STATUS.exists():
        status = _STATUS.read_text(errors="replace")  # the name of the process may be cut inside a letter
        facts = dict(line.split(":", 1) for line in status.splitlines())
        if "VmHWM" in facts:
            return int(facts["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
