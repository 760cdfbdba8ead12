"""What bad input gets from capture and probe: one sentence, and nothing lost.

Faults and sentences are written by hand; the truth of what is not lost is a run that met no fault.
"""

import itertools
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from planted import claims_alone
from safetensors.torch import load_file, save_file
from stages import Killed, dying, tables
from tiny_pair import PROBE, byte_tokenizer, save_model
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from teachdiag.analysis.analyze import run_analysis
from teachdiag.artefacts import CONTEXTS, PRIMARY
from teachdiag.cli import app
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.evaluate import run_evaluation
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.models.pair import load_pair, resolve_pair
from teachdiag.diagnostics.models.sources import resolve
from teachdiag.diagnostics.models.vocabulary import shared_vocabulary
from teachdiag.diagnostics.probe import run_probe
from teachdiag.diagnostics.probes import interventions, isolated, masked_gradients, predicted, probe_setup, steps
from teachdiag.diagnostics.probes.updates import Step, optimize
from teachdiag.diagnostics.train import run_train
from teachdiag.errors import ContextError, EstimationError, InputError, ModelError, RunError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings, CaptureSettings, EvaluateSettings, ProbeSettings, TrainSettings


def edited(run: Path, tmp_path: Path, **columns: object) -> str:
    frame = CONTEXTS.read_arrow(run / "contexts").to_pandas()
    for name, values in columns.items():
        frame[name] = values
    path = tmp_path / "edited.parquet"
    frame.to_parquet(path)
    return str(path)


@pytest.mark.slow
def test_bad_foreign_contexts_are_refused(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    cases = [
        ({"context_id": 1}, "context_id must be distinct"),
        ({"prompt_id": "same"}, "prompt same is in both splits"),
        ({"split": "train"}, "split 'train'"),
        ({"split": "update"}, "has no context with split 'bank'"),
        ({"prompt_id": [None] * 16}, "column prompt_id has no finite value at context_id 0"),
        ({"response_token_ids": [[1, None] for _ in range(16)]}, "column response_token_ids has no finite value"),
        ({"response_token_ids": [[] for _ in range(16)]}, "context 0 has no kept position"),
        ({"response_token_ids": [["1", "2"] for _ in range(16)]}, "column response_token_ids holds .*string.*import"),
        ({"response_token_ids": "12"}, "column response_token_ids holds .*string"),
        ({"prompt_token_ids": [[1, 2]] * 16}, "have the same prompt_token_ids: give them one prompt_id"),
        ({"prompt_token_ids": [[1] * 300 + [n] for n in range(16)]}, "tokens for the student, whose limit is 256"),
        ({"response_mask": [[1] for _ in range(16)]}, "context 0 has a response_mask of 1 values for the 12 tokens"),
        (
            {"response_token_ids": [[1, 2] for _ in range(16)], "response_mask": [[0, 0] for _ in range(16)]},
            "context 0 has no kept position: no token of its response is the student's",
        ),
        (
            {"response_token_ids": [[1, 2] for _ in range(16)], "response_mask": [[1, 2] for _ in range(16)]},
            "context 0 has a response_mask that holds more than 0 and 1",
        ),
        ({"response_mask": "12"}, "column response_mask holds .*string"),
        ({"response_token_ids": [[1, 9999] for _ in range(16)]}, "context 0 holds token id 9999, outside"),
        ({"response_token_ids": [[1, 260] for _ in range(16)]}, "context 0 holds token id 260, outside"),
        (
            {
                "prompt_token_ids": [[1, n] for n in range(16)],
                "response_token_ids": [[1, n, 3] for n in range(16)],
            },
            "every response begins with its whole prompt: response_token_ids are what",
        ),
    ]
    for number, (columns, message) in enumerate(cases):
        settings = replace(tiny_settings, contexts=edited(run, tmp_path, **columns))
        with pytest.raises(InputError, match=message):
            run_capture(tmp_path / f"refused{number}", settings, quiet)
    lacking = CONTEXTS.read_arrow(run / "contexts").select(["context_id", "split", "prompt_token_ids"])
    pq.write_table(lacking, tmp_path / "lacking.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for path, message in (
        (tmp_path / "text.parquet", "cannot be read"),
        (tmp_path / "absent.parquet", "no contexts table"),
        (tmp_path / "rows.jsonl", "it is no Parquet file: `teachdiag import jsonl .*rows.jsonl --student MODEL"),
        (
            tmp_path / "lacking.parquet",
            "prompt_id, teacher_prompt_token_ids, response_token_ids, finish_reason; `teachdiag import jsonl",
        ),
    ):
        with pytest.raises(InputError, match=message):
            run_capture(tmp_path / "refused", replace(tiny_settings, contexts=str(path)), quiet)


def test_models_that_do_not_match_are_refused(tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter) -> None:
    swapped = save_model(tmp_path / "swapped", 1, tokenizer=byte_tokenizer(swap=True))
    ended = save_model(tmp_path / "ended", 1, eos_token_id=[256, 3])
    small = save_model(tmp_path / "small", 1, rows=200, pad_token_id=None, eos_token_id=None)
    cases = [
        ({"teacher": swapped}, r"2 ids differ \(id 10: .* against .*; id 11: "),
        ({"teacher": ended}, r"ends text with ids \[256\], teacher .* with \[3, 256\]"),
        ({"teacher": small}, "the tokenizer of .*small emits id 256, but its LM head has only 200 rows"),
        ({"teacher": tiny_settings.student}, "there is nothing to learn"),
        ({"top_k": 265}, "--top-k is 265: the models share 257 ids"),
        ({"student": str(tmp_path / "nowhere/at-all")}, "does not exist: give the folder of a causal language model"),
        ({"student": "nowhere/at-all"}, r"is n(either a|o) local folder"),
        ({"student_drop_layers": "7"}, r"--student-drop-layers \[7\]: .* has layers 0 to 1"),
        ({"student_drop_layers": "0,1"}, "--student-drop-layers all"),
    ]
    for number, (changes, message) in enumerate(cases):
        with pytest.raises(InputError, match=message):
            run_capture(tmp_path / f"run{number}", replace(tiny_settings, **changes), quiet)


def test_padded_vocabularies_are_cut_with_a_line_that_says_so(
    tmp_path: Path, tiny_settings: CaptureSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run_capture(tmp_path / "run", tiny_settings, Reporter())
    assert results["shared_vocabulary"] == 257
    assert "264 (student) and 272 (teacher) rows are cut to the 257 ids that the tokenizer knows" in " ".join(
        capsys.readouterr().err.split()
    )


def test_dropped_layers_are_gone(tiny_settings: CaptureSettings, quiet: Reporter) -> None:
    settings = replace(tiny_settings, teacher=tiny_settings.student, student_drop_layers="0")
    pair = load_pair(resolve_pair(settings, quiet), "float32", "cpu")
    ids = torch.tensor([[1, 2, 3]])
    kept = pair.teacher.model.model
    with torch.no_grad():
        embedded = kept.embed_tokens(ids)
        rotary = kept.rotary_emb(embedded, torch.arange(3)[None])
        mask = torch.full((3, 3), -torch.inf).triu(1)[None, None]
        states = kept.norm(kept.layers[1](embedded, attention_mask=mask, position_embeddings=rotary))
        torch.testing.assert_close(pair.student.hidden(ids), states)
    assert len(sample(pair.student, [(1, 2)], [0], settings.sampling)) == 1  # the cache has the layers' new numbers


def test_broken_weights_are_named_and_nothing_is_lost(
    tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_settings.teacher, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="NaN or infinite logits"):
        run_capture(tmp_path / "run", replace(tiny_settings, teacher=str(broken)), quiet)
    assert len(CONTEXTS.read(tmp_path / "run/contexts")) == 16


def test_prompts_that_are_too_long_or_too_few_are_refused(
    tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    with pytest.raises(
        ContextError, match=r"prompt sums/\w+ has \d+ tokens; with 250 for the response it exceeds the 256"
    ):
        run_capture(tmp_path / "long", replace(tiny_settings, max_new_tokens=250), quiet)
    with pytest.raises(EstimationError, match="sums has 40 distinct prompts, too few for 38 bank and 6 update"):
        run_capture(tmp_path / "few", replace(tiny_settings, bank_prompts=38), quiet)


def test_another_configuration_is_refused(run: Path, tiny_settings: CaptureSettings, quiet: Reporter) -> None:
    before = tables(run)
    with pytest.raises(RunError, match=r"another configuration \(positions was 10, now 9; seed was 0, now 5\)"):
        run_capture(run, replace(tiny_settings, seed=5, positions=9), quiet)
    assert tables(run) == before


def test_probe_needs_a_capture_and_enough_update_contexts(run: Path, tmp_path: Path, quiet: Reporter) -> None:
    with pytest.raises(RunError, match="has no capture stage: run `teachdiag capture"):
        run_probe(tmp_path / "nothing", PROBE, quiet)
    with pytest.raises(RunError, match=r"has 6 contexts to update on .* asks for 7"):
        run_probe(run, replace(PROBE, update_contexts=7), quiet)
    with pytest.raises(EstimationError, match="use more update contexts"):
        run_probe(run, replace(PROBE, name="q", update_contexts=1), quiet)


def test_a_damaged_run_is_refused(run: Path, quiet: Reporter) -> None:
    shard = sorted((run / "positions").iterdir())[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="positions is no longer what the capture stage wrote"):
        run_probe(run, PROBE, quiet)
    shard.unlink()
    with pytest.raises(RunError, match="positions is no longer what the capture stage wrote"):
        run_probe(run, PROBE, quiet)


def test_a_refused_input_does_not_spoil_the_run(
    run: Path, tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    with pytest.raises(EstimationError, match="ask for fewer"):
        run_capture(tmp_path / "again", replace(tiny_settings, bank_prompts=100), quiet)
    run_capture(tmp_path / "again", tiny_settings, quiet)
    assert tables(tmp_path / "again") == tables(run)
    with pytest.raises(EstimationError, match="use more update contexts"):
        run_probe(run, replace(PROBE, update_contexts=1), quiet)
    run_probe(run, PROBE, quiet)


def test_probe_refuses_other_weights_than_were_captured(
    tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    moving = tmp_path / "student"
    shutil.copytree(tiny_settings.student, moving)
    run_capture(tmp_path / "run", replace(tiny_settings, student=str(moving)), quiet)
    weights = load_file(moving / "model.safetensors")
    weights["model.norm.weight"] += 0.1
    save_file(weights, moving / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="was captured with another student"):
        run_probe(tmp_path / "run", PROBE, quiet)
    (moving / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot be loaded"):
        run_capture(tmp_path / "other", replace(tiny_settings, student=str(moving)), quiet)


def test_the_sampled_loss_needs_rollouts_of_the_student_itself(
    tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    run_capture(tmp_path / "run", replace(tiny_settings, temperature=0.7, top_k=20, top_p=0.9), quiet)
    with pytest.raises(RunError, match="sampled_reverse_kl is biased on rollouts sampled with temperature"):
        run_probe(tmp_path / "run", replace(PROBE, loss="sampled_reverse_kl"), quiet)


def test_a_step_that_breaks_the_student_is_named(run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(student: LanguageModel, *arguments: object) -> Step:
        step = optimize(student, *arguments)
        with torch.no_grad():
            student.model.model.norm.weight[0] = float("inf")
        return step

    monkeypatch.setattr(steps, "optimize", breaking)
    blame = "after the update one_step: the student gives NaN or infinite logits .* smaller --learning-rate"
    with pytest.raises(ContextError, match=blame):
        run_probe(run, PROBE, quiet)


KINDS = {
    "one_step": {},
    "checkpoint": {},
    "predicted": {"fix_contexts": 1},
    "isolated": {"fix_contexts": 1, "sample": 40},
    "selectors": {"fix_contexts": 1, "selector": "random", "seeds": 1, "budgets": "0.3"},
    "lds": {"fix_contexts": 1, "masks": 2},
    "efficiency": {"blocks": 2, "norm_batches": 1},
}


def _shifted(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Load a student whose weights are not quite those of the capture."""
    plain = probe_setup.load_alone

    def load(*arguments: Any, master: bool = False, **options: Any) -> LanguageModel:
        model = plain(*arguments, master=master, **options)
        if master:
            with torch.no_grad():
                model.model.model.norm.weight.mul_(1 + by)
        return model

    monkeypatch.setattr(probe_setup, "load_alone", load)


@pytest.mark.parametrize("kind", KINDS)
def test_another_theta0_than_the_captured_one_is_refused_before_any_step(
    run: Path, student_path: str, quiet: Reporter, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _shifted(monkeypatch, 0.05)
    for module in (steps, predicted, interventions):
        monkeypatch.setattr(module, "optimize", None)
    monkeypatch.setattr(isolated, "hold_out", None)
    monkeypatch.setattr(masked_gradients, "gradient", None)
    after = {"student_after": student_path} if kind == "checkpoint" else {}
    given = ProbeSettings(name="p", kind=kind, batch_tokens=100, tile_positions=7, **KINDS[kind], **after)
    said = r"does not give what capture found in .*: at context \d+, position \d+, .* restore them, or capture again"
    with pytest.raises(RunError, match=said):
        run_probe(run, given, quiet)


@pytest.mark.slow
def test_a_theta0_that_is_a_little_off_is_said(run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "doubts" not in run_probe(run, replace(PROBE, name="sound"), quiet)
    _shifted(monkeypatch, 2e-4)
    found = run_probe(run, PROBE, quiet)
    assert 1e-4 < found["largest_difference_from_capture"] < 5e-3
    assert found["doubts"][0].startswith("Rescoring theta0 does not give what capture found")
    claims_alone(monkeypatch)
    assert found["doubts"][0] in run_analysis(run, AnalyzeSettings(draws=100), quiet)["verdict"][0]


@pytest.mark.slow
def test_a_refused_probe_leaves_nothing(run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch) -> None:
    run_probe(run, replace(PROBE, name="sound"), quiet)
    before = sorted(run.rglob("*"))
    cases: list[tuple[dict[str, Any], type[InputError]]] = [
        ({"update_contexts": 99}, RunError),
        ({"kind": "isolated", "fix_contexts": 99}, RunError),
        ({"kind": "selectors", "bank_contexts": 99}, RunError),
        ({"kind": "isolated", "fix_contexts": 1, "sample": 3}, EstimationError),
        ({"kind": "selectors", "fix_contexts": 1, "selector": "nobodys"}, SettingsError),
    ]
    for number, (given, error) in enumerate(cases):
        with pytest.raises(error):
            run_probe(run, ProbeSettings(name=f"q{number}", batch_tokens=100, **given), quiet)
        assert sorted(run.rglob("*")) == before, given
    claims_alone(monkeypatch)
    run_analysis(run, AnalyzeSettings(draws=100), quiet)


@pytest.mark.slow
def test_an_interrupted_probe_is_left_out_by_name_with_what_continues_it(
    run: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = replace(PROBE, name="halted", optimizer="sgd", update_contexts=5)
    with monkeypatch.context() as patch:
        patch.setattr(probe_setup, "rescore", dying(probe_setup.rescore, 6))
        with pytest.raises(Killed):
            run_probe(run, given, quiet)
    with pytest.raises(RunError, match=r"has no finished probe: .* probe halted is unfinished and left out"):
        run_analysis(run, AnalyzeSettings(draws=100), quiet)
    run_probe(run, PROBE, quiet)
    claims_alone(monkeypatch)
    results = run_analysis(run, AnalyzeSettings(draws=100), quiet)
    (sentence,) = results["left_out"]
    command = shlex.split(sentence.split("`")[1])
    assert list(PRIMARY.read(PRIMARY.file(run))["probe_id"].unique()) == ["p"]
    done = CliRunner().invoke(app, command[1:], catch_exceptions=False)
    assert done.exit_code == 0
    assert run_analysis(run, AnalyzeSettings(draws=100), quiet)["left_out"] == []


def test_positions_at_the_models_limit_are_scored_and_probed(
    tmp_path: Path, tiny_settings: CaptureSettings, quiet: Reporter
) -> None:
    """A GPT-2 has no positions beyond its limit, so that one token of padding too many is an error."""
    torch.manual_seed(0)
    small = {"vocab_size": 257, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 30, "initializer_range": 0.5}
    for name in ("a", "b"):
        GPT2LMHeadModel(GPT2Config(**small, eos_token_id=256, bos_token_id=256)).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    pair = {"student": str(tmp_path / "a"), "teacher": str(tmp_path / "b")}
    run_capture(tmp_path / "run", replace(tiny_settings, **pair, max_new_tokens=8), quiet)
    run_probe(tmp_path / "run", PROBE, quiet)


def test_a_vocabulary_smaller_than_k_is_refused() -> None:
    tokenizer = SimpleNamespace(get_vocab=lambda: {token: index for index, token in enumerate("abcdefgh")})
    model = SimpleNamespace(name="m", tokenizer=tokenizer, end_ids={0}, rows=8)
    with pytest.raises(ModelError, match="K = 32 is larger than the shared vocabulary of 8 tokens"):
        shared_vocabulary(model, model)  # type: ignore[arg-type]


def test_resolve_pins_local_weights(student_path: str, teacher_path: str, quiet: Reporter) -> None:
    ours, theirs = (resolve(path, "main", (), quiet).digest for path in (student_path, teacher_path))
    assert ours != theirs
    assert ours == resolve(student_path, "main", (), quiet).digest


def test_a_slip_in_prompts_or_device_fetches_and_makes_no_model(
    tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever calls the stages from Python, with a cache in which the embedded model is still to be made."""
    monkeypatch.setenv("TEACHDIAG_CACHE", str(tmp_path / "cache"))
    stages = {
        run_capture: CaptureSettings(),
        run_train: TrainSettings(),
        run_evaluation: EvaluateSettings(models=["embedded"]),
    }
    slips = ({"prompts": "gsm_symbolc"}, "no prompt manifest"), ({"device": "abacus"}, "'abacus' cannot be used")
    for (run_stage, settings), (slip, said) in itertools.product(stages.items(), slips):
        with pytest.raises(InputError, match=said):
            run_stage(tmp_path / "run", replace(settings, **slip), quiet)
    assert not list(tmp_path.iterdir())
