"""What a probe says of memory: parameters of loaded models, the law worked by hand, refusals before anything."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from allocations import Allocations
from stages import Killed
from tiny_pair import PROBE, save_model

from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.models.sources import resolve
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import memory, probe_setup, updates
from teachdiag.diagnostics.probes.memory import Size, foreseen, size_of
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.theta0 import Theta0, random_direction
from teachdiag.diagnostics.probes.updates import optimize, step_objective
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings
from teachdiag.settings.base import Optimizer
from teachdiag.settings.lora import Lora


@pytest.mark.parametrize("dropped", [(), (0,)])
def test_parameters_are_those_of_the_loaded_model(student_path: str, dropped: tuple[int, ...], quiet: Reporter) -> None:
    source = resolve(student_path, "main", dropped, quiet)
    loaded = load(source, "float32", "cpu")
    size = size_of(source)
    assert size.parameters == sum(p.numel() for _, p in loaded.parameters())
    assert size.trained == size.parameters
    assert (size.layers, size.width, size.inner, size.rows) == (2 - len(dropped), 32, 64, 264)


def test_of_an_adapter_the_weights_that_steps_move_are_few(student_path: str, quiet: Reporter) -> None:
    whole, adapted = (
        size_of(resolve(student_path, "main", (), quiet), lora) for lora in (None, Lora(2, 4, ("q_proj",)))
    )
    assert adapted.trained == 2 * 2 * (32 + 32)  # layers, rank, width in and out
    assert adapted.parameters == whole.parameters + adapted.trained


@pytest.mark.parametrize(
    ("kind", "optimizer", "copies"),
    [
        ("one_step", "adamw", 3),
        ("one_step", "sgd", 3),
        ("checkpoint", "auto", 3),
        ("predicted", "adamw", 3),
        ("efficiency", "sgd", 4),
        ("isolated", "sgd", 4),
    ],
)
def test_the_law_by_hand(kind: str, optimizer: str, copies: int) -> None:
    settings = ProbeSettings(kind=kind, optimizer=optimizer, student_after="x" if kind == "checkpoint" else "")
    student, teacher = Size(10**9, 10, 100, 400, 1000, trained=10**9), Size(2 * 10**9, 20, 200, 800, 1000, 2 * 10**9)
    tile, head, tokens = 12 * 128 * 1000 * 4, 1000 * 200 * 2, 2**17
    of_a_layer = (10 * 100 + 4 * 400) * 4  # bytes of a token that the backward pass keeps: more than a copy in all
    kept = 0 if kind == "checkpoint" else 10 * tokens * of_a_layer

    def needed(settings: ProbeSettings, student: Size, tokens: int = tokens) -> float:
        return foreseen(settings, CaptureSettings(dtype="bfloat16"), student, teacher, tokens)

    assert needed(settings, student) == pytest.approx(tile + head + (copies - 1) * 4e9 + max(4e9, kept))
    assert needed(settings, student, 2048) == pytest.approx(tile + copies * 4e9 + head)
    adapted = replace(student, trained=10**7)
    step = 4e9 + (copies - 2) * 4e7 + head + max(4e7, kept)
    assert needed(settings, adapted) == pytest.approx(tile + step)
    if kind not in ("checkpoint", "isolated"):
        kept = tokens * (10 * 100 * 4 + of_a_layer)
        recomputed = replace(settings, recompute=True)
        assert needed(recomputed, student) == pytest.approx(tile + head + (copies - 1) * 4e9 + max(4e9, kept))


def test_a_large_teacher_takes_most() -> None:
    student, teacher = Size(10**9, 10, 100, 400, 1000, trained=10**9), Size(10**10, 20, 200, 800, 1000, 10**10)
    tile, kept = 12 * 128 * 1000 * 4, 10 * 16 * (10 * 100 + 4 * 400) * 4
    for settings, beside in (
        (ProbeSettings(), 0),
        (ProbeSettings(steps=2), 0),
        (ProbeSettings(steps=2, rollouts="fresh"), 5 * 4e9 + kept),
    ):
        assert foreseen(settings, CaptureSettings(), student, teacher, 16) == pytest.approx(tile + 4e10 + beside)


def test_several_steps_and_shards_have_moved_weights_from_the_start() -> None:
    student, teacher = Size(10**9, 10, 100, 400, 1000, trained=10**9), Size(10**8, 20, 200, 800, 1000, 10**8)
    kept, rest = 10 * 2048 * (10 * 100 + 4 * 400) * 4, 12 * 128 * 1000 * 4 + 1000 * 200 * 4
    for settings, shards, copies in (
        (ProbeSettings(steps=2), 1, 5),
        (ProbeSettings(steps=2, optimizer="sgd"), 1, 3),
        (ProbeSettings(shard_model=True), 4, 3),
    ):
        found = foreseen(settings, CaptureSettings(), student, teacher, 2048, shards)
        assert found == pytest.approx(rest + copies * 4e9 / shards + kept)


@pytest.mark.parametrize(("optimizer", "steps"), [("sgd", 1), ("adamw", 1), ("sgd", 2), ("adamw", 2)])
def test_a_probe_holds_the_copies_that_are_foreseen(
    pair: Pair, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch, optimizer: Optimizer, steps: int
) -> None:
    """A step, its ladder and a random direction, on weights that dwarf what a pass over few tokens keeps."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "initializer_range": 0.05}
    student = load(resolve(save_model(tmp_path / "wide", seed=3, **shape), "main", (), quiet), "float32", "cpu")
    for _, parameter in student.parameters():
        parameter.data = parameter.data.clone()  # in memory, and not in a file that is mapped
    monkeypatch.setattr(updates, "_BLOCK", 2**15)
    settings = ProbeSettings(optimizer=optimizer, steps=steps, learning_rate=1e-4, tile_positions=4)
    contexts = [Context(i, f"p/{i}", "update", (i, 7), (i, 7), (3, 1 + i)) for i in range(2)]
    teacher = compute_teacher_states(pair.teacher, [contexts], 60, tmp_path / "teacher.npy", quiet)
    theta0, weights = Theta0(student), [parameter.data for _, parameter in student.parameters()]
    copy = sum(weight.nbytes for weight in weights)
    with Allocations(weights) as held:
        optimize(student, [step_objective(contexts, teacher, settings)] * steps, settings, theta0, quiet)
        at_step = held.peak
        theta0.displace(theta0.displacement(), 0.5)
        theta0.restore()
        theta0.displace(random_direction(student, 0), 0.5)
        theta0.stretch(0.5)
        assert held.now == pytest.approx(2 * copy, rel=0.05)
        theta0.restore()
    theta0.verify()
    assert held.now == pytest.approx(copy, rel=0.05)
    assert held.peak / copy == pytest.approx(settings.student_copies, abs=0.25)
    assert at_step / copy == pytest.approx(settings.student_copies if steps > 1 else 2, abs=0.25)


def test_the_teacher_is_gone_before_the_student_is_loaded(
    run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers, plain = [], probe_setup.load_alone

    def loading(*arguments: Any, master: bool = False, **options: Any) -> LanguageModel:
        if master:
            assert [teacher() for teacher in teachers] == [None]
            raise Killed
        model = plain(*arguments, **options)
        teachers.append(weakref.ref(model.model))
        return model

    monkeypatch.setattr(probe_setup, "load_alone", loading)
    gc.disable()  # it is not to be waited for
    try:
        with pytest.raises(Killed):
            run_probe(run, PROBE, quiet)
    finally:
        gc.enable()


def test_what_cannot_fit_is_refused_and_leaves_nothing(
    run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e6)
    with pytest.raises(SettingsError, match=r"the probe needs about 0\.5 GB of memory on cpu, of 0\.001 GB that are"):
        run_probe(run, PROBE, quiet)
    assert not (run / "probes").exists() or not any((run / "probes").iterdir())
    monkeypatch.undo()
    run_probe(run, PROBE, Reporter())
    assert "The probe needs about 0.5" in " ".join(capsys.readouterr().err.split())


def test_a_container_counts_what_is_cached_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    without_limit = memory.free_memory("cpu")
    for name, text in (("max", "9000000\n"), ("current", "8500000\n"), ("stat", "anon 1\ninactive_file 2000000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.free_memory("cpu") == 9e6 - 8.5e6 + 2e6 < without_limit
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory("cpu") > 9e6
