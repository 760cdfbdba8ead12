"""Chat templates: options, the clock, prefilled answers, and prompts that stay what they were when a run began.

The truth: texts rendered by hand, and runs that were not interrupted.
"""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stages import Killed, dying, tables
from tiny_pair import byte_tokenizer, save_model
from tokenizers.processors import TemplateProcessing
from transformers.utils import chat_template_utils

from teachdiag.artefacts import CONTEXTS
from teachdiag.diagnostics import capture
from teachdiag.diagnostics.contexts import contexts_table, templates
from teachdiag.diagnostics.contexts.doubts import say_without_template
from teachdiag.diagnostics.contexts.templates import (
    encode_messages,
    encode_prompt,
    encode_prompts,
    options_read,
    resolve_options,
)
from teachdiag.diagnostics.evaluate import draw_benchmark
from teachdiag.diagnostics.models.sources import outline, resolve
from teachdiag.diagnostics.train import Experiment
from teachdiag.diagnostics.training.distillation import _dataset
from teachdiag.diagnostics.training.selective_trainer import SelectiveDistillationTrainer
from teachdiag.errors import ContextError, EstimationError, InputError, RunError, SettingsError
from teachdiag.manifests import read_manifest
from teachdiag.progress import Reporter
from teachdiag.prompts import load_prompts
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings, TrainSettings
from teachdiag.tables import shard_path

CLOCKED = (
    "{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif -%}"
    "{{ date_string }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}-{% endif %}"
    "{% endif %}{% for tool in tools or [] %}{{ tool.name }}{% endfor %}"
)
CHAT = [{"role": "user", "content": "Hi"}]


def speaker(template: str | None = CLOCKED) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


class Told(Reporter):
    def __init__(self) -> None:
        object.__setattr__(self, "heard", [])
        super().__init__(quiet=True)

    def say(self, message: str) -> None:
        self.heard.append(message)


def at(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Let every clock that can be read in rendering show a day."""

    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return cls.fromisoformat(day)

    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)
    monkeypatch.setattr(templates, "datetime", Fixed)


@pytest.mark.parametrize(
    ("options", "messages", "text"),
    [
        ({"strftime_now": "2020-02-01"}, CHAT, "01 Feb 2020<user>Hi</><assistant>"),
        ({"date_string": "then", "enable_thinking": False}, CHAT, "then<user>Hi</><assistant>-"),
        ({"date_string": "", "tools": [{"name": "sum"}]}, CHAT, "<user>Hi</><assistant>sum"),
        # The answer that is begun stays open, also where the template's own marks hold its letters.
        ({"date_string": ""}, [*CHAT, {"role": "assistant", "content": "a"}], "<user>Hi</><assistant>a"),
        ({"date_string": ""}, [{"role": "system", "content": "S"}, *CHAT], "<system>S</><user>Hi</><assistant>"),
    ],
)
def test_what_a_template_is_given_is_what_it_writes(options: dict, messages: list, text: str) -> None:
    tokenizer = speaker()
    assert tokenizer.decode(encode_messages(tokenizer, messages, options)) == text
    at_once = {"add_generation_prompt": messages[-1]["role"] != "assistant", "tokenize": False}
    at_once["continue_final_message"] = not at_once["add_generation_prompt"]
    if "strftime_now" not in options:
        assert tokenizer.apply_chat_template(messages, **at_once, **options) == text


def test_the_clock_goes_on_after_a_rendering_at_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, "2031-05-06")
    tokenizer = speaker()
    for options, day in (({}, "06 May 2031"), ({"strftime_now": "2020-01-01"}, "01 Jan 2020"), ({}, "06 May 2031")):
        assert tokenizer.decode(encode_messages(tokenizer, CHAT, options)).startswith(day)
    assert options_read(tokenizer) == ["date_string", "enable_thinking", "strftime_now", "tools"]
    marked = "{% for m in messages %}{{ m.content }}{% generation %}x{% endgeneration %}{% endfor %}"
    assert options_read(speaker(marked)) == options_read(speaker(None)) == []


def test_options_that_no_template_reads_are_refused_and_the_date_is_fixed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at(monkeypatch, "2031-05-06")
    told, both = Told(), {"a": speaker(), "b": speaker("{{ messages }}")}
    options = resolve_options('{"enable_thinking": false}', both, {"date_string": "x", "depth": 1}, {}, told)
    assert options == {
        "date_string": "x",
        "depth": 1,
        "enable_thinking": False,
        "strftime_now": "2031-05-06",
    }
    assert told.heard == [
        "the chat template of b does not read the option date_string",
        "the chat template of a and b does not read the option depth",
        "the chat template of b does not read the option enable_thinking",
    ]
    with pytest.raises(
        SettingsError, match=r"has thinking, which the chat template of a does not read; .* enable_thin"
    ):
        resolve_options('{"thinking": true}', {"a": both["a"]}, {}, {}, told)
    recorded = {"strftime_now": "2001-01-01"}
    assert resolve_options("", {"a": both["a"]}, {}, recorded, told) == recorded
    assert resolve_options("", {"b": both["b"]}, {}, recorded, told) == {}
    for text, message in (
        ("{'a': 1}", "give a JSON object"),
        ('{"tokenize": true}', "which is no option of a chat template"),
        ('{"strftime_now": "1 May"}', "give the date that it is to show"),
        ('{"strftime_now": 20200101}', "give the date that it is to show"),
    ):
        for build in (lambda text: CaptureSettings(template_options=text), lambda t: TrainSettings(template_options=t)):
            with pytest.raises(SettingsError, match=message):
                build(text)
    with pytest.raises(SettingsError, match="--contexts brings rendered"):
        CaptureSettings(contexts="c", teacher_template_options='{"enable_thinking": true}')


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "cannot render it: System role not supported"),
        ("{{ messages[3].content }}", "prompt p0: the tokenizer's chat template cannot render it"),
        ("{{ 1 / 0 }}", "cannot render it: division by zero"),
        ("{% if %}", "prompt p0: the tokenizer's chat template cannot render it"),
        ("{% for m in messages %}{% endfor %}", "prompt p0 is no token at all once it is rendered"),
        ("Hello", "all 2 prompts are the same tokens once they are rendered"),
    ],
)
def test_a_template_that_fails_is_told_of(template: str, message: str) -> None:
    named = [(f"p{place}", [{"role": "user", "content": f"{place}?"}]) for place in range(2)]
    with pytest.raises(ContextError, match=message):
        encode_prompts(speaker(template), named, {})


def test_without_a_template_text_is_plain_and_a_conversation_refused() -> None:
    tokenizer = speaker(None)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", tokenizer.bos_token_id), ("<end>", tokenizer.eos_token_id)]
    )
    plain = tuple(tokenizer("Hi", add_special_tokens=False)["input_ids"])
    assert encode_prompt(tokenizer, "Hi") == (tokenizer.bos_token_id, *plain)  # and no end of text
    assert encode_prompt(tokenizer, CHAT) == encode_prompt(tokenizer, "Hi")
    with pytest.raises(ContextError, match="it is a conversation, but the tokenizer has no chat template"):
        encode_prompt(tokenizer, [{"role": "system", "content": "S"}, *CHAT])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert encode_prompt(tokenizer, "Hi") == (tokenizer.bos_token_id, *plain)  # once


def test_control_tokens_in_a_prompt_are_counted() -> None:
    told, texts = Told(), ("plain", "an <end> inside", "<end>")
    templates.say_control_tokens(speaker(), [(t, [{"role": "user", "content": t}]) for t in texts], told)
    assert told.heard == [
        "2 of 3 prompts hold special tokens of the tokenizer in their own text (such as <end>): models read them as "
        "control tokens, not as text"
    ]


def test_prompts_of_the_same_tokens_are_counted() -> None:
    told, tokenizer = Told(), speaker("{{ messages[0].content | lower }}")
    asked = [(t, [{"role": "user", "content": t}]) for t in ("One", "one", "two", "ONE")]
    encode_prompts(tokenizer, asked, {}, told)
    assert told.heard[0].startswith("2 of 4 prompts are the same tokens as another once they are rendered")
    encode_prompts(tokenizer, asked[1:3], {}, told)
    assert len(told.heard) == 1


def test_a_model_without_a_template_is_told_of() -> None:
    told = Told()
    for template in (None, CLOCKED):
        say_without_template("m", speaker(template), told)
    assert len(told.heard) == 1
    assert told.heard[0].startswith("Beware: m has no chat template, so that prompts are plain text to it")


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A pair whose template reads the clock."""
    folder = tmp_path_factory.mktemp("clocked")
    student, teacher = (
        save_model(folder / name, seed=seed, tokenizer=speaker()) for seed, name in ((1, "s"), (2, "t"))
    )
    return student, teacher


@pytest.fixture
def settings(
    tiny_settings: CaptureSettings, clocked: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> CaptureSettings:
    """Six prompts in three groups."""
    monkeypatch.setattr(contexts_table, "ROLLOUT_CONTEXTS", 2)
    own = {"student": clocked[0], "teacher": clocked[1], "bank_prompts": 4, "update_prompts": 2, "max_new_tokens": 4}
    return CaptureSettings(**tiny_settings.as_dict() | own)


def test_prompts_that_are_too_long_are_passed_over_and_counted(
    settings: CaptureSettings, tmp_path: Path, quiet: Reporter
) -> None:
    capture.run_capture(tmp_path / "any", settings, quiet)
    lengths = CONTEXTS.read(tmp_path / "any/contexts")["prompt_token_ids"].map(len)
    limit = int(lengths.max()) - 1
    capture.run_capture(tmp_path / "short", replace(settings, max_prompt_tokens=limit), quiet)
    short = CONTEXTS.read(tmp_path / "short/contexts")
    assert len(short) == len(lengths)
    assert short["prompt_token_ids"].map(len).max() <= limit
    recorded = Stage(tmp_path / "short", "capture").require()["inputs"]["prompts"]
    assert recorded["too_long_left_out"] >= (lengths > limit).sum() > 0
    with pytest.raises(EstimationError, match="0 distinct prompts that are short enough"):
        capture.run_capture(tmp_path / "none", replace(settings, max_prompt_tokens=1), quiet)


def test_a_capture_that_is_resumed_on_another_day_gives_the_same_bytes(
    settings: CaptureSettings, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, "2030-12-31")
    capture.run_capture(tmp_path / "whole", settings, quiet)
    for day, written in (("2030-12-31", 0), ("2031-01-01", 1)):
        at(monkeypatch, day)
        with monkeypatch.context() as patch:
            patch.setattr(capture, "write_group", dying(capture.write_group, written))
            with pytest.raises(Killed):
                capture.run_capture(tmp_path / "killed", settings, quiet)
    capture.run_capture(tmp_path / "killed", settings, quiet)
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    capture.run_capture(tmp_path / "whole", settings, quiet)  # complete, whatever the day
    recorded = Stage(tmp_path / "killed", "capture").require()["inputs"]["prompts"]
    assert recorded["template_options"] == recorded["teacher_template_options"] == {"strftime_now": "2030-12-31"}


def test_both_prompts_are_rendered_as_asked_and_frozen(
    settings: CaptureSettings, tmp_path: Path, quiet: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options of the manifest are outranked by those given; the teacher may have its own."""
    manifest = Path(settings.prompts).read_text()
    (tmp_path / "m.toml").write_text(manifest + 'options = { date_string = "D", enable_thinking = false }\n')
    own = {"prompts": str(tmp_path / "m.toml"), "teacher_template_options": '{"enable_thinking": true}'}
    changed = CaptureSettings(**settings.as_dict() | own)
    assert not changed.is_demo
    with monkeypatch.context() as patch:
        patch.setattr(capture, "write_group", dying(capture.write_group, 1))
        with pytest.raises(Killed):
            capture.run_capture(tmp_path / "run", changed, quiet)
    written = pd.read_parquet(shard_path(tmp_path / "run/contexts", 0))
    tokenizer = speaker()
    for column, end in (("prompt_token_ids", "<assistant>-"), ("teacher_prompt_token_ids", "<assistant>")):
        for text in map(tokenizer.decode, written[column]):
            assert text.startswith("D<user>What is ")
            assert text.endswith("</>" + end)
    (tmp_path / "m.toml").write_text(manifest + 'options = { date_string = "E", enable_thinking = false }\n')
    with pytest.raises(RunError, match=r"template_options.date_string was 'D', now 'E'"):
        capture.run_capture(tmp_path / "run", changed, quiet)
    for options, message in (('{"thinking": 1}', "does not read"), ('{"tools": "x"}', "cannot render it")):
        with pytest.raises(InputError, match=message):
            capture.run_capture(
                tmp_path / "bad", CaptureSettings(**settings.as_dict() | {"template_options": options}), quiet
            )
        assert not (tmp_path / "bad/capture.json").exists()


def test_a_student_is_trained_and_judged_on_prompts_rendered_alike(
    clocked: tuple[str, str], manifest_path: str
) -> None:
    settings = TrainSettings(
        student=clocked[0], prompts=manifest_path, train_prompts=8, eval_prompts=5, batch=4, micro_batch=2, steps=2
    )
    options = {"enable_thinking": False, "strftime_now": "2030-01-02"}
    prompts = load_prompts(read_manifest(manifest_path))
    tokenizer = outline(resolve(clocked[0], "", (), Reporter(quiet=True))).tokenizer
    benchmark = draw_benchmark(settings, prompts, options)
    experiment = Experiment(Path(), settings, (), benchmark, "cpu", frozenset())
    train_prompts = experiment.train_prompts(tokenizer)
    rows = _dataset(train_prompts, settings)["prompt"]
    assert sorted(rows) == sorted(map(list, train_prompts))
    ids, images, fields = SelectiveDistillationTrainer._tokenize_prompts(None, [*rows])
    assert (ids, images, fields) == ([*rows], None, {})
    drawn, trained = prompts.draw(5, 8, 0)
    for rendered, chosen in ((benchmark.prompt_ids(tokenizer), drawn), (train_prompts, trained)):
        expected = [f"02 Jan 2030<user>{prompt.question}</><assistant>-" for prompt in chosen]
        assert [tokenizer.decode(ids) for ids in rendered] == expected
