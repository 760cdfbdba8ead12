"""Capture and probe as stages on the tiny pair: what they write, and resuming to the same bytes.

The truth: a run that was not killed, distributions by plain transformers, and a step of nothing.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from stages import Killed, dying, tables
from tiny_pair import PROBE, byte_tokenizer

from teachdiag.artefacts import CONTEXTS, GAINS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts import sampling as rollouts_module
from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.engines import in_process
from teachdiag.diagnostics.models.pair import load_pair, resolve_pair
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import probe_setup, steps
from teachdiag.diagnostics.probes.theta0 import Theta0
from teachdiag.diagnostics.probes.updates import Step
from teachdiag.diagnostics.scoring import positions_table as positions_module
from teachdiag.errors import EstimationError, RunError
from teachdiag.progress import Reporter
from teachdiag.runs import table_digest
from teachdiag.settings import CaptureSettings


def test_capture_writes_disjoint_frozen_contexts(run: Path, tiny_settings: CaptureSettings) -> None:
    contexts, positions = CONTEXTS.read(run / "contexts"), POSITIONS.read(run / "positions")
    split = contexts.groupby("split")["prompt_id"].agg(set)
    assert len(split["bank"]) == 10
    assert len(split["update"]) == 6
    assert not split["bank"] & split["update"]
    kept = contexts.set_index("context_id")["response_token_ids"].map(len).clip(upper=tiny_settings.positions)
    pd.testing.assert_series_equal(positions.groupby("context_id").size(), kept, check_names=False)
    tokens = {
        (c, t): token
        for c, ids in contexts.set_index("context_id")["response_token_ids"].items()
        for t, token in enumerate(ids)
    }
    assert all(
        tokens[c, t] == token
        for c, t, token in positions[["context_id", "position", "token_id"]].itertuples(index=False)
    )
    stops = contexts["response_token_ids"].map(lambda ids: ids[-1] == 256)
    assert ((contexts["finish_reason"] == "stop") == stops).all()
    last = positions.groupby("context_id")["pos_norm"].max()
    assert set(last[kept > 1]) == {1.0}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    run_capture(tmp_path / "again", tiny_settings, quiet)
    run_capture(tmp_path / "other", replace(tiny_settings, seed=1), quiet)
    assert tables(tmp_path / "again") == tables(run)
    assert (tmp_path / "again/capture.json").read_bytes() == (run / "capture.json").read_bytes()
    assert tables(tmp_path / "other") != tables(run)


def test_a_rollout_depends_on_its_seed_and_not_on_its_batch(tiny_settings: CaptureSettings, quiet: Reporter) -> None:
    pair = load_pair(resolve_pair(tiny_settings, quiet), "float32", "cpu")
    prompts = [(1, 2, 3), (9, 8, 7, 6, 5), (4,)]
    together = sample(pair.student, prompts, [10, 11, 12], tiny_settings.sampling)
    alone = [
        sample(pair.student, [p], [s], tiny_settings.sampling)[0] for p, s in zip(prompts, [10, 11, 12], strict=True)
    ]
    assert together == alone
    assert together != sample(pair.student, prompts, [13, 14, 15], tiny_settings.sampling)


def test_rollouts_follow_the_students_distribution(tiny_settings: CaptureSettings, quiet: Reporter) -> None:
    """The first token of 4,000 rollouts has the frequencies that the model states, at two temperatures."""
    pair = load_pair(resolve_pair(tiny_settings, quiet), "float32", "cpu")
    prompt = (70, 71, 72)
    with torch.no_grad():
        logits = pair.student.model(torch.tensor([prompt])).logits[0, -1, : pair.vocabulary]
    for temperature in (1.0, 0.5):
        settings = replace(tiny_settings, max_new_tokens=1, temperature=temperature)
        rollouts = sample(pair.student, [prompt] * 4000, range(4000), settings.sampling)
        counts = np.bincount([r.token_ids[0] for r in rollouts], minlength=pair.vocabulary)
        expected = (logits / temperature).softmax(-1).numpy()
        assert np.abs(counts / 4000 - expected).max() < 4 * np.sqrt(expected.max() / 4000)


@pytest.mark.parametrize(
    ("module", "victim", "after"), [(rollouts_module, "sample", 0), (positions_module, "score", 3)]
)
def test_a_killed_capture_ends_with_the_same_bytes(
    run: Path,
    tmp_path: Path,
    tiny_settings: CaptureSettings,
    quiet: Reporter,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    victim: str,
    after: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, victim, dying(getattr(module, victim), after))
        with pytest.raises(Killed):
            run_capture(tmp_path / "killed", tiny_settings, quiet)
    with pytest.raises(RunError, match="unfinished: run `teachdiag capture"):
        run_probe(tmp_path / "killed", PROBE, quiet)
    run_capture(tmp_path / "killed", tiny_settings, quiet)
    assert tables(tmp_path / "killed") == tables(run)
    assert (tmp_path / "killed/capture.json").read_bytes() == (run / "capture.json").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, captured_once: Path) -> Path:
    """A run with a probe that nobody killed, to be read alone."""
    run = Path(shutil.copytree(captured_once, tmp_path_factory.mktemp("whole") / "run"))
    run_probe(run, PROBE, Reporter(quiet=True))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 6, 9, 12, 17, 20])
def test_a_killed_probe_ends_with_the_same_bytes(
    run: Path, whole: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(probe_setup, "rescore", dying(probe_setup.rescore, after))
        with pytest.raises(Killed):
            run_probe(run, PROBE, quiet)
    run_probe(run, PROBE, quiet)
    assert tables(run) == tables(whole)
    assert (run / "probes/p.json").read_bytes() == (whole / "probes/p.json").read_bytes()
    assert not list(run.rglob("scratch/p"))


def test_probe_writes_the_real_step_and_its_placebos(run: Path, quiet: Reporter) -> None:
    results = run_probe(run, PROBE, quiet)
    gains = GAINS.read(run / "gains")
    assert set(gains["update"]) == {"one_step", "theta0", "shuffled_teacher", "random_direction"}
    assert len(set(gains.groupby("probe_id").size())) == 1
    captured = POSITIONS.read(run / "positions", ["context_id", "position", "split", "forward_kl"])
    real = gains[gains["update"] == "one_step"].merge(captured, on=["context_id", "position"], validate="1:1")
    assert set(real["split"]) == {"bank"}
    assert len(real) == (captured["split"] == "bank").sum()
    np.testing.assert_allclose(real["forward_kl_before"], real["forward_kl"], rtol=1e-4, atol=1e-6)
    updates = results["updates"]
    assert updates["random_direction"]["update_norm"] == pytest.approx(updates["one_step"]["update_norm"], rel=1e-4)
    assert updates["one_step"]["mean_gain"] > 0
    assert 0 < results["noise_floor"] < 1e-4
    theta0 = gains[gains["update"] == "theta0"]
    np.testing.assert_array_equal(theta0["gain"].abs(), theta0["noise_floor"])


def test_a_step_of_nothing_gains_exactly_nothing(run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    def stays(student: object, objectives: object, settings: object, theta0: Theta0, reporter: Reporter) -> Step:
        theta0.leave()
        return Step(1.0, 1.0, 1, 0.0)

    monkeypatch.setattr(steps, "optimize", stays)
    results = run_probe(run, PROBE, quiet)
    gains = GAINS.read(run / "gains" / "p")
    assert (gains["gain"] == 0).all()
    assert (gains["gain_reverse"] == 0).all()
    assert results["ladder"]["short_enough"] is None  # which nobody can tell
    with pytest.raises(
        EstimationError, match="auto finds no step that is short enough: even at 1e-05 rounding makes up"
    ):
        run_probe(run, replace(PROBE, name="q", learning_rate="auto"), quiet)


@pytest.mark.slow
def test_probes_live_side_by_side(run: Path, quiet: Reporter) -> None:
    first = run_probe(run, replace(PROBE, name=""), quiet)["probe_id"]
    before = tables(run)
    second = run_probe(run, replace(PROBE, name="", loss="forward_kl", update_on="bank"), quiet)["probe_id"]
    assert first != second
    assert before.items() <= tables(run).items()
    assert set(GAINS.read(run / "gains" / second)["update_on"]) == {"bank"}
    run_probe(run, PROBE, quiet)
    changed = r"p\.json was made with another configuration \(learning_rate was 0.0001, now 1e-05\)"
    with pytest.raises(RunError, match=changed):
        run_probe(run, replace(PROBE, learning_rate=1e-5), quiet)


def test_a_finished_stage_is_not_run_again(
    run: Path, tiny_settings: CaptureSettings, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "load_over_processes", dying(load_pair, 0))
    assert run_capture(run, tiny_settings, quiet) == json.loads((run / "capture.json").read_text())["results"]


def test_privileged_teacher_reads_the_solution(
    tmp_path: Path, tiny_settings: CaptureSettings, student_path: str, quiet: Reporter
) -> None:
    settings = replace(tiny_settings, teacher=student_path, teacher_prompt="privileged")
    run_capture(tmp_path / "run", settings, quiet)
    contexts = CONTEXTS.read(tmp_path / "run/contexts")
    tokenizer = byte_tokenizer()
    for ours, theirs in zip(contexts["prompt_token_ids"], contexts["teacher_prompt_token_ids"], strict=True):
        assert " = " in tokenizer.decode(theirs)
        assert tokenizer.decode(theirs).startswith(tokenizer.decode(ours)[:-2])
    assert POSITIONS.read(tmp_path / "run/positions")["forward_kl"].mean() > 1e-2


def test_half_precision_keeps_float32_statistics_and_master_weights(
    tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    run_capture(tmp_path / "run", replace(tiny_settings, dtype="bfloat16"), quiet)
    results = run_probe(tmp_path / "run", PROBE, quiet)
    assert results["updates"]["one_step"]["mean_gain"] > 0
    assert results["ladder"]["short_enough"]  # which float32 tells: bfloat16 drowns it
    assert results["noise_floor"] > 1e-4  # bfloat16 shows against float32
    gains = GAINS.read(tmp_path / "run/gains/p")
    threshold = 10 * gains["noise_floor"].clip(lower=results["noise_floor"])
    assert (gains["gain_relative"].notna() == (gains["forward_kl_before"] >= threshold)).all()


def test_contexts_from_elsewhere_are_scored_alike(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    foreign = CONTEXTS.read_arrow(run / "contexts").drop_columns(["source_row", "sampling_seed"])
    pq.write_table(foreign, tmp_path / "bank.parquet")
    run_capture(tmp_path / "imported", replace(tiny_settings, contexts=str(tmp_path / "bank.parquet")), quiet)
    ours, theirs = (table_digest(folder / "positions") for folder in (run, tmp_path / "imported"))
    assert ours == theirs
