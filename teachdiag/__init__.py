"""teachdiag: which of the teacher's token-level signals can this student actually learn?

This package is the door: contracts (`artefacts`, `settings`, `runs`, `manifests`) and the command line (`cli`).
The work is done in three rooms that meet only through the tables of a run directory:
`teachdiag.diagnostics` (models in, tables out), `teachdiag.analysis` (tables in, estimates out) and
`teachdiag.figures` (estimates in, pictures out).
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("teachdiag")
__all__ = ["Selection", "SelectiveDistillationTrainer"]

_HOMES = {"Selection": "teachdiag.selectors", "SelectiveDistillationTrainer": "teachdiag.diagnostics.selective"}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import what a user's own training script needs when it is asked for: the door itself stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
