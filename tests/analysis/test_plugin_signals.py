"""Statistics and selectors of installed packages: a toy of each goes through capture, probe, analyze and report.

The truth is a float64 brute force over both models' whole distributions, one context at a time.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted import without_refits
from plug_ins import find_installed, install
from scipy.stats import spearmanr
from tiny_pair import KNOWN, PROBE
from transformers import Qwen3ForCausalLM

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.bank.measurements import load_bank
from teachdiag.artefacts import CONTEXTS, DECILES, ESTIMATES, INTERVENTIONS, POSITIONS, TOP_N
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.scoring.statistics import statistics
from teachdiag.errors import ArtefactError, RunError, SettingsError
from teachdiag.figures import style
from teachdiag.figures.publish import publish
from teachdiag.figures.report.html import write_report
from teachdiag.progress import Reporter
from teachdiag.selectors import Selection, resolve_selector
from teachdiag.settings import AnalyzeSettings, CaptureSettings, ReportSettings
from teachdiag.signals import positions_of, set_symbol

TEXT = """
import pyarrow as pa
from teachdiag.formulas import normed, product
from teachdiag.signals import Signal
from teachdiag.tables import Column

MARGIN = Signal(
    name="margin",
    column=Column("margin", pa.float32(), "nats", "the teacher's first choice less its second, log-probabilities"),
    measure="toy_signals:margin",
    label="the margin",
    symbol="m",
)
BOTH = Signal(name="both", score=product(normed("student_entropy"), normed("compatibility")))


def margin(logp, logq, tokens):
    first, second = logq.topk(2).values.unbind(-1)
    return first - second


def late(tokens):
    return tokens.column("position") + tokens.column("margin") / 1000


late.columns = ("position", "margin")
"""
ENTRIES = {"teachdiag.signals": {"margin": "MARGIN", "both": "BOTH"}, "teachdiag.selectors": {"late": "late"}}


def margins(run: Path, teacher: str) -> pd.Series:
    """Return the statistic of every position, by (context_id, position), in float64 from one pass a context."""
    model = Qwen3ForCausalLM.from_pretrained(teacher).double()
    contexts = CONTEXTS.read(run / "contexts").set_index("context_id")
    found = {}
    for context_id, position in POSITIONS.read(run / "positions", ["context_id", "position"]).itertuples(index=False):
        prompt, response = (list(contexts[c][context_id]) for c in ("teacher_prompt_token_ids", "response_token_ids"))
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response[:position]])).logits[0, -1, :KNOWN]
        first, second = sorted(torch.log_softmax(logits, -1).tolist(), reverse=True)[:2]
        found[context_id, position] = first - second
    return pd.Series(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugged")


@pytest.fixture(scope="module")
def run(folder: Path, tiny_settings: CaptureSettings) -> Path:
    """A run that was captured, probed, analysed and published where the toys were installed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(folder, monkeypatch, "toy_signals", TEXT, ENTRIES)
        without_refits(monkeypatch)
        run, quiet = folder / "run", Reporter(quiet=True)
        run_capture(run, tiny_settings, quiet)
        run_probe(run, PROBE, quiet)
        selectors = replace(PROBE, draws=0, name="s", kind="selectors", seeds=1, budgets="0.3", fix_contexts=1)
        run_probe(run, selectors, quiet)
        run_analysis(run, AnalyzeSettings(draws=100), quiet)
        monkeypatch.setattr(style, "_FORMATS", {"svg": style._FORMATS["svg"]})
        publish(run, quiet)
        write_report(run, ReportSettings(contexts=2), quiet)
    return run


@pytest.fixture
def toys(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys, installed."""
    find_installed(folder, monkeypatch)


@pytest.mark.slow
def test_the_statistic_is_stored_as_float64_has_it(run: Path, teacher_path: str, toys: None) -> None:
    stored = positions_of(run / "positions").read(run / "positions").set_index(["context_id", "position"])["margin"]
    expected = margins(run, teacher_path)
    np.testing.assert_allclose(stored.loc[expected.index], expected, atol=1e-4)
    assert json.loads((run / "capture.json").read_text())["inputs"]["signals"] == {"margin": "toy_signals:margin"}


def test_signals_and_selectors_are_analysed_like_the_built_in_ones(run: Path, teacher_path: str) -> None:
    estimates = ESTIMATES.read(run / "analysis/estimates.parquet")
    mine = estimates[(estimates["probe_id"] == "p") & (estimates["outcome"] == "gain")]
    for analysis in ("cv_r2", "cv_rank"):
        terms = set(mine[mine["analysis"] == analysis]["term"])
        assert {"margin", "forward_kl + margin", "both", "forward_kl + both"} <= terms
    correlations = mine[mine["analysis"] == "spearman"].set_index(["term", "k"])["estimate"]
    gains = pd.read_parquet(run / "gains/p").set_index(["context_id", "position"])["gain"]
    expected = spearmanr(margins(run, teacher_path)[gains.index], gains).statistic
    assert correlations["margin"].iloc[0] == pytest.approx(expected, abs=1e-3)
    assert list(correlations["both"].index) == [8, 16, 32]
    deciles = DECILES.read(run / "analysis/deciles.parquet")
    assert {"margin", "both"} <= set(deciles["score"])
    taken = TOP_N.read(run / "analysis/top_n.parquet")
    assert {"margin", "both", "late"} <= set(taken["selector"])
    assert taken[taken["selector"] == "both"]["k"].notna().all()
    assert "| the margin |" in (run / "summary.md").read_text()


def test_the_selector_keeps_what_it_scores_highest(run: Path, teacher_path: str, toys: None) -> None:
    kept = INTERVENTIONS.read(run / "interventions/s").query("match == 'rate'").set_index("selector")
    batch = pd.MultiIndex.from_arrays([kept.loc["all"]["kept_context_ids"], kept.loc["all"]["kept_positions"]])
    values = margins(run, teacher_path)[batch]
    for name, scores in {"margin": values, "late": batch.get_level_values(1) + values / 1000}.items():
        row = kept.loc[name]
        index = pd.MultiIndex.from_arrays([row["kept_context_ids"], row["kept_positions"]])
        assert len(index) == -(-3 * len(batch) // 10)
        assert scores[index].min() >= scores.drop(index).max() - 1e-4
    assert Selection("margin").columns == ("context_id", "position", "margin")


def test_figures_and_report_show_it_by_its_names(run: Path, toys: None) -> None:
    assert set_symbol("forward_kl + margin") == "raw KL + m"
    page = (run / "report.html").read_text()
    content = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert content
    data = json.loads(content[1])
    place = [column["name"] for column in data["columns"]].index("the margin")
    stored = positions_of(run / "positions").read(run / "positions").set_index(["context_id", "position"])["margin"]
    for (context,) in data["rows"]:
        for position, token in enumerate(context["tokens"]):
            assert token["v"][place] == pytest.approx(stored[context["id"], position], rel=1e-3)
    assert (run / "figures/deciles.svg").exists()


def test_without_the_package_a_run_is_read_without_it(run: Path, tmp_path: Path, quiet: Reporter) -> None:
    assert "margin" not in POSITIONS.read(run / "positions").columns
    shutil.copytree(run, tmp_path / "copy")
    run_analysis(tmp_path / "copy", AnalyzeSettings(draws=100), quiet)
    estimates = ESTIMATES.read(tmp_path / "copy/analysis/estimates.parquet")
    assert not estimates["term"].str.contains("margin").any()
    with pytest.raises(SettingsError, match=r"^no selector 'margin'"):
        resolve_selector("margin")


def test_a_capture_with_the_package_is_not_continued_without_it(
    run: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    with pytest.raises(RunError, match=r"another configuration \(signals was \{'margin': 'toy_signals:margin'"):
        run_capture(run, tiny_settings, quiet)


def test_a_run_captured_without_it_is_read_without_it_and_refuses_its_selector(
    captured_without: Path, toys: None, quiet: Reporter
) -> None:
    probe = replace(
        PROBE, draws=0, name="s", kind="selectors", seeds=1, budgets="0.3", fix_contexts=1, selector="margin"
    )
    with pytest.raises(ArtefactError, match="positions lacks margin: it was captured without the package"):
        run_probe(captured_without, probe, quiet)
    run_analysis(captured_without, AnalyzeSettings(draws=100), quiet)
    estimates = ESTIMATES.read(captured_without / "analysis/estimates.parquet")
    assert not estimates["term"].str.contains("margin").any()
    assert (estimates["term"] == "both").any()  # which reads built-in columns alone


@pytest.fixture
def captured_without(tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter) -> Path:
    run_capture(tmp_path / "without", tiny_settings, quiet)
    run_probe(tmp_path / "without", PROBE, quiet)
    return tmp_path / "without"


def test_another_statistic_of_the_same_name_is_refused(run: Path, plug_in: Callable[..., Path]) -> None:
    text = TEXT.replace("first choice less its second", "second choice less its third")
    plug_in("toy_others", text, {"teachdiag.signals": {"margin": "MARGIN"}})
    with pytest.raises(ArtefactError, match="holds another margin than the installed package measures"):
        load_bank(run)


def test_a_signal_with_the_name_of_a_selector_is_refused(plug_in: Callable[..., Path]) -> None:
    text = TEXT.replace('"both"', '"random"')
    plug_in("toy_random", text, {"teachdiag.signals": {"random": "BOTH"}})
    with pytest.raises(
        SettingsError, match=r"^the name random of entry-point group teachdiag\.selectors is taken twice"
    ):
        resolve_selector("entropy")


_FAULTY = {  # what replaces what in the toy -> the sentence
    "no_signal": ("MARGIN = Signal(", "MARGIN = dict(", "is of type dict: it must be a teachdiag.signals.Signal"),
    "other_name": ('name="margin"', 'name="other"', "is called 'other': its name must be that of its entry point"),
    "taken": ('"margin"', '"jsd"', "has the name of a column of the table positions"),
    "no_score": ('symbol="m"', "score=3", r"has no teachdiag\.formulas\.Score as its score"),
    "column": ('Column("margin"', 'Column("other"', "has a column 'other'"),
    "type": ("pa.float32()", "pa.int32()", "has a column of int32: it must be float32 or float64"),
    "measure": ('"toy_faulty:margin"', '"toy_faulty"', "has a measure 'toy_faulty': it must be 'module:function'"),
    "roles": ('symbol="m"', 'roles=("no",)', r"has roles \('no',\): they must be among compared, validity, deciles"),
    "reads": ('symbol="m"', 'score=normed("no_such")', "reads no_such: these are no columns of the table positions"),
    "absent": ("def margin(", "def elsewhere(", "cannot be loaded: AttributeError"),
    "fails": ("return first - second", "raise SystemExit(3)", "failed: SystemExit: 3"),
    "shape": ("return first - second", "return first[:1]", r"returned torch.float32 of shape \(1,\), where a floating"),
    "type_of_result": ("return first - second", "return 3", "returned 3, where a floating number for each of"),
    "nan": ("return first - second", "return first * float('nan')", "is nan at a position: it must be finite"),
}


@pytest.mark.parametrize("fault", _FAULTY)
def test_what_a_package_does_wrong_is_a_sentence_that_names_the_signal(
    fault: str, plug_in: Callable[..., Path]
) -> None:
    module = f"toy_{fault}"  # of its own, since a process loads what an entry point names once
    old, new, sentence = (part.replace("toy_faulty", module) for part in _FAULTY[fault])
    text = TEXT.replace("toy_signals:", f"{module}:").replace(old, new)
    name = "jsd" if fault == "taken" else "margin"
    plug_in(module, text, {"teachdiag.signals": {name: "MARGIN"}})
    logits = torch.randn(3, 60)
    with pytest.raises(SettingsError, match=f"^signal {name} {sentence}"):
        statistics(logits, logits, torch.zeros(3, dtype=torch.int64))
