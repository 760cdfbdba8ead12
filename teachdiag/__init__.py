"""teachdiag: which of the teacher's token-level signals can this student actually learn?

This package is the door: contracts (`artefacts`, `settings`, `runs`, `manifests`) and the command line (`cli`).
The work is done in three rooms that meet only through the tables of a run directory:
`teachdiag.diagnostics` (models in, tables out), `teachdiag.analysis` (tables in, estimates out) and
`teachdiag.figures` (estimates in, pictures out).
"""

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teachdiag.diagnostics.monitoring.monitor import Monitor
    from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
    from teachdiag.run_view import open_run
    from teachdiag.selectors import Selection

# Libraries that are imported later tell their makers of it, unless their users choose otherwise; a run looks nowhere
# that it was not sent. Set here, because each library reads its variable once, when it is imported.
_TELLS_NOBODY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and through it transformers, trl and trackio
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets counts every file that it opens, local ones too
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
for _name, _value in _TELLS_NOBODY.items():
    os.environ.setdefault(_name, _value)

try:
    __version__ = version("teachdiag")
except PackageNotFoundError:  # a checkout on the path of a machine where nothing can be installed
    __version__ = "not installed"
__all__ = ["Monitor", "Selection", "SelectiveDistillationTrainer", "open_run"]

_HOMES = {
    "Monitor": "teachdiag.diagnostics.monitoring.monitor",
    "Selection": "teachdiag.selectors",
    "SelectiveDistillationTrainer": "teachdiag.diagnostics.training.selective_trainer",
    "open_run": "teachdiag.run_view",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import what a user's own script or notebook needs when it is asked for: the door itself stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
