"""The page that puts steps on an adapter beside steps on all weights: numbers of the analysis, ranks by scipy."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from planted import claims_alone
from scipy.stats import spearmanr
from tiny_pair import EFFICIENCY_PROBE, PROBE

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import GAINS
from teachdiag.diagnostics.probe import run_probe
from teachdiag.figures.run_tables import load_tables
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings
from tools.adapters_page import claims_table, kept_table, tokens_table

QUIET = Reporter(quiet=True)
FRESH = "lora:r=2"


@pytest.mark.slow
def test_both_spaces_stand_beside_one_another(demo_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims_alone(monkeypatch)
    run = Path(shutil.copytree(demo_once, tmp_path / "tiny"))
    run_probe(run, replace(PROBE, name="one_step-adapter", train=FRESH), QUIET)
    run_probe(run, replace(EFFICIENCY_PROBE, name="efficiency-adapter", train=FRESH), QUIET)
    run_analysis(run, AnalyzeSettings(draws=100), QUIET)
    loaded = {"tiny": load_tables(run)}
    ours, theirs = (
        GAINS.read(run / "gains" / name).sort_values(["context_id", "position"])["gain"]
        for name in ("one_step", "one_step-adapter")
    )
    (row,) = tokens_table(loaded).to_dict("records")
    assert row == {
        "run": "tiny",
        "steps": f"all weights and {FRESH}",
        "rank correlation of gains": f"{spearmanr(ours, theirs).statistic:.2f}",
    }
    kept = kept_table(loaded)
    assert list(kept.columns) == ["selector", "tiny, all weights", f"tiny, {FRESH}"]
    heading = claims_table(loaded).splitlines()[0]
    assert "tiny, all weights" in heading
    assert f"tiny, {FRESH}" in heading
    assert "of the student's" in (run / "summary.md").read_text()
