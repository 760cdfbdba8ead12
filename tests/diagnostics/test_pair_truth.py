"""What a run says of its pair is what was used: whose prompts differ, what was dropped, and whether it can answer.

The truth: what each run was given here, and sentences written by hand.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_pair import PROBE, byte_tokenizer, save_model

from teachdiag.analysis.report.sections import pair_text
from teachdiag.artefacts import CONTEXTS
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.doubts import doubts
from teachdiag.diagnostics.imports.formats import FORMATS
from teachdiag.diagnostics.imports.import_rollouts import import_rollouts
from teachdiag.diagnostics.models.language_model import nan_advice
from teachdiag.diagnostics.models.pair import load_pair, resolve_pair
from teachdiag.diagnostics.probe import run_probe
from teachdiag.errors import InputError, RunError
from teachdiag.progress import Reporter
from teachdiag.runs import bank_prompts, teacher_prompt
from teachdiag.settings import EMBEDDED, CaptureSettings, ImportSettings, TrainSettings

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory, tiny_settings: CaptureSettings) -> dict[str, Path]:
    """Rollouts from elsewhere: the teacher's prompts are the student's, or one of them is another."""
    folder = tmp_path_factory.mktemp("brought")
    run_capture(folder / "run", tiny_settings, QUIET)
    table = CONTEXTS.read_arrow(folder / "run/contexts")
    prompts = table["teacher_prompt_token_ids"].to_pylist()
    prompts[3] = [*prompts[3], 65]
    place, kind = (
        table.schema.get_field_index("teacher_prompt_token_ids"),
        table.schema.field("teacher_prompt_token_ids"),
    )
    pq.write_table(table, folder / "same.parquet")
    pq.write_table(table.set_column(place, kind, pa.array(prompts, kind.type)), folder / "other.parquet")
    return {name: folder / f"{name}.parquet" for name in ("same", "other")}


@pytest.mark.parametrize("asked", ["same", "privileged"])
def test_the_files_prompts_decide_whether_there_is_something_to_learn(
    brought: dict[str, Path], tiny_settings: CaptureSettings, asked: str, tmp_path: Path
) -> None:
    itself = replace(tiny_settings, teacher=tiny_settings.student, teacher_prompt=asked)
    with pytest.raises(InputError, match=r"nothing to learn|every prompt of the teacher is the student's own"):
        run_capture(tmp_path / "same", replace(itself, contexts=str(brought["same"])), QUIET)
    assert not (tmp_path / "same/capture.json").exists()
    results = run_capture(tmp_path / "other", replace(itself, contexts=str(brought["other"])), QUIET)
    assert results["same_prompts"] is False
    assert results["bank_mean_forward_kl"] > 0


def test_only_the_demo_loses_a_layer() -> None:
    assert CaptureSettings().dropped_layers == TrainSettings().dropped_layers == (20,)
    for changes in (
        {"contexts": "some.parquet"},
        {"contexts": "some.parquet", "teacher_prompt": "privileged"},
        {"teacher_prompt": "privileged"},
        {"teacher": "another"},
        {"student": "another", "teacher": "another"},
        {"student": "another"},
        {"teacher_template_options": '{"a": 1}'},
    ):
        assert CaptureSettings(**changes).dropped_layers == ()
    assert CaptureSettings(contexts="some.parquet", student_drop_layers="20").dropped_layers == (20,)
    assert (CaptureSettings().student, CaptureSettings().student_drop_layers) == (EMBEDDED, "auto")


def test_a_probe_takes_the_layers_that_were_captured(
    tiny_settings: CaptureSettings, tmp_path: Path, brought: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run_capture(run, replace(tiny_settings, contexts=str(brought["other"])), QUIET)
    monkeypatch.setattr(CaptureSettings, "dropped_layers", (1,))  # as another version might read the settings
    with pytest.raises(RunError, match=r"dropped_layers of .* was \[\], now \[1\]"):
        run_probe(run, PROBE, QUIET)


SOUND = {"bank_mean_forward_kl": 0.3, "bank_mean_compatibility_k16": 0.8, "share_cut_at_max_new_tokens": 0.5}


@pytest.mark.parametrize(
    ("found", "without_template", "told"),
    [
        ({}, False, []),
        ({"share_cut_at_max_new_tokens": None}, False, []),
        ({"bank_mean_forward_kl": 10.6, "bank_mean_compatibility_k16": 0.09}, False, ["hardly agree"]),
        ({"bank_mean_forward_kl": None, "bank_mean_compatibility_k16": 0.09}, False, ["hardly agree"]),
        ({"bank_mean_forward_kl": 0.0, "bank_mean_compatibility_k16": 0.99}, False, ["nothing to learn"]),
        ({"share_cut_at_max_new_tokens": 0.6}, False, ["60% of the responses were cut"]),
        ({"share_cut_at_max_new_tokens": 1.0}, True, ["no chat template", "100% of the responses were cut"]),
    ],
)
def test_doubts(found: dict, without_template: bool, told: list[str]) -> None:
    sentences = doubts(SOUND | found, without_template)
    assert len(sentences) == len(told)
    assert all(words in sentence for words, sentence in zip(told, sentences, strict=True))


def test_doubts_are_told_at_capture_and_above_the_verdict(
    tiny_settings: CaptureSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights in another folder, under another digest, without a chat template, cut after two tokens."""
    plain = byte_tokenizer()
    plain.chat_template = None
    save_model(tmp_path / "student", seed=1, tokenizer=plain)
    shutil.copytree(tmp_path / "student", tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    (tmp_path / "copy/config.json").write_text(json.dumps(config | {"use_cache": False}))
    pair = {"student": str(tmp_path / "student"), "teacher": str(tmp_path / "copy"), "max_new_tokens": 2}
    run = tmp_path / "run"
    results = run_capture(run, replace(tiny_settings, **pair), Reporter())
    told = ("nothing to learn", "no chat template", "were cut")
    assert all(words in doubt for words, doubt in zip(told, results["warnings"], strict=True))
    said = " ".join(capsys.readouterr().err.split())
    assert all(f"Beware: {doubt}" in said for doubt in results["warnings"])
    bank = pd.DataFrame([{"analysis": "q3", "n_positions": 20, "n_prompts": 10}])
    above = pair_text(run, SimpleNamespace(estimates=bank))
    assert all(f"Beware: {doubt}." in above for doubt in results["warnings"])
    assert "with the same prompt" in above


def test_what_is_said_of_a_bank_is_what_was_used(
    brought: dict[str, Path], tiny_settings: CaptureSettings, tmp_path: Path
) -> None:
    run_capture(tmp_path / "run", replace(tiny_settings, contexts=str(brought["other"])), QUIET)
    bank = pd.DataFrame([{"analysis": "q3", "n_positions": 20, "n_prompts": 10}])
    text = pair_text(tmp_path / "run", SimpleNamespace(estimates=bank))
    assert "with the other prompt. Bank: 20 positions of 10 `other.parquet` prompts" in text


@pytest.mark.parametrize(("choice", "ends"), [("student", {256}), ("union", {256, 40, 41})])
def test_a_pair_that_ends_differently_is_told_how_to_end(
    tiny_settings: CaptureSettings, choice: str, ends: set[int], tmp_path: Path
) -> None:
    """An instructed teacher has end-of-text ids of its own."""
    teacher = save_model(tmp_path / "teacher", 2, eos_token_id=[256, 40, 41])
    settings = replace(tiny_settings, teacher=teacher, max_new_tokens=60, positions=60, temperature=2.0)
    with pytest.raises(InputError, match=r"with \[40, 41, 256\].* or --end-of-text student or union"):
        run_capture(tmp_path / "refused", settings, QUIET)
    chosen = replace(settings, end_of_text=choice)
    run_capture(tmp_path / "run", chosen, QUIET)
    table = CONTEXTS.read_arrow(tmp_path / "run/contexts")
    for ids, why in zip(table["response_token_ids"].to_pylist(), table["finish_reason"].to_pylist(), strict=True):
        assert not ends & set(ids[:-1])
        assert (ids[-1] in ends) == (why == "stop")
    assert "stop" in table["finish_reason"].to_pylist()
    pair = load_pair(resolve_pair(chosen, QUIET), "float32", "cpu")
    assert pair.student.end_ids == ends
    assert set(pair.student.model.generation_config.eos_token_id) == ends  # of which TRL reads


def test_an_import_is_told_what_ended_its_responses(tiny_settings: CaptureSettings, tmp_path: Path) -> None:
    rows = [{"prompt_token_ids": [n], "response_token_ids": [70, 71, n]} for n in (40, 41)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"files": [str(tmp_path / "rows.jsonl")], "student": tiny_settings.student}
    names = byte_tokenizer().convert_ids_to_tokens([40, 256])
    out = tmp_path / "out.parquet"
    found = import_rollouts(
        FORMATS["jsonl"], ImportSettings(**given, contexts=str(out), end_of_text=",".join(names)), QUIET
    )
    assert found["ends"]["stop"] == 1
    with pytest.raises(InputError, match="has no token 'no such'"):
        import_rollouts(FORMATS["jsonl"], ImportSettings(**given, contexts=str(out), end_of_text="no such"), QUIET)


def test_nan_is_not_blamed_on_what_is_float32() -> None:
    assert nan_advice(torch.float32, torch.float32) == "check the models' weights"
    assert nan_advice(torch.float32, torch.bfloat16) == "try --dtype float32, or check the models' weights"


def test_prompts_are_named_by_what_brought_them() -> None:
    for settings, results, names in (
        ({"contexts": "", "teacher_prompt": "same"}, {"same_prompts": True}, ("sums", "same")),
        ({"contexts": "", "teacher_prompt": "same"}, {"same_prompts": False}, ("sums", "other")),  # other options
        ({"contexts": "", "teacher_prompt": "privileged"}, {"same_prompts": False}, ("sums", "privileged")),
        ({"contexts": "a/b.parquet", "teacher_prompt": "same"}, {"same_prompts": False}, ("b.parquet", "other")),
        ({"contexts": "", "teacher_prompt": "privileged"}, {}, ("sums", "privileged")),  # of an older version
    ):
        note = {"settings": settings | {"prompts": "gsm_symbolic"}, "results": results}
        note["inputs"] = {} if settings["contexts"] else {"prompts": {"manifest": "sums"}}
        assert (bank_prompts(note), teacher_prompt(note)) == names
