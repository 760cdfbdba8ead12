"""The testbed: a teacher and a smaller student, taught on written-out arithmetic, for training that a CPU can do.

`python -m teachdiag.diagnostics.training.testbed FOLDER teacher` makes one of them, `... student` the other. The
teacher is trained until it is right almost always; the student is stopped while it is right about half the time, so
that there is something left to learn.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from teachdiag.arithmetic import MODULUS, WORDS, Problem, problems
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed
from teachdiag.tables import write_text

END, PAD = "<end>", "<pad>"
_SEED = 2026
_HELD_OUT = 500  # problems on which a model is judged while it is taught
_LENGTH = 64  # tokens of the longest problem with its solution, and some room
_WARMUP = 200  # steps


@dataclass(frozen=True)
class Recipe:
    """How large a model is, and how it is taught.

    Attributes:
        width: of the hidden state; heads are 32 wide.
        layers: decoder layers.
        steps: optimizer steps at most; the learning rate falls to nothing over them.
        batch: problems a step.
        rate: highest learning rate of AdamW.
        check: steps between looks at the share of held-out problems that are right.
        enough: share at which teaching ends; above 1 is never.
    """

    width: int
    layers: int
    steps: int
    batch: int
    rate: float
    check: int
    enough: float


RECIPES = {
    "teacher": Recipe(width=96, layers=2, steps=1600, batch=64, rate=2e-3, check=200, enough=2.0),
    "student": Recipe(width=64, layers=2, steps=6000, batch=64, rate=2e-3, check=25, enough=0.4),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a number or word."""
    names = [PAD, END, *WORDS, *map(str, range(MODULUS))]
    plain = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=PAD))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=PAD, eos_token=END, padding_side="left")


def untaught(recipe: Recipe, words: PreTrainedTokenizerFast, seed: int) -> Any:  # noqa: ANN401
    """Return a Qwen3 model of the recipe's size with random weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 32,
        num_key_value_heads=recipe.width // 32,
        head_dim=32,
        max_position_embeddings=_LENGTH * 2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def batches(recipe: Recipe, words: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield input ids and labels, shape (batch, length) each, int64; questions and padding carry no label."""
    fresh = problems(recipe.steps * recipe.batch, derive_seed(seed, "lessons"))
    for _ in range(recipe.steps):
        rows = [_row(next(fresh), words) for _ in range(recipe.batch)]
        length = max(len(ids) for ids, _ in rows)
        padded = [ids + [words.pad_token_id] * (length - len(ids)) for ids, _ in rows]
        labels = [[-100] * asked + ids[asked:] + [-100] * (length - len(ids)) for ids, asked in rows]
        yield torch.tensor(padded), torch.tensor(labels)


def teach(name: str, folder: Path, reporter: Reporter) -> float:
    """Teach one model, store it in `folder`, and return the share of held-out problems that it gets right, greedily."""
    recipe, words = RECIPES[name], tokenizer()
    model = untaught(recipe, words, derive_seed(_SEED, name))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARMUP, (recipe.steps - step) / recipe.steps)
    )
    held_out = list(problems(_HELD_OUT, derive_seed(_SEED, "held out")))
    right, step = 0.0, 0
    with reporter.bar(f"Teaching the {name}", total=recipe.steps) as advance:
        for ids, labels in batches(recipe, words, derive_seed(_SEED, name)):
            loss = model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            advance()
            if step % recipe.check == 0:
                right = share_right(model, words, held_out)
                reporter.say(f"{name}, step {step}: loss {loss.item():.3f} nats, {right:.1%} of {_HELD_OUT} right")
                if right >= recipe.enough:
                    break
    model.save_pretrained(folder / name)
    words.save_pretrained(folder / name)
    facts = {"recipe": recipe.__dict__, "steps": step, "held_out": _HELD_OUT, "right": right}
    write_text(json.dumps(facts, indent=2) + "\n", folder / name / "taught.json")
    return right


@torch.no_grad()
def share_right(model: Any, words: PreTrainedTokenizerFast, held_out: list[Problem]) -> float:  # noqa: ANN401
    """Share of problems whose greedy solution ends as it should."""
    model.eval()
    asked = words([p.question for p in held_out], padding=True, return_tensors="pt")
    asked.pop("token_type_ids", None)
    written = model.generate(**asked, max_new_tokens=_LENGTH, do_sample=False)
    texts = words.batch_decode(written[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train()
    right: int = sum(text == p.solution for text, p in zip(texts, held_out, strict=True))
    return right / len(held_out)


def _row(problem: Problem, words: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """Token ids of a problem with its solution, and how many of them are the question."""
    asked, solved = (words.convert_tokens_to_ids(part.split()) for part in (problem.question, problem.solution))
    return list(chain(asked, solved, [words.eos_token_id])), len(asked)


if __name__ == "__main__":
    folder, name = sys.argv[1:]
    torch.set_num_threads(1)  # the same bytes whatever the number of cores, and hardly slower on so small a model
    teach(name, Path(folder), Reporter())
