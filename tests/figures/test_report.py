"""The report: what is on the page, that every number is that of the tables, and that no text can break out of it."""

import json
import re
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stages import amend

from teachdiag.artefacts import VOCABULARY
from teachdiag.errors import RunError
from teachdiag.figures.report.html import write_report
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


def test_tokens_carry_the_numbers_of_the_tables(analysed: Path, quiet: Reporter) -> None:
    summary = write_report(analysed, ReportSettings(contexts=3), quiet)
    assert summary["contexts"] == 3
    page = (analysed / "report.html").read_text()
    data = _data(page)
    assert "The first 3 of the bank's 10 contexts" in page  # an own sentence, which needs no escape
    positions = pd.read_parquet(analysed / "positions").set_index(["context_id", "position"])
    gains = pd.read_parquet(analysed / "gains/p").set_index(["context_id", "position"])["gain"]
    texts = pd.read_parquet(analysed / "vocabulary").set_index("token_id")["text"]
    place = {column["name"]: number for number, column in enumerate(data["columns"])}
    for context in data["contexts"]:
        for position, token in enumerate(context["tokens"]):
            row = positions.loc[context["id"], position]
            assert token["t"] == texts[row["token_id"]]
            assert token["v"][place["raw KL"]] == pytest.approx(row["forward_kl"], rel=1e-3)
            assert token["v"][place["C compatibility"]] == pytest.approx(row["compatibility_k16"], rel=1e-3)
            assert token["v"][place["gain"]] == pytest.approx(gains[context["id"], position], rel=1e-3)
            for side, key in (("student", "s"), ("teacher", "q")):
                assert [text for text, _ in token[key]] == [texts.get(i, f"<{i}>") for i in row[f"{side}_topk_ids"][:5]]
                np.testing.assert_allclose([p for _, p in token[key]], np.exp(row[f"{side}_topk_logp"][:5]), rtol=1e-3)
    whole = write_report(analysed, ReportSettings(), quiet)
    every = [
        token for context in _data((analysed / "report.html").read_text())["contexts"] for token in context["tokens"]
    ]
    taken = sum(token["v"][place["selected by learnable"]] for token in every)
    assert whole["contexts"] == 10
    assert taken == int(np.ceil(0.1 * len(every)))


def test_no_text_breaks_out_and_nothing_is_fetched(analysed: Path, quiet: Reporter) -> None:
    words = VOCABULARY.read(analysed / "vocabulary")
    words["text"] = HOSTILE
    write_parquet(
        VOCABULARY.build({name: words[name].to_numpy() for name in words}), shard_path(analysed / "vocabulary", 0)
    )
    theirs = table_digest(analysed / "vocabulary")
    amend(analysed / "capture.json", lambda note: note["tables"].update(vocabulary=theirs))
    write_report(analysed, ReportSettings(contexts=2), quiet)
    page = (analysed / "report.html").read_text()
    assert _data(page)["contexts"][0]["tokens"][0]["t"] == HOSTILE
    assert page.count("</script>") == 2
    assert "<b>&" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_every_section_says_what_the_summary_says(analysed: Path, quiet: Reporter) -> None:
    write_report(analysed, ReportSettings(contexts=1), quiet)
    page = (analysed / "report.html").read_text()
    order = [page.index(f'id="{name}"') for name in ("verdict", "made", "evidence", "placebos", "caveats", "tokens")]
    assert order == sorted(order)
    findings = pd.read_parquet(analysed / "analysis/findings.parquet")
    shown = findings[(findings["outcome"] == "gain") & (findings["k"].isna() | (findings["k"] == 16))]
    assert page.count('<span class="status') == len(shown)
    assert "data:image/png;base64," in page
    contexts = pd.read_parquet(analysed / "contexts")
    cut = (contexts[contexts["split"] == "bank"]["finish_reason"] == "length").mean()
    assert escape(f"{cut:.0%} of the bank's responses were cut at 12 tokens") in page


def test_a_run_without_texts_or_analysis_is_said(analysed: Path, quiet: Reporter, tmp_path: Path) -> None:
    (analysed / "vocabulary").rename(tmp_path / "gone")
    amend(analysed / "capture.json", lambda note: note["tables"].pop("vocabulary"))  # as older versions left it
    summary = write_report(analysed, ReportSettings(), quiet)
    assert summary["contexts"] == 0
    assert "captured without token texts: capture again" in (analysed / "report.html").read_text()
    (analysed / "analysis/summary.json").unlink()
    with pytest.raises(RunError, match="teachdiag analyze"):
        write_report(analysed, ReportSettings(), quiet)
