"""vLLM, a real engine on the CPU: rollouts, and the teacher behind it (`make test-vllm` has one).

The truth: the same capture and distributions by transformers.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from masked import with_masks
from tiny_pair import KNOWN

from teachdiag.artefacts import CONTEXTS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.contexts_table import read_contexts
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.engines.vllm_launch import require_vllm
from teachdiag.diagnostics.engines.vllm_teacher import (
    LogprobsTeacher,
    VllmTeacher,
    at_every_position,
    collected,
    refuse_without_logprobs,
)
from teachdiag.diagnostics.models.pair import load_pair, resolve_pair
from teachdiag.errors import ModelError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM lives in .venv-vllm")
without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def settings(served_pair: tuple[str, str], manifest_path: str) -> CaptureSettings:
    student, teacher = served_pair
    sizes = {"bank_prompts": 20, "update_prompts": 16, "max_new_tokens": 12, "positions": 10}
    return CaptureSettings(student=student, teacher=teacher, prompts=manifest_path, batch_tokens=200, **sizes)


@pytest.fixture(scope="module")
def by_transformers(tmp_path_factory: pytest.TempPathFactory, settings: CaptureSettings) -> Path:
    run = tmp_path_factory.mktemp("runs") / "transformers"
    run_capture(run, settings, QUIET)
    return run


@pytest.fixture(scope="module")
def by_vllm(tmp_path_factory: pytest.TempPathFactory, settings: CaptureSettings) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vllm"
    run_capture(run, replace(settings, engine="vllm"), QUIET)
    return run


@needs_vllm
def test_rollouts_end_in_the_same_tables(by_vllm: Path, by_transformers: Path) -> None:
    ours, theirs = (CONTEXTS.read(run / "contexts") for run in (by_vllm, by_transformers))
    known = [name for name in ours.columns if name not in ("response_token_ids", "finish_reason")]
    pd.testing.assert_frame_equal(ours[known], theirs[known])
    lengths = ours["response_token_ids"].map(len)
    assert lengths.between(1, 12).all()
    ends = ours["response_token_ids"].map(lambda ids: ids[-1] == 256)
    assert ((ours["finish_reason"] == "stop") == ends).all()
    assert (lengths[~ends] == 12).all()
    assert ours["response_token_ids"].map(lambda ids: max(ids) < KNOWN).all()  # padding is out of reach
    assert len({tuple(ids) for ids in ours["response_token_ids"]}) > 30  # every rollout has its own seed


@needs_vllm
def test_rollouts_repeat_with_their_seeds(tmp_path: Path, settings: CaptureSettings, by_vllm: Path) -> None:
    """In another number of groups at a time, and after a kill that left one group."""
    run_capture(tmp_path / "run", replace(settings, engine="vllm", prefix_caching=False), QUIET)
    ours, theirs = (CONTEXTS.read(run / "contexts") for run in (by_vllm, tmp_path / "run"))
    pd.testing.assert_frame_equal(ours, theirs)


@needs_vllm
def test_first_tokens_follow_the_students_distribution(settings: CaptureSettings, tmp_path: Path) -> None:
    """300 rollouts of one prompt: frequencies within sampling error of the model's own probabilities."""
    many = replace(settings, engine="vllm", bank_prompts=1, update_prompts=1, responses=300, max_new_tokens=1)
    run_capture(tmp_path / "run", many, QUIET)
    contexts = [c for c in read_contexts(tmp_path / "run", Positions(1, "first")) if c.split == "bank"]
    student = load_pair(resolve_pair(settings, QUIET), "float32", "cpu").student
    with torch.no_grad():
        p = student.model(torch.tensor([contexts[0].student_prompt])).logits[0, -1, :KNOWN].softmax(-1).numpy()
    counts = np.bincount([c.response[0] for c in contexts], minlength=KNOWN)
    assert np.abs(counts / 300 - p).max() < 4 * np.sqrt(p.max() / 300)


@needs_vllm
def test_a_pruned_student_is_exported_once(
    tmp_path: Path, settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest tokens of a pruned student are those that transformers takes."""
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path / "cache"))
    pruned = replace(settings, teacher=settings.student, student_drop_layers="0", top_k=1)
    for engine in ("vllm", "transformers"):
        run_capture(tmp_path / engine, replace(pruned, engine=engine), QUIET)
    ours, theirs = (CONTEXTS.read(tmp_path / engine / "contexts") for engine in ("vllm", "transformers"))
    pd.testing.assert_frame_equal(ours, theirs)
    assert len(list((tmp_path / "cache").glob("*-without-0"))) == 1


@needs_vllm
@pytest.mark.parametrize("prompt", ["same", "privileged"])
def test_a_teacher_behind_vllm_gives_every_column(tmp_path: Path, settings: CaptureSettings, prompt: str) -> None:
    """Hidden states and our head against the model in transformers, on the same contexts, in float32."""
    settings = replace(settings, teacher_prompt=prompt)
    run_capture(tmp_path / "transformers", settings, QUIET)
    run_capture(tmp_path / "vllm", replace(settings, teacher_engine="vllm"), QUIET)
    ours, theirs = (POSITIONS.read(tmp_path / engine / "positions") for engine in ("vllm", "transformers"))
    compare(ours, theirs, list(theirs.columns))


@needs_vllm
def test_listed_log_probabilities_are_refused_on_a_cpu(tmp_path: Path, settings: CaptureSettings) -> None:
    asked = replace(settings, teacher_engine="vllm", teacher_gives="logprobs")
    with pytest.raises(ModelError, match=r"--teacher-gives logprobs: vLLM .* gives them on CUDA only"):
        run_capture(tmp_path / "run", asked, QUIET)


def compare(ours: pd.DataFrame, theirs: pd.DataFrame, names: list[str]) -> None:
    """Columns agree to float32 rounding; lists do where they name the same id, which all but near ties do."""
    for name in names:
        a, b = (np.stack(frame[name].to_numpy()) for frame in (ours, theirs))
        if a.ndim == 2:
            of = name if name.endswith("_ids") else "_".join([*name.split("_at_")[-1].split("_")[:2], "ids"])
            same = np.stack(ours[of].to_numpy()) == np.stack(theirs[of].to_numpy())
            assert same.mean() > 0.99, of
            a, b = a[same], b[same]
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=5e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


class Listing:
    """What vLLM answers on CUDA, made by transformers: rows of ids, and ranked entries of every prompt token."""

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def outputs(self, batch: object, ids: np.ndarray, vocabulary: int) -> list[object]:
        found, row = [], 0
        for context in batch.contexts:  # type: ignore[attr-defined]
            prompt, n = [*context.teacher_prompt, *context.response[: context.last + 1]], context.rows
            with torch.no_grad():
                logq = self.model(torch.tensor([prompt])).logits[0, :, :vocabulary].log_softmax(-1)
            scored = logq[len(context.teacher_prompt) - 1 : -1]
            asked = scored.gather(1, torch.from_numpy(at_every_position(context, ids[row : row + n])).long())
            entries: list[object] = [None]
            for token, values in zip(prompt[1:], logq[:-1], strict=True):
                order = values.argsort(descending=True)
                best = enumerate(order[:32].tolist())
                listed = {i: SimpleNamespace(logprob=float(values[i]), rank=r + 1) for r, i in best}
                rank = int((values > values[token]).sum()) + 1
                listed.setdefault(token, SimpleNamespace(logprob=float(values[token]), rank=rank))
                entries.append(listed)
            found.append(SimpleNamespace(prompt_token_id_logprobs=asked.numpy(), prompt_logprobs=entries))
            row += n
        return found


@pytest.fixture
def listing(settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put what CUDA would answer in place of the engine; what we ask for and make of the answer is ours."""
    teacher = Listing(settings.teacher)

    def start(self: LogprobsTeacher, *_: object) -> None:
        self.engine = None

    def answer(self: LogprobsTeacher, batch: object, ids: np.ndarray) -> object:
        outputs = teacher.outputs(batch, ids, KNOWN)
        return collected(outputs, batch.contexts)  # type: ignore[attr-defined]

    monkeypatch.setattr(LogprobsTeacher, "__init__", start)
    monkeypatch.setattr(LogprobsTeacher, "answer", answer)
    monkeypatch.setattr(VllmTeacher, "require", lambda *_: None)


@pytest.mark.parametrize("masked", [False, True])
def test_listed_log_probabilities_give_what_lists_determine(
    tmp_path: Path, settings: CaptureSettings, by_transformers: Path, listing: None, masked: bool
) -> None:
    """Everything that is there equals the full-vocabulary path; what lists cannot tell is absent, and said to be."""
    contexts = by_transformers / "contexts"
    if masked:
        contexts = with_masks(contexts, tmp_path / "masked.parquet")
        by_transformers = tmp_path / "transformers"
        run_capture(by_transformers, replace(settings, contexts=str(contexts)), QUIET)
    asked = replace(settings, teacher_engine="vllm", teacher_gives="logprobs", contexts=str(contexts))
    results = run_capture(tmp_path / "run", asked, QUIET)
    ours, theirs = (POSITIONS.read(run / "positions") for run in (tmp_path / "run", by_transformers))
    absent = {"teacher_entropy", "forward_kl", "reverse_kl", "jsd", "logit_alignment", "forward_logit_energy"}
    assert set(theirs.columns) - set(ours.columns) == absent
    compare(ours, theirs, list(ours.columns))
    assert "bank_mean_forward_kl" not in results
    with pytest.raises(Exception, match="lacks the columns forward_kl, which the run's teacher engine could not give"):
        POSITIONS.read(tmp_path / "run/positions", ["forward_kl"])


@without_vllm
def test_an_engine_that_is_not_installed_is_named_with_its_line(tmp_path: Path, settings: CaptureSettings) -> None:
    for asked in ({"engine": "vllm"}, {"teacher_engine": "vllm"}):
        with pytest.raises(ModelError, match=r"vLLM is not installed: .* pip install 'teachdiag\[vllm\]'"):
            run_capture(tmp_path / "run", replace(settings, **asked), QUIET)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError):
        require_vllm()


def test_an_engine_that_lacks_the_call_is_refused() -> None:
    """What vLLM before 0.32 looks like from here."""
    old = SimpleNamespace(
        __version__="0.31.0",
        SamplingParams=SimpleNamespace(__struct_fields__=("n", "prompt_logprobs")),
        platforms=SimpleNamespace(current_platform=SimpleNamespace(is_cuda=lambda: True)),
    )
    with pytest.raises(
        ModelError, match=r"vLLM 0\.31\.0 lacks SamplingParams\(prompt_logprob_token_ids\): install vllm"
    ):
        refuse_without_logprobs(old)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tensor_parallel": 2}, "--tensor-parallel belongs to vLLM, which runs nothing here"),
        ({"engine": "vllm", "contexts": "c", "gpu_memory": 0.5}, "--gpu-memory belongs to vLLM"),
        (
            {"engine": "vllm", "teacher_gives": "states"},
            "--teacher-gives belongs to --teacher-engine vllm and --teacher-url",
        ),
        ({"engine": "vllm", "gpu_memory": 1.5}, r"--gpu-memory is 1.5: it must be in \(0, 1\]"),
        ({"engine": "vllm", "shard_model": True}, "--shard-model is for models in transformers"),
    ],
)
def test_options_of_an_engine_that_is_not_used_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        CaptureSettings(**asked)
