"""Load a causal language model and cut it where teachdiag needs it: at the hidden state that feeds its LM head."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from teachdiag.diagnostics.models.adapters import put_on
from teachdiag.diagnostics.models.alignment import Batch, Side
from teachdiag.diagnostics.models.head import head_of
from teachdiag.diagnostics.models.layers import drop_layers, moved_by_text, recomputed
from teachdiag.diagnostics.models.sources import (
    ModelSource,
    end_ids,
    limit,
    read_config,
    read_generation,
    read_tokenizer,
    reading,
)
from teachdiag.diagnostics.models.vocabulary import Known, known_ids
from teachdiag.diagnostics.models.weights import check_weights, forget_wrappers, refuse_misfits
from teachdiag.diagnostics.processes.parameters import are_sharded
from teachdiag.errors import ModelError
from teachdiag.jsontext import parse_json

transformers.utils.logging.disable_progress_bar()
_SMALL_VOCABULARY = 64  # of the stand-in on which an architecture is checked
_FAR = 100.0  # nats below the likeliest id from which a logit makes no difference
_PROBE_TOKENS = 8  # length of the sequence on which the cut is checked against the whole model


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
        self.end_with(end_ids(model.generation_config, tokenizer))
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None:  # masked ids stay masked; between infinite weights there is no distance
            bias.data.clamp_(min=torch.finfo(bias.dtype).min)
        self.known: Known = known_ids(tokenizer, model.get_output_embeddings().weight.shape[0])
        self.head = head_of(model, self.known)
        self._check_cut()

    def end_with(self, ids: frozenset[int]) -> None:
        """Let these token ids, and no others, end its responses, now and when it is saved."""
        self.end_ids = ids
        # Rollouts are sampled by the run's settings, never by defaults that came with the model.
        self.model.generation_config = GenerationConfig(eos_token_id=sorted(ids) or None)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        device: torch.device = self.model.device
        return device

    @property
    def computes_in(self) -> torch.dtype:
        """Type of its forward computation."""
        dtype: torch.dtype = self.half or self.model.dtype
        return dtype

    @property
    def limit(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        return limit(self.model.config.get_text_config())

    @property
    def rows(self) -> int:
        """Ids that the LM head has, padding included."""
        return self.head.rows

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Last hidden states, normalised as the LM head wants them: (contexts, length) ids to (.., .., width)."""
        with self._precision():
            states: Tensor = self.model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        return states

    @torch.no_grad()
    def hidden_rows(self, batch: Batch, side: Side) -> Tensor:
        """Hidden states that feed the LM head at every kept position of a batch, shape (rows, width)."""
        return batch.gather(self.hidden(batch.input_ids(side, self.device)), side)

    @property
    def sharded(self) -> bool:
        """Whether it is sharded over processes, which must then take every pass together (`processes.in_step`)."""
        return are_sharded(parameter for _, parameter in self.parameters())

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every trainable parameter once, by name, in a fixed order: the space in which steps and directions lie.

        These are all weights, or, of a model with an adapter, the adapter's.
        """
        yield from moved_by_text(self.model)

    def recomputing(self) -> AbstractContextManager[None]:
        """Save memory in the passes inside: see `recomputed`."""
        return recomputed(self.model, self.name)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.half is None:
            return nullcontext()
        # A pass reads each weight once: kept, its copies would only be half another model in memory.
        return torch.autocast(self.device.type, dtype=self.half, cache_enabled=False)

    @torch.no_grad()
    def _check_cut(self) -> None:
        """Compare our logits on a short sequence with the model's own, and with those before another end of it."""
        ids = torch.arange(_PROBE_TOKENS, device=self.device)[None] % self.head.rows
        with self._precision():
            whole = self.model(input_ids=ids, use_cache=False).logits[0, :, : self.known.size].float()
        ours = self.head(self.hidden(ids)[0])
        if self.head.holes is not None:
            whole = whole.index_fill(1, self.head.holes, -torch.inf)
        most = whole.amax(-1, keepdim=True)
        if not torch.isfinite(most).all():
            return  # broken weights, which scoring refuses with the context and position
        coarse = self.half is not None or self.model.dtype != torch.float32
        floor = most - _FAR  # of ids that are masked it only matters that they are
        rounding = (0.05 if coarse else 1e-3) * max(1.0, ours[ours > floor].abs().max().item())
        ours = ours.maximum(floor)
        gap = (whole.maximum(floor) - ours).abs().max().item()
        if not gap <= rounding:
            raise ModelError(
                f"{self.name}: architecture {type(self.model).__name__} does something to its logits that teachdiag "
                f"does not know (they differ by {gap:.3g}): such models are not supported"
            )
        first = _PROBE_TOKENS // 2
        ids[:, first:] = ids[:, first:].flip(1)  # of the same length, so that rounding is the same
        again = self.head(self.hidden(ids)[0, :first]).maximum(floor[:first])
        if not (again - ours[:first]).abs().max().item() <= rounding:
            raise ModelError(
                f"{self.name}: architecture {type(self.model).__name__} reads what comes behind a token before it "
                "predicts it, as encoders do: a model that writes from left to right is needed"
            )


def load(source: ModelSource, dtype: str, device: str, *, master: bool = False) -> LanguageModel:
    """Load a model for scoring, or for a probe.

    Args:
        source: what `resolve` returned.
        dtype: type of the weights; with `master`, type of the forward computation.
        device: torch device.
        master: keep float32 master weights, which small steps do not vanish in, and compute under autocast.

    Raises:
        ModelError: the files cannot be loaded as a causal language model, or a dropped layer does not exist, or
            the adapter does not fit.
    """
    compute, tokenizer = getattr(torch, dtype), read_tokenizer(source)
    wrappers = check_weights(source)
    with reading(source):
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.at,
            trust_remote_code=source.trusted,
            dtype=torch.float32 if master else compute,
            # By its number: weights are read in threads, for which a bare "cuda" is the first GPU.
            device_map={"": torch.empty(0, device=device).device},
            generation_config=read_generation(source),
            key_mapping=wrappers,
            ignore_mismatched_sizes=True,  # told of in the report
            output_loading_info=True,
            **parse_json(source.options or "{}"),
        )
        refuse_misfits(source, report)
        forget_wrappers(model, wrappers)
        if source.dropped_layers:
            drop_layers(model, source.name, source.dropped_layers)
        if source.adapter:
            put_on(model, source)
        return LanguageModel(source, model, tokenizer, compute if master and compute != torch.float32 else None)


def check_head(source: ModelSource) -> None:
    """Compare our logits with an architecture's own, without its weights: on one layer and few ids of random ones.

    Raises:
        ModelError: the architecture does something to its logits that `Head` does not know.
    """
    config, tokenizer = read_config(source), read_tokenizer(source)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 1, _SMALL_VOCABULARY, None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    with reading(source):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=source.trusted)
        LanguageModel(source, model, tokenizer)


def nan_advice(*dtypes: torch.dtype) -> str:
    """What to do where models that compute in these types give NaN."""
    coarse = any(dtype in (torch.float16, torch.bfloat16) for dtype in dtypes)
    return ("try --dtype float32, or " if coarse else "") + "check the models' weights"
