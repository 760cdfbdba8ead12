"""Tiny random models of many architectures, with the byte tokenizer of `tiny_pair`: what families do differently."""

from pathlib import Path
from typing import Any

import torch
from tiny_pair import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

_PLAIN = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3,
    "eos_token_id": 256, "pad_token_id": 256, "bos_token_id": None,
}  # fmt: skip
_WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LEARNED = {"vocab_size": 264, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}
_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _PLAIN,
    "qwen3": _PLAIN,
    "gemma2": _PLAIN | _WINDOW | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": _PLAIN | _WINDOW | {"final_logit_softcapping": 8.0},
    "qwen3_moe": _PLAIN | _EXPERTS | {"decoder_sparse_step": 1},
    "mixtral": _PLAIN | _EXPERTS,
    "gpt2": _LEARNED | {"eos_token_id": 256, "bos_token_id": 256},
    "opt": _PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "bloom": {
        "vocab_size": 264, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3, "eos_token_id": 256,
    },
    "gemma3": {  # a multimodal wrapper, which is only given text
        "text_config": _PLAIN | _WINDOW, "vision_config": _VISION, "mm_tokens_per_image": 1, "image_token_index": 261,
        "boi_token_index": 262, "eoi_token_index": 263, "eos_token_id": 256, "initializer_range": 0.3,
    },
}  # fmt: skip


def save_architecture(folder: Path, kind: str, seed: int) -> str:
    """Save a random model of that `model_type`."""
    torch.manual_seed(seed)
    given = {name: dict(value) if isinstance(value, dict) else value for name, value in CONFIGS[kind].items()}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **given), dtype=torch.float32)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)
