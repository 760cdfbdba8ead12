"""The outcome loss of graded rollouts: its inner product with every loss term is that of autograd in float64.

What its advantages are is worked by hand.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from graded import write_graded
from slow import loss_term_gradients, plain_logp
from transformers import AutoModelForCausalLM, AutoTokenizer

from teachdiag.artefacts import GRADES, PREDICTIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes.success import Rollouts, graded_rollouts
from teachdiag.errors import RunError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings

pytestmark = pytest.mark.slow

PREDICTED = ProbeSettings(kind="predicted", method="jvp", name="p", batch_tokens=100, tile_positions=7)


@pytest.fixture
def graded(run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter) -> Path:
    """A graded run with two responses to each prompt."""
    write_graded(run, tmp_path / "mine.parquet")
    run_capture(tmp_path / "graded", replace(tiny_settings, contexts=str(tmp_path / "mine.parquet"), grade=True), quiet)
    return tmp_path / "graded"


def test_inner_products_with_success_are_those_of_autograd(
    graded: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    results = run_probe(graded, PREDICTED, quiet)["success"]
    contexts = list(read_contexts(graded, Positions.of(tiny_settings)))
    advantages = _by_hand(graded)
    assert results["rollouts"] == len(advantages)
    assert results["baseline"] == "prompt"
    truth = _slow_gradient(tiny_settings.student, contexts, advantages)
    table = PREDICTIONS.read(graded / "predictions/p").set_index(["context_id", "position"])
    tested = [c for c in contexts if c.split == "bank"][:6]
    expected = [
        sum((g * d).sum().item() for g, d in zip(gradients, truth, strict=True))
        for c in tested
        for gradients in loss_term_gradients(tiny_settings.student, tiny_settings.teacher, c, "reverse_kl")
    ]
    found = table.loc[[c.context_id for c in tested], "success_inner"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    shuffled = table.loc[[c.context_id for c in tested], "success_inner_shuffled"]
    assert np.abs(shuffled - found).max() > 1e-3 * np.abs(found).max()


def _by_hand(run: Path) -> dict[int, float]:
    """Advantages of the update split, a prompt at a time."""
    grades, advantages = GRADES.read(run / "grades"), {}
    for _, rollouts in grades[grades["split"] == "update"].groupby("prompt_id"):
        known = [r for r in rollouts.itertuples() if r.grade != "unparseable" or r.finish_reason == "stop"]
        for rollout in known:
            mean = sum(r.grade == "right" for r in known) / len(known)
            advantages[rollout.context_id] = (rollout.grade == "right") - mean
    return advantages


def _slow_gradient(student: str, contexts: list[Context], advantages: dict[int, float]) -> list[torch.Tensor]:
    """The gradient of the outcome loss as it is written, in float64."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float64)
    vocabulary, loss = len(AutoTokenizer.from_pretrained(student).get_vocab()), torch.zeros((), dtype=torch.float64)
    for context in contexts:
        if context.context_id in advantages:
            logp = plain_logp(model, context, "student", vocabulary)
            of_response = sum(row[token] for row, token in zip(logp, context.response, strict=True))
            loss = loss - advantages[context.context_id] * of_response / len(advantages)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_advantages_are_against_the_prompts_others_or_against_all() -> None:
    rows = pd.DataFrame({"prompt_id": list("aabbc"), "reward": [1.0, 0.0, 1.0, 1.0, 0.0]})
    assert Rollouts(rows, 0).advantages.tolist() == [0.5, -0.5, 0, 0, 0]
    alone = Rollouts(rows.drop([1, 3]), 0)
    assert alone.advantages.tolist() == pytest.approx([1 / 3, 1 / 3, -2 / 3])
    dealt = Rollouts(rows, 0).shuffled(1)
    assert sorted(dealt.rows["reward"]) == sorted(rows["reward"])
    assert dealt.rows["prompt_id"].tolist() == rows["prompt_id"].tolist()
    assert Rollouts(rows[:0], 0).shuffled(1).advantages.empty


def test_a_response_that_was_cut_before_its_answer_is_left_out(graded: Path, tiny_settings: CaptureSettings) -> None:
    contexts = list(read_contexts(graded, Positions.of(tiny_settings)))
    grades = GRADES.read(graded / "grades").set_index("context_id")
    rollouts = graded_rollouts(graded, contexts)
    assert rollouts is not None
    cut = grades.index[(grades["grade"] == "unparseable") & (grades["finish_reason"] == "length")]
    assert rollouts.left_out == len(cut) > 0
    assert not set(cut) & set(rollouts.rows.index)
    assert rollouts.rows["reward"].tolist() == (grades.loc[rollouts.rows.index, "grade"] == "right").tolist()


def test_runs_without_grades_and_grades_without_difference_have_no_such_column(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    quick = replace(PREDICTED, update_contexts=3)
    assert "success" not in run_probe(run, quick, quiet)
    assert PREDICTIONS.read(run / "predictions/p")["success_inner"].isna().all()
    answers = (("It is {0}.", "stop", "right"),)
    write_graded(run, tmp_path / "right.parquet", each=1, answers=answers)
    settings = replace(tiny_settings, contexts=str(tmp_path / "right.parquet"), grade=True)
    run_capture(tmp_path / "all right", settings, quiet)
    assert run_probe(tmp_path / "all right", quick, quiet)["success"]["right"] == 3
    assert PREDICTIONS.read(tmp_path / "all right/predictions/p")["success_inner"].isna().all()


def test_a_probe_is_not_continued_on_other_grades(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    write_graded(run, tmp_path / "mine.parquet", each=1)
    settings = replace(tiny_settings, contexts=str(tmp_path / "mine.parquet"))
    run_capture(tmp_path / "later", settings, quiet)
    run_probe(tmp_path / "later", PREDICTED, quiet)
    run_capture(tmp_path / "later", replace(settings, grade=True), quiet)
    with pytest.raises(RunError, match=r"made with another configuration .*grades was None.* choose another --name"):
        run_probe(tmp_path / "later", PREDICTED, quiet)
