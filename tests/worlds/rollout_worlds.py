"""Rollouts as other programs write them, and tokenizers of three kinds: marked, bare, and the embedded model's."""

import json
from collections.abc import Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from tiny_pair import byte_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from teachdiag.artefacts import CONTEXTS
from teachdiag.diagnostics.contexts.templates import encode_prompt
from teachdiag.diagnostics.imports.formats import FORMATS
from teachdiag.diagnostics.imports.import_rollouts import import_rollouts
from teachdiag.diagnostics.models.embedded import embedded_model
from teachdiag.errors import InputError
from teachdiag.progress import Reporter
from teachdiag.settings import ImportSettings

END = 256
ANSWERS = ("4.", "Let me think:\n\n2 + 2 = 4", " naïve 你好 🙂", "\u2028odd\r\nlines\x85")
QUESTIONS = [f"What is {a} + {a}?" for a in range(8)]
QUIET = Reporter(quiet=True)
MARKED = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def marked_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer with a template whose marks are special tokens, as chat models have it."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = MARKED
    return tokenizer


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer without a template, which begins every text with a special token."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[start])
    return tokenizer


@cache
def embedded_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded_model(QUIET)[0])


def imported(
    name: str, places: Sequence[Path], out: Path, student: str, reporter: Reporter = QUIET, **options: Any
) -> list[dict[str, Any]]:
    files = [str(place) for place in places]
    settings = ImportSettings(files=files, student=student, contexts=str(out), **options)
    import_rollouts(FORMATS[name], settings, reporter)
    return CONTEXTS.read_arrow(out).to_pylist()  # type: ignore[no-any-return]


def pairs(rows: list[dict[str, Any]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return sorted((tuple(row["prompt_token_ids"]), tuple(row["response_token_ids"])) for row in rows)


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    return path


def rollouts(tokenizer: Any, end: int = END) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Two responses a question, every other one ended."""
    return [
        (encode_prompt(tokenizer, q), (*tokenizer(a, add_special_tokens=False)["input_ids"], *([end] * (place % 2))))
        for place, (q, a) in enumerate(zip([q for q in QUESTIONS for _ in range(2)], cycle(ANSWERS), strict=False))
    ]


def stripped(tokenizer: Any, said: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[dict[str, Any]]:
    """What verl writes of rollouts."""
    texts = [tokenizer.batch_decode([list(p[side]) for p in said], skip_special_tokens=True) for side in (0, 1)]
    return [{"input": p, "output": r, "gts": None, "score": 0.5, "step": 1} for p, r in zip(*texts, strict=True)]


def without_end(said: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], end: int = END) -> list[tuple[Any, Any]]:
    return sorted((prompt, response[:-1] if response[-1] == end else response) for prompt, response in said)


def refused(name: str, place: Path, message: str, student: str, **options: Any) -> None:
    out = place.parent / "out" / "c.parquet"
    with pytest.raises(InputError) as error:
        imported(name, [place], out, student, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.parent.exists()
