"""Grades of a run's responses: against answers that are known, resumed to the same bytes, and refused where unknown."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from graded import write_graded
from stages import Killed, dying, tables
from tiny_pair import byte_tokenizer

from teachdiag.artefacts import CONTEXTS, GRADES
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.grading import grades as grades_module
from teachdiag.errors import ManifestError, RunError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def brought(run: Path, tmp_path: Path, tiny_settings: CaptureSettings) -> tuple[CaptureSettings, list[str]]:
    """Settings that bring graded contexts of other names, not graded yet, and their grades."""
    expected = write_graded(run, tmp_path / "mine.parquet", each=3)
    return replace(tiny_settings, contexts=str(tmp_path / "mine.parquet")), expected


def test_brought_responses_are_graded_by_the_question_that_their_prompt_holds(
    brought: tuple[CaptureSettings, list[str]], tmp_path: Path, quiet: Reporter
) -> None:
    settings, expected = brought
    contexts = CONTEXTS.read_arrow(Path(settings.contexts)).to_pylist()
    own = [int(not byte_tokenizer().decode(token).isdigit()) for token in contexts[0]["response_token_ids"]]
    contexts[0]["response_mask"], expected[0] = own, "unparseable"  # the number is a tool's
    pq.write_table(CONTEXTS.build_rows(contexts), settings.contexts)
    results = run_capture(tmp_path / "new", replace(settings, grade=True), quiet)["grades"]
    grades = GRADES.read(tmp_path / "new/grades")
    assert grades["context_id"].tolist() == list(range(len(expected)))
    assert grades["grade"].tolist() == expected
    assert grades["answer"].isna().tolist() == [grade == "unparseable" for grade in expected]
    judged = grades.dropna(subset="answer")
    says_it = judged["answer"].str.extract(r"(\d+)")[0] == judged["reference"]
    assert says_it.tolist() == (judged["grade"] == "right").tolist()
    bank = grades[grades["split"] == "bank"]
    cut = (bank["grade"] == "unparseable") & (bank["finish_reason"] == "length")
    assert results["bank"] == {
        **{grade: (bank["grade"] == grade).sum() for grade in ("right", "wrong", "unparseable")},
        "cut_before_an_answer": cut.sum(),
    }


def test_a_run_is_graded_later_and_resumes_to_the_same_bytes(
    brought: tuple[CaptureSettings, list[str]], tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = brought
    at_once, later = tmp_path / "at once", tmp_path / "later"
    run_capture(at_once, replace(settings, grade=True), quiet)
    run_capture(later, replace(settings, prompts="gsm_symbolic"), quiet)  # which contexts that are brought do not read
    before = (later / "capture.json").read_bytes()
    with monkeypatch.context() as killing:
        killing.setattr(grades_module, "write_shard", dying(grades_module.write_shard, after=1))
        with pytest.raises(Killed):
            run_capture(later, replace(settings, grade=True), quiet)
    assert len(list((later / "grades").glob("*.parquet"))) == 1
    run_capture(later, replace(settings, grade=True), quiet)
    assert (later / "capture.json").read_bytes() == before
    assert tables(later) == tables(at_once)
    assert (later / "grade.json").read_bytes() == (at_once / "grade.json").read_bytes()
    assert run_capture(later, replace(settings, grade=True), quiet)["grades"]["bank"]


def test_what_was_sampled_here_is_graded_by_the_prompts_it_was_sampled_from(
    run: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    results = run_capture(run, replace(tiny_settings, grade=True), quiet)
    grades, contexts = GRADES.read(run / "grades"), CONTEXTS.read(run / "contexts")
    assert grades["context_id"].tolist() == contexts["context_id"].tolist()
    assert set(grades.loc[grades["finish_reason"] == "length", "grade"]) == {"unparseable"}  # no word of an answer
    assert "were cut before they gave an answer" in results["grades"]["warnings"][0]
    questions = {row["q"]: row["a"] for row in map(json.loads, _rows(tiny_settings).read_text().splitlines())}
    asked = contexts["prompt_token_ids"].map(lambda ids: byte_tokenizer().decode(ids)[1:-2])
    assert grades["reference"].tolist() == asked.map(questions).tolist()


def test_another_source_does_not_grade_a_graded_run(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    write_graded(run, tmp_path / "mine.parquet", each=1)
    settings = replace(tiny_settings, contexts=str(tmp_path / "mine.parquet"), grade=True)
    run_capture(tmp_path / "new", settings, quiet)
    other = tmp_path / "other.toml"
    other.write_text(Path(tiny_settings.prompts).read_text().replace('id = "sums"', 'id = "totals"'))
    with pytest.raises(RunError, match=r"grade.json was made with another configuration .*prompts was"):
        run_capture(tmp_path / "new", replace(settings, prompts=str(other)), quiet)


def test_what_has_no_answer_is_refused_before_a_model_runs(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    manifest = Path(tiny_settings.prompts).read_text()
    without = tmp_path / "without.toml"
    without.write_text(manifest.replace('answer = "a"\n', ""))
    with pytest.raises(ManifestError, match=r"answers can only be graded where columns.answer says what is right"):
        run_capture(tmp_path / "new", replace(tiny_settings, prompts=str(without), grade=True), quiet)
    write_graded(run, tmp_path / "mine.parquet", each=1)
    brought = replace(tiny_settings, contexts=str(tmp_path / "mine.parquet"), grade=True)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text(_rows(tiny_settings).read_text().splitlines()[0] + "\n")
    with pytest.raises(ManifestError, match=r"prompt mine/[0-9a-f]+ holds no question of sums, so that there"):
        run_capture(tmp_path / "new", replace(brought, data_file=str(fewer)), quiet)
    several = tmp_path / "several.jsonl"
    several.write_text(_rows(tiny_settings).read_text() + json.dumps({"q": "What is", "s": "", "a": "0"}) + "\n")
    run_capture(tmp_path / "held", replace(brought, data_file=str(several)), quiet)  # a part of every question
    several.write_text(several.read_text() + json.dumps({"q": "?]>", "s": "", "a": "0"}) + "\n")
    with pytest.raises(ManifestError, match=r"holds the questions of rows .*so that nothing tells which of them"):
        run_capture(tmp_path / "new", replace(brought, data_file=str(several)), quiet)
    assert not (tmp_path / "new").exists()


def _rows(settings: CaptureSettings) -> Path:
    return Path(settings.prompts).with_suffix(".jsonl")
