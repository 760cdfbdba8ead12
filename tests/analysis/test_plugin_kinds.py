"""A kind of probe and two figures of an installed package go through probe, analyze, figures and report.

The toy shrinks the student's weights. The truth is a float64 brute force: transformers' own models, one pass a
position, with the same weights shrunk.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted import without_refits
from plug_ins import find_installed, install
from tiny_pair import KNOWN
from transformers import Qwen3ForCausalLM

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.report.summary import terminal_tables
from teachdiag.artefacts import CONTEXTS, ESTIMATES, POSITIONS
from teachdiag.cli import main
from teachdiag.diagnostics.capture import run_capture
from teachdiag.errors import SettingsError
from teachdiag.figures import style
from teachdiag.figures.publish import publish
from teachdiag.figures.report.html import write_report
from teachdiag.plots import PLOTS
from teachdiag.progress import Reporter
from teachdiag.settings import KINDS, AnalyzeSettings, CaptureSettings, ProbeSettings, ReportSettings

SHRINK = 0.1
DECLARED = """
from teachdiag.artefacts.columns import CONTEXT_ID, KL_BEFORE, POSITION, PROBE_ID
from teachdiag.plots import STEP, Plot
from teachdiag.settings import Kind
from teachdiag.tables import Column, Table

SHRUNK = Kind(
    name="shrunk",
    help="the student with all weights shrunk",
    measured_by="toy_measured:Shrunk",
    analysed_by="toy_analysed:Shrunk",
    folders=("shrunk",),
    options=("learning_rate", "optimizer"),
    optimizers=("sgd",),
    usual_rate=lambda settings: 0.1,
)
AFTER = Column("forward_kl_after", KL_BEFORE.type, "nats", "KL(q || p) of the shrunk student")
TABLE = Table(
    name="shrunk",
    folder="shrunk/<probe_id>/",
    written_by="probe",
    meaning="What shrinking does.",
    key=("probe_id", "context_id", "position"),
    columns=(PROBE_ID, CONTEXT_ID, POSITION, KL_BEFORE, AFTER),
)
SPREAD = Plot("shrunk_spread", "shrunk", "what does shrinking do?", "toy_drawn:draw_probe")
STEPS = Plot("toy_step", STEP, "mean gain of each update", "toy_drawn:draw_step")
"""
MEASURED = """
import pyarrow as pa
from teachdiag.diagnostics.models.alignment import KEY
from teachdiag.diagnostics.probes.measurement import Measurement
from teachdiag.tables import write_table
from toy_declared import TABLE


class Shrunk(Measurement):
    def measure(self, setup):
        setup.rescore_shards("before", setup.batched, "theta0")
        before = pa.concat_tables(setup.shards("before")).sort_by(KEY)
        weights = [parameter.detach().clone() for _, parameter in setup.student.parameters()]
        setup.theta0.displace(weights, -self.settings.step_size)
        setup.rescore_shards("after", setup.batched, "shrunk")
        setup.theta0.restore()
        setup.theta0.verify()
        table = TABLE.build(
            {
                "probe_id": [setup.probe_id] * before.num_rows,
                "context_id": before["context_id"],
                "position": before["position"],
                "forward_kl_before": before["forward_kl"],
                "forward_kl_after": setup.forward_kl("after"),
            }
        )
        write_table(table, setup.run / "shrunk" / setup.probe_id)
        return setup.compare_with_capture(before) | {"positions": before.num_rows}
"""
ANALYSED = """
import pandas as pd
from teachdiag.analysis.kinds.kind import KindAnalysis
from teachdiag.artefacts import ESTIMATES
from toy_declared import TABLE


class Shrunk(KindAnalysis):
    title = "The shrunk student"

    def estimates(self, inputs):
        frame = TABLE.read(inputs.run / "shrunk" / self.probe_id)
        row = {"analysis": "shrunk_mean", "probe_id": self.probe_id, "update": "shrunk", "outcome": "gain", "k": None}
        row |= {"term": "bank", "unit": "nats", "method": "mean"}
        row |= dict.fromkeys(("ci_low", "ci_high", "std_error", "draw_error"))
        row |= {"n_positions": len(frame), "n_prompts": inputs.bank.n_prompts, "n_dropped": 0}
        gain = frame["forward_kl_before"] - frame["forward_kl_after"]
        return {ESTIMATES: [row | {"estimate": gain.astype("float64").mean()}]}

    def text(self):
        return f"All weights shrunk by {self.settings['learning_rate']:g}."

    def sentences(self, results):
        return [f"Shrinking gains {self._mean(results):.3g} nats."]

    def tables(self, results):
        return {"What shrinking gains": pd.DataFrame({"mean gain [nats]": [f"{self._mean(results):.3g}"]})}

    def measured(self, title):
        return [title, f"{self.record.results['positions']} positions were rescored"]

    def _mean(self, results):
        rows = results.estimates
        return rows[(rows["probe_id"] == self.probe_id) & (rows["analysis"] == "shrunk_mean")]["estimate"].iloc[0]
"""
DRAWN = """
from teachdiag.figures.style import blank_figure
from toy_declared import TABLE


def draw_probe(tables, probe_id):
    frame = TABLE.read(tables.run / "shrunk" / probe_id)
    figure = blank_figure(2.0)
    figure.tell("Shrinking, before and after.", "A cloud along the diagonal.")
    figure.subplots().plot(frame["forward_kl_before"], frame["forward_kl_after"], ".")
    return figure


def draw_step(step):
    figure = blank_figure(2.0)
    figure.subplots().bar(list(step.updates), range(len(step.updates)))
    return figure
"""
ENTRIES = {
    "teachdiag.kinds": {"shrunk": "SHRUNK"},
    "teachdiag.figures": {"shrunk_spread": "SPREAD", "toy_step": "STEPS"},
}


def _command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["teachdiag", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugged")


@pytest.fixture(scope="module")
def run(folder: Path, tiny_settings: CaptureSettings) -> Path:
    """A run that was captured, probed, analysed and published where the toys were installed."""
    run, quiet = folder / "run", Reporter(quiet=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_refits(monkeypatch)
        site = install(folder, monkeypatch, "toy_declared", DECLARED, ENTRIES)
        for name, text in (("toy_measured", MEASURED), ("toy_analysed", ANALYSED), ("toy_drawn", DRAWN)):
            (site / f"{name}.py").write_text(text)
        run_capture(run, tiny_settings, quiet)
        small = ("--run", str(run), "--batch-tokens", "100", "--tile-positions", "7", "--quiet")
        _command(monkeypatch, "probe", *small, "--name", "p", "--learning-rate", "1e-4")
        _command(monkeypatch, "probe", *small, "--name", "s", "--kind", "shrunk")
        run_analysis(run, AnalyzeSettings(draws=100), quiet)
        monkeypatch.setattr(style, "_FORMATS", {"svg": style._FORMATS["svg"]})
        publish(run, quiet)
        write_report(run, ReportSettings(contexts=2), quiet)
    return run


@pytest.fixture
def toys(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys, installed."""
    find_installed(folder, monkeypatch)


def _gains(run: Path, student: str, teacher: str) -> pd.Series:
    """Return KL(q || p) less that of the shrunk student at every bank position, in float64, a pass a position."""
    plain, shrunk, target = (Qwen3ForCausalLM.from_pretrained(path).double() for path in (student, student, teacher))
    with torch.no_grad():
        for parameter in shrunk.parameters():
            parameter.mul_(1 - SHRINK)
    contexts = CONTEXTS.read(run / "contexts").set_index("context_id")
    positions = POSITIONS.read(run / "positions", ["context_id", "position", "split"]).query("split == 'bank'")
    found = {}
    for context_id, position, _ in positions.itertuples(index=False):
        context = contexts.loc[context_id]
        prefix = [*context["prompt_token_ids"], *context["response_token_ids"][:position]]
        with torch.no_grad():
            logits = (model(torch.tensor([prefix])).logits[0, -1, :KNOWN] for model in (plain, shrunk, target))
            p, after, q = (torch.log_softmax(z, -1) for z in logits)
        found[context_id, position] = float((q.exp() * (after - p)).sum())
    return pd.Series(found)


def test_the_kind_measures_what_float64_has(run: Path, student_path: str, teacher_path: str) -> None:
    table = pd.read_parquet(run / "shrunk/s").set_index(["context_id", "position"])
    expected = _gains(run, student_path, teacher_path)
    measured = (table["forward_kl_before"] - table["forward_kl_after"]).loc[expected.index]
    np.testing.assert_allclose(measured, expected, atol=1e-4)
    assert expected.std() > 0.01
    note = json.loads((run / "probes/s.json").read_text())
    assert note["status"] == "complete"
    assert list(note["tables"]) == ["shrunk/s"]
    assert note["settings"] == ProbeSettings(name="s", batch_tokens=100, tile_positions=7).as_dict() | {
        "kind": "shrunk",
        "learning_rate": SHRINK,
        "optimizer": "sgd",
    }
    estimates = ESTIMATES.read(run / "analysis/estimates.parquet").query("probe_id == 's'")
    assert estimates["analysis"].tolist() == ["shrunk_mean"]
    assert estimates["estimate"].iloc[0] == pytest.approx(expected.mean(), abs=1e-5)


def test_the_kind_and_the_figures_stand_beside_the_built_in_ones(run: Path, toys: None) -> None:
    summary = (run / "summary.md").read_text()
    assert "## The shrunk student `s`\n\nAll weights shrunk by 0.1." in summary
    assert re.search(r"- Shrinking gains -?[\d.]+ nats\.", summary)
    assert "![what does shrinking do?](figures/shrunk_spread.png)" in summary
    assert "![mean gain of each update](figures/toy_step.png)" in summary
    assert {"shrunk_spread.svg", "toy_step.svg", "coefficients.svg"} <= {f.name for f in (run / "figures").iterdir()}
    page = (run / "report.html").read_text()
    assert "The shrunk student <code>s</code>" in page
    assert 'alt="A cloud along the diagonal."' in page
    assert "<strong>what does shrinking do?</strong> Shrinking, before and after." in page
    assert "<strong>mean gain of each update</strong>" in page
    assert "What shrinking gains" in {table.title for table in terminal_tables(run)}


def test_help_and_lists_name_them(
    toys: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command(monkeypatch, "figures", "--list")
    assert {"shrunk_spread figure shrunk", "toy_step figure step"} <= set(capsys.readouterr().out.splitlines())
    _command(monkeypatch, "probe", "--help")
    assert "shrunk" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="--optimizer is 'adamw': it must be 'sgd' with --kind shrunk"):
        ProbeSettings(kind="shrunk", optimizer="adamw")
    with pytest.raises(
        SettingsError, match="--draws belongs to --kind one_step or placebo or checkpoint, not to shrunk"
    ):
        ProbeSettings(kind="shrunk", draws=2)


def test_an_unknown_kind_is_refused_with_the_known_ones(refused: Callable[..., str], run: Path) -> None:
    known = "one_step, checkpoint, placebo, selectors, efficiency, lds, isolated, predicted"
    said = refused("probe", "--run", str(run), "--kind", "shrunk")
    assert f"no kind of probe 'shrunk': choose from {known}" in said
    assert "did you mean isolated?" in refused("probe", "--run", str(run), "--kind", "isolatd")


@pytest.mark.usefixtures("svg_alone")
def test_a_probe_whose_kind_is_gone_is_left_out_by_name(run: Path, tmp_path: Path, quiet: Reporter) -> None:
    assert "shrunk" not in KINDS
    assert "toy_step" not in PLOTS
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (sentence,) = run_analysis(copied, AnalyzeSettings(draws=100), quiet)["left_out"]
    assert sentence.startswith("probe s is of kind shrunk, which is not installed, and left out: install the package")
    publish(copied, quiet)
    write_report(copied, ReportSettings(contexts=2), quiet)
    assert "shrunk student" not in (copied / "report.html").read_text()
