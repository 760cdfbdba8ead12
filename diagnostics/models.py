"""Load a causal language model and cut it where teachdiag needs it: at the hidden state that feeds its LM head."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from teachdiag.diagnostics.embedded import embedded_model
from teachdiag.errors import ModelError, SettingsError, cause
from teachdiag.progress import Reporter
from teachdiag.runs import file_digest
from teachdiag.settings import EMBEDDED

transformers.utils.logging.disable_progress_bar()
_PROBE_TOKENS = 8  # length of the sequence on which the cut is checked against the whole model


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, resolved: enough to load the very same weights again.

    Attributes:
        name: what the user called it.
        path: Hub id or local folder.
        revision: Hub commit; '' for local folders.
        digest: SHA-256 of the local weights and tokenizer, or the Hub commit.
        dropped_layers: zero-based decoder layers to remove.
    """

    name: str
    path: str
    revision: str
    digest: str
    dropped_layers: tuple[int, ...] = ()


@dataclass
class Head:
    """The LM head in float32, with whatever the architecture does to its logits.

    Attributes:
        weight: shape (rows, width), float32. For float32 models it is the model's own parameter, not a copy.
        bias: shape (rows,) or None.
        scale: factor on the logits.
        softcap: logits z become softcap * tanh(z / softcap); None is off.
        size: leading ids that are kept.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    size: int

    @property
    def rows(self) -> int:
        """Ids that the head itself has, padding included."""
        return self.weight.shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of shape (N, size), float32, from hidden states of shape (N, width) of any float type."""
        logits = self._linear(hidden, self.weight, self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, hidden: Tensor, hidden_slope: Tensor, weight_slope: Tensor, bias_slope: Tensor | None) -> Tensor:
        """Directional derivative of the logits, shape (N, size), float32.

        Args:
            hidden: shape (N, width).
            hidden_slope: derivative of `hidden` along the direction.
            weight_slope: the direction's part of `weight`, of its shape.
            bias_slope: the direction's part of `bias`, or None.
        """
        slope = self._linear(hidden_slope, self.weight, None) + self._linear(hidden, weight_slope, bias_slope)
        if self.softcap is not None:
            slope = slope * (1 - (self(hidden) / self.softcap).square())
        return slope

    def _linear(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = F.linear(hidden.float(), weight[: self.size], None if bias is None else bias[: self.size])
        return logits if self.scale == 1.0 else logits * self.scale


class LanguageModel:
    """A causal language model, cut at its last hidden state, with its tokenizer."""

    def __init__(self, source: ModelSource, model: Any, tokenizer: Any, half: torch.dtype | None = None) -> None:  # noqa: ANN401
        """Wrap a loaded model.

        Args:
            source: where it came from.
            model: a transformers causal language model.
            tokenizer: its tokenizer.
            half: type in which a float32 model computes its hidden states under autocast; None computes in float32.

        Raises:
            ModelError: the architecture does something to its logits that `Head` does not know.
        """
        self.name = source.name
        self.source = source
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.half = half
        self.end_ids = _end_ids(model, tokenizer)
        # Rollouts are sampled by the run's settings, never by defaults that came with the model.
        model.generation_config = GenerationConfig(eos_token_id=sorted(self.end_ids) or None)
        self.head = head_of(model)
        self._check_cut()

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        device: torch.device = self.model.device
        return device

    @property
    def limit(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31)

    def tokens(self) -> dict[int, str]:
        """Token string of every id that the tokenizer can emit."""
        return {index: token for token, index in self.tokenizer.get_vocab().items()}

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Last hidden states, normalised as the LM head wants them: (contexts, length) ids to (.., .., width)."""
        with self._precision():
            states: Tensor = self.model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        return states

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every trainable parameter once, by name, in a fixed order."""
        yield from self.model.named_parameters()

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.half is None else torch.autocast(self.device.type, dtype=self.half)

    @torch.no_grad()
    def _check_cut(self) -> None:
        """Compare our logits with the model's own on a short sequence; both come from the same weights."""
        ids = torch.arange(_PROBE_TOKENS, device=self.device)[None] % self.head.rows
        with self._precision():
            whole = self.model(input_ids=ids, use_cache=False).logits[0].float()
        ours = self.head(self.hidden(ids)[0])
        if not torch.isfinite(whole).all():
            return  # broken weights, which scoring refuses with the context and position
        coarse = self.half is not None or self.model.dtype != torch.float32
        gap = (whole - ours).abs().max().item()
        if not gap <= (0.05 if coarse else 1e-3) * max(1.0, ours.abs().max().item()):
            raise ModelError(
                f"{self.name}: architecture {type(self.model).__name__} does something to its logits that teachdiag "
                f"does not know (they differ by {gap:.3g}): such models are not supported"
            )


def resolve(name: str, revision: str, dropped_layers: tuple[int, ...], reporter: Reporter) -> ModelSource:
    """Find a model and pin its weights, without loading them.

    Raises:
        ModelError: it is neither embedded, nor a local folder with weights, nor on the Hub (or the Hub is out of
            reach and it is not in the local cache).
    """
    if name == EMBEDDED:
        folder = embedded_model(reporter)
        return ModelSource(name, str(folder), "", folder.name, dropped_layers)
    if Path(name).is_dir():
        return ModelSource(name, name, "", _folder_digest(Path(name)), dropped_layers)
    try:
        commit = AutoConfig.from_pretrained(name, revision=revision)._commit_hash
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r} (revision {revision}) cannot be found, neither as a local folder nor on the Hub: "
            f"{cause(error)}"
        ) from error
    return ModelSource(name, name, commit or revision, commit or revision, dropped_layers)


def load(source: ModelSource, dtype: str, device: str, *, master: bool = False) -> LanguageModel:
    """Load a model for scoring, or for a probe.

    Args:
        source: what `resolve` returned.
        dtype: type of the weights; with `master`, type of the forward computation.
        device: torch device.
        master: keep float32 master weights, which small steps do not vanish in, and compute under autocast.

    Raises:
        ModelError: the files cannot be loaded as a causal language model, or a dropped layer does not exist.
    """
    compute = getattr(torch, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, revision=source.revision or "main")
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision or "main",
            dtype=torch.float32 if master else compute,
            device_map={"": device},
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"model {source.name!r} cannot be loaded: {cause(error)}") from error
    if source.dropped_layers:
        _drop_layers(model, source)
    return LanguageModel(source, model, tokenizer, compute if master and compute != torch.float32 else None)


def pick_device(name: str) -> str:
    """Resolve 'auto', and refuse a device that is not there.

    Raises:
        SettingsError: torch knows no such device, or cannot use it here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(f"--device {name!r} cannot be used here: {cause(error)}") from error
    return name


def machine_facts(device: str) -> dict[str, Any]:
    """What decides the last digits of the numbers beside the versions: device and threads."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {"device": device, "device_name": name, "threads": torch.get_num_threads()}


def _drop_layers(model: Any, source: ModelSource) -> None:  # noqa: ANN401
    layers = getattr(model.get_decoder(), "layers", None)
    if layers is None:
        raise ModelError(f"{source.name}: its decoder layers cannot be found, so none can be dropped")
    absent = [layer for layer in source.dropped_layers if not 0 <= layer < len(layers)]
    if absent or len(source.dropped_layers) >= len(layers):
        raise ModelError(f"--student-drop-layers {absent or 'all'}: {source.name} has layers 0 to {len(layers) - 1}")
    kept = [index for index in range(len(layers)) if index not in source.dropped_layers]
    model.get_decoder().layers = torch.nn.ModuleList(layers[index] for index in kept)
    for place, layer in enumerate(model.get_decoder().layers):  # the cache is indexed by these
        layer.self_attn.layer_idx = place
    config = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]
    config.num_hidden_layers = len(kept)


def head_of(model: Any) -> Head:  # noqa: ANN401
    """Return a model's LM head. Weights that are sharded over processes are gathered, and gradients reach them."""
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    weight, bias = (_whole(getattr(linear, name, None)) for name in ("weight", "bias"))
    assert weight is not None
    return Head(
        weight=weight.float(),  # no copy where it is float32 already
        bias=None if bias is None else bias.float(),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
        size=weight.shape[0],
    )


def local(parameter: Tensor) -> Tensor:
    """Return this process's shard of a parameter; the parameter itself where it is not sharded."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _whole(parameter: Tensor | None) -> Tensor | None:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401
    listed = model.generation_config.eos_token_id if model.generation_config else None
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _folder_digest(folder: Path) -> str:
    """SHA-256 over every file that can change what the model computes: weights, configuration, tokenizer, template."""
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix != ".md" and not f.name.startswith(".")]
    if not any(f.name == "config.json" for f in files):
        raise ModelError(f"{folder} holds no model: there is no config.json")
    return hashlib.sha256("".join(f"{f.name} {file_digest(f)}\n" for f in files).encode()).hexdigest()
