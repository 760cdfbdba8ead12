"""The testbed's models: taught by a recipe, the same bytes twice, judged by whole solutions.

The truth: solutions checked as sums, and a second run.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from teachdiag.arithmetic import problems
from teachdiag.diagnostics.training import testbed
from teachdiag.progress import Reporter


def test_a_model_is_taught_the_same_way_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: Reporter) -> None:
    few = replace(testbed.RECIPES["student"], steps=12, batch=8, check=6)
    monkeypatch.setitem(testbed.RECIPES, "student", few)
    monkeypatch.setattr(testbed, "_HELD_OUT", 8)
    for place in ("one", "two"):
        testbed.teach("student", tmp_path / place, quiet)
    files = [(tmp_path / place / "student/model.safetensors").read_bytes() for place in ("one", "two")]
    assert files[0] == files[1]


def test_labels_are_the_solution_and_padding_is_behind_it() -> None:
    words = testbed.tokenizer()
    recipe = replace(testbed.RECIPES["student"], steps=1, batch=16)
    ids, labels = next(iter(testbed.batches(recipe, words, seed=1)))
    for own, label in zip(ids, labels, strict=True):
        question, _, solution = words.decode(own).partition(" = ")
        learnt = own[label != -100]
        assert words.decode(learnt) == solution.replace(" <pad>", "")
        assert learnt[-1] == words.eos_token_id
        assert torch.equal(label[label != -100], learnt)
        assert question.split()[0].isdigit()


def test_only_whole_solutions_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that writes what it is told: right for the problems whose solutions it was given."""
    words, held_out = testbed.tokenizer(), list(problems(6, seed=3))

    class Told:
        def eval(self) -> None: ...
        def train(self) -> None: ...
        def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
            texts = [p.solution if place % 2 else p.solution + " 7" for place, p in enumerate(held_out)]
            written = words(
                [f"{text} <end>" for text in texts], padding=True, padding_side="right", return_tensors="pt"
            )
            return torch.cat([input_ids, written["input_ids"]], dim=1)

    assert testbed.share_right(Told(), words, held_out) == 0.5
