"""What transformers loads a teacher with: recorded, of the teacher alone, and refused where nobody understands it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from teachdiag.diagnostics.models.pair import load_pair, pinned, refuse_nothing_to_learn, resolve_pair
from teachdiag.errors import ModelError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

QUIET = Reporter(quiet=True)
EAGER = '{"attn_implementation": "eager"}'


def test_it_is_the_teachers_alone_and_recorded(tiny_settings: CaptureSettings) -> None:
    plain, eager = (
        load_pair(resolve_pair(replace(tiny_settings, teacher_load=options), QUIET), "float32", "cpu")
        for options in ("", EAGER)
    )
    assert eager.teacher.model.config._attn_implementation == "eager"
    assert eager.student.model.config._attn_implementation == plain.teacher.model.config._attn_implementation == "sdpa"
    assert pinned(eager.teacher.source)["options"] == EAGER
    assert "options" not in pinned(plain.teacher.source) | pinned(eager.student.source)
    ids = torch.arange(40).reshape(2, 20)
    torch.testing.assert_close(eager.teacher.hidden(ids), plain.teacher.hidden(ids), rtol=1e-4, atol=1e-4)


def test_a_student_may_learn_from_itself_quantised(tiny_settings: CaptureSettings) -> None:
    same = replace(tiny_settings, teacher=tiny_settings.student)
    quantised = replace(same, teacher_load='{"quantization_config": {"load_in_8bit": true}}')
    refuse_nothing_to_learn(resolve_pair(quantised, QUIET), "same", same_prompts=True)
    with pytest.raises(ModelError, match="nothing to learn"):
        refuse_nothing_to_learn(resolve_pair(same, QUIET), "same", same_prompts=True)


@pytest.mark.parametrize(
    ("config", "told"),
    [('{"quant_method": "nope"}', "cannot be loaded: Unknown quantization type, got nope"), ("{}", "quant_method")],
)
def test_what_transformers_does_not_know_is_one_sentence(
    tiny_settings: CaptureSettings, config: str, told: str
) -> None:
    sources = resolve_pair(replace(tiny_settings, teacher_load=f'{{"quantization_config": {config}}}'), QUIET)
    with pytest.raises(ModelError, match=told):
        load_pair(sources, "float32", "cpu")


@pytest.mark.parametrize(
    "text", ["x", "[]", '{"dtype": "float16"}', '{"quantization_config": 8}', '{"attn_implementation": "a/kernel"}']
)
def test_other_options_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--teacher-load is .*: it must be a JSON object of quantization_config"):
        CaptureSettings(teacher_load=text)


@pytest.mark.parametrize(
    "options", [{"teacher_engine": "vllm"}, {"engine": "ray"}, {"shard_model": True}, {"teacher_url": "http://a/v1"}]
)
def test_a_teacher_elsewhere_takes_none(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="--teacher-load is for a teacher that transformers runs"):
        CaptureSettings(student="a", teacher="b", teacher_load=EAGER, **options)
