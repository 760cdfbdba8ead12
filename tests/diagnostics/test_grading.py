"""Graders against answers whose judgement is plain.

Outcomes are judged by hand (`grading_pairs`), or by reasoning-gym's own scorer.
"""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from grading_pairs import PAIRS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from teachdiag.arithmetic import problems
from teachdiag.diagnostics.evaluate import draw_benchmark
from teachdiag.diagnostics.grading import grader as grading
from teachdiag.diagnostics.grading.grader import Grader, Verdict, _JudgingProcess, grader_of
from teachdiag.diagnostics.grading.grades import answer_text
from teachdiag.errors import ManifestError
from teachdiag.manifests import Prompt, manifest_names, read_manifest
from teachdiag.prompts import load_prompts
from teachdiag.settings import EvaluateSettings


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


def _grader(folder: Path, grading: str = "") -> Grader:
    """What judges the answers of a user's own manifest, without a [grading] section unless one is given."""
    path = folder / "own.toml"
    path.write_text(
        'id = "own"\nlicence = "none"\n[source]\nkind = "file"\nfile = "own.jsonl"\n[columns]\nquestion = "q"\n'
        'answer = "a"\n[template]\nprompt = "{question}"\n' + (f"[grading]\n{grading}\n" if grading else "")
    )
    return grader_of(read_manifest(str(path)))


def _asked(gold: str, row: int = 0) -> Prompt:
    return Prompt("p", row, "q", None, gold)


@pytest.mark.parametrize(
    ("gold", "text", "outcome"), [pytest.param(*pair, id=name) for name, pairs in PAIRS.items() for pair in pairs]
)
def test_pairs_judged_by_hand(gold: str, text: str, outcome: str) -> None:
    verdict = grader_of(read_manifest("math_500")).judge(_asked(gold), text)
    assert (verdict.outcome, verdict.given_up) == (outcome, False)
    assert (verdict.answer is None) == (outcome == "unparseable")


def test_a_manifest_that_says_nothing_of_grading_reads_mathematics(tmp_path: Path) -> None:
    grade = _grader(tmp_path)
    for gold, text, outcome in (pair for pairs in PAIRS.values() for pair in pairs[::4]):
        assert grade(_asked(gold), text) == outcome, (gold, text)


@pytest.mark.parametrize(
    ("answer_type", "gold", "text", "outcome"),
    [
        ("number", "72", "so she sold 48+24 = 72 clips.", "right"),
        ("number", "72", "The answer is \\boxed{72.0}", "right"),
        ("number", "72", "so she sold 48 clips", "wrong"),
        ("number", "540", "The answer is 540m.", "right"),
        ("choice", "B", "I thought of A. The correct option is B.", "right"),
        ("number", "72", "The answers are 71 and 72.", "wrong"),
        ("number", "1,200", "It costs 1,200 dollars", "right"),
        ("number", "1200", "It costs $1,200.", "right"),
        ("number", "1", "It costs 1,200 dollars", "wrong"),
        ("number", "20", "As a share: 90 minutes / 450 minutes * 100% = 20%", "right"),
        ("number", "-3", "The answer: -3", "right"),
        ("number", "-3", "The answer: 3", "wrong"),
        ("number", "0.5", "\\boxed{\\frac{1}{2}}", "right"),
        ("number", "5", "\\boxed{5x}", "wrong"),
        ("text", "New York", "\\boxed{\\text{new york}}", "right"),
        ("text", "New York", "The answer is New York City.", "wrong"),
        ("text", "-5", "\\boxed{5}", "wrong"),
        ("set", "1,100", "\\boxed{1100}", "wrong"),
        ("set", "100,200", "\\boxed{\\{200, 100\\}}", "right"),
        ("set", "(1,2)", "\\boxed{2, 1}", "right"),
        ("set", "{1, 2}", "\\boxed{1, 2, 3}", "wrong"),
        ("set", "3", "\\boxed{\\{3\\}}", "right"),
        ("interval", "(1,2)", "\\boxed{1 < x < 2}", "right"),
        ("interval", "(1,2)", "\\boxed{1 < x \\le 2}", "wrong"),
        ("interval", "x >= 3", "\\boxed{[3,\\infty)}", "right"),
        ("choice", "C", "\\boxed{C}", "right"),
        ("choice", "C", "\\boxed{\\text{(C) } 12}", "right"),
        ("choice", "C", "The correct answer is (C) since no other fits.", "right"),
        ("choice", "(c)", "**Answer: C**", "right"),
        ("choice", "C", "I would take option B.", "wrong"),
        ("choice", "C", "The answer is A, not C.", "wrong"),
        ("choice", "C", "B", "wrong"),
        ("choice", "C", "A cat sat on a mat", "unparseable"),
        ("choice", "A, C", "\\boxed{C \\text{ and } A}", "right"),
        ("choice", "A, C", "\\boxed{A}", "wrong"),
    ],
)
def test_types_of_gold_answers(tmp_path: Path, answer_type: str, gold: str, text: str, outcome: str) -> None:
    assert _grader(tmp_path, grading=f'answer_type = "{answer_type}"')(_asked(gold), text) == outcome


@pytest.mark.parametrize(
    ("answer_type", "gold", "message"),
    [
        ("latex", r"\frac{1}{", r"the answer '\\\\frac\{1\}\{' of row 7 cannot be read as latex"),
        ("latex", "", "the answer '' of row 7 cannot be read as latex: nothing"),
        ("latex", "nan", "the answer 'nan' of row 7 is what tables write for a missing value"),
        ("latex", "1 2", "two numbers without a sign between them"),
        ("latex", "((" * 40 + "1" + "))" * 40, "more than 50 brackets in brackets"),
        ("number", "x", "the answer 'x' of row 7 is no number"),
        ("number", "1, 2", "is no number"),
        ("number", "nine of them", "is no number"),
        ("interval", "3", "is no interval"),
        ("choice", "12", "names no choice by its letter"),
        ("text", " ", "cannot be read as text: nothing"),
    ],
)
def test_gold_answers_that_cannot_be_read_are_refused_by_row(
    tmp_path: Path, answer_type: str, gold: str, message: str
) -> None:
    grader = _grader(tmp_path, grading=f'answer_type = "{answer_type}"')
    for refused in (lambda: grader(_asked(gold, 7), "\\boxed{5}"), lambda: grader.check([_asked(gold, 7)])):
        with pytest.raises(ManifestError, match=message):
            refused()


def test_gold_answers_are_checked_before_a_model_is_asked(tmp_path: Path) -> None:
    rows = [{"q": f"What is {n}?", "a": str(n) if n != 3 else "3 or so {"} for n in range(6)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = _grader(tmp_path).manifest
    manifest = replace(manifest, source={**manifest.source, "file": str(tmp_path / "own.jsonl")})
    settings = EvaluateSettings(models=["none"], eval_prompts=6)
    with pytest.raises(ManifestError, match="of row 3 cannot be read as latex"):
        draw_benchmark(settings, load_prompts(manifest), {})


def test_every_manifest_says_how_its_answers_are_read() -> None:
    for name in manifest_names():
        manifest = read_manifest(name)
        assert manifest.grading.get("answer_type") or manifest.grading["grader"] != "math_verify"


TOWERS = [r"9^{9^{9^{9^9}}}", r"((((9!)!)!)!)!", r"\frac{1}{1+" * 20 + "1" + "}" * 20 + r"^{9^{9^{9^9}}}"]


@pytest.mark.slow
def test_judging_ends_in_time_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    process = _JudgingProcess()
    monkeypatch.setattr(grading, "SECONDS", 1.0)
    monkeypatch.setattr(grading, "_judging", process)
    grader = grader_of(read_manifest("math_500"))
    for tower in TOWERS:
        begun = time.monotonic()
        assert grader.judge(_asked("5"), f"\\boxed{{{tower}}}") == Verdict("unparseable", given_up=True)
        assert time.monotonic() - begun < 15  # a second, and a process that starts on a busy machine
    assert grader.judge(_asked("5"), "\\boxed{5}") == Verdict("right", "5")
    process.stop()


@pytest.mark.parametrize(
    "text",
    [
        *(sign * 100_000 for sign in "{}()[]$,.;:=<-^_%'\"*\\ \n!9a|&"),
        *(
            word * 20_000
            for word in ("\\boxed{", "\\text{", "answer ", "answer is ", "\\frac", "and ", "<<", "\\begin{pmatrix}")
        ),
        "\\boxed{" + "{" * 50_000 + "5" + "}" * 50_001,
        "\\boxed{" + "9" * 100_000 + "}",
        "\\boxed{" + "1," * 900 + "1}",
    ],
)
def test_long_and_broken_texts_are_judged_at_once(text: str) -> None:
    grader = grader_of(read_manifest("math_500"))
    verdict = grader.judge(_asked("5"), text)
    assert verdict.outcome in ("wrong", "unparseable")
    assert not verdict.given_up


def test_one_process_judges_for_all_threads() -> None:
    grader = grader_of(read_manifest("gsm8k"))
    grader(_asked("1"), "1")
    process = grading._judging._process
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: grader(_asked(str(n)), f"The answer is {n - n % 2}."), range(1000)))
    assert found == ["right", "wrong"] * 500
    assert grading._judging._process is process


@pytest.mark.slow
def test_an_interrupted_question_leaves_no_reply_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = grader_of(read_manifest("gsm8k"))
    assert grader(_asked("1"), "1") == "right"

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grading._judging._process.stdout, "readline", interrupt)
    with pytest.raises(KeyboardInterrupt):
        grader(_asked("1"), "2")
    assert grader(_asked("1"), "1") == "right"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("It is \\boxed{72}", "right"),
        ("The answer is 72. And more of", "right"),
        ("<answer>72</answer> and mo", "right"),
        ("The answer is 72", "unparseable"),  # it may have become 720
        ("so he has 72 and 4", "unparseable"),
        ("so he has 72. Then", "unparseable"),
        ("It is \\boxed{7", "unparseable"),
    ],
)
def test_a_text_that_was_cut_has_an_answer_only_where_it_says_so(text: str, outcome: str) -> None:
    assert grader_of(read_manifest("gsm8k"))(_asked("72"), text, cut=True) == outcome


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


@pytest.mark.parametrize(
    ("dataset", "gold", "text", "outcome"),
    [
        ("gsm_symbolic", None, "<answer>{}</answer>", "right"),
        ("gsm_symbolic", None, "<answer>-{}</answer>", "wrong"),  # the data set's own score loses the sign
        ("gsm_symbolic", None, "<answer>{}/2</answer>", "wrong"),
        ("gsm_symbolic", None, "It makes {}.00 in all.", "right"),
        ("gsm_symbolic", None, "\\boxed{{{}.0}}", "right"),
        ("fraction_simplification", None, "<answer>{}</answer>", "right"),
        ("fraction_simplification", None, "The answer is {}.", "right"),
        ("fraction_simplification", None, "The answer is 1.", "wrong"),
        ("fraction_simplification", None, "So I see no way to simplify this one.", "unparseable"),
    ],
)
def test_reasoning_gym_judges_numbers_as_numbers(
    tmp_path: Path, dataset: str, gold: None, text: str, outcome: str
) -> None:
    grader = _grader(tmp_path)
    source = {"kind": "reasoning_gym", "dataset": dataset, "size": 5, "seed": 1}
    columns = {"question": "question", "answer": "answer"}
    manifest = replace(grader.manifest, source=source, columns=columns, grading={"grader": "reasoning_gym"})
    prompts = load_prompts(manifest).prompts
    grader = grader_of(manifest)
    grader.check(prompts)
    assert [grader(prompt, text.format(prompt.answer)) for prompt in prompts] == [outcome] * len(prompts)


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        ("q", "<think> 7 </think> 8 <end>", " 8 "),
        ("q", "<think> 7", ""),
        ("q <think>", "7 </think> 8", " 8"),
        ("q <think>", "7 8", ""),
        ("q <think> </think>", "7 8", "7 8"),
        ("q", "[THINK] 7 [/THINK] 8", " 8"),  # special tokens, which decoding would drop
        ("q [THINK]", "7", ""),
        ("q", "7 8 <end>", "7 8"),
    ],
)
def test_thinking_is_no_part_of_an_answer(prompt: str, answer: str, text: str) -> None:
    names = ["q", "7", "8", "<think>", "</think>"]
    plain = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="q"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", clean_up_tokenization_spaces=False)
    words.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    ids = words(prompt)["input_ids"], words(answer)["input_ids"]
    assert answer_text(words, *ids).split() == text.split()


def test_sources_without_answers_are_refused(tmp_path: Path, manifest_path: str) -> None:
    text = Path(manifest_path).read_text()
    for change, message in (
        (text.replace('answer = "a"', ""), "can only be graded where columns.answer"),
        (text + '\n[grading]\ngrader = "exact"\n', "needs the entry grading.answer_after"),
        (text + '\n[grading]\ngrader = "vibes"\n', "grading.grader is 'vibes': choose"),
        (text + '\n[grading]\ngrader = "reasoning_gym"\n', "needs a source of that kind"),
        (text + '\n[grading]\nanswer_type = "maths"\n', "grading.answer_type is 'maths': choose latex, number, text"),
        (text + "\n[grading]\nanswer_type = 3\n", "grading.answer_type must be a string"),
        (
            text + '\n[grading]\ngrader = "exact"\nanswer_after = "="\nanswer_type = "text"\n',
            "how the grader math_verify reads answers, not exact",
        ),
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
