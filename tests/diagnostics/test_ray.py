"""A real Ray cluster on this machine: rollouts and scoring by workers, one of whom is killed (`make test-vllm`).

The truth: what one process captures without Ray.
"""

import importlib.util
import re
import shutil
import sys
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from teachdiag.artefacts import CONTEXTS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.engines.ray_cluster import divided, errors_of_workers, require_ray
from teachdiag.diagnostics.engines.ray_pipeline import place_of
from teachdiag.diagnostics.engines.shard_store import Store
from teachdiag.errors import ContextError, ModelError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings
from teachdiag.tables import CHECKSUM, write_shard, write_text

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray lives in .venv-vllm")
without_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's and vLLM's own
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def settings(served_pair: tuple[str, str], manifest_path: str) -> CaptureSettings:
    student, teacher = served_pair
    sizes = {"bank_prompts": 20, "update_prompts": 16, "responses": 16, "max_new_tokens": 12, "positions": 10}
    whole = {"batch_tokens": 200, "shard_contexts": 12}
    return CaptureSettings(student=student, teacher=teacher, prompts=manifest_path, **sizes, **whole)


@pytest.fixture(scope="module")
def by_vllm(tmp_path_factory: pytest.TempPathFactory, settings: CaptureSettings) -> Path:
    """The same capture in one process."""
    run = tmp_path_factory.mktemp("runs") / "vllm"
    run_capture(run, replace(settings, engine="vllm"), QUIET)
    return run


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers' worth of one machine."""
    ray = require_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@needs_ray
def test_killed_workers_lose_and_double_nothing(
    tmp_path: Path, settings: CaptureSettings, by_vllm: Path, cluster: None
) -> None:
    """One of two engines dies while it samples, and one of two scorers while it scores."""
    run = tmp_path / "ray"
    killers = [_Killer("vLLMEngineStageUDF", run / "contexts"), _Killer("Scorer", run / "positions")]
    run_capture(run, replace(settings, engine="ray", ray_workers=2), QUIET)
    for killer, shards in zip(killers, (18, 48), strict=True):
        killer.done.set()
        killer.join()
        assert killer.killed
        assert killer.written < shards == len(list(killer.folder.glob("*.parquet")))
    pd.testing.assert_frame_equal(CONTEXTS.read(run / "contexts"), CONTEXTS.read(by_vllm / "contexts"))
    _same_positions(run, by_vllm)
    note = Stage(run, "capture", ("contexts", "positions")).require()
    assert note["made_with"]["threads"] == 1
    assert not list(run.rglob(f"*{CHECKSUM}"))


@needs_ray
def test_contexts_are_scored_through_a_store(
    tmp_path: Path, settings: CaptureSettings, by_vllm: Path, cluster: None
) -> None:
    """What lies in a store already is brought over; what is damaged there is not."""
    asked = replace(
        settings, engine="ray", contexts=str(by_vllm / "contexts"), store=f"file://{tmp_path}/store", ray_workers=1
    )
    run_capture(tmp_path / "first", asked, QUIET)
    _same_positions(tmp_path / "first", by_vllm)
    (stored,) = (tmp_path / "store").iterdir()
    shards = sorted((stored / "positions").glob("*.parquet"))
    written = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].write_bytes(b"damaged")
    run_capture(tmp_path / "second", asked, QUIET)
    _same_positions(tmp_path / "second", by_vllm)
    anew = [shard.stat().st_mtime_ns != before for shard, before in zip(shards, written, strict=True)]
    assert anew == [number == 1 for number in range(len(shards))]


@needs_ray
def test_what_a_worker_refuses_is_told_in_its_words(
    tmp_path: Path, settings: CaptureSettings, by_vllm: Path, cluster: None
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(settings.teacher)
    model.get_output_embeddings().weight.data[:] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    for file in Path(settings.teacher).glob("token*"):
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    asked = replace(settings, engine="ray", teacher=str(tmp_path / "broken"), contexts=str(by_vllm / "contexts"))
    with pytest.raises(ContextError, match=r"^the teacher gives NaN or infinite logits in context \d+ at position"):
        run_capture(tmp_path / "run", asked, QUIET)


@needs_ray
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"ray_workers": 3}, "--ray-workers is 3: it must be at most 2, the CPUs of the cluster"),
        ({"tensor_parallel": 2}, "--tensor-parallel is 2: the workers have 0 GPUs"),
    ],
)
def test_more_than_the_cluster_has_is_refused(
    tmp_path: Path, settings: CaptureSettings, cluster: None, asked: dict[str, int], told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        run_capture(tmp_path / "run", replace(settings, engine="ray", **asked), QUIET)


def test_gpus_are_shared_out() -> None:
    """On machines that Ray describes: eight GPUs, engines of two."""
    machines = [{"CPU": 32.0, "GPU": 4.0}, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0}]
    assert divided(CaptureSettings(engine="ray"), machines) == (8, 8, {"num_gpus": 1})
    assert divided(CaptureSettings(engine="ray", ray_workers=5, tensor_parallel=2), machines) == (5, 2, {"num_gpus": 1})
    pairs = CaptureSettings(engine="ray", tensor_parallel=2)
    assert divided(pairs, [{"CPU": 9.0, "GPU": 3.0}] * 2) == (6, 2, {"num_gpus": 1})  # an engine is on one machine
    with pytest.raises(SettingsError, match="--tensor-parallel is 2: no machine has as many GPUs"):
        divided(pairs, [{"CPU": 9.0, "GPU": 1.0}] * 2)
    assert divided(CaptureSettings(engine="ray", ray_workers=5), [{"CPU": 9.0}] * 2) == (5, 5, {"num_cpus": 3})
    with pytest.raises(ModelError, match="the Ray cluster has no machine with a CPU"):
        divided(CaptureSettings(engine="ray"), [])


@needs_ray
def test_why_ray_gave_up_is_told(cluster: None) -> None:
    """A worker that cannot be started, and one whose own error is no matter of input."""
    import ray

    class Narrow:
        def __init__(self) -> None:
            raise RuntimeError("no room for the model")

        def work(self) -> None:
            pass

    def broken() -> None:
        raise ZeroDivisionError("a mistake of ours")

    with (
        pytest.raises(ModelError, match=r"Ray gave up: RuntimeError: no room for the model \(Ray's logs"),
        errors_of_workers(),
    ):
        ray.get(ray.remote(Narrow).remote().work.remote())
    with pytest.raises(ZeroDivisionError, match="a mistake of ours"), errors_of_workers():
        ray.get(ray.remote(broken).remote())


@needs_ray
def test_a_ray_that_lacks_what_is_needed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which older ones have other names."""
    monkeypatch.setitem(sys.modules, "ray.data.llm", types.ModuleType("ray.data.llm"))
    with pytest.raises(
        ModelError, match=r"this Ray cannot be used: .*build_processor.*pip install 'ray\[data\]>=2.60'"
    ):
        require_ray()


def test_runs_that_share_a_store_do_not_mix(tmp_path: Path, settings: CaptureSettings) -> None:
    """Other settings, or other contexts, and shards go elsewhere."""
    asked, places = replace(settings, engine="ray", store="s3://bucket/runs/"), []
    for name, content in (("a", "1"), ("b", "2"), ("c", "1")):
        write_text(content, tmp_path / name / "capture.json")
        write_text("2" if name == "c" else "1", tmp_path / name / "contexts" / "part-00000.parquet")
        places.append(place_of(tmp_path / name, asked))
    assert len(set(places)) == 3
    assert all(re.fullmatch(r"s3://bucket/runs/\w{16}", place) for place in places)
    assert place_of(tmp_path / "a", settings) == str(tmp_path / "a")


def test_a_shard_in_a_store_is_whole_or_not_there(tmp_path: Path) -> None:
    """Against a store in memory, as against any that is not a folder."""
    table = CONTEXTS.build_rows([])
    write_shard(table, tmp_path / "here" / "contexts" / "part-00000.parquet")
    store = Store(f"memory://{tmp_path}")
    name = "contexts/part-00000.parquet"
    assert not store.fetch(tmp_path / "there", name)
    store.send(tmp_path / "here", name)
    assert store.fetch(tmp_path / "there", name)
    assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    for spoil in (lambda at: store.files.pipe_file(at, b"damaged"), store.files.rm_file):
        spoil(f"{store.root}/{name}")
        assert not store.fetch(tmp_path / "elsewhere", name)
        assert not any((tmp_path / "elsewhere").rglob("*.part*"))
        store.send(tmp_path / "here", name)  # made again
        assert store.fetch(tmp_path / "again", name)
        shutil.rmtree(tmp_path / "again")


def test_a_run_directory_is_a_store_as_well(tmp_path: Path) -> None:
    """Where a shard was lost, it is written again, whatever its checksum says; half-written ones do not stay."""
    table, name = CONTEXTS.build_rows([]), "contexts/part-00000.parquet"
    for folder in ("run", "worker"):
        write_shard(table, tmp_path / folder / name)
    (tmp_path / "run" / name).unlink()
    store = Store(str(tmp_path / "run"))
    assert not store.fetch(tmp_path / "run", name)
    store.send(tmp_path / "worker", name)
    assert store.fetch(tmp_path / "run", name)
    assert not list((tmp_path / "run").rglob("*.part"))


@without_ray
def test_ray_that_is_not_installed_is_told(tmp_path: Path, settings: CaptureSettings) -> None:
    with pytest.raises(ModelError, match=r"Ray is not installed: .* pip install 'teachdiag\[ray,vllm\]'"):
        run_capture(tmp_path / "run", replace(settings, engine="ray"), QUIET)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ray_workers": 2}, "--ray-workers belongs to --engine ray"),
        ({"store": "s3://bucket/run"}, "--store belongs to --engine ray"),
        ({"engine": "ray", "teacher_engine": "vllm"}, "--engine ray scores with both models"),
        ({"engine": "ray", "shard_model": True}, "--shard-model is for models in transformers"),
        ({"engine": "ray", "ray_workers": -1}, "--ray-workers is -1"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        CaptureSettings(**options)


def test_a_store_that_nothing_can_reach_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--store 'nowhere://x' cannot be used: .*"):
        Store("nowhere://x")


def _same_positions(run: Path, other: Path) -> None:
    """Ids to the last, numbers to the rounding of another number of threads."""
    ours, theirs = (POSITIONS.read(folder / "positions") for folder in (run, other))
    pd.testing.assert_frame_equal(ours[["context_id", "position"]], theirs[["context_id", "position"]])
    for name in ours:
        if ours[name].dtype == np.float32:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4, atol=2e-5, err_msg=name)


class _Killer(threading.Thread):
    """Kills a process of one class of Ray's workers, whose title tells the class, once it is at work."""

    def __init__(self, worker: str, folder: Path) -> None:
        super().__init__(daemon=True)
        self.worker, self.folder = worker, folder
        self.killed, self.written = 0, 0
        self.done = threading.Event()  # there is nothing left to kill
        self.start()

    def run(self) -> None:
        import psutil

        while not self.killed and not self.done.is_set():
            for process in psutil.process_iter(["cmdline"]):
                title = " ".join(process.info["cmdline"] or [])
                if f"({self.worker})).submit" in title:
                    process.kill()
                    self.written = len(list(self.folder.glob("*.parquet")))
                    self.killed = process.pid
                    break
            time.sleep(0.02)
