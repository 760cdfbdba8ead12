"""Quantised blocks as the GGUF format defines them, one value at a time; and files that hold them."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, RopeScalingType, TokenType
from tiny_pair import TEMPLATE
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, HIDDEN, LAYERS, HEADS = 256, 512, 2, 4  # K-quants want rows in multiples of 256 values
KNOWN, ROWS = 258, 264  # ids of the tokenizer: bytes, an end, one merge; the other rows of the head are padding
BYTES = {Kind.Q8_0: (32, 34), Kind.Q5_0: (32, 22), Kind.Q4_K: (256, 144), Kind.Q6_K: (256, 210)}
_HALVES = {Kind.Q8_0: (0,), Kind.Q5_0: (0,), Kind.Q4_K: (0, 2), Kind.Q6_K: (208,)}  # where a block's scales lie


def random_blocks(kind: Kind, rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Random bytes of so many rows of blocks, (rows, bytes a row), whose half-precision scales are of weights' size."""
    values, size = BYTES[kind]
    blocks = rng.integers(0, 256, (rows, width // values, size), dtype=np.uint8)
    for offset in _HALVES[kind]:
        scales = rng.uniform(0.5e-3, 2e-3, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, offset : offset + 2] = scales[:, :, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def dequantised_slowly(kind: Kind, data: np.ndarray) -> np.ndarray:
    """Values of rows of blocks, (rows, bytes a row) -> (rows, width), float32 throughout as in the format."""
    blocks = data.reshape(len(data), -1, BYTES[kind][1])
    block = {Kind.Q8_0: _q8_0, Kind.Q5_0: _q5_0, Kind.Q4_K: _q4_k, Kind.Q6_K: _q6_k}[kind]
    return np.array([np.concatenate([block(one) for one in row]) for row in blocks], dtype=np.float32)


def _half(block: np.ndarray, offset: int) -> np.float32:
    return np.float32(block[offset : offset + 2].copy().view(np.float16)[0])


def _q8_0(block: np.ndarray) -> list[np.float32]:
    scale = _half(block, 0)
    return [scale * np.float32(int(np.int8(byte))) for byte in block[2:].view(np.int8)]


def _q5_0(block: np.ndarray) -> list[np.float32]:
    """Low four bits in 16 bytes, the first half of the values in the low nibbles; the fifth bit in a 32-bit word."""
    scale, fifth = _half(block, 0), int.from_bytes(block[2:6].tobytes(), "little")
    nibbles = [int(byte) & 15 for byte in block[6:]] + [int(byte) >> 4 for byte in block[6:]]
    return [scale * np.float32((low | ((fifth >> j & 1) << 4)) - 16) for j, low in enumerate(nibbles)]


def _q4_k(block: np.ndarray) -> list[np.float32]:
    """Eight runs of 32 values, each with a six-bit scale and a six-bit minimum, packed into 12 bytes."""
    scale, least, packed = _half(block, 0), _half(block, 2), [int(byte) for byte in block[4:16]]
    values = []
    for run in range(8):
        if run < 4:
            factor, floor = packed[run] & 63, packed[run + 4] & 63
        else:
            factor = packed[run + 4] & 15 | (packed[run - 4] >> 6) << 4
            floor = packed[run + 4] >> 4 | (packed[run] >> 6) << 4
        for byte in block[16 + 32 * (run // 2) :][:32]:
            nibble = int(byte) >> 4 if run % 2 else int(byte) & 15
            values.append(scale * np.float32(factor) * np.float32(nibble) - least * np.float32(floor))
    return values


def _q6_k(block: np.ndarray) -> list[np.float32]:
    """Two halves of 128 values: four low bits in nibbles, two high bits apart, a signed scale for every 16 values."""
    scale, values = _half(block, 208), np.zeros(256, np.float32)
    for half in range(2):
        low, high, factors = block[64 * half :][:64], block[128 + 32 * half :][:32], block[192 + 8 * half :][:8]
        for quarter in range(4):
            for j in range(32):
                nibble = int(low[j + 32 * (quarter % 2)]) >> (4 * (quarter // 2)) & 15
                number = (nibble | (int(high[j]) >> (2 * quarter) & 3) << 4) - 32
                factor = np.float32(int(factors[2 * quarter + j // 16].view(np.int8)))
                values[128 * half + 32 * quarter + j] = scale * factor * np.float32(number)
    return list(values)


def tensors(seed: int) -> dict[str, tuple[Kind, np.ndarray]]:
    """A tiny Qwen2 whose tensors are of every kind of block that the real files have: name -> (kind, data)."""
    rng = np.random.default_rng(seed)

    def plain(size: int, around: float) -> tuple[Kind, np.ndarray]:
        return Kind.F32, rng.normal(around, 0.02, size).astype(np.float32)

    def blocks(kind: Kind, rows: int, width: int) -> tuple[Kind, np.ndarray]:
        return kind, random_blocks(kind, rows, width, rng)

    held = {
        "token_embd.weight": blocks(Kind.Q4_K, ROWS, WIDTH),
        "output.weight": blocks(Kind.Q6_K, ROWS, WIDTH),
        "output_norm.weight": plain(WIDTH, 1.0),
    }
    for layer in range(LAYERS):
        shapes = {
            "attn_q": (Kind.Q5_0, WIDTH, WIDTH),
            "attn_k": (Kind.Q5_0, WIDTH // 2, WIDTH),
            "attn_v": (Kind.Q8_0, WIDTH // 2, WIDTH),
            "attn_output": (Kind.Q4_K, WIDTH, WIDTH),
            "ffn_gate": (Kind.Q5_0, HIDDEN, WIDTH),
            "ffn_up": (Kind.Q4_K, HIDDEN, WIDTH),
            "ffn_down": (Kind.Q6_K, WIDTH, HIDDEN),
        }
        held |= {f"blk.{layer}.{name}.weight": blocks(*shape) for name, shape in shapes.items()}
        held |= {f"blk.{layer}.attn_{name}.bias": plain(shapes[f"attn_{name}"][1], 0.0) for name in "qkv"}
        held |= {f"blk.{layer}.{name}_norm.weight": plain(WIDTH, 1.0) for name in ("attn", "ffn")}
    return held


def write_tiny_gguf(file: Path, seed: int = 0, *, scaled: bool = False, freqs: bool = False) -> None:
    """Write that model with a byte tokenizer of one merge; rows of the head beyond its ids are called unused.

    Its positions may be scaled, by a key as YaRN's or by a tensor as Llama 3.1's.
    """
    letters = sorted(ByteLevel.alphabet())
    end, padding = len(letters), ROWS - KNOWN
    writer = GGUFWriter(file, "qwen2")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    if scaled:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
    if freqs:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, WIDTH // HEADS // 2, dtype=np.float32))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*letters, "<|endoftext|>", "ab"] + [f"[PAD{KNOWN + i}]" for i in range(padding)])
    kinds = [TokenType.NORMAL] * end + [TokenType.CONTROL, TokenType.NORMAL] + [TokenType.UNUSED] * padding
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_chat_template(TEMPLATE)
    for name, (kind, data) in tensors(seed).items():
        writer.add_tensor(name, data, raw_dtype=None if kind == Kind.F32 else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
