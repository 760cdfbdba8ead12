"""A rollout format and a loss from another package: import, capture and probe know them by their names.

The truth of the import is the ids that were written; that of the loss is float64 autograd on the models themselves.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from slow import plain_logp
from tiny_pair import KNOWN
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from teachdiag.artefacts import ISOLATED
from teachdiag.cli import app
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.probe import run_probe
from teachdiag.errors import InputError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import ProbeSettings, TrainSettings

Install = Callable[..., Path]

PACKAGE = '''
"""Lines of numbers: ids of the prompt, a bar, ids of the response; and the squared distance of probabilities."""

from teachdiag.diagnostics.imports.files import Format
from teachdiag.diagnostics.imports.records import Record, Row, Side, malformed
from teachdiag.losses import Loss


def rows(file):
    for number, line in enumerate(file.read_text().splitlines()):
        yield Row(f"{file}:{number + 1}", number, {"line": line}, str(file))


def parse(where, number, fields):
    if "|" not in fields["line"]:
        raise malformed("has no bar")
    prompt, response = (tuple(map(int, part.split())) for part in fields["line"].split("|"))
    return [Record(where, number, Side(ids=prompt), Side(ids=response))]


bars = Format(name="bars", help="lines of ids (.bars)", suffixes=(".bars",), rows=rows, parse=parse)
squared = Loss(
    lambda logp, logq, tokens, jsd_beta: jsd_beta * (logp.exp() - logq.exp()).square().sum(-1),
    "squared distance of probabilities",
    "a test",
    options=("jsd_beta",),
)
scalar = Loss(lambda logp, logq, tokens: logp.sum(), "one number", "a test")
'''
ENTRIES = {
    "teachdiag.imports": {"bars": "bars", "broken": "missing"},
    "teachdiag.losses": {"squared": "squared", "scalar": "scalar", "wrong": "bars"},
}


def _teachdiag(*words: object) -> str:
    done = CliRunner(env={"COLUMNS": "2000"}).invoke(app, list(map(str, words)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def rollouts(tmp_path: Path) -> dict[tuple[int, ...], tuple[int, ...]]:
    rng = np.random.default_rng(3)
    drawn = {tuple(map(int, rng.integers(0, 250, 6))): tuple(map(int, rng.integers(0, 250, 9))) for _ in range(12)}
    lines = [f"{' '.join(map(str, prompt))} | {' '.join(map(str, response))}" for prompt, response in drawn.items()]
    (tmp_path / "rollouts.bars").write_text("\n".join(lines))
    return drawn


def test_an_installed_format_and_loss_go_from_import_to_probe(
    plug_in: Install,
    tmp_path: Path,
    student_path: str,
    teacher_path: str,
    rollouts: dict[tuple[int, ...], tuple[int, ...]],
) -> None:
    plug_in("toy_imports", PACKAGE, ENTRIES)
    run, table, pair = tmp_path / "run", tmp_path / "c.parquet", ("--student", student_path, "--teacher", teacher_path)
    assert "Import lines of ids (.bars)" in _teachdiag("import", "bars", "--help")
    _teachdiag("import", "bars", tmp_path / "rollouts.bars", "--student", student_path, "--contexts", table)
    _teachdiag("capture", "--run", run, "--contexts", table, *pair, "--quiet")
    assert "'squared': squared distance of probabilities; 'wrong'" in _teachdiag("probe", "--help")
    options = ("--kind", "isolated", "--loss", "squared", "--jsd-beta", 0.25, "--sample", 0, "--fix-contexts", 1)
    _teachdiag("probe", "--run", run, "--name", "toy", *options, "--quiet")

    contexts = {c.context_id: c for c in read_contexts(run, Positions(64, "first"))}
    assert {c.student_prompt: c.response for c in contexts.values()} == rollouts
    steps = ISOLATED.read(run / "isolated/toy")
    assert set(steps["loss"]) == {"squared"}
    assert len(steps) == sum(len(c.response) for c in contexts.values() if c.split == "bank")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (student_path, teacher_path)
    )
    for context_id, rows in list(steps.groupby("context_id"))[:2]:
        context = contexts[context_id]
        logp, logq = plain_logp(student, context, "student", KNOWN), plain_logp(teacher, context, "teacher", KNOWN)
        for row in rows.itertuples():
            p, q = logp[row.position].exp(), logq[row.position].exp()
            value = sum(0.25 * (p[token] - q[token]) ** 2 for token in range(KNOWN))
            gradient = torch.autograd.grad(value, list(student.parameters()), retain_graph=True)
            norm_sq = sum(float((part**2).sum()) for part in gradient)
            assert row.gradient_norm_sq == pytest.approx(norm_sq, rel=1e-3)


def test_what_is_broken_is_refused_in_a_sentence(
    plug_in: Install, tmp_path: Path, student_path: str, rollouts: dict[tuple[int, ...], tuple[int, ...]]
) -> None:
    plug_in("toy_imports", PACKAGE, ENTRIES)
    out = ("--student", student_path, "--contexts", tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"^rollout format broken cannot be loaded: AttributeError"):
        _teachdiag("import", "broken", "x", *out)
    file = tmp_path / "rollouts.bars"
    good = file.read_text()
    file.write_text(good + "\n1 2 3")
    with pytest.raises(InputError, match=r"^.*rollouts.bars:13: has no bar .1 of 13 rows.; --skip-bad-rows"):
        _teachdiag("import", "bars", file, *out)
    file.write_text(good + "\none | two")
    with pytest.raises(InputError, match=r"^rollout format bars failed at .*:13: ValueError: invalid literal"):
        _teachdiag("import", "bars", file, *out)
    for settings in (ProbeSettings, TrainSettings):
        assert settings(loss="squared", jsd_beta=0.3).loss == "squared"
        with pytest.raises(SettingsError, match=r"^--jsd-beta belongs to --loss jsd: leave it out"):
            settings(loss="scalar", jsd_beta=0.3)
        with pytest.raises(SettingsError, match=r"^loss wrong is Format, no teachdiag.losses.Loss"):
            settings(loss="wrong")
        with pytest.raises(SettingsError, match=r"^no loss 'square': did you mean squared"):
            settings(loss="square")


def test_a_loss_gives_one_number_a_position(plug_in: Install, run: Path, quiet: Reporter) -> None:
    plug_in("toy_imports", PACKAGE, ENTRIES)
    with pytest.raises(SettingsError, match=r"^loss scalar: returned shape \(\) for \d+ positions"):
        run_probe(run, ProbeSettings(loss="scalar", learning_rate=1e-4), quiet)
