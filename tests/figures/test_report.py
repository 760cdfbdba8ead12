"""The report: what is on the page, that every number is that of the tables, and that no text can break out of it."""

import json
import re
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import plant_grades
from stages import amend

from teachdiag.artefacts import TOKENS, VOCABULARY
from teachdiag.errors import ArtefactError, RunError
from teachdiag.figures.captions import read_captions
from teachdiag.figures.report.html import write_report
from teachdiag.figures.report.page import inline
from teachdiag.figures.report.side_by_side import write_side_by_side
from teachdiag.figures.report.tokens_page import tokens_page
from teachdiag.progress import Reporter
from teachdiag.runs import table_digest
from teachdiag.settings import ReportSettings
from teachdiag.tables import shard_path, write_parquet

pytestmark = pytest.mark.slow

HOSTILE = "</script><b>&\"'\n"


def _data(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def _tokens(page: str) -> tuple[dict, list[tuple[dict, int, dict]]]:
    """Return the page's data, and (context, position, token) of everything that it shows of its first run."""
    data = _data(page)
    return data, [(c, i, t) for row in data["rows"] if (c := row[0]) for i, t in enumerate(c["tokens"])]


def test_tokens_carry_the_numbers_of_the_tables(analysed: Path, quiet: Reporter) -> None:
    summary = write_report(analysed, ReportSettings(contexts=3), quiet)
    assert summary["contexts"] == 3
    page = (analysed / "report.html").read_text()
    assert "3 of 10, evenly spread, contexts are shown." in page
    data, shown = _tokens(page)
    positions = pd.read_parquet(analysed / "positions").set_index(["context_id", "position"])
    bank = sorted(positions[positions["split"] == "bank"].index.unique("context_id"))
    assert [row[0]["id"] for row in data["rows"]] == [bank[0], bank[3], bank[6]]
    gains = pd.read_parquet(analysed / "gains/p").set_index(["context_id", "position"])
    ranks = pd.read_parquet(analysed / "tokens").set_index(["context_id", "position"])
    vocabulary = pd.read_parquet(analysed / "vocabulary").set_index("token_id")
    place = {column["key"]: number for number, column in enumerate(data["columns"])}
    assert place.keys() >= {"learnable", "forward_kl", "compatibility", "gain", "forward_kl_after"}
    for context, position, token in shown:
        key = context["id"], position
        row = positions.loc[key]
        part = vocabulary["part"][row["token_id"]]
        assert part is not None or token["t"] == vocabulary["text"][row["token_id"]]
        measured = {
            "forward_kl": row["forward_kl"],
            "compatibility": row["compatibility_k16"],
            "learnable": ranks["learnable"][key],
            "gain": gains["gain"][key],
            "forward_kl_after": gains["forward_kl_after"][key],
        }
        assert {name: token["v"][place[name]] for name in measured} == pytest.approx(measured, rel=1e-3)
        assert token["k"] == [ranks[f"rank_{selector['key']}"][key] for selector in data["selectors"]]
        for side, letter in (("student", "s"), ("teacher", "q")):
            np.testing.assert_allclose([p for _, p in token[letter]], np.exp(row[f"{side}_topk_logp"][:5]), rtol=1e-3)
        after = gains.loc[key]
        np.testing.assert_allclose([p for _, p in token["a"]], np.exp(after["student_topk_logp_after"]), rtol=1e-3)
        assert token["p"][2] == pytest.approx(np.exp(after["student_logp_after"]), rel=1e-3)


def test_titles_leave_out_what_every_prompt_says(analysed: Path, quiet: Reporter) -> None:
    write_report(analysed, ReportSettings(), quiet)
    contexts = [row[0] for row in _data((analysed / "report.html").read_text())["rows"]]
    sums = [context["prompt"].removeprefix("[What is ").removesuffix("]>") for context in contexts]
    assert [context["title"] for context in contexts] == sums
    assert len(set(sums)) == len(sums)


def test_columns_say_when_they_were_measured(analysed: Path, quiet: Reporter) -> None:
    write_report(analysed, ReportSettings(contexts=1), quiet)
    said = {column["key"]: column["said"] for column in _data((analysed / "report.html").read_text())["columns"]}
    assert said["forward_kl"] == "raw KL: at theta0, before any update."
    assert "before any update" not in said["gain"]
    assert "the step p took off" in said["gain"]


def test_no_text_breaks_out_and_nothing_is_fetched(analysed: Path, quiet: Reporter) -> None:
    words = VOCABULARY.read(analysed / "vocabulary")
    words["text"], words["part"] = HOSTILE, None
    write_parquet(
        VOCABULARY.build({name: words[name].to_numpy() for name in words}), shard_path(analysed / "vocabulary", 0)
    )
    theirs = table_digest(analysed / "vocabulary")
    amend(analysed / "capture.json", lambda note: note["tables"].update(vocabulary=theirs))
    write_report(analysed, ReportSettings(contexts=2), quiet)
    page = (analysed / "report.html").read_text()
    assert HOSTILE in {token["t"] for _, _, token in _tokens(page)[1]}
    assert page.count("</script>") == 2
    assert "<b>&" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_every_section_says_what_the_summary_says(analysed: Path, quiet: Reporter) -> None:
    write_report(analysed, ReportSettings(contexts=1), quiet)
    page = (analysed / "report.html").read_text()
    sections = ("headline", "primary", "efficiency", "specifications", "verdict", "evidence", "placebos", "caveats")
    order = [page.index(f'id="{name}"') for name in (*sections, "made", "tokens")]
    assert order == sorted(order)
    front = json.loads((analysed / "analysis/summary.json").read_text())["front"]
    for sentence in (*front["sentences"], front["action"], front["command"], front["legend"]):
        assert inline(sentence) in page
    assert [cell for row in front["primary"][0]["rows"] for cell in row if f"{escape(cell)}<" not in page] == []
    assert "teachdiag probe --kind efficiency" in page  # this run has no such probe
    findings = pd.read_parquet(analysed / "analysis/findings.parquet")
    shown = findings[(findings["outcome"] == "gain") & (findings["k"].isna() | (findings["k"] == 16))]
    assert page.count('<span class="status') == len(shown) + len(front["primary"][0]["rows"])
    words = read_captions(analysed)["coefficients"]
    for ground in ("light", "dark"):
        assert f'<img class="{ground}" alt="{escape(words.seen)}" src="data:image/svg+xml;base64,' in page
    assert f"<figcaption><strong>{words.question}</strong> {escape(words.caption)}</figcaption>" in page
    contexts = pd.read_parquet(analysed / "contexts")
    cut = (contexts[contexts["split"] == "bank"]["finish_reason"] == "length").mean()
    assert escape(f"{cut:.0%} of the bank's responses were cut at 12 tokens") in page


def test_a_run_without_texts_or_analysis_is_said(analysed: Path, quiet: Reporter, tmp_path: Path) -> None:
    (analysed / "vocabulary").rename(tmp_path / "gone")
    amend(analysed / "capture.json", lambda note: note["tables"].pop("vocabulary"))  # as older versions left it
    assert write_report(analysed, ReportSettings(), quiet)["contexts"] == 0
    assert "captured without token texts. Capture again" in (analysed / "report.html").read_text()
    summary_file = analysed / "analysis/summary.json"
    content = json.loads(summary_file.read_text())
    del content["front"]
    summary_file.write_text(json.dumps(content))
    theirs = table_digest(summary_file)
    amend(analysed / "analyze.json", lambda note: note["tables"].update({"analysis/summary.json": theirs}))
    with pytest.raises(RunError, match="older version: run `teachdiag analyze"):
        write_report(analysed, ReportSettings(), quiet)
    (analysed / "analysis/summary.json").unlink()
    with pytest.raises(RunError, match="teachdiag analyze"):
        write_report(analysed, ReportSettings(), quiet)


def test_a_page_of_one_context_needs_nothing_else(analysed: Path) -> None:
    page = tokens_page(analysed, [4])
    assert [row[0]["id"] for row in _data(page)["rows"]] == [4]
    assert not re.search(r'(src|href)="', page)
    with pytest.raises(ArtefactError, match="no context 4000: its context_id are"):
        tokens_page(analysed, [4000])


def test_a_capture_of_an_older_version_has_no_parts(analysed: Path, quiet: Reporter) -> None:
    words = VOCABULARY.read(analysed / "vocabulary").drop(columns="part")
    write_parquet(
        VOCABULARY.build({name: words[name].to_list() for name in words}), shard_path(analysed / "vocabulary", 0)
    )
    theirs = table_digest(analysed / "vocabulary")
    amend(analysed / "capture.json", lambda note: note["tables"].update(vocabulary=theirs))
    write_report(analysed, ReportSettings(contexts=2), quiet)
    page = (analysed / "report.html").read_text()
    said = "Parts of characters are shown as the tokenizer calls them: an older capture did not keep their bytes (run)."
    assert page.count(said) == 1
    text = words.set_index("token_id")["text"]
    positions = pd.read_parquet(analysed / "positions").set_index(["context_id", "position"])
    for context, position, token in _tokens(page)[1]:
        assert token["t"] == text[positions["token_id"][context["id"], position]]


def test_runs_stand_side_by_side(analysed: Path, quiet: Reporter, tmp_path: Path) -> None:
    other = Path(shutil.copytree(analysed, tmp_path / "other"))
    for run in (analysed, other):
        write_report(run, ReportSettings(), quiet)
    words = VOCABULARY.read(other / "vocabulary")
    path = write_side_by_side([analysed, other], ReportSettings(contexts=4))
    page = path.read_text()
    assert path == tmp_path / "comparison/report.html"
    data = _data(page)
    assert [run["name"] for run in data["runs"]] == ["run", "other"]
    assert all(left == right for left, right in data["rows"])
    assert len(data["rows"]) == 4
    assert "4 of 10, evenly spread, contexts have the same prompts, and stand side by side." in page
    assert {(path.parent / link).resolve() for link in re.findall(r'href="([^"]+)"', page)} == {
        run / "report.html" for run in (analysed, other)
    }
    words["text"] += "?"  # other prompts
    write_parquet(
        VOCABULARY.build({name: words[name].to_list() for name in words}), shard_path(other / "vocabulary", 0)
    )
    data = _data(write_side_by_side([analysed, other], ReportSettings(contexts=4)).read_text())
    assert [[context["id"] for context in row] for row in data["rows"]][1][0] == data["rows"][1][1]["id"]
    assert data["rows"][0][0]["prompt"] != data["rows"][0][1]["prompt"]


def test_responses_carry_their_grades(analysed: Path, quiet: Reporter) -> None:
    bank = TOKENS.read(analysed / TOKENS.folder, ["context_id"]).assign(prompt_id="p")
    names = ("right", "wrong", "unparseable")
    grades = {int(context): names[context % 3] for context in bank["context_id"].unique()}
    plant_grades(analysed, bank, grades)
    write_report(analysed, ReportSettings(), quiet)
    contexts = [row[0] for row in _data((analysed / "report.html").read_text())["rows"]]
    assert {context["id"]: context["grade"] for context in contexts} == grades
