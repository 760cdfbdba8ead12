"""A run as `open_run` gives it: the frames are the files, the bank a join by hand, and what is missing is said.

The truth is what pandas reads from the run's folder, and its notes as JSON.
"""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from stages import amend

import teachdiag
from teachdiag.artefacts import TABLES
from teachdiag.errors import ArtefactError, InputError, RunError, SettingsError
from teachdiag.run_view import Run, open_run

pytestmark = pytest.mark.slow

PLACEBO = "p.shuffled_teacher"


@pytest.fixture
def opened(analysed_once: Path) -> Run:
    return open_run(analysed_once)


def _unfinished(note: Path) -> None:
    def change(content: dict) -> None:
        content["status"] = "running"
        del content["results"], content["tables"]

    amend(note, change)


def test_the_door_stays_light() -> None:
    code = (
        "import sys, teachdiag; assert not {'pandas', 'numpy'} & set(sys.modules); assert 'open_run' in dir(teachdiag);"
        "teachdiag.open_run; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_table_is_what_lies_on_disk(opened: Run) -> None:
    folders = {t.name: opened.path / t.folder.partition("<")[0] for t in TABLES}
    there = {
        t.name
        for t in TABLES
        if t.file(opened.path).exists() or (folders[t.name].name != "analysis" and folders[t.name].exists())
    }
    assert set(opened.tables) == there
    assert {"contexts", "vocabulary", "positions", "gains", "tokens", "estimates", "primary"} <= there
    for table in TABLES:
        if table.name not in there:
            continue
        whole = table.file(opened.path)
        expected = pd.read_parquet(whole if whole.exists() else folders[table.name])
        mine = opened.table(table.name)
        key = [name for name in table.key if name in mine]
        pd.testing.assert_frame_equal(
            mine.sort_values(key, ignore_index=True), expected.sort_values(key, ignore_index=True), check_dtype=False
        )
    assert opened.positions is opened.positions is opened.table("positions")
    assert set(opened.tables) <= set(dir(opened))
    assert list(opened.table("positions", ["jsd", "position"])) == ["jsd", "position"]


def test_the_bank_is_the_join_of_positions_and_gains(opened: Run) -> None:
    positions = pd.read_parquet(opened.path / "positions")
    gains = {
        (row["context_id"], row["position"]): row["gain"]
        for row in pd.read_parquet(opened.path / "gains/p").to_dict("records")
    }
    texts = pd.read_parquet(opened.path / "vocabulary").set_index("token_id")["text"].to_dict()
    rows = [row for row in positions.to_dict("records") if row["split"] == "bank"]
    rows.sort(key=lambda row: (row["context_id"], row["position"]))
    bank = opened.bank()
    assert set(bank) == {*opened.positions, *opened.gains, "token"}
    assert not bank.duplicated(["context_id", "position"]).any()
    assert len(bank) == len(rows)
    for name in ("context_id", "position", "prompt_id", "forward_kl"):
        assert bank[name].tolist() == [row[name] for row in rows]
    assert bank["gain"].tolist() == [gains[row["context_id"], row["position"]] for row in rows]
    assert bank["token"].tolist() == [texts[row["token_id"]] for row in rows]
    assert set(bank["update"]) == {"one_step"}
    few = opened.bank(columns=["gain", "token"])
    assert list(few) == ["context_id", "position", "gain", "token"]
    pd.testing.assert_frame_equal(few, bank[list(few)])


def test_a_placebo_with_several_draws_is_asked_for_by_draw(analysed: Path) -> None:
    shard = sorted((analysed / "gains" / PLACEBO).glob("*.parquet"))[0]
    again = pd.read_parquet(shard)
    run = open_run(analysed)
    first = run.bank(PLACEBO)  # one draw needs no number
    np.testing.assert_array_equal(first["gain"], run.bank(PLACEBO, draw=0)["gain"])
    assert set(first["update"]) == {"shuffled_teacher"}
    again["draw"], again["gain"] = np.int32(1), again["gain"] + np.float32(1)
    again.to_parquet(shard.with_name("part-00099.parquet"))
    with pytest.raises(
        SettingsError, match=rf"{PLACEBO} was drawn several times: choose one, as draw=0 \(it has 0, 1\)"
    ):
        run.bank(PLACEBO)
    with pytest.raises(SettingsError, match=f"{PLACEBO} has no draw 7: it has 0, 1"):
        run.bank(PLACEBO, draw=7)
    second = run.bank(PLACEBO, draw=1)
    assert len(second) == len(again)  # those that were rescored
    both = second.merge(first, on=["context_id", "position"])
    np.testing.assert_allclose(both["gain_x"], both["gain_y"] + 1, rtol=1e-6)


def test_the_verdict_is_what_analyze_recorded(opened: Run) -> None:
    results = json.loads((opened.path / "analyze.json").read_text())["results"]
    said, verdict = results["headline"], opened.verdict
    assert verdict.sentences == tuple(said["sentences"])
    assert (verdict.action, verdict.command, verdict.caveats) == (said["action"], said["command"], said["caveats"])
    assert list(verdict.details) == results["verdict"]
    printed, page = " ".join(repr(verdict).split()), verdict._repr_markdown_()
    for text in (*said["sentences"], said["action"], said["caveats"]):
        assert " ".join(text.split()) in printed
        assert text in page
    assert f"\n  {said['command']}" in repr(verdict) or not said["command"]


def test_a_figure_is_drawn_and_shows_itself(opened: Run) -> None:
    figure = opened.figure("coefficients")
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_xlabel() or figure.axes[0].get_ylabel()
    image, size = figure._repr_png_()  # type: ignore[attr-defined]
    assert image.startswith(b"\x89PNG")
    pixels = [int.from_bytes(image[start : start + 4], "big") for start in (16, 20)]
    assert pixels == pytest.approx([2 * size["width"], 2 * size["height"]], abs=2)
    page = figure._repr_html_()  # type: ignore[attr-defined]
    assert f">{escape(figure.caption)}</figcaption>" in page  # type: ignore[attr-defined]
    assert f'alt="{escape(figure.seen)}"' in page  # type: ignore[attr-defined]
    assert "coefficients" in opened.figures


def test_tokens_stand_in_a_frame_of_their_own(opened: Run) -> None:
    bank = opened.bank()
    shown = opened.tokens(bank["context_id"][5])
    (frame,) = re.findall(r'<iframe srcdoc="([^"]*)"[^<>]*></iframe>', shown._repr_html_())
    assert unescape(frame) == shown.html
    assert not re.search(r'(src|href)="(?!data:|#)', shown.html)
    data = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', shown.html, re.DOTALL)[0])
    ((context,),) = data["rows"]
    assert context["id"] == bank["context_id"][5]
    assert len(context["tokens"]) == (bank["context_id"] == context["id"]).sum()
    assert repr(shown).startswith(f"<context {context['id']} of ")
    with pytest.raises(ArtefactError, match="the bank has no context 999: its context_id are 0 to 9"):
        opened.tokens(999)


def test_columns_are_explained(opened: Run) -> None:
    explained = opened.explain("gains").set_index("column")
    assert list(explained.index) == list(opened.gains)
    assert explained.loc["gain", "unit"] == "nats"
    assert explained.loc["gain", "meaning"].startswith("forward_kl_before - forward_kl_after")


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (lambda run: run.table("position"), ArtefactError, "no table is called 'position': .* has contexts, vocab"),
        (lambda run: run.position, AttributeError, "no table or attribute 'position'; .* has contexts, vocab"),
        (
            lambda run: run.isolated,
            ArtefactError,
            "has no isolated, which `teachdiag probe --kind isolated` writes; its",
        ),
        (lambda run: run.table("gains", ["jsd"]), ArtefactError, "table gains has no column jsd: choose from probe_id"),
        (lambda run: run.bank(columns=["jds"]), ArtefactError, "the bank has no column jds: choose from context_id"),
        (lambda run: run.bank("q"), ArtefactError, r"has no gains of 'q': it has those of p, p\.theta0"),
        (lambda run: run.bank(draw=1), SettingsError, "p has no draw 1: it has 0"),
        (
            lambda run: run.figure("efficiency"),
            ArtefactError,
            "has no figure 'efficiency': its figures are plane, coef",
        ),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(
    opened: Run, asked: Callable[[Run], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        asked(opened)
    assert "\n" not in str(refused.value)


def test_it_says_what_it_is(opened: Run) -> None:
    results = json.loads((opened.path / "capture.json").read_text())["results"]
    said, page = " ".join(repr(opened).split()), opened._repr_html_()
    counts = f"sums, {results['prompts']['bank']} for the bank ({results['positions']['bank']} positions)"
    assert counts in said
    assert counts in page
    assert "stages capture, analyze probes p headline" in said
    assert opened.verdict.sentences[0] in said
    assert page.count("<tr>") == page.count("</tr>") == 8
    assert "<b>" not in Run(Path("<b>"))._repr_html_()


def test_a_run_at_capture_opens_and_says_what_is_missing(run: Path) -> None:
    no_probe = open_run(run)
    assert no_probe.tables == ("contexts", "vocabulary", "positions")
    assert "none yet: `teachdiag probe" in " ".join(repr(no_probe).split())
    with pytest.raises(ArtefactError, match="has no gains, which `teachdiag probe` writes; its tables: contexts, "):
        no_probe.bank()
    with pytest.raises(RunError, match="has no analyze stage: run `teachdiag analyze"):
        _ = no_probe.verdict
    with pytest.raises(RunError, match="has no analyze stage: run `teachdiag analyze"):
        no_probe.figure("plane")
    _unfinished(run / "capture.json")
    captured = open_run(run)
    assert captured.stages == {"capture": "running"}
    assert captured.tables == ()
    assert "unfinished: capture" in repr(captured)
    with pytest.raises(
        ArtefactError, match=r"has no positions, .* writes \(unfinished: capture\); its tables: none yet"
    ):
        _ = captured.positions


def test_a_run_at_analyze_opens_and_says_what_is_missing(analysed: Path) -> None:
    for name in ("analyze", "probes/p"):
        _unfinished(analysed / f"{name}.json")
    half = open_run(analysed)
    assert half.tables == ("contexts", "vocabulary", "positions")
    with pytest.raises(ArtefactError, match=r"has no estimates, which `teachdiag analyze` writes \(unfinished: prob"):
        _ = half.estimates
    with pytest.raises(RunError, match=r"the analyze stage of .* is unfinished"):
        _ = half.verdict
    assert half._repr_html_()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run directory .*: run `teachdiag capture --run"):
        teachdiag.open_run(tmp_path / "none")
    with pytest.raises(InputError, match="is no run directory, since no stage has left its note there"):
        teachdiag.open_run(str(tmp_path))


def test_jupyter_and_copy_find_only_what_there_is(opened: Run) -> None:
    assert not hasattr(opened, "_ipython_display_")
    assert copy.copy(opened) == opened
