"""Fixtures: a tiny random Qwen3 pair on disk, with a byte tokenizer, and prompts of a few words."""

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it: several processes run on the machine's few cores

from hypothesis import settings
from plug_ins import install

from teachdiag.cli import main
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings, CaptureSettings

# Models' libraries, the analysis and figures are loaded by the fixtures that need them: pytest's first process, which
# runs no test, does without, and so does a test of a few lines.
if TYPE_CHECKING:
    import torch

    from teachdiag.diagnostics.models.pair import Pair

gc.disable()  # until everything is imported, which stays
settings.register_profile("machines differ", deadline=None)  # speed belongs in the benchmarks
settings.load_profile("machines differ")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where tests that are marked `device` run; one that cannot be used is an error, never a fall-back."""
    parser.addoption("--device", default="cpu", help="torch device of the tests that are marked `device`")


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of every later garbage collection: there are millions of objects."""
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> "torch.device":
    import torch

    from teachdiag.diagnostics.processes.devices import pick_device

    return torch.device(pick_device(request.config.getoption("--device")))


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Install a package of one module: (name, its text, entry-point group -> name -> attribute) -> its folder."""
    return partial(install, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def student_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_pair import save_model

    return save_model(tmp_path_factory.mktemp("models") / "student", seed=1)


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory: pytest.TempPathFactory, student_path: str) -> str:
    """The student's weights disturbed, under a head with more padding."""
    import torch
    from tiny_pair import save_model
    from transformers import Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "teacher"
    save_model(folder, seed=2, rows=272)
    teacher, student = Qwen3ForCausalLM.from_pretrained(folder), Qwen3ForCausalLM.from_pretrained(student_path)
    with torch.no_grad():
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            rows = theirs.shape[0]
            ours[:rows].mul_(0.3).add_(theirs)
    teacher.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def manifest_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty short sums with worked solutions, as a user's own manifest."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [
        {"q": f"What is {a} + {a % 7}?" + "!" * (a % 5), "s": f"{a} + {a % 7} = {a + a % 7}", "a": str(a + a % 7)}
        for a in range(40)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "sums.toml"
    path.write_text(
        f"""id = "sums"
licence = "none needed"
[source]
kind = "file"
file = "{folder / "sums.jsonl"}"
[columns]
question = "q"
solution = "s"
answer = "a"
[template]
prompt = "{{question}}"
privileged = "{{question}} ({{solution}})"
"""
    )
    return str(path)


@pytest.fixture(scope="session")
def served_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Student and teacher, one with padding, that vLLM's CPU backend takes: it knows heads of 32 and more."""
    from tiny_pair import save_model

    folder, heads = tmp_path_factory.mktemp("pair"), {"head_dim": 32, "hidden_size": 64}
    return save_model(folder / "s", seed=1, rows=272, **heads), save_model(folder / "t", seed=2, rows=264, **heads)


@pytest.fixture(scope="session")
def tiny_settings(student_path: str, teacher_path: str, manifest_path: str) -> CaptureSettings:
    return CaptureSettings(
        student=student_path,
        teacher=teacher_path,
        prompts=manifest_path,
        bank_prompts=10,
        update_prompts=6,
        max_new_tokens=12,
        positions=10,
        positions_from="first",
        batch_tokens=100,
        tile_positions=7,
        shard_contexts=4,
    )


@pytest.fixture
def quiet() -> Reporter:
    return Reporter(quiet=True)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process, which must be refused in one sentence with exit code 2; return the sentence."""

    def command(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["teachdiag", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        sentence = said.err.strip()
        assert ended.value.code == 2, sentence
        assert sentence.startswith("teachdiag: "), sentence
        assert "\n" not in sentence
        assert said.out == ""
        return sentence

    return command


@pytest.fixture
def png_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures in one format, where the test is not about their files."""
    from teachdiag.figures import style

    monkeypatch.setattr(style, "_FORMATS", {"png": style._FORMATS["png"]})


@pytest.fixture
def svg_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures in the format that reports hold, where the test is not about the others."""
    from teachdiag.figures import style

    monkeypatch.setattr(style, "_FORMATS", {"svg": style._FORMATS["svg"]})


@pytest.fixture(scope="session")
def captured_once(tmp_path_factory: pytest.TempPathFactory, tiny_settings: CaptureSettings) -> Path:
    """A capture of the tiny pair, to be copied and not to be changed."""
    from teachdiag.diagnostics.capture import run_capture

    run = tmp_path_factory.mktemp("captured") / "run"
    run_capture(run, tiny_settings, Reporter(quiet=True))
    return run


@pytest.fixture(scope="session")
def analysed_once(tmp_path_factory: pytest.TempPathFactory, captured_once: Path) -> Path:
    """The same run, probed and analysed, with a figure; to be copied and not to be changed."""
    from tiny_pair import PROBE

    from teachdiag.analysis.analyze import run_analysis
    from teachdiag.diagnostics.probe import run_probe
    from teachdiag.figures.publish import publish

    run = tmp_path_factory.mktemp("analysed") / "run"
    shutil.copytree(captured_once, run)
    run_probe(run, PROBE, Reporter(quiet=True))
    run_analysis(run, AnalyzeSettings(draws=100), Reporter(quiet=True))
    publish(run, Reporter(quiet=True), "coefficients")
    return run


@pytest.fixture(scope="session")
def demo_once(tmp_path_factory: pytest.TempPathFactory, captured_once: Path) -> Path:
    """A run of the tiny pair with the probes of `make demo`, analysed; to be copied and not to be changed."""
    from tiny_pair import EFFICIENCY_PROBE, PROBE

    from teachdiag.analysis.analyze import run_analysis
    from teachdiag.diagnostics.probe import run_probe

    run = tmp_path_factory.mktemp("demo") / "run"
    shutil.copytree(captured_once, run)
    for probe in (replace(PROBE, name=""), EFFICIENCY_PROBE):
        run_probe(run, probe, Reporter(quiet=True))
    run_analysis(run, AnalyzeSettings(draws=100), Reporter(quiet=True))
    return run


@pytest.fixture
def run(tmp_path: Path, captured_once: Path) -> Path:
    """A capture of the tiny pair, of the test's own."""
    return Path(shutil.copytree(captured_once, tmp_path / "run"))


@pytest.fixture
def analysed(tmp_path: Path, analysed_once: Path) -> Path:
    """A run of the tiny pair that was probed and analysed, of the test's own."""
    return Path(shutil.copytree(analysed_once, tmp_path / "run"))


@pytest.fixture
def pair(tiny_settings: CaptureSettings, quiet: Reporter) -> "Pair":
    from teachdiag.diagnostics.models.pair import load_pair, resolve_pair

    return load_pair(resolve_pair(tiny_settings, quiet), "float32", "cpu")
