"""Graders against answers whose judgement is plain."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from teachdiag.arithmetic import problems
from teachdiag.diagnostics.grading import grader_of
from teachdiag.errors import ManifestError
from teachdiag.manifests import Prompt, read_manifest
from teachdiag.prompts import load_prompts


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("3 + 4 = 7 ; answer 7", "right"),
        ("answer 3 ; answer 7", "right"),
        ("answer 7 ; answer 3", "wrong"),
        ("answer 7 7", "wrong"),
        ("3 + 4 = 7 ;", "unparseable"),
        ("answer", "unparseable"),
        ("", "unparseable"),
    ],
)
def test_exact(text: str, outcome: str) -> None:
    grade = grader_of(read_manifest("arithmetic"))
    assert grade(Prompt("p", 0, "3 + 4 =", None, "7"), text) == outcome


@pytest.mark.parametrize(
    ("answer", "text", "outcome"),
    [
        ("72", "so she sold 48+24 = 72 clips.", "right"),
        ("72", "The answer is \\boxed{72.0}", "right"),
        ("\\frac{1}{2}", "we find $0.5$", "right"),
        ("1200", "It costs 1,200 dollars", "right"),
        ("72", "so she sold 48 clips", "wrong"),
        ("72", "I do not know.", "unparseable"),
    ],
)
def test_mathematics(answer: str, text: str, outcome: str) -> None:
    grade = grader_of(read_manifest("gsm8k"))
    assert grade(Prompt("p", 0, "q", None, answer), text) == outcome


def test_reasoning_gym_scores_with_its_own_entry() -> None:
    manifest = read_manifest("gsm_symbolic")
    prompt = load_prompts(manifest).prompts[0]
    grade = grader_of(manifest)
    assert grade(prompt, f"<answer>{prompt.answer}</answer>, not 17") == "right"
    assert grade(prompt, f"That makes {prompt.answer}.") == "right"
    assert grade(prompt, f"That makes {prompt.answer}1.") == "wrong"
    assert grade(prompt, "No idea.") == "unparseable"
    with pytest.raises(ManifestError, match="is another problem than reasoning-gym makes now"):
        grade(replace(prompt, question="another"), "1")


def test_sources_without_answers_are_refused(tmp_path: Path, manifest_path: str) -> None:
    text = Path(manifest_path).read_text()
    for change, message in (
        (text.replace('answer = "a"', ""), "can only be graded where columns.answer"),
        (text + '\n[grading]\ngrader = "exact"\n', "needs the entry grading.answer_after"),
        (text + '\n[grading]\ngrader = "vibes"\n', "grading.grader is 'vibes': choose"),
        (text + '\n[grading]\ngrader = "reasoning_gym"\n', "needs a source of that kind"),
    ):
        (tmp_path / "m.toml").write_text(change)
        with pytest.raises(ManifestError, match=message):
            grader_of(read_manifest(str(tmp_path / "m.toml")))


def test_every_step_of_the_testbeds_solutions_is_true() -> None:
    found = list(problems(300, seed=5))
    assert found[:100] == list(problems(100, seed=5))
    assert found != list(problems(300, seed=6))
    for problem in found:
        signs = re.findall(r"[-+*] \d+", problem.question)
        value = int(problem.question.split()[0])
        steps = problem.solution.split(" ; ")
        assert len(steps) == len(signs) + 1
        for sign, step in zip(signs, steps, strict=False):
            told = f"{value} {sign}"
            value = eval(told) % 100
            assert step == f"{told} = {value}"
        assert steps[-1] == f"answer {value}"
        assert problem.answer == str(value)
