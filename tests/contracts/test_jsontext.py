"""JSON of strangers, and the options of a chat template that are given as JSON.

Cases and sentences are written by hand.
"""

from typing import Any

import pytest
from tiny_pair import byte_tokenizer

from teachdiag.diagnostics.contexts.templates import encode_prompt
from teachdiag.errors import SettingsError
from teachdiag.jsontext import parse_json
from teachdiag.settings import template_options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' stands in one object twice"),
        ('["\\uD800"]', "half of a surrogate pair"),
        ("[NaN]", "NaN is no finite number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        ("[1e400]", "1e400 is no finite number"),
        ("[" + "9" * 5000 + "]", "limit"),
        ("[" * 100_000, "nested too deep"),
        (b"\xff", "can't decode"),
        (b'"\xed\xa0\x80"', "can't decode"),
        ("{", "Expecting"),
    ],
)
def test_json_that_not_every_program_reads_alike_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_json(text)
    assert "\n" not in str(error.value)


def test_json_is_what_it_says() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": ["\\ud83d\\ude80", 1e3, null]}') == {"a": ["🚀", 1000.0, None]}
    assert parse_json("[1e400, -Infinity]", finite=False) == [float("inf"), -float("inf")]


@pytest.mark.parametrize(("text", "found"), [("", {}), ('{"enable_thinking": false}', {"enable_thinking": False})])
def test_template_options_are_a_json_object(text: str, found: dict[str, Any]) -> None:
    assert template_options(text) == found
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ enable_thinking is defined and not enable_thinking }}{{ messages[0].content }}"
    assert tokenizer.decode(encode_prompt(tokenizer, "Hi", template_options(text))) == f"{bool(found)}Hi"


@pytest.mark.parametrize("text", ["x", "[]", "3", "{'a': 1}", '{"a": NaN}', '{"a": 1, "a": 2}', "\ud800"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--template-options is .*give a JSON object") as error:
        template_options(text)
    assert "\n" not in str(error.value)
    with pytest.raises(SettingsError, match="evaluate has add_generation_prompt, tokenize, which is no option"):
        template_options('{"tokenize": true, "add_generation_prompt": false}', "evaluate")
