"""A teacher behind an address. The truth: the same model in this process, on the same contexts."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import urllib3
from masked import with_masks
from model_servers import Faults, ModelServer
from stages import tables
from tiny_pair import save_model
from transformers import Qwen3ForCausalLM

from teachdiag.artefacts import BOUNDS, POSITIONS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.engines.served import transport
from teachdiag.diagnostics.engines.served.checks import check_listed
from teachdiag.diagnostics.engines.served.servers import connect
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.errors import ModelError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings

QUIET = Reporter(quiet=True)
WHOLE_VOCABULARY = {"teacher_entropy", "forward_kl", "reverse_kl", "jsd", "logit_alignment", "forward_logit_energy"}
AT_SUPPORT = {"teacher_logp_at_student_topk", "tail_mass"} | {
    f"{name}_k{k}" for name in ("disagreement", "compatibility", "bhattacharyya") for k in (8, 16, 32)
}
BOUND_NAMES = {column.name for column in BOUNDS}
Serve = Callable[..., ModelServer]


@pytest.fixture(scope="module")
def taught_path(tmp_path_factory: pytest.TempPathFactory, student_path: str) -> str:
    """The student's weights disturbed, under a head without padding, which no server cuts."""
    folder = tmp_path_factory.mktemp("models") / "taught"
    save_model(folder, seed=2, rows=257)
    teacher, student = Qwen3ForCausalLM.from_pretrained(folder), Qwen3ForCausalLM.from_pretrained(student_path)
    with torch.no_grad():
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            ours.mul_(0.3).add_(theirs[: len(ours)])
    teacher.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def here(student_path: str, taught_path: str, manifest_path: str) -> CaptureSettings:
    sizes = {"bank_prompts": 5, "update_prompts": 1, "max_new_tokens": 8, "positions": 7, "shard_contexts": 2}
    return CaptureSettings(
        student=student_path, teacher=taught_path, prompts=manifest_path, teacher_prompt="privileged", **sizes
    )


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory, here: CaptureSettings) -> Path:
    run = tmp_path_factory.mktemp("runs") / "here"
    run_capture(run, here, QUIET)
    return run


@pytest.fixture
def serve(taught_path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a server of a dialect with some faults."""
    monkeypatch.setattr(transport, "_BACKOFF", 0.0)
    monkeypatch.delenv("TEACHDIAG_TEACHER_KEY", raising=False)
    with ExitStack() as stack:

        def start(dialect: str = "vllm", path: str = taught_path, **faults: Any) -> ModelServer:
            return stack.enter_context(ModelServer(path, dialect, Faults(**faults)))

        yield start


@pytest.fixture
def asked(truth: Path, student_path: str) -> Callable[..., CaptureSettings]:
    """Settings of a capture of the truth's contexts with a served teacher."""

    def settings(server: ModelServer, **changes: Any) -> CaptureSettings:
        usual = {"contexts": str(truth / "contexts"), "teacher": "taught", "positions": 7, "shard_contexts": 2}
        return CaptureSettings(student=student_path, teacher_url=server.url, **(usual | changes))

    return settings


def positions(run: Path) -> pd.DataFrame:
    return POSITIONS.read(run / "positions")


def agree(ours: pd.DataFrame, theirs: pd.DataFrame, names: set[str]) -> None:
    for name in names:
        a, b = (np.stack(frame[name].to_numpy()) for frame in (ours, theirs))
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_ids_of_our_choice_give_what_lists_determine(
    tmp_path: Path, truth: Path, serve: Serve, asked: Callable[..., CaptureSettings], dialect: str
) -> None:
    results = run_capture(tmp_path / "run", asked(serve(dialect)), QUIET)
    ours, theirs = positions(tmp_path / "run"), positions(truth)
    assert set(theirs.columns) - set(ours.columns) == WHOLE_VOCABULARY
    agree(ours, theirs, set(ours.columns))
    assert results["bank_mean_compatibility_k16"] == pytest.approx(
        theirs["compatibility_k16"][theirs["split"] == "bank"].mean(), rel=1e-4
    )


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_tokens_of_tools_are_read_and_not_scored(
    tmp_path: Path,
    here: CaptureSettings,
    truth: Path,
    serve: Serve,
    asked: Callable[..., CaptureSettings],
    dialect: str,
) -> None:
    contexts = str(with_masks(truth / "contexts", tmp_path / "masked.parquet"))
    loaded = CaptureSettings(student=here.student, teacher=here.teacher, contexts=contexts, positions=4)
    run_capture(tmp_path / "here", loaded, QUIET)
    run_capture(tmp_path / "run", asked(serve(dialect), contexts=contexts, positions=4), QUIET)
    ours = positions(tmp_path / "run")
    agree(ours, positions(tmp_path / "here"), set(ours.columns))


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_top_lists_alone_give_bounds(
    tmp_path: Path, truth: Path, serve: Serve, asked: Callable[..., CaptureSettings], dialect: str
) -> None:
    server = serve(dialect, by_id=dialect == "sglang")  # vLLM before 0.32 has only these, SGLang is asked for no more
    run_capture(tmp_path / "run", asked(server, teacher_gives="auto" if dialect == "vllm" else "top"), QUIET)
    ours, theirs = positions(tmp_path / "run"), positions(truth)
    assert set(theirs.columns) - set(ours.columns) == WHOLE_VOCABULARY | AT_SUPPORT
    assert set(ours.columns) - set(theirs.columns) == BOUND_NAMES
    agree(ours, theirs, set(ours.columns) - BOUND_NAMES)
    for name in ("compatibility", "disagreement"):
        for k in (8, 16, 32):
            exact = theirs[f"{name}_k{k}"]
            assert (ours[f"{name}_low_k{k}"] <= exact + 2e-5).all()
            assert (exact <= ours[f"{name}_high_k{k}"] + 2e-5).all()
    assert (ours["compatibility_high_k16"] - ours["compatibility_low_k16"]).between(0, 1).all()


def test_the_run_tells_who_answered_and_holds_no_key(
    tmp_path: Path, here: CaptureSettings, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rollouts are sampled here. Requests are under way together, and no more than are asked for."""
    server = serve(key="sesame-3141", slow=0.02)
    changes = {"teacher": "taught", "teacher_url": server.url, "teacher_requests": 2, "shard_contexts": 8}
    settings = replace(here, **changes)
    with pytest.raises(
        ModelError, match=r"/v1/models refuses .* \(status 401: Unauthorized\); give the server's key in"
    ):
        run_capture(tmp_path / "run", settings, QUIET)
    monkeypatch.setenv("TEACHDIAG_TEACHER_KEY", "sesame-3141")
    results = run_capture(tmp_path / "run", settings, QUIET)
    note = Stage(tmp_path / "run", "capture").record()
    assert note["inputs"]["teacher"] == {
        "name": "taught",
        "revision": "",
        "digest": "",
        "dropped_layers": [],
        "server": "vLLM 0.32.0",
        "limit": 256,
        "gives": "logprobs",
    }
    assert note["settings"]["teacher_url"] == server.url
    assert server.most_under_way == 2
    assert any("no weights behind an address can be pinned" in warning for warning in results["warnings"])
    assert not [f for f in (tmp_path / "run").rglob("*") if f.is_file() and b"sesame" in f.read_bytes()]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            {"swapped_tokens": True},
            r"do not share a vocabulary: 2 ids differ \(id 10: '\+' against ','; id 11: ',' aga",
        ),
        ({"shift": 1}, "is not aligned: before the last token of a prompt its log-probabilities are others than when"),
        ({"shift": -1}, "is not aligned: before the last token of a prompt its log-probabilities are others than when"),
        (
            {"noise": 0.2},
            r"answers the same question otherwise the second time, by 0\.\d+ nats a token: several models",
        ),
        ({"cut": 20}, "answers for 20 of 96 tokens: it cuts what it is sent; start it with a longer context"),
        (
            {"max_logprobs": 20},
            r"refuses what it is asked \(status 400: Requested prompt .* start vLLM with --max-logprobs 64",
        ),
        ({"logits": True}, r"gives no log-probabilities \(a list of them has the mass .*\): vLLM gives them with"),
        ({"error_inside": True}, "answers with an error, though its status is 200: upstream timed out; does something"),
        ({"owner": "llamacpp"}, "is a server of 'llamacpp': only vLLM and SGLang are known"),
        ({"limit": 20}, "with 8 for the response it exceeds the 19 that taught was made for"),
    ],
)
def test_a_server_that_is_not_as_it_must_be_is_refused(
    tmp_path: Path, here: CaptureSettings, serve: Serve, faults: dict[str, Any], message: str
) -> None:
    """Before anything is sampled."""
    server = serve(**faults)
    with pytest.raises(Exception, match=message) as refused:
        run_capture(tmp_path / "run", replace(here, teacher="taught", teacher_url=server.url), QUIET)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_sglang_is_held_to_the_same(tmp_path: Path, here: CaptureSettings, serve: Serve) -> None:
    for faults, message in (
        ({"shift": 1}, "is not aligned"),
        ({"cut": 20}, "answers for 20 of 96 tokens"),
        ({"unsorted": True}, "gives lists that do not fall, or name an id twice"),
    ):
        served = replace(here, teacher="taught", teacher_url=serve("sglang", **faults).url)
        with pytest.raises(ModelError, match=message):
            run_capture(tmp_path / "run", served, QUIET)


def test_what_cannot_be_had_is_refused_where_it_is_asked_for(
    tmp_path: Path, serve: Serve, asked: Callable[..., CaptureSettings]
) -> None:
    server = serve(by_id=False)
    with pytest.raises(
        ModelError, match=r"--teacher-gives logprobs: .* \(vLLM 0\.32\.0\) does not give them at ids of our"
    ):
        run_capture(tmp_path / "run", asked(server, teacher_gives="logprobs"), QUIET)
    with pytest.raises(ModelError, match="serves taught: give one of these as --teacher"):
        run_capture(tmp_path / "run", asked(server, teacher="other"), QUIET)


def test_a_busy_server_is_waited_for(tmp_path: Path, serve: Serve, asked: Callable[..., CaptureSettings]) -> None:
    server = serve(first=[429, 503, 500, 502])
    run_capture(tmp_path / "run", asked(server), QUIET)
    assert not server.faults.first
    server.faults.first = [500] * 100
    with pytest.raises(ModelError, match=r"failed 6 times, the last time with status 500: busy: when it works again"):
        run_capture(tmp_path / "other", asked(server), QUIET)


@pytest.mark.parametrize(("header", "seconds"), [("86400", 60), ("7", 7), ("soon", None)])
def test_a_server_is_not_waited_for_as_long_as_it_likes(header: str, seconds: float | None) -> None:
    answer = urllib3.HTTPResponse(status=429, headers={"Retry-After": header})
    assert transport._Tries(3).get_retry_after(answer) == seconds


def test_an_adapter_that_is_served_has_the_length_of_its_model(serve: Serve) -> None:
    """By vLLM's `--lora-modules`, whose cards tell no length."""
    server = connect(serve(adapter=True).url, "taught", 1)
    assert (server.limit, server.program) == (256, "vLLM 0.32.0")


@pytest.mark.parametrize("wrong", [np.nan, 0.5])
def test_what_is_asked_for_is_looked_at_as_lists_are(wrong: float, serve: Serve) -> None:
    server = connect(serve().url, "taught", 1)
    ids = tuple(range(65, 75))
    listed = server.score(ids, np.arange(1, 10), np.zeros((9, 1), np.int64))
    check_listed(server, listed, Known(257))
    assert listed.asked is not None
    listed.asked[3] = wrong
    with pytest.raises(ModelError, match="gives no log-probabilities"):
        check_listed(server, listed, Known(257))


def test_nothing_is_lost_when_it_dies(
    tmp_path: Path, serve: Serve, asked: Callable[..., CaptureSettings], taught_path: str, teacher_path: str
) -> None:
    """And what is left is not asked of another model."""
    server = serve()
    settings = asked(server)
    run_capture(tmp_path / "whole", settings, QUIET)
    whole, server.faults.dies_after, server.scored = server.scored, 9, 0
    assert whole > 9
    with pytest.raises(ModelError, match=r"failed 6 times, the last time with .*: when it works again, start the same"):
        run_capture(tmp_path / "run", settings, QUIET)
    server.faults.dies_after = None
    kept = sorted((tmp_path / "run/positions").glob("*.parquet"))
    assert 0 < len(kept) < 3
    times = [file.stat().st_mtime_ns for file in kept]
    right = server.model
    server.model = Qwen3ForCausalLM.from_pretrained(taught_path)
    with torch.no_grad():
        server.model.model.norm.weight.mul_(0.5)
    with pytest.raises(ModelError, match=r"is not what it was when .* was begun: of context 0 it says something else"):
        run_capture(tmp_path / "run", settings, QUIET)
    server.model = right
    run_capture(tmp_path / "run", replace(settings, teacher_requests=3), QUIET)
    assert [file.stat().st_mtime_ns for file in kept] == times
    assert tables(tmp_path / "run") == tables(tmp_path / "whole")


def test_a_probe_says_that_it_needs_the_whole_distribution(
    tmp_path: Path, serve: Serve, asked: Callable[..., CaptureSettings], refused: Callable[..., str]
) -> None:
    run_capture(tmp_path / "run", asked(serve(), teacher_gives="top"), QUIET)
    sentence = refused("probe", "--run", tmp_path / "run")
    assert "lacks the columns teacher_entropy, forward_kl, which the run's teacher engine could not give" in sentence
    assert "capture with a teacher that is loaded here" in sentence


def test_an_address_where_nobody_answers_is_told_of_at_once(tmp_path: Path, refused: Callable[..., str]) -> None:
    where = "--teacher", "taught", "--teacher-url", "http://127.0.0.1:9/v1"
    sentence = refused("capture", "--run", tmp_path / "run", "--student-drop-layers", "none", *where)
    assert "http://127.0.0.1:9/v1/models cannot be reached: " in sentence


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher_url": "http://host:8000"}, "--teacher-url is 'http://host:8000': it must be an address such as"),
        ({"teacher_url": "http://me:secret@host/v1"}, "it must be an address such as .* without a key or password"),
        ({"teacher_url": "http://host/v1?key=secret"}, "it must be an address such as"),
        (
            {"teacher_url": "http://host/v1", "teacher": "embedded"},
            "--teacher is 'embedded': it must be the model's id",
        ),
        (
            {"teacher_url": "http://host/v1", "teacher_gives": "states"},
            "--teacher-gives is 'states': it must be auto, lo",
        ),
        (
            {"teacher_gives": "top", "teacher_engine": "vllm"},
            "--teacher-gives is 'top': it must be auto, states or logp",
        ),
        ({"teacher_requests": 4}, "--teacher-requests belongs to --teacher-url"),
        (
            {"teacher_url": "http://host/v1", "teacher_engine": "vllm"},
            "--teacher-engine belongs to a teacher that is lo",
        ),
        (
            {"teacher_url": "http://host/v1", "teacher_revision": "a"},
            "--teacher-revision belongs to a teacher on the Hub",
        ),
        (
            {"teacher_url": "http://host/v1", "end_of_text": "union"},
            "--end-of-text is 'union': it must be same or student",
        ),
        ({"teacher_url": "http://host/v1", "engine": "ray"}, "--engine ray scores with both models in each worker"),
        ({"teacher_url": "http://host/v1", "shard_model": True}, "--shard-model is for models in transformers"),
    ],
)
def test_options_that_do_not_fit_an_address_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        CaptureSettings(**({"teacher": "taught"} | given))
