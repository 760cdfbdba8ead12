"""The monitor: capture's numbers at the canary, a trainer's own at the live batch, alarms by name, and resuming."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_pair import save_model
from trainers import Recording, make_trainer

import teachdiag
from teachdiag.artefacts import CANARY_POSITIONS, MONITOR, POSITIONS
from teachdiag.diagnostics import timeline
from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.models.pair import Pair
from teachdiag.diagnostics.monitoring.alarms import alarms
from teachdiag.diagnostics.monitoring.callback import _distance, _parts
from teachdiag.diagnostics.monitoring.in_training import ModelInTraining, contexts_of
from teachdiag.diagnostics.monitoring.observation import Scales, gain_since
from teachdiag.diagnostics.scoring.statistics import statistics
from teachdiag.errors import InputError, RunError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.selectors import Selection, Tokens, resolve_selector
from teachdiag.settings import TimelineSettings

QUIET = Reporter(quiet=True)


def monitor(folder: Path, canary: Path | None = None, **options: Any) -> teachdiag.Monitor:
    return teachdiag.Monitor(folder, canary, contexts=6, device="cpu", reporter=QUIET, **options)


def test_the_canary_has_the_numbers_of_capture(tmp_path: Path, captured_once: Path, pair: Pair) -> None:
    pair.student.model.train()
    told = monitor(tmp_path, captured_once).observe_canary(0, pair.student.model)
    assert pair.student.model.training
    ours = CANARY_POSITIONS.read(tmp_path / "canary")
    theirs = POSITIONS.read(captured_once / "positions").set_index(["context_id", "position"])
    theirs = theirs.loc[list(zip(ours["context_id"], ours["position"], strict=True))].reset_index()
    assert len(set(ours["context_id"])) == 6
    assert set(theirs["split"]) == {"bank"}
    for name in theirs.columns:
        if theirs[name].dtype.kind == "f":
            np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5, err_msg=name)
        elif name in ("token_id", "prompt_id", "split"):
            assert list(ours[name]) == list(theirs[name])
    assert told["teachdiag/canary/forward_kl"] == pytest.approx(theirs["forward_kl"].mean(), abs=1e-6)
    tokens = Tokens.from_table(ours)
    assert told["teachdiag/canary/learnable"] == pytest.approx(resolve_selector("learnable").scores(tokens).mean())
    head_gain = (theirs["hidden_norm_sq"] * theirs["logit_alignment"]).mean()
    assert told["teachdiag/canary/head_gain"] == pytest.approx(head_gain, rel=1e-4)
    assert told["teachdiag/canary/gain"] == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by a name that v6 drops
def test_a_fresh_adapter_changes_nothing(tmp_path: Path, captured_once: Path, pair: Pair) -> None:
    watch = monitor(tmp_path, captured_once)
    plain = watch.observe_canary(0, pair.student.model)
    adapted = watch.observe_canary(1, get_peft_model(pair.student.model, LoraConfig(r=2, target_modules=["q_proj"])))
    assert adapted["teachdiag/canary/forward_kl"] == plain["teachdiag/canary/forward_kl"]
    assert adapted["teachdiag/canary/gain"] == 0


def test_a_live_batch_has_the_statistics_of_its_own_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 5, 40), torch.randn(3, 5, 40)
    tokens, mask = torch.randint(40, (3, 5)), torch.rand(3, 5) < 0.6
    told: list[dict[str, float]] = []
    seen = monitor(tmp_path, end_ids=[7, 8], log=told.append).observe_batch(3, student, teacher, tokens, mask)
    assert told == [seen]
    expected = statistics(student[mask], teacher[mask], tokens[mask])
    for name in ("forward_kl", "reverse_kl", "student_entropy", "teacher_entropy"):
        assert seen[f"teachdiag/live/{name}"] == float(expected[name].double().mean())
    for name in ("disagreement", "compatibility", "overlap"):
        assert seen[f"teachdiag/live/{name}"] == float(expected[f"{name}_k16"].double().mean())
    ratio = (expected["student_logp"] - expected["teacher_logp"]).double().mean()
    assert seen["teachdiag/live/log_ratio"] == pytest.approx(float(ratio), abs=1e-7)
    ends = student[mask].softmax(-1)[:, 7:9].sum(-1).mean()
    assert seen["teachdiag/live/end_of_text"] == pytest.approx(float(ends), abs=1e-7)
    assert seen["teachdiag/live/length"] == float(mask.sum() / 3)
    row = MONITOR.read(tmp_path / "monitor").iloc[0]
    assert (row["step"], row["population"], row["n_positions"]) == (3, "live", int(mask.sum()))
    assert row["alarms"] == ""


def test_hidden_states_with_their_heads_give_what_logits_give(tmp_path: Path) -> None:
    torch.manual_seed(0)
    heads = [torch.nn.Linear(6, 40), torch.nn.Linear(4, 40)]
    hidden = [torch.randn(2, 5, 6), torch.randn(2, 5, 4)]
    rest = torch.randint(40, (2, 5)), torch.ones(2, 5)
    logits = [head(states).detach() for head, states in zip(heads, hidden, strict=True)]
    by_logits = monitor(tmp_path / "a").observe_batch(1, *logits, *rest)
    by_states = monitor(tmp_path / "b").observe_batch(
        1, *hidden, *rest, student_head=heads[0], teacher_head=heads[1], update_norm=0.5
    )
    norms = hidden[0].square().sum(-1).flatten()
    alignment = statistics(*(z.flatten(0, 1) for z in logits), rest[0].flatten())["logit_alignment"]
    assert by_states.pop("teachdiag/live/head_gain") == pytest.approx(float((norms * alignment).mean()), rel=1e-5)
    assert by_states.pop("teachdiag/live/update_norm") == 0.5
    for looked in (by_logits, by_states):
        del looked["teachdiag/live/seconds"]
    assert by_states == pytest.approx(by_logits, abs=1e-6)


def test_a_resumed_training_goes_on_where_it_was(tmp_path: Path, captured_once: Path, pair: Pair) -> None:
    model = pair.student.model
    first = monitor(tmp_path, captured_once, every=2)
    assert [step for step in range(5) if first.due(step)] == [0, 2, 4]
    for step in (0, 2, 4):
        first.observe_canary(step, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    second = monitor(tmp_path, captured_once)
    again = second.observe_canary(2, model)  # from a checkpoint of step 1: step 4 has not been
    assert second.looked_at("canary") == [0, 2]
    before, now = (CANARY_POSITIONS.read(tmp_path / f"canary/step-{step:08d}.parquet") for step in (0, 2))
    assert again["teachdiag/canary/gain"] == pytest.approx((before["forward_kl"] - now["forward_kl"]).mean(), abs=1e-7)
    scales = Scales.of({name: before[name].to_numpy() for name in before if name.endswith("_k16")})
    assert scales is not None
    learnable, _ = scales.split({name: now[name].to_numpy() for name in now if name.endswith("_k16")})
    assert again["teachdiag/canary/learnable"] == pytest.approx(learnable.mean())


def test_the_error_of_a_gain_is_that_of_a_ratio_of_sums_over_contexts() -> None:
    """Equal contexts: the standard error of the mean of their means."""
    rng = np.random.default_rng(0)
    contexts = np.repeat(np.arange(7), 5)
    before, now = rng.random(35), rng.random(35)
    means = (before - now).reshape(7, 5).mean(1)
    found = gain_since(before, now, contexts)
    assert found["gain"] == pytest.approx(means.mean())
    assert found["gain_error"] == pytest.approx(means.std(ddof=1) / 7**0.5)
    assert gain_since(before, np.full(35, np.nan), contexts) == {"gain": None, "gain_error": None}


def _row(**values: Any) -> dict[str, Any]:
    usual = {
        **{"population": "canary", "step": 0, "forward_kl": 0.3, "reverse_kl": 0.4, "compatibility": 0.9},
        **{"saturated": 0.2, "student_entropy": 0.8, "length": None, "end_of_text": 0.01},
        **{"teacher_end_of_text": 0.02, "gain": 0.1, "gain_error": 0.01, "log_ratio": 0.4, "shared_mass": 0.6},
    }
    return usual | values


@pytest.mark.parametrize(
    ("first", "now", "name"),
    [
        ({}, {"forward_kl": None}, "not finite"),
        ({}, {"log_ratio": None}, "not finite"),
        ({}, {"saturated": 0.95}, "saturated C"),
        ({}, {"compatibility": 0.7}, "off-support drift"),
        ({"compatibility": None}, {"shared_mass": 0.4}, "off-support drift"),
        ({}, {"shared_mass": 0.4}, ""),  # of the two C is exact
        ({}, {"student_entropy": 0.2}, "entropy collapse"),
        ({"length": 100.0}, {"length": 250.0}, "length runaway"),
        ({}, {"reverse_kl": 0.01}, "teacher no better"),
        ({}, {"gain": 0.01, "gain_error": 0.01}, "no effect"),
        ({}, {"gain": -0.1, "gain_error": 0.01}, "no effect"),
        ({"population": "live"}, {"population": "live", "gain": None, "gain_error": None}, ""),
        ({}, {}, ""),
    ],
)
def test_alarms_have_their_names(first: dict[str, Any], now: dict[str, Any], name: str) -> None:
    rows = [_row(**first, step=step) for step in range(4)]
    assert alarms(rows[:1]) == {}
    assert list(alarms([*rows, _row(**first | now, step=4)])) == ([name] if name else [])
    if name == "no effect":
        assert alarms([rows[0], _row(**first | now, step=4)]) == {}  # one look is too early


def test_what_is_unknown_is_no_number_of_an_alarm() -> None:
    unknown = {"end_of_text": None, "teacher_end_of_text": None}
    grown = alarms([_row(length=100.0, **unknown), _row(length=250.0, step=1, **unknown)])
    assert grown == {"length runaway": "responses grew from 100 to 250 tokens"}
    assert list(alarms([_row(reverse_kl=2e-8)])) == ["teacher no better"]  # the very student, from the start


def test_the_end_of_the_text_is_unknown_where_nobody_says_what_ends_it(tmp_path: Path) -> None:
    logits, tokens = torch.randn(2, 4, 40), torch.randint(40, (2, 4))
    seen = monitor(tmp_path).observe_batch(0, logits, torch.randn(2, 4, 40), tokens, torch.ones(2, 4))
    assert not any("end_of_text" in name for name in seen)
    assert MONITOR.read(tmp_path / "monitor")[["end_of_text", "teacher_end_of_text"]].isna().all(axis=None)


def test_what_looks_wrong_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    watch = teachdiag.Monitor(tmp_path)
    logits, tokens, mask = torch.randn(2, 4, 40), torch.randint(40, (2, 4)), torch.ones(2, 4)
    for step, scale in enumerate((1, 30, 30)):
        told = watch.observe_batch(step, scale * logits, 1.1 * logits, tokens, mask)
    assert told["teachdiag/live/alarm/entropy_collapse"] == 1
    assert capsys.readouterr().err.replace("\n", " ").count("entropy collapse") == 1
    assert [row["alarms"] != "" for row in MONITOR.read_arrow(tmp_path / "monitor").to_pylist()] == [False, True, True]


def test_a_step_has_its_length_from_all_weights_or_from_some(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 200)
    count = 300 * 200 + 200
    for weights, tolerance in ((2**22, 1e-5), (2**12, 0.1)):
        monkeypatch.setattr("teachdiag.diagnostics.monitoring.callback._WEIGHTS", weights)
        before = [part.clone() for part in _parts(model)]
        steps = [0.01 * torch.randn_like(parameter) for parameter in model.parameters()]
        with torch.no_grad():
            for parameter, step in zip(model.parameters(), steps, strict=True):
                parameter += step
        length = float(sum(step.square().sum() for step in steps)) ** 0.5
        assert _distance(before, _parts(model), count) == pytest.approx(length, rel=tolerance)


def test_a_batch_with_labels_is_cut_where_the_response_begins() -> None:
    batch = {
        "input_ids": torch.tensor([[0, 5, 6, 7, 8, 9], [5, 6, 7, 8, 0, 0], [5, 6, 7, 8, 9, 3]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
        "labels": torch.tensor([[-100, -100, -100, 7, -100, 9], [-100, 6, 7, -100, -100, -100], [-100] * 6]),
    }
    contexts = contexts_of(batch, 3)
    assert [(c.student_prompt, c.response, c.kept) for c in contexts] == [
        ((5, 6), (7, 8, 9), (0, 2)),
        ((5,), (6, 7), (0, 1)),
    ]
    assert len(contexts_of(batch, 1)) == 1
    there = batch["attention_mask"].cumsum(1) - 1
    places = {"position_ids": there.masked_fill(batch["attention_mask"] == 0, 1)}  # as transformers counts them
    assert len(contexts_of(batch | places, 3)) == 2
    with pytest.raises(SettingsError, match="has several sequences in a row"):
        contexts_of(batch | {"position_ids": torch.tensor([[0, 0, 1, 2, 0, 1]] * 3)}, 3)
    with pytest.raises(SettingsError, match="holds images: the monitor reads completion_ids, or labels"):
        contexts_of({"images": 3}, 1)


def test_what_cannot_be_looked_at_is_refused(tmp_path: Path, captured_once: Path, pair: Pair) -> None:
    with pytest.raises(SettingsError, match=r"Monitor\(every=0\): it must be at least 1"):
        monitor(tmp_path, every=0)
    with pytest.raises(InputError, match="has 10 bank contexts, and the canary asks for 99"):
        teachdiag.Monitor(tmp_path, captured_once, contexts=99)
    monitor(tmp_path, captured_once).observe_canary(0, pair.student.model)
    other = teachdiag.Monitor(tmp_path, captured_once, contexts=3, device="cpu", reporter=QUIET)
    with pytest.raises(RunError, match="holds looks at another canary"):
        other.observe_canary(1, pair.student.model)
    watch = monitor(tmp_path / "apart")
    with pytest.raises(SettingsError, match="has no canary"):
        watch.observe_canary(0, None)
    logits, tokens, mask = torch.randn(2, 4, 40), torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4)
    with pytest.raises(SettingsError, match="sequences and lengths must be the same"):
        watch.observe_batch(0, logits, logits, tokens[:, 1:], mask)
    with pytest.raises(SettingsError, match="cut both models' logits"):
        watch.observe_batch(0, logits, logits[..., 1:], tokens, mask)
    with pytest.raises(SettingsError, match="no token is the student's own"):
        watch.observe_batch(0, logits, logits, tokens, 0 * mask)
    with pytest.raises(SettingsError, match="the mask holds more than 0 and 1: make it of labels"):
        watch.observe_batch(0, logits, logits, tokens, torch.where(mask == 1, tokens + 5, -100))


def test_the_model_of_a_trainer_says_what_ends_a_text(tmp_path: Path, pair: Pair) -> None:
    student = pair.student
    trainer = SimpleNamespace(model=student.model, processing_class=student.tokenizer, add_callback=lambda _: None)
    watch = monitor(tmp_path)
    watch.attach(trainer)
    assert watch.end_ids == (256,)


@pytest.mark.parametrize("by_states", [False, True])
def test_rows_as_a_model_gives_them_are_refused_at_the_first_look(by_states: bool, tmp_path: Path) -> None:
    """Row t of a model predicts token t + 1."""
    torch.manual_seed(0)
    tokens, mask = torch.randint(40, (2, 9)), torch.ones(2, 9)
    head = {"student_head": torch.nn.Identity()} if by_states else {}
    logits = torch.randn(2, 9, 40)
    logits[:, :-1] += 6 * torch.nn.functional.one_hot(tokens[:, 1:], 40)
    teacher = torch.randn(2, 9, 40)
    watch = monitor(tmp_path)
    with pytest.raises(SettingsError, match=r"the row in front of a token gives it \d\.\d nats more than its own"):
        watch.observe_batch(0, logits, teacher, tokens, mask, **head)
    watch.observe_batch(0, logits[:, :-1], teacher[:, :-1], tokens[:, 1:], mask[:, 1:], **head)
    assert watch.looked_at("live") == [0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*is deprecated:DeprecationWarning")
def test_a_trainer_is_looked_at_by_its_own_numbers(tmp_path: Path, captured_once: Path, student_path: str) -> None:
    models = student_path, save_model(tmp_path / "teacher", seed=3)
    trainer = make_trainer(models, tmp_path, Recording, selection=Selection("full"), max_steps=2)
    watch = monitor(tmp_path / "watched", captured_once, every=1, sequences=4)
    callback = watch.attach(trainer)
    scored: list[float] = []
    look = watch.observe_trainer_batch

    def looked(step: int, student: ModelInTraining, teacher: ModelInTraining, batch: Any) -> dict[str, float]:
        told = look(step, student, teacher, batch)
        scored.append(told["teachdiag/live/forward_kl"])
        return told

    watch.observe_trainer_batch = looked  # type: ignore[method-assign]
    trainer.train()
    rows = MONITOR.read(tmp_path / "watched/monitor")
    assert list(zip(rows["step"], rows["population"], strict=True)) == [
        *((0, "canary"), (1, "canary"), (1, "live"), (2, "canary"), (2, "live"))
    ]
    logged = trainer.state.log_history
    norms = [entry["selection/update_norm"] for entry in logged if "selection/update_norm" in entry]
    ours = rows[rows["population"] == "canary"]["update_norm"]
    assert list(ours[1:]) == pytest.approx(norms, rel=1e-4)
    assert np.isnan(ours.iloc[0])
    seen = [entry for entry in logged if "teachdiag/canary/forward_kl" in entry]
    assert [entry["step"] for entry in seen] == [0, 1, 2]
    assert [entry["teachdiag/live/forward_kl"] for entry in seen if "teachdiag/live/forward_kl" in entry] == scored
    # The batch of the last look, scored by the trainer's own way of laying sequences out, at the weights of now.
    batch = callback._batch
    assert batch is not None
    student, teacher = (
        trainer.accelerator.unwrap_model(model) for model in (trainer.model_wrapped, trainer.teacher_model)
    )
    mask = batch["completion_mask"].bool()
    with torch.no_grad():
        states = trainer._states(student, *(trainer._hidden(model, batch, mask) for model in (student, teacher)))
        logits = states.student_head(states.student), states.teacher_head(states.teacher)
    expected = statistics(*logits, batch["completion_ids"][mask])["forward_kl"].mean()
    assert scored[-1] == pytest.approx(float(expected), abs=1e-5)


def test_checkpoints_are_on_the_device_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[Any] = []

    class Loaded:
        known, model = 1, None

    def load(*_: object) -> Loaded:
        assert [model for model in there if model() is not None] == []
        loaded = Loaded()
        there.append(weakref.ref(loaded))
        return loaded

    watch = SimpleNamespace(canary=SimpleNamespace(known=1), looked_at=lambda _: [], observe_canary=lambda *_: {})
    capture = SimpleNamespace(trust_remote_code=False, dtype="float32")
    monkeypatch.setattr(timeline, "captured_pair", lambda *_: (capture, (None, None)))
    monkeypatch.setattr(timeline, "resolve_whole", lambda *_: None)
    monkeypatch.setattr(timeline, "Monitor", lambda *_, **__: watch)
    monkeypatch.setattr(timeline, "load", load)
    settings = TimelineSettings(runs=[str(tmp_path)], checkpoints="10=a,20=b", canary="run", device="cpu")
    timeline.look_at_checkpoints(tmp_path, settings, QUIET)
    assert len(there) == 3


def test_a_pass_keeps_no_half_precision_copies_of_weights(pair: Pair) -> None:
    """Under autocast torch would keep one of every weight until the pass ends, with gradients and without."""
    student, kept = pair.student, list[tuple[bool, bool]]()
    student.half = torch.bfloat16
    last = student.model.get_decoder().layers[-1]
    last.register_forward_hook(
        lambda *_: kept.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
    )
    batch = Batch((Context(0, "p", "live", (1, 2, 3), (1, 2, 3), (4, 5)),))
    looked = ModelInTraining(student.model, student.known, torch.bfloat16).hidden_rows(batch, "student")
    assert torch.equal(student.hidden_rows(batch, "student"), looked)
    assert kept == [(True, False)] * 2
