"""Conversations through templates of five families, written as each program writes them, imported: exact, or refused.

What no text tells is left out of the conversations that are written as text: ids that the tokenizer would not choose,
and, where special tokens are skipped, special tokens inside a message.

The truth: the ids that were drawn to be written.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rollout_worlds import QUIET, embedded_tokenizer, write_jsonl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from teachdiag.artefacts import CONTEXTS
from teachdiag.diagnostics.contexts.templates import encode_prompt
from teachdiag.diagnostics.imports import import_rollouts as importing
from teachdiag.diagnostics.imports.formats import FORMATS
from teachdiag.diagnostics.models.sources import Outline
from teachdiag.errors import InputError
from teachdiag.progress import Reporter
from teachdiag.settings import ImportSettings, NamedImportSettings

Ids = tuple[int, ...]
Pairs = list[tuple[Ids, Ids]]

TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\\n' }}"
    "{% if m.role == 'tool' %}{{ '<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
)
FAMILIES = {  # name: its template, the end of its turns, its other special tokens
    "chatml": (
        TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
        ["<|im_start|>"],
    ),
    "thinking": (
        TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
        "{% endif %}",
        "<|im_end|>",
        ["<|im_start|>"],
    ),
    "headers": (
        "{{ '<|begin|>' }}{% for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\\n\\n' + m.content + '<|eot|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}",
        "<|eot|>",
        ["<|begin|>", "<|head|>", "<|/head|>"],
    ),
    "turns": (
        "{{ '<bos>' }}{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
        "{{ raise_exception('no such role') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}"
        "{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<end_of_turn>",
        ["<bos>", "<start_of_turn>"],
    ),
    "instructions": (
        "{{ '<s>' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + '</s>' }}"
        "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}",
        "</s>",
        ["<s>", "[INST]", "[/INST]"],
    ),
}


@cache
def family(name: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with some merges, within characters and over them, and the family's template."""
    template, end, special = FAMILIES[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    corpus = [
        "the user asks the assistant for a tool: 🚀🚁 你好 naïve ",
        "user assistant system model user assistant",
    ] * 9
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token="<pad>")
    found.add_special_tokens({"additional_special_tokens": special})
    found.chat_template = template
    return found


@dataclass(frozen=True)
class Said:
    """One rollout: what was asked and with which options, and the ids that were read and sampled, turn by turn."""

    tokenizer: Any
    messages: list[dict[str, str]]
    options: dict[str, Any]
    prompt: Ids
    parts: list[tuple[Ids, bool]]  # tokens of the response, and whether the student sampled them
    heard: list[dict[str, str]]  # the messages of a response with turns of others

    @property
    def response(self) -> Ids:
        return tuple(i for ids, _ in self.parts for i in ids)

    def text(self, ids: Ids, skip: bool) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip))

    @property
    def turns(self) -> Pairs:
        """Everything that the student sampled, behind everything that stood before."""
        ends = accumulate((ids for ids, _ in self.parts), initial=self.prompt)
        return [(before, ids) for before, (ids, own) in zip(ends, self.parts, strict=False) if own]


def ids_of(tokenizer: Any, text: str) -> Ids:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def rendered(tokenizer: Any, messages: list[dict[str, str]], options: dict[str, Any], **how: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options, **how))


PIECES = [
    "user",
    "assistant",
    "model",
    "tool",
    "4",
    " ",
    "\n",
    "é",
    "🚀",
    "你",
    "<think>",
    "</think>",
    "\r\n",
    "a [",
    "]",
]
WORDS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@st.composite
def talks(draw: st.DrawFn) -> list[Said]:
    """A few rollouts of one student, one of which is out of the ordinary."""
    name = draw(st.sampled_from(sorted(FAMILIES)))
    tokenizer, end = family(name), (family(name).eos_token_id,)
    options = draw(st.sampled_from([{}, {"enable_thinking": False}])) if name == "thinking" else {}
    kind = draw(
        st.sampled_from(["plain", "plain", "system", "earlier", "prefill", "tool", "follow-up", "cut", "empty"])
    )
    said = []
    for number in range(3):
        odd = kind if number == 1 else "plain"
        messages = [{"role": "user", "content": f"{number}{draw(WORDS)}"}]
        if odd == "system":
            messages = [{"role": "system", "content": draw(WORDS)}, *messages]
        if odd == "earlier":
            messages = [*messages, {"role": "assistant", "content": f"A{draw(WORDS)}"}, *messages]
        answer = [{"role": "assistant", "content": f"{draw(WORDS)}."}]
        try:
            asked = rendered(tokenizer, messages, options, add_generation_prompt=True)
            if odd == "prefill":
                messages = [*messages, {"role": "assistant", "content": f"So{draw(WORDS)}"}]
                asked += messages[-1]["content"]
            prompt = ids_of(tokenizer, asked)
            parts: list[tuple[Ids, bool]] = [(ids_of(tokenizer, answer[0]["content"]) + end, True)]
            if odd in ("tool", "follow-up"):
                role = "tool" if odd == "tool" else "user"
                others = [{"role": role, "content": f"T{draw(WORDS)}"}]
                again = {"role": "assistant", "content": f"{draw(WORDS)}!"}
                before = rendered(tokenizer, [*messages, *answer], options)
                after = rendered(tokenizer, [*messages, *answer, *others], options, add_generation_prompt=True)
                assume(after.startswith(before))
                parts += [(ids_of(tokenizer, after[len(before) :]), False), (ids_of(tokenizer, again["content"]), True)]
                answer = [*answer, *others, again]
        except Exception:  # a template without such a role
            assume(False)
        if odd == "cut":
            parts = [(parts[0][0][: draw(st.integers(1, len(parts[0][0])))], True)]
        if odd == "empty":
            parts = [((), True)]
        said.append(Said(tokenizer, messages, options, prompt, parts, answer))
    return said


def stripped(said: Said) -> tuple[str, str]:
    return said.text(said.prompt, True), said.text(said.response, True)


def trl(said: Said) -> dict[str, Any]:
    """Messages, and what was said as messages, one of which is the whole of a rollout without tools."""
    spoken = said.heard if len(said.parts) > 1 else [{"role": "assistant", "content": said.text(said.response, True)}]
    return {"step": 1, "prompt": said.messages, "completion": spoken, "advantage": 0.5}


def trl_before(said: Said) -> dict[str, Any]:
    return dict(zip(("prompt", "completion"), stripped(said), strict=True)) | {"step": 1, "advantage": 0.5}


def trl_distillation(said: Said) -> dict[str, Any]:
    return dict(zip(("prompt", "completion"), stripped(said), strict=True)) | {"step": 1}


def verl(said: Said) -> dict[str, Any]:
    return dict(zip(("input", "output"), stripped(said), strict=True)) | {"gts": None, "score": 1.0, "step": 1}


def slime(said: Said) -> dict[str, Any]:
    mask = [int(own) for ids, own in said.parts for _ in ids]
    return {
        "tokens": [*said.prompt, *said.response],
        "prompt": said.text(said.prompt, False),
        "response": said.text(said.response, True),
        "response_length": len(said.response),
        "loss_mask": mask if len(said.parts) > 1 else None,
        "status": "completed" if said.response else "aborted",
    }


def prime_rl(said: Said) -> dict[str, Any]:
    mask = [False] * len(said.prompt) + [own for ids, own in said.parts for _ in ids]
    ids = [*said.prompt, *said.response]
    return {"schema_version": 1, "step": 1, "token_ids": ids, "position_ids": [*range(len(ids))], "loss_mask": mask}


def skyrl(said: Said) -> dict[str, Any]:
    row = {"input_prompt": said.text(said.prompt, False), "output_response": said.text(said.response, False)}
    return row | {"score": 1.0, "stop_reason": "stop"}


def msswift(said: Said) -> dict[str, Any]:
    """The last message alone: earlier turns stand in the prompt."""
    before, ids = said.turns[-1]
    return {"prompt": said.text(before, False), "completion": said.text(ids, True), "step": "1"}


def plain_text(said: Said) -> dict[str, Any]:
    return {"prompt": said.text(said.prompt, False), "response": said.text(said.response, False)}


def plain_messages(said: Said) -> dict[str, Any]:
    return {"prompt": said.messages, "response": said.text(said.response, False)}


def plain_ids(said: Said) -> dict[str, Any]:
    return {"prompt_token_ids": list(said.prompt), "response_token_ids": list(said.response)}


def masked(said: Said) -> dict[str, Any]:
    return plain_ids(said) | {"response_mask": [own for ids, own in said.parts for _ in ids]}


def padded(said: Said) -> dict[str, Any]:
    pad = [said.tokenizer.pad_token_id]
    return {"prompt_token_ids": pad * 3 + list(said.prompt), "response_token_ids": [*said.response] + pad * 2}


def to_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def to_torch(path: Path, rows: list[dict[str, Any]]) -> Path:
    torch.save({"samples": rows}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def to_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_jsonl(path.with_suffix(".jsonl"), rows)


def to_batch(path: Path, rows: list[dict[str, Any]]) -> Path:
    return to_lines(path, [{name: [row[name] for row in rows] for name in rows[0]}])


def check_masks(said: list[Said], student: dict[str, Any]) -> None:
    """A response is masked just where others spoke in it, and ends by end-of-text where the student's last token is."""
    for row in CONTEXTS.read_arrow(student["folder"] / "c.parquet").to_pylist():
        prompt, response = tuple(row["prompt_token_ids"]), tuple(row["response_token_ids"])
        (one,) = {one.prompt: one for one in said if (one.prompt, one.response) == (prompt, response)}.values() or [
            None
        ]
        mask = None if one is None or len(one.parts) == 1 else [int(own) for ids, own in one.parts for _ in ids]
        assert row["response_mask"] == mask
        last = max(i for i, own in enumerate(mask or [1] * len(response)) if own)
        ended = response[last] == said[0].tokenizer.eos_token_id
        assert row["finish_reason"] in (("stop",) if ended else ("unknown", "length"))


Row, Write = Callable[[Said], dict[str, Any]], Callable[[Path, list[dict[str, Any]]], Path]
WRITERS: dict[str, tuple[str, Row, Write]] = {
    "trl": ("trl", trl, to_parquet),
    "trl before 1.15": ("trl", trl_before, to_parquet),
    "trl distillation": ("trl", trl_distillation, to_parquet),
    "verl": ("verl", verl, to_lines),
    "slime": ("slime", slime, to_torch),
    "msswift": ("msswift", msswift, to_batch),
    "skyrl": ("skyrl", skyrl, to_lines),
    "prime-rl": ("prime-rl", prime_rl, to_lines),
    "jsonl text": ("jsonl", plain_text, to_lines),
    "jsonl messages": ("jsonl", plain_messages, to_parquet),
    "jsonl ids": ("jsonl", plain_ids, to_lines),
    "jsonl masked": ("jsonl", masked, to_lines),
    "jsonl padded": ("jsonl", padded, to_lines),
}
BY_IDS = {"slime", "prime-rl", "jsonl ids", "jsonl masked", "jsonl padded"}
MASKED = {"slime", "prime-rl", "jsonl masked"}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stands for a student whose tokenizer is set by the test, without a folder to read."""
    holder: dict[str, Any] = {"folder": tmp_path_factory.mktemp("imported")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "resolve", lambda *_: None)
        patch.setattr(importing, "outline", lambda _: holder["outline"])
        yield holder


def bring(
    writer: str,
    said: list[Said],
    student: dict[str, Any],
    rows: list[dict[str, Any]] | None = None,
    file: Path | None = None,
    reporter: Reporter = QUIET,
    **options: Any,
) -> tuple[Pairs, dict[str, Any]]:
    """Write rollouts as a program does, import them, and return prompts and responses, and what was recorded.

    Or other rows than these rollouts', or a file that is there.
    """
    name, row, write = WRITERS[writer]
    tokenizer = said[0].tokenizer
    ends, media = frozenset({tokenizer.eos_token_id}), student.get("media", frozenset())
    student["outline"] = Outline("m", tokenizer, ends, len(tokenizer), 4096, media)
    rows = [row(one) for one in said] if rows is None else rows
    out = student["folder"] / "c.parquet"
    file = file or write(student["folder"] / "rows", rows)
    given = json.dumps(said[0].options) if said[0].options else ""
    wanted = {"files": [str(file)], "student": "m", "contexts": str(out), "template_options": given} | options
    kind = NamedImportSettings if FORMATS[name].named else ImportSettings
    imported = importing.import_rollouts(FORMATS[name], kind(**wanted), reporter)["imported"]
    found = CONTEXTS.read_arrow(out).to_pylist()
    return [(tuple(r["prompt_token_ids"]), tuple(r["response_token_ids"])) for r in found], imported


def true_of(writer: str, said: Said) -> Pairs:
    """What may come of one rollout; nothing where others' turns stand in it and no mask says which."""
    if writer in MASKED and len(said.parts) > 1:
        return [(said.prompt, said.response)]
    turns = [turn for turn in said.turns if turn[1]]
    if writer == "msswift":
        turns = turns[-1:]
    elif writer not in MASKED and len(said.parts) > 1:
        return []
    if writer in BY_IDS or WRITERS[writer][1] in (plain_text, plain_messages, skyrl):
        return turns
    ends = said.tokenizer.eos_token_id
    return [(before, ids[:-1] if ids[-1] == ends else ids) for before, ids in turns]  # of a text that lost its end


@pytest.mark.slow
@given(said=talks(), writer=st.sampled_from(sorted(WRITERS)))
@settings(max_examples=250, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_what_is_imported_is_what_was_sampled(said: list[Said], writer: str, student: dict[str, Any]) -> None:
    if writer not in BY_IDS:  # as its tokenizer chooses
        for one in said:
            for ids in (one.prompt, *(part for part, _ in one.parts)):
                assume(ids_of(one.tokenizer, one.text(ids, False)) == ids or "\ufffd" in one.text(ids, False))
    padding = {"strip_padding": True} if writer == "jsonl padded" else {}
    try:
        found, imported = bring(writer, said, student, skip_bad_rows=True, skip_at_most=1.0, **padding)
    except InputError:
        return
    true = [pair for one in said for pair in true_of(writer, one)]
    assert sorted(found) == sorted(pair for pair in true if pair in found)
    check_masks(said, student)
    kept = [one for one in said if set(true_of(writer, one)) & set(found)]
    assert len(kept) + sum(imported["skipped"].values()) == len(said)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_ordinary_rollouts_come_in(name: str, writer: str, student: dict[str, Any]) -> None:
    tokenizer, options = family(name), {"enable_thinking": False} if name == "thinking" else {}
    said = []
    for number in range(3):
        messages = [{"role": "user", "content": f"What is {number} + 🚀?"}]
        prompt = ids_of(tokenizer, rendered(tokenizer, messages, options, add_generation_prompt=True))
        answer = ids_of(tokenizer, "It is\n\n4 你.") + (tokenizer.eos_token_id,) * (number % 2)
        said.append(Said(tokenizer, messages, options, prompt, [(answer, True)], []))
    if name == "instructions" and writer in ("trl before 1.15", "trl distillation", "verl"):
        with pytest.raises(InputError, match="ambiguous"):  # its marks are special tokens, which leave no trace
            bring(writer, said, student)
        return
    if writer == "jsonl padded":
        with pytest.raises(
            InputError, match=r"rows.jsonl:1: the prompt begins with 3 of id \d+, which looks like padd"
        ):
            bring(writer, said, student)
    found, imported = bring(writer, said, student, strip_padding=writer == "jsonl padded")
    assert sorted(found) == sorted(pair for one in said for pair in true_of(writer, one))
    assert imported["skipped"] == {}
    assert imported["responses"] == {("ids given" if writer in BY_IDS else "re-encoded from text"): 3}


def ordinary(name: str, count: int = 3) -> list[Said]:
    tokenizer, said = family(name), []
    for number in range(count):
        messages = [{"role": "user", "content": f"What is {number}?"}]
        prompt = ids_of(tokenizer, rendered(tokenizer, messages, {}, add_generation_prompt=True))
        said.append(
            Said(tokenizer, messages, {}, prompt, [((*ids_of(tokenizer, "4."), tokenizer.eos_token_id), True)], [])
        )
    return said


VALUES: list[Any] = [
    *(None, True, 1.5, -1, 10**30, float("nan"), float("inf"), "", "1", "\ud800", "\0", [], [[]], {}, [True], [1.0]),
    *(["1"], [-1], [10**30], [None], {"role": "user"}, [{"role": "user"}], [{"role": 1, "content": "x"}]),
    *([{"role": "user", "content": ["x"]}], "[{'role': 'user', 'content': 'Hi'}]", "\ufffd"),
]
TEXTS = ("1", "\0", "\ufffd")
PICKLED = [
    torch.ones(2, 2),
    torch.tensor([1.5]),
    torch.tensor(3),
    np.array([[1]]),
    np.int64(1),
    {3: 4},
    {"a", 1},
    b"x",
    10**5000,
]


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_a_field_holds_is_a_sentence_or_does_not_matter(writer: str, student: dict[str, Any]) -> None:
    said = ordinary("chatml")
    _, row, write = WRITERS[writer]
    true = [pair for one in said for pair in true_of(writer, one)]
    options = {"strip_padding": True} if writer == "jsonl padded" else {}
    out = student["folder"] / "c.parquet"
    for value in [*VALUES, *(PICKLED if writer == "slime" else [])]:
        for key, own in [*row(said[0]).items(), ("more", None), *([(None, None)] if writer == "slime" else [])]:
            if isinstance(value, str) and isinstance(own, str) and value in TEXTS:
                continue  # another rollout, then
            rows = [row(one) for one in said]
            rows[1] = {k: v for k, v in rows[1].items() if k != key} if value == {} else rows[1] | {key: value}
            out.unlink(missing_ok=True)
            try:
                write(student["folder"] / "rows", rows)
            except (pa.ArrowException, UnicodeEncodeError, OverflowError, KeyError):
                continue  # which no writer can write
            try:
                found, _ = bring(writer, said, student, rows=rows, **options)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017
                assert not out.exists()
            else:
                assert sorted(found) == sorted(true), (key, value)


def test_files_of_other_systems(student: dict[str, Any]) -> None:
    said, folder = ordinary("chatml"), student["folder"] / "files"
    lines = [json.dumps(row) for row in map(plain_ids, said)]
    good = {
        "marked": b"\xef\xbb\xbf" + "\r\n\r\n".join(lines).encode(),
        "scored": "\n".join(line[:-1] + ', "reward": NaN, "kl": 1e400}' for line in lines).encode(),
    }
    bad = {
        "twice": (lines[0][:-1] + ', "response_token_ids": [4]}', "1: is no JSON (key 'response_token_ids' stands in"),
        "deep": ("[" * 100_000, "1: is no JSON (it is nested too deep)"),
        "digits": ('{"prompt": ' + "9" * 5000 + "}", "1: is no JSON (Exceeds the limit"),
        "latin": (
            lines[0].replace("{", '{"a": "\xe9", ').encode("latin-1"),
            "1: is no JSON ('utf-8' codec can't decode",
        ),
        "wide": (lines[0].encode("utf-16"), "1: is no JSON ("),
        "zipped": (gzip.compress(lines[0].encode()), "1: is no JSON ("),
        "blank": ("\n \n", "holds no rollouts"),
        "cut": (lines[0] + "\n" + lines[1][:-9], "2: is no JSON ("),
    }
    folder.mkdir()
    for name, content in good.items():
        (folder / f"{name}.jsonl").write_bytes(content)
        found, _ = bring("jsonl ids", said, student, file=folder / f"{name}.jsonl")
        assert sorted(found) == sorted((one.prompt, one.response) for one in said)
    for name, (text, message) in bad.items():
        file = folder / f"{name}.jsonl"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError) as error:
            bring("jsonl ids", said, student, file=file)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    (folder / "more/odd.jsonl").mkdir(parents=True)
    for place, message in (
        ("more", "holds no .jsonl"),
        ("x" * 300 + ".jsonl", "cannot be read"),
        ("a\0", "without NUL"),
    ):
        with pytest.raises(InputError, match=message):
            bring("jsonl ids", said, student, file=folder / place)


def test_a_batch_that_was_logged_twice_counts_once(student: dict[str, Any]) -> None:
    said = ordinary("chatml")
    rows = [msswift(one) for one in said]
    batch = json.dumps({key: [row[key] for row in rows] for key in rows[0]} | {"step": ["2"] * 3})
    file = student["folder"] / "completions.jsonl"
    file.write_text(f"{batch}\n{batch.replace('2', '2')}\n")
    assert len(bring("msswift", said, student, file=file)[0]) == 3
    uneven = json.dumps({"prompt": ["a", "b"], "completion": ["c"]})
    file.write_text(f"{batch}\n{uneven}\n")
    with pytest.raises(InputError, match=r"jsonl:2: holds 2 values of prompt, but 1 of completion"):
        bring("msswift", said, student, file=file)


def test_a_rollout_with_turns_of_others_is_one_masked_context(student: dict[str, Any]) -> None:
    """Its prompt is what stands before the student's first token; what others said after it is masked."""
    tokenizer, end = family("chatml"), family("chatml").eos_token_id
    said = ordinary("chatml")
    heard = ids_of(tokenizer, "\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n")
    parts = [*said[1].parts, (heard, False), ((*ids_of(tokenizer, "5."), end), True), (heard, False)]
    said[1] = replace(said[1], parts=parts)
    for writer in sorted(MASKED):
        found, _ = bring(writer, said, student)
        assert sorted(found) == sorted((one.prompt, one.response) for one in said)
        check_masks(said, student)
        assert {r["finish_reason"] for r in CONTEXTS.read_arrow(student["folder"] / "c.parquet").to_pylist()} == {
            "stop"
        }
    folder = student["folder"] / "run/token_exports/step_1"
    folder.mkdir(parents=True)
    to_lines(folder / "rank_0", [prime_rl(one) for one in said])
    assert len(bring("prime-rl", said, student, file=folder.parents[1])[0]) == 3
    twice = [*parts[0][0], end, *heard]
    shifted = prime_rl(said[0]) | {"position_ids": [0, 1] * (len(prime_rl(said[0])["token_ids"]) // 2 + 1)}
    for writer, spoilt, message in (
        ("prime-rl", shifted, "position_ids do not count"),
        ("prime-rl", prime_rl(said[0]) | {"ce_weights": [0, 1]}, "another"),
        ("prime-rl", prime_rl(said[0]) | {"loss_mask": [0] * len(prime_rl(said[0])["token_ids"])}, "0 everywhere"),
        ("jsonl masked", masked(said[0]) | {"response_mask": [1]}, "response_mask has 1 values for"),
        (
            "jsonl masked",
            plain_ids(said[0])
            | {"response_token_ids": twice, "response_mask": [1] * (len(parts[0][0]) + 1) + [0] * len(heard)},
            "the response goes on behind its end-of-text token",
        ),
    ):
        with pytest.raises(InputError, match=message):
            bring(writer, said, student, rows=[spoilt, WRITERS[writer][1](said[1])])


def test_fields_of_other_names_are_read(student: dict[str, Any]) -> None:
    """The batches of TRL and verl, as lists of ids; another mask in the row is not read then."""
    said = ordinary("chatml", 4)
    for prompt, response, mask in (
        ("prompt_ids", "completion_ids", "tool_mask"),
        ("prompts", "responses", "response_mask"),
    ):
        rows = [
            {
                prompt: list(one.prompt),
                response: list(one.response),
                mask: [1] * (len(one.response) - 1) + [0],
                "completion_mask": [1] * len(one.response),
                "prompt": "is not read",
                "set": "bank" if number else "update",
            }
            for number, one in enumerate(said)
        ]
        names = {"prompt_field": prompt, "response_field": response, "mask_field": mask, "split_field": "set"}
        found, _ = bring("jsonl ids", said, student, rows=rows, **names)
        assert sorted(found) == sorted((one.prompt, one.response) for one in said)
        brought = CONTEXTS.read_arrow(student["folder"] / "c.parquet").to_pylist()
        assert [row["split"] for row in brought] == ["bank"] * 3 + ["update"]
        assert all(row["response_mask"] == [1] * (len(row["response_token_ids"]) - 1) + [0] for row in brought)
        with pytest.raises(InputError, match=r"rows\.jsonl:1: has no nowhere; it has"):
            bring("jsonl ids", said, student, rows=rows, **names | {"prompt_field": "nowhere"})
        with pytest.raises(InputError, match=r"(tool|completion)_mask is not read: .* --mask-field \w+_mask"):
            bring("jsonl ids", said, student, rows=rows, **names | {"mask_field": ""})


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_whole_sequences_are_no_responses(name: str, student: dict[str, Any]) -> None:
    """As `generate` returns them: ids with a mask that is 0 on the prompt, or text without its special tokens."""
    said = ordinary(name)
    whole = [(*one.prompt, *one.response) for one in said]
    by_ids = [
        {
            "prompt_token_ids": list(one.prompt),
            "response_token_ids": list(ids),
            "response_mask": [0] * len(one.prompt) + [1] * len(one.response),
        }
        for one, ids in zip(said, whole, strict=True)
    ]
    by_text = [
        plain_messages(one) | {"response": one.tokenizer.decode(list(ids), skip_special_tokens=True)}
        for one, ids in zip(said, whole, strict=True)
    ]
    for rows in (by_ids, by_text):
        with pytest.raises(InputError, match=r"rows\.jsonl:1: .*(begins with its whole prompt|begins another turn)"):
            bring("jsonl ids", said, student, rows=rows)
    rows = [*by_ids[:1], *map(masked, said[1:])]  # one that repeats its prompt may have been sampled so
    assert len(bring("jsonl ids", said, student, rows=rows)[0]) == len(said)


PAD, END = "<pad>", "<|im_end|>"


@pytest.mark.parametrize(
    ("prompt", "response", "reason", "left"),
    [
        ([PAD], [], "unknown", (0, 0)),
        ([0, 0], [], "unknown", (0, 0)),
        ([-100], [-100, -100], "unknown", (0, 0)),
        ([], [PAD], "unknown", (0, 0)),
        ([], [0, 0, 0], "unknown", (0, 0)),
        ([], [END, END, END], "unknown", (0, -1)),  # whether one of them ended it cannot be told: none is read
        ([], [END, END, END], "stop", (0, 0)),
    ],
)
def test_padding_is_refused_or_taken_off(
    prompt: list[Any], response: list[Any], reason: str, left: tuple[int, int], student: dict[str, Any]
) -> None:
    tokenizer, said = family("chatml"), ordinary("chatml")

    def ids(listed: list[Any]) -> list[int]:
        return [i if isinstance(i, int) else tokenizer.convert_tokens_to_ids(i) for i in listed]

    rows = [plain_ids(one) for one in said]
    rows[1]["prompt_token_ids"] = ids(prompt) + rows[1]["prompt_token_ids"]
    rows[1]["response_token_ids"] += ids(response)
    rows[1]["finish_reason"] = reason
    with pytest.raises(InputError, match=r"rows\.jsonl:2: .*--strip-padding"):
        bring("jsonl ids", said, student, rows=rows)
    found, imported = bring("jsonl ids", said, student, rows=rows, strip_padding=True)
    true = [(one.prompt, one.response) for one in said]
    true[1] = true[1][0], true[1][1][: len(true[1][1]) + left[1]]
    assert sorted(found) == sorted(true)
    assert imported["padding_stripped"] == 1


@pytest.mark.parametrize("ended", [True, False])
def test_padding_that_a_mask_calls_the_students_is_padding(ended: bool, student: dict[str, Any]) -> None:
    """TRL pads `tool_mask` with 1."""
    tokenizer, said = family("chatml"), ordinary("chatml")
    pad, rows = tokenizer.convert_tokens_to_ids(PAD), [masked(one) for one in said]
    for row in rows:
        ids = row["response_token_ids"] if ended else row["response_token_ids"][:-1]
        row["response_token_ids"], row["response_mask"] = [9, *ids, pad, pad], [0] + [1] * (len(ids) + 2)
    with pytest.raises(
        InputError, match=r"rows\.jsonl:1: the response ends with 2 of id \d+, which looks like padding"
    ):
        bring("jsonl masked", said, student, rows=rows)
    bring("jsonl masked", said, student, rows=rows, strip_padding=True)
    for one, row in zip(said, CONTEXTS.read_arrow(student["folder"] / "c.parquet").to_pylist(), strict=True):
        true = [9, *(one.response if ended else one.response[:-1])]
        assert row["response_token_ids"] == true
        assert row["response_mask"] == [0] + [1] * (len(true) - 1)
        assert row["finish_reason"] == ("stop" if ended else "unknown")


def test_ids_of_pictures_are_no_text(student: dict[str, Any]) -> None:
    said = ordinary("chatml")
    first = dict.fromkeys(said[0].prompt)
    student["media"] = frozenset({list(first)[-1]})
    with pytest.raises(
        InputError, match=r"rows\.jsonl:1: the prompt holds id \d+, in whose place a picture or a sound"
    ):
        bring("jsonl ids", said, student)
    del student["media"]


def test_rows_that_are_there_twice_are_told_of(student: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    said = ordinary("chatml")
    found, _ = bring("jsonl ids", [*said, said[0]], student, reporter=Reporter())
    assert len(found) == 4
    assert "1 of 4 rollouts are there already, token for token" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("shift", [0, 1000])
def test_ids_of_another_tokenizer_are_told_of(
    shift: int, student: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded model's, and the same a thousand further on, which are texts too."""
    tokenizer = embedded_tokenizer()
    answer = ids_of(tokenizer, "4.")
    said = [
        Said(tokenizer, [], {}, tuple(i + shift for i in encode_prompt(tokenizer, question)), [(answer, True)], [])
        for question in ("What is 2 + 2?", "Who wrote Emma?")
    ]
    bring("jsonl ids", said, student, reporter=Reporter())
    told = " ".join(capsys.readouterr().err.split())
    assert ("none of the prompts' ids are those that the student's tokenizer makes" in told) == bool(shift)


def test_padding_that_is_written_out_is_padding_too(student: dict[str, Any]) -> None:
    said = ordinary("chatml")
    rows = [plain_text(one) for one in said]
    rows[1]["response"] += PAD * 2
    with pytest.raises(
        InputError, match=r"rows\.jsonl:2: the response ends with 2 of id \d+, which looks like padding"
    ):
        bring("jsonl text", said, student, rows=rows)
    found, imported = bring("jsonl text", said, student, rows=rows, strip_padding=True)
    assert sorted(found) == sorted((one.prompt, one.response) for one in said)
    assert imported["padding_stripped"] == 1
