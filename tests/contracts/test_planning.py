"""The laws of `teachdiag plan` against numbers worked by hand, and its calibration against tables that were written."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from teachdiag.artefacts import POSITIONS
from teachdiag.calibration import (
    COMMAND,
    REFERENCE,
    Calibration,
    Measured,
    calibration_of,
    calibration_path,
    read_calibration,
    write_calibration,
)
from teachdiag.cli import app
from teachdiag.diagnostics import calibrate as measuring
from teachdiag.diagnostics.models.alignment import Batch
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.probe import run_probe
from teachdiag.errors import ArtefactError, SettingsError
from teachdiag.planning import PASSES, plan
from teachdiag.progress import Reporter
from teachdiag.settings import CalibrateSettings, CaptureSettings, PlanSettings

MEASURED = Measured(
    student_parameters=1e8,
    teacher_parameters=3e8,
    vocabulary=1e5,
    width=1e3,
    bytes_per_position=1000,
    bytes_per_position_without_topk=100,
    bytes_per_file=20_000,
    bytes_per_file_without_topk=10_000,
    scoring_tokens_per_second=50,
    rollout_tokens_per_second=20,
    scoring_peak_bytes=3e9,
)
CALIBRATION = Calibration(MEASURED, "float32", {"device": "cpu", "device_name": "cpu", "threads": 2})
TILE = 12 * 128 * 1e5 * 4  # bytes
REST = 3e9 - 4e8 * 4 - TILE


def options(summary: dict[str, Any]) -> list[str]:
    return [option.split()[0] for option in summary["layout"]["options"]]


def test_the_laws_by_hand() -> None:
    settings = PlanSettings(
        positions=8e6,
        positions_per_context=80,
        prompt_tokens=121,
        student_parameters=2e8,
        teacher_parameters=6e8,
        dtype="bfloat16",
        processes=4,
        device_memory=24,
    )
    found = plan(settings, CALIBRATION)
    read = 1e5 * (121 + 80 - 1)
    assert found["contexts"] == 100_000
    assert found["tokens"] == {"sampled": 8e6, "read_a_pass": read}
    assert found["time_seconds"] == pytest.approx(
        {
            "rollouts": 8e6 * 2 / 20 / 4,  # a student of twice the size, four processes
            "scoring": read * 2 / 50 / 4,  # a pair of twice the size
            "probe": read * (10 * 2e8 + 6e8) / (4e8 * 50) / 4,
        }
    )
    shard = 150e6 / (1000 * 80)  # 1875 contexts: 40 shards at least would be 2500
    assert found["layout"]["shard_contexts"] == shard
    shards = found["layout"]["shards"]
    assert shards == 54
    assert found["storage_bytes"] == pytest.approx(
        {
            "positions": 1000 * (8e6 - shards) + 20_000 * shards,
            "positions_without_topk": 100 * (8e6 - shards) + 10_000 * shards,
            "probe_scratch": 8e6 * 1e3 * 4,
        }
    )
    memory = {"weights": 8e8 * 2, "whole_heads": 0, "tile": TILE, "rest": REST}
    whole = sum(memory.values())
    probe = whole - 8e8 * 2 + 3 * 4 * 2e8 + 1e5 * 1e3 * 2
    assert found["memory_bytes"] == pytest.approx(memory | {"capture": whole, "probe": probe})
    taught = plan(replace(settings, teacher_parameters=2e9), CALIBRATION)["memory_bytes"]
    assert taught["probe"] == pytest.approx(2 * 2e9 + TILE + REST)  # of a teacher that large
    assert found["layout"]["command"].startswith(
        "torchrun --nproc-per-node 4 -m -- teachdiag capture --shard-contexts 1875"
    )
    assert options(found) == ["--shard-contexts"]
    assert found["layout"]["analysis"] == "in memory"
    assert plan(replace(settings, positions=1e7), CALIBRATION)["layout"]["analysis"].startswith("out of core")
    longer = plan(replace(settings, response_tokens=400), CALIBRATION)  # five tokens for each that is scored
    assert longer["tokens"] == {"sampled": 4e7, "read_a_pass": 1e5 * (121 + 400 - 1)}
    assert longer["time_seconds"]["rollouts"] == pytest.approx(5 * found["time_seconds"]["rollouts"])
    assert longer["time_seconds"]["probe"] == pytest.approx(520 / 200 * found["time_seconds"]["probe"])
    assert longer["storage_bytes"] == found["storage_bytes"]
    trained = plan(replace(settings, train_rollouts=3e5), CALIBRATION)["time_seconds"]  # three for each context
    rolled, passes = 3 * 8e6 * 2 / 20 / 4, 3 * read * (5 * 2e8 + 6e8) / (4e8 * 50) / 4
    assert trained == pytest.approx(found["time_seconds"] | {"training": rolled + passes})


def test_the_calibrated_pair_needs_what_was_measured() -> None:
    found = plan(PlanSettings(positions=100), CALIBRATION)
    assert found["memory_bytes"]["capture"] == pytest.approx(3e9)
    assert found["layout"]["command"] == "teachdiag capture --shard-contexts 8"
    assert found["layout"]["shards"] == 1


def test_models_are_placed_by_what_fits() -> None:
    """Weights of 40 and 120 GB in bfloat16, and about 2 GB beside them."""
    large = PlanSettings(student_parameters=2e10, teacher_parameters=6e10, dtype="bfloat16", processes=8)
    beside = plan(replace(large, device_memory=170), CALIBRATION)
    assert options(beside) == ["--shard-contexts"]
    apart = plan(replace(large, device_memory=130), CALIBRATION)
    assert "--teacher-engine" in options(apart)
    assert apart["memory_bytes"]["weights"] == 120e9
    sharded = plan(replace(large, device_memory=30), CALIBRATION)
    assert "--shard-model" in options(sharded)
    assert "--teacher-engine" not in options(sharded)
    assert sharded["memory_bytes"]["weights"] == 20e9
    assert sharded["memory_bytes"]["whole_heads"] == 2 * 1e5 * 1e3 * 2  # one of each model on every device
    small = replace(large, student_parameters=5e9, teacher_parameters=8e10, device_memory=22)
    both = plan(small, CALIBRATION)  # of 10 and 160 GB
    assert {"--teacher-engine", "--tensor-parallel"} <= set(options(both))
    assert both["layout"]["processes"] == 1
    for found in (beside, apart, sharded, both):
        accepted(found["layout"]["command"])
    needs = r"the models need 21.8 GB on each device .* --processes 8, 41.4 GB where the teacher has an engine"
    with pytest.raises(SettingsError, match=needs):  # 20 + 0.4 + 0.61 + 0.79, and 40 + 0.61 + 0.79
        plan(replace(large, device_memory=20), CALIBRATION)


def accepted(command: str) -> CaptureSettings:
    """What capture makes of a command that was recommended: it refuses what does not go together."""
    start, _, given = command.partition(" capture ")
    several, words = start.startswith("torchrun"), given.split()
    values: dict[str, Any] = {}
    for word, after in itertools.pairwise([*words, "--"]):
        if word.startswith("--"):
            text = True if after.startswith("--") else after
            values[word[2:].replace("-", "_")] = int(text) if str(text).isdigit() else text
    settings = CaptureSettings(**values)
    assert not (several and (settings.engine, settings.teacher_engine) != ("transformers", "transformers"))
    return settings


def test_an_engine_for_rollouts_that_dominate() -> None:
    short = plan(PlanSettings(prompt_tokens=1, positions_per_context=64), CALIBRATION)
    assert "--engine" in options(short)  # 1/20 s a token, against 1/50 s
    assert accepted(short["layout"]["command"]).engine == "vllm"
    many = plan(PlanSettings(prompt_tokens=1, positions_per_context=64, processes=4), CALIBRATION)
    assert accepted(many["layout"]["command"]).ray_workers == 4
    long = plan(PlanSettings(prompt_tokens=1000, positions_per_context=64), CALIBRATION)
    assert "--engine" not in options(long)


sizes = st.integers(1, 10**12).map(float)


@given(sizes, sizes, st.integers(1, 1000), st.integers(1, 512))
def test_more_positions_never_take_less(one: float, other: float, processes: int, length: int) -> None:
    few, many = (
        plan(PlanSettings(positions=n, positions_per_context=length, processes=processes), CALIBRATION)
        for n in sorted((one, other))
    )
    assert few["storage_bytes"]["probe_scratch"] <= many["storage_bytes"]["probe_scratch"]
    assert few["tokens"]["read_a_pass"] <= many["tokens"]["read_a_pass"]
    work = [found["time_seconds"]["probe"] * found["layout"]["processes"] for found in (few, many)]
    assert work[0] <= work[1] * (1 + 1e-12)
    for found in (few, many):
        assert found["layout"]["shard_contexts"] >= 8
        assert 1 <= found["layout"]["processes"] <= min(processes, found["layout"]["shards"])
        assert found["storage_bytes"]["positions_without_topk"] < found["storage_bytes"]["positions"]


@given(st.floats(1e6, 1e12), st.floats(1e6, 1e12), st.integers(1, 64), st.integers(1, 64))
def test_larger_models_take_more_and_processes_share_time(one: float, other: float, p: int, r: int) -> None:
    def planned(parameters: float, processes: int) -> dict[str, Any]:
        return plan(
            PlanSettings(teacher_parameters=parameters, processes=processes, device_memory=1e6, positions=1e8),
            CALIBRATION,
        )

    small, large = sorted((one, other))
    for part in ("time_seconds", "memory_bytes"):
        assert all(planned(small, p)[part][name] <= value for name, value in planned(large, p)[part].items())
    few, many = sorted((p, r))
    assert planned(small, many)["time_seconds"]["scoring"] <= planned(small, few)["time_seconds"]["scoring"]


@pytest.fixture
def tiny_calibration(tiny_settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    monkeypatch.setattr(measuring, "scoring_peak", lambda *_: 4e8)
    return measuring.calibrate(tiny_settings, Reporter(quiet=True))


def test_a_calibration_foresees_the_bytes_of_another_bank(
    tiny_calibration: Calibration, tiny_settings: CaptureSettings, tmp_path: Path, quiet: Reporter
) -> None:
    larger = replace(tiny_settings, bank_prompts=32, update_prompts=8, shard_contexts=20)
    measuring.run_capture(tmp_path / "run", larger, quiet)
    files = list((tmp_path / "run/positions").glob("*.parquet"))
    n = len(POSITIONS.read(tmp_path / "run/positions", ["position"]))
    measured = tiny_calibration.measured
    foreseen = measured.bytes_per_position * (n - len(files)) + measured.bytes_per_file * len(files)
    assert foreseen == pytest.approx(sum(f.stat().st_size for f in files), rel=0.2)
    bare = measuring.stored(tmp_path / "run/positions", lists=False)
    assert measured.bytes_per_position_without_topk == pytest.approx(bare.position, rel=0.2)
    assert measured.student_parameters == sum(p.numel() for _, p in load_student(tiny_settings, quiet).parameters())
    assert (measured.vocabulary, measured.width) == (257, 32)


def load_student(settings: CaptureSettings, quiet: Reporter) -> LanguageModel:
    return measuring.load_pair(measuring.resolve_pair(settings, quiet), "float32", "cpu").student


def test_a_probe_makes_the_passes_that_are_planned(run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes without gradients, which are those over every context of the bank."""
    from teachdiag.settings import ProbeSettings

    read = {"student": 0, "teacher": 0}
    plain = LanguageModel.hidden_rows

    def counting(model: LanguageModel, batch: Batch, side: str) -> Any:
        read[side] += sum(c.split == "bank" for c in batch.contexts)
        return plain(model, batch, side)

    monkeypatch.setattr(LanguageModel, "hidden_rows", counting)
    run_probe(run, ProbeSettings(), quiet)
    assert read == {side: 10 * passes for side, passes in PASSES["probe"].items()}


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path / "cache"))
    write_calibration(CALIBRATION, calibration_path())
    assert read_calibration(calibration_path()) == CALIBRATION


def test_a_newcomer_is_told_of_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path))
    reference = calibration_of("")
    assert reference == read_calibration(REFERENCE)
    assert reference.made_with["reference"]
    done = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["plan"])
    assert done.exit_code == 0, done.output
    assert f"Extrapolated from {reference.device} (a reference" in done.stdout
    assert f"`{COMMAND}` measures this machine" in done.stdout
    write_calibration(CALIBRATION, calibration_path())
    assert calibration_of("") == CALIBRATION
    assert calibration_of(str(REFERENCE)) == reference


def test_a_gpu_has_no_threads() -> None:
    on_gpu = replace(CALIBRATION, dtype="bfloat16", made_with={"device": "cuda", "device_name": "a GPU"})
    assert on_gpu.device == "a GPU, bfloat16"


@pytest.mark.slow
def test_calibrate_records_what_plan_reads(
    tiny_settings: CaptureSettings, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak is of a process of its own: more than the libraries take, and less than a machine has."""
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path))
    monkeypatch.setattr(measuring, "_LENGTH", 8)
    pair = CalibrateSettings(
        student=tiny_settings.student, teacher=tiny_settings.teacher, prompts=tiny_settings.prompts, device="cpu"
    )
    summary = measuring.run_calibration(pair, quiet)
    assert summary["file"] == str(calibration_path())
    found = calibration_of("")
    assert asdict(found.measured) == summary["measured"]
    assert 1e8 < found.measured.scoring_peak_bytes < 1e10
    assert found.dtype == "float32"
    assert found.made_with["device_name"] not in ("", "cpu")
    assert "reference" not in found.made_with


def broken() -> Iterator[tuple[str, str]]:
    whole = {"kind": "teachdiag calibration", **asdict(CALIBRATION)}
    yield "{", "cannot be read"
    yield "[]", "is no calibration of teachdiag"
    yield '{"kind": "another"}', "is no calibration of teachdiag"
    for value in (0, -1, "fast", None, True, float("nan")):
        yield json.dumps(whole | {"measured": asdict(MEASURED) | {"width": value}}), "lacks width, or has it wrong"
    yield json.dumps(whole | {"measured": 3}), "lacks student_parameters, teacher_parameters"
    yield json.dumps(whole | {"dtype": "int8"}), "lacks dtype"
    yield json.dumps(whole | {"made_with": {}}), "lacks device_name"


@pytest.mark.parametrize(("content", "message"), list(broken()))
def test_a_foreign_calibration_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ArtefactError, match=message):
        read_calibration(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("positions", "prompt_tokens", "device_memory") for value in (0.0, -1.0)),
        *((name, 0) for name in ("positions_per_context", "processes")),
        *((name, 0.0) for name in ("student_parameters", "teacher_parameters", "vocabulary", "width")),
        *(("positions", value) for value in (1.5, float("nan"), float("inf"))),
        ("response_tokens", 63),  # fewer than are scored
        ("device_memory", float("nan")),
        ("dtype", "int8"),
    ],
)
def test_impossible_plans_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"^--{name.replace('_', '-')} is "):
        PlanSettings(**{name: value})


def test_the_command(tmp_path: Path) -> None:
    file, recipe = tmp_path / "c.json", tmp_path / "recipe.toml"
    write_calibration(CALIBRATION, file)
    recipe.write_text("[plan]\npositions = 1e9\nprocesses = 8\n")

    def shown(*arguments: object) -> str:
        done = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["plan", *map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.stdout

    table = shown("--calibration", file, "--recipe", recipe)
    assert "1,000,000,000 positions" in table
    assert "torchrun --nproc-per-node 8 -m -- teachdiag capture --shard-contexts" in table
    assert "Extrapolated from cpu, 2 threads, float32" in table
    summary = json.loads(shown("--calibration", file, "--positions", "1e9", "--processes", 8, "--json"))
    assert summary == plan(PlanSettings(positions=1e9, processes=8), CALIBRATION)
    assert "--positions-per-context" in shown("--help")


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, refused: Callable[..., str]) -> None:
    write_calibration(CALIBRATION, tmp_path / "c.json")
    cases = (("--calibration", "none.json", COMMAND), ("--device-memory", "1", "GB on each device"))
    for option, value, message in cases:
        assert message in refused("plan", "--calibration", tmp_path / "c.json", option, value)
