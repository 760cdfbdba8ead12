"""Pairs of random weights at real sizes, runs of random ids, and a clock that waits for the device; no network.

What a pass costs does not depend on what the weights are, nor on what the text says.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.models.sources import ModelSource

VOCABULARY = 151_936  # ids of Qwen3's LM heads


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model: hidden state, inner layer, layers, heads, whether the LM head is the embedding."""

    width: int
    inner: int
    layers: int
    heads: int
    tied: bool = True
    key_heads: int = 8
    head_width: int = 128
    vocabulary: int = VOCABULARY


SHAPES = {
    "0.6B": Shape(1024, 3072, 28, 16),
    "1.7B": Shape(2048, 6144, 28, 16),
    "4B": Shape(2560, 9728, 36, 32),
    "8B": Shape(4096, 12_288, 36, 32, tied=False),
    "tiny": Shape(32, 64, 2, 4, key_heads=2, head_width=8, vocabulary=600),
    "small": Shape(48, 96, 2, 4, key_heads=2, head_width=8, vocabulary=600),
}


@dataclass(frozen=True)
class Workload:
    """How much is measured: contexts of the bank and of the update batch, tokens of a prompt and of a response."""

    bank: int
    update: int
    prompt: int
    response: int

    @property
    def contexts(self) -> int:
        """All of them."""
        return self.bank + self.update


REAL, TINY = Workload(24, 8, 128, 192), Workload(6, 4, 8, 12)


class Taken(NamedTuple):
    """What a piece of work took: the shortest of its durations, s, and peak memory on a GPU, bytes; None on a CPU."""

    seconds: float
    peak: int | None


def taken(work: Callable[[], object], device: torch.device, repeats: int = 3) -> Taken:
    """Do some work a few times, and wait for the device each time."""
    on_gpu, durations = device.type == "cuda", []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats):
        if on_gpu:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - start)
    return Taken(min(durations), torch.cuda.max_memory_allocated(device) if on_gpu else None)


def random_pair(student: str, teacher: str, device: torch.device, dtype: torch.dtype, *, master: bool = False) -> Pair:
    """Make two models of named shapes; with `master`, the student's numbers are float32, as a probe has them."""
    tokenizer = _tokenizer(SHAPES[student].vocabulary)
    ours, theirs = (_model(name, seed, device, dtype) for seed, name in enumerate((student, teacher)))
    half = dtype if master and dtype != torch.float32 else None
    return Pair(
        LanguageModel(_source(student), ours.float() if master else ours, tokenizer, half),
        LanguageModel(_source(teacher), theirs, tokenizer),
        SHAPES[student].vocabulary,
    )


def unequal_contexts(workload: Workload, vocabulary: int) -> list[Context]:
    """Contexts of random ids, one a prompt, prompts of unequal length, the bank's first."""
    rng, contexts = np.random.default_rng(0), list[Context]()
    for number in range(workload.contexts):
        length = workload.prompt - int(rng.integers(workload.prompt // 8 + 1))
        prompt, response = (tuple(rng.integers(vocabulary - 1, size=n).tolist()) for n in (length, workload.response))
        split = "bank" if number < workload.bank else "update"
        contexts.append(Context(number, f"random/{number}", split, prompt, prompt, response))
    return contexts


def _model(name: str, seed: int, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    shape = SHAPES[name]
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_width,
        max_position_embeddings=40_960,
        tie_word_embeddings=shape.tied,
        eos_token_id=shape.vocabulary - 1,
        pad_token_id=shape.vocabulary - 1,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    with device:
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def _source(name: str) -> ModelSource:
    return ModelSource(f"random weights of Qwen3 {name}", "", "", "random")


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word an id, so that no row of the LM heads is padding."""
    plain = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = str(vocabulary - 1)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=end, pad_token=end)
