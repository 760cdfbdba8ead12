"""Kinds one_step, placebo and checkpoint: sizes, draws, several steps, and a student trained elsewhere.

The truth: lengths and draws that are asked for, other probes of the same step, and weights saved here.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stages import tables
from tiny_pair import PROBE, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from teachdiag.artefacts import GAINS, POSITIONS
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.models.alignment import batched, relaid
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import teacher_states
from teachdiag.errors import ModelError, RunError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings
from teachdiag.tables import is_intact

pytestmark = pytest.mark.slow

SMALL = {"batch_tokens": 100, "tile_positions": 7}
PLACEBOS = {"theta0", "shuffled_teacher", "shuffled_rollouts", "random_direction"}


def test_placebos_have_draws_and_the_real_steps_length(run: Path, quiet: Reporter) -> None:
    results = run_probe(run, ProbeSettings(**SMALL, kind="placebo", name="p", draws=3), quiet)
    updates = results["updates"]
    real = updates["one_step"]["update_norm"]
    assert set(updates) == {"one_step", *PLACEBOS}
    for name in PLACEBOS - {"theta0"}:
        draws = updates[name]["draws"]
        assert [d["update_norm"] for d in draws] == pytest.approx([real] * 3, rel=1e-3)
        gains = GAINS.read(run / f"gains/p.{name}")
        assert not gains.duplicated(["draw", "context_id", "position"]).any()
        by_draw = gains.groupby("draw")["gain"].agg(list)
        assert len(by_draw) == 3
        assert by_draw[0] != by_draw[1] != by_draw[2]
        assert gains["gain"].mean() == pytest.approx(np.mean([d["mean_gain"] for d in draws]), rel=1e-3, abs=1e-8)
    assert updates["one_step"]["mean_gain"] > max(d["mean_gain"] for d in updates["random_direction"]["draws"])


def test_a_placebo_probe_takes_the_one_step_probes_step(run: Path, quiet: Reporter) -> None:
    one = run_probe(run, replace(PROBE, name="a"), quiet)["updates"]
    many = ProbeSettings(**SMALL, kind="placebo", name="b", draws=2, learning_rate=1e-4)
    run_probe(run, many, quiet)
    a, b = (GAINS.read(run / "gains" / name) for name in "ab")
    np.testing.assert_array_equal(a["gain"], b["gain"])
    assert set(one) == {"one_step", *PLACEBOS} - {"shuffled_rollouts"}


def test_several_steps_go_further_than_one_and_fresh_rollouts_elsewhere(run: Path, quiet: Reporter) -> None:
    gains = {}
    for name, more in {"one": {}, "four": {"steps": 4}, "fresh": {"steps": 4, "rollouts": "fresh"}}.items():
        probe = ProbeSettings(**SMALL, name=name, update_contexts=3, learning_rate=1e-4, **more)
        results = run_probe(run, probe, quiet)["updates"]
        gains[name] = results[next(iter(results))]["mean_gain"]
        assert next(iter(results)) == ("one_step" if name == "one" else "multi_step")
    assert gains["four"] > 1.5 * gains["one"] > 0
    assert gains["fresh"] > 0
    assert gains["fresh"] != gains["four"]
    assert "shuffled_teacher" not in results


def test_the_same_seed_gives_the_same_fresh_rollouts(run: Path, quiet: Reporter) -> None:
    first, second = (
        run_probe(run, ProbeSettings(**SMALL, name=name, steps=2, rollouts="fresh"), quiet)["updates"] for name in "ab"
    )
    assert first == second


def test_a_checkpoint_is_measured_against_the_same_bank(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    """The teacher's own weights, cut to the student's head: every position's KL falls to nothing."""
    after = AutoModelForCausalLM.from_pretrained(tiny_settings.student)
    teacher = dict(AutoModelForCausalLM.from_pretrained(tiny_settings.teacher).named_parameters())
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            parameter.copy_(teacher[name][: parameter.shape[0]])
    after.save_pretrained(tmp_path / "after")
    AutoTokenizer.from_pretrained(tiny_settings.student).save_pretrained(tmp_path / "after")
    probe = ProbeSettings(**SMALL, kind="checkpoint", draws=1, name="c", student_after=str(tmp_path / "after"))
    results = run_probe(run, probe, quiet)["updates"]
    assert set(results) == {"checkpoint", "theta0", "random_direction"}
    gains = GAINS.read(run / "gains/c")
    np.testing.assert_allclose(gains["forward_kl_after"], 0, atol=1e-5)
    np.testing.assert_allclose(gains["gain"], gains["forward_kl_before"], atol=1e-5)
    taught = POSITIONS.read(run / "positions").set_index(["context_id", "position"])
    for row in gains.to_dict("records"):  # candidates after the update are the teacher's
        theirs = taught.loc[(row["context_id"], row["position"])]
        assert list(row["student_topk_ids_after"]) == list(theirs["teacher_topk_ids"][:5])
        np.testing.assert_allclose(row["student_topk_logp_after"], theirs["teacher_topk_logp"][:5], atol=1e-4)
        assert row["student_logp_after"] == pytest.approx(theirs["teacher_logp"], abs=1e-4)
    whole = pd.read_parquet(run / "gains")  # every file has the same columns
    for name in ("student_topk_ids_after", "student_topk_logp_after", "student_logp_after"):
        assert (whole[name].notna() == (whole["update"] == "checkpoint")).all()
    assert results["random_direction"]["update_norm"] == pytest.approx(results["checkpoint"]["update_norm"], rel=1e-3)


def test_a_checkpoint_that_changed_is_another_probe(run: Path, tmp_path: Path, quiet: Reporter) -> None:
    path = save_model(tmp_path / "after", seed=1)
    probe = ProbeSettings(**SMALL, kind="checkpoint", name="c", student_after=path)
    run_probe(run, probe, quiet)
    save_model(tmp_path / "after", seed=5)
    with pytest.raises(RunError, match=r"another configuration \(student_after"):
        run_probe(run, probe, quiet)


def test_a_checkpoint_of_another_shape_is_refused(run: Path, tmp_path: Path, quiet: Reporter) -> None:
    path = save_model(tmp_path / "other", seed=3, hidden_size=48)
    probe = ProbeSettings(**SMALL, kind="checkpoint", student_after=path)
    with pytest.raises(ModelError, match="has other parameters than the student"):
        run_probe(run, probe, quiet)


def test_the_noise_floor_does_not_depend_on_the_placebos(run: Path, quiet: Reporter) -> None:
    one = run_probe(run, PROBE, quiet)["noise_floor"]
    two = run_probe(run, ProbeSettings(**SMALL, kind="placebo", name="q", draws=2), quiet)["noise_floor"]
    assert one == two
    assert len(list(read_contexts(run, Positions(10, "first")))) == 16


def test_every_layout_draw_is_another_layout(run: Path) -> None:
    contexts = list(read_contexts(run, Positions(10, "first")))[:8]
    shapes = [
        [(len(b.contexts), b.input_ids("student", torch.device("cpu")).shape) for b in batches]
        for batches in (batched(contexts, 100_000), *(relaid(contexts, 100_000, 256, draw) for draw in range(4)))
    ]
    assert len({str(shape) for shape in shapes}) == 5
    assert len(shapes[0]) == 1
    assert len(shapes[1]) > 1  # though all would fit into one batch


def test_the_next_probe_takes_the_teachers_states(
    run: Path, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are those of a probe that computed them; what is damaged, or of other batches, is computed again."""
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    run_probe(alone, replace(PROBE, name="second"), quiet)
    run_probe(run, PROBE, quiet)
    (states,) = (run / "teacher_states").glob("*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(teacher_states, "_fill", None)
        run_probe(run, replace(PROBE, name="second"), quiet)
    of_second = {name: digest for name, digest in tables(run).items() if "/second" in name}
    assert of_second == {name: digest for name, digest in tables(alone).items() if "/second" in name} != {}
    states.write_bytes(states.read_bytes()[:-4])
    run_probe(run, replace(PROBE, name="third"), quiet)
    assert is_intact(states)
    run_probe(run, replace(PROBE, name="fourth", batch_tokens=50), quiet)
    assert not states.exists()
    assert len(list((run / "teacher_states").glob("*.npy"))) == 1
