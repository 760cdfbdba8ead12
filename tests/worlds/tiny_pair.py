"""A tiny random Qwen3 on disk, with a byte tokenizer, and probes of its size."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from teachdiag.settings import ProbeSettings

END = "<end>"
KNOWN = 257  # ids of `byte_tokenizer`; the other rows of a head are padding
PROBE = ProbeSettings(name="p", draws=1, learning_rate=1e-4, batch_tokens=100, tile_positions=7)
EFFICIENCY_PROBE = ProbeSettings(
    kind="efficiency", method="one-sided", blocks=3, update_contexts=3, real_steps=1, batch_tokens=100, tile_positions=7
)
TEMPLATE = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"


def byte_tokenizer(swap: bool = False, end: str = END) -> PreTrainedTokenizerFast:
    """256 bytes and an end token; `swap` exchanges two ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if swap:
        alphabet[10], alphabet[11] = alphabet[11], alphabet[10]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, END])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=END, chat_template=TEMPLATE, model_max_length=512
    )


def save_model(
    folder: Path,
    seed: int,
    rows: int = 264,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **config: object,
) -> str:
    """Save a random two-layer Qwen3 whose distributions are neither flat nor certain."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": rows,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "eos_token_id": 256,
        "pad_token_id": 256,
        "bos_token_id": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    } | config
    model = Qwen3ForCausalLM(Qwen3Config(**settings))
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return str(folder)
