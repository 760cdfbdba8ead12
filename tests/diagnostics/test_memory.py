"""What a probe says of memory: parameters of loaded models, the law worked by hand, refusals before anything."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_pair import PROBE

from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.sources import resolve
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import memory
from teachdiag.diagnostics.probes.memory import Size, foreseen, size_of
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings
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
        ("one_step", "adamw", 5),
        ("one_step", "sgd", 3),
        ("checkpoint", "auto", 3),
        ("predicted", "adamw", 6),
        ("efficiency", "sgd", 4),
    ],
)
def test_the_law_by_hand(kind: str, optimizer: str, copies: int) -> None:
    settings = ProbeSettings(kind=kind, optimizer=optimizer, student_after="x" if kind == "checkpoint" else "")
    student, teacher = Size(10**9, 10, 100, 400, 1000, trained=10**9), Size(2 * 10**9, 20, 200, 800, 1000, 2 * 10**9)
    activations = 0 if kind == "checkpoint" else 10 * 2048 * (10 * 100 + 4 * 400) * 4
    tile, head = 12 * 128 * 1000 * 4, 1000 * 200 * 2
    assert foreseen(settings, CaptureSettings(dtype="bfloat16"), student, teacher, 2048) == pytest.approx(
        tile + max(4e9 + 4e9, copies * 4e9 + head + activations)
    )
    adapted = replace(student, trained=10**7)
    assert foreseen(settings, CaptureSettings(dtype="bfloat16"), adapted, teacher, 2048) == pytest.approx(
        tile + max(4e9 + 4e9, 4e9 + (copies - 1) * 4e7 + head + activations)
    )
    if kind != "checkpoint":
        recomputed, kept = replace(settings, recompute=True), 2048 * (10 * 100 + 10 * 100 + 4 * 400) * 4
        assert foreseen(recomputed, CaptureSettings(dtype="bfloat16"), student, teacher, 2048) == pytest.approx(
            tile + max(4e9 + 4e9, copies * 4e9 + head + kept)
        )


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
