"""Rollouts from elsewhere that cannot be had exactly: each is refused in a sentence, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rollout_worlds import (
    END,
    MARKED,
    bare_tokenizer,
    embedded_tokenizer,
    imported,
    marked_tokenizer,
    refused,
    write_jsonl,
)
from tiny_pair import byte_tokenizer, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from teachdiag.diagnostics.contexts.templates import encode_prompt
from teachdiag.diagnostics.imports.encoding import Encoder
from teachdiag.diagnostics.imports.records import Side
from teachdiag.errors import InputError, RolloutError


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "marked", seed=1, tokenizer=marked_tokenizer())


PROMPT = [{"role": "user", "content": "Hi"}]
IDS = {"prompt_token_ids": [65], "response_token_ids": [66]}
VERL = "user\nHi\nassistant\n"
TURNS = VERL + "a\nuser\nb\nassistant\n"
TALK = {"prompt": PROMPT, "advantage": 0.0}
TOOL = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]


def whole(**fields: Any) -> dict[str, Any]:
    return {"tokens": [65, 66], "response_length": 1} | fields


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("jsonl", [{"response": "b"}], "r.jsonl:1: has neither prompt nor prompt_token_ids; it has response"),
        ("jsonl", [IDS, {"prompt": PROMPT}], "r.jsonl:2: has neither response nor response_token_ids; it has prompt"),
        ("jsonl", [IDS | {"prompt_token_ids": [1.5]}], "prompt_token_ids is no list of token ids"),
        ("jsonl", [IDS | {"prompt_token_ids": []}], "r.jsonl:1: the prompt is empty"),
        ("jsonl", [IDS | {"response_token_ids": []}], "r.jsonl:1: the response is empty"),
        ("jsonl", [IDS | {"loss_mask": [1]}], "loss_mask is not read: give what the student sampled as response_mask"),
        ("jsonl", [IDS | {"loss_masks": [0]}], "as response_mask, or say --mask-field loss_masks"),
        ("jsonl", [IDS | {"weights": [0.0]}], "as response_mask, or say --mask-field weights"),
        (
            "jsonl",
            [IDS | {"labels": [-100, 66]}],
            "labels is not read: give what the student sampled as response_mask (1",
        ),
        ("jsonl", [{"prompt": PROMPT, "response": "b", "tools": [{}]}], "tools is not read: give --template-options"),
        ("jsonl", [{"prompt": PROMPT, "response": "b", "system": "Be"}], "a system prompt as the first message"),
        ("jsonl", [IDS | {"images": ["a.png"]}], "has images, which the student read with its prompt: only text is"),
        ("slime", [whole(multimodal_inputs={"images": [1]})], "has multimodal_inputs, which the student read"),
        ("jsonl", [{"prompt": PROMPT, "response": ""}], "r.jsonl:1: the response is empty"),
        ("jsonl", [IDS | {"response_token_ids": [264]}], "holds id 264, but the student's vocabulary has 264 ids"),
        ("jsonl", [IDS | {"response_token_ids": [66, -1]}], "ends with 1 of id -1, which looks like padding"),
        ("jsonl", [IDS | {"response_token_ids": [66, -1, 66]}], "holds id -1"),
        (
            "jsonl",
            [IDS | {"response_token_ids": [65, END, 66]}],
            "goes on behind its end-of-text token (id 256",
        ),
        ("jsonl", [IDS | {"response": "x"}], "decode to 'c', where its text is 'x': it was tokenised by another token"),
        ("jsonl", [IDS | {"tokenizer": "a"}, IDS | {"tokenizer": "b"}], "r.jsonl:2: was tokenised by b, but "),
        ("jsonl", [{"prompt": "Hi", "response": "b"}], "'Hi', is not what the student's chat template writes"),
        ("jsonl", [{"prompt": PROMPT, "response": "\ufffd"}], "holds U+FFFD, in place of bytes that are lost"),
        ("jsonl", [{"prompt": PROMPT, "response": 3}], "response is no text but int"),
        ("jsonl", [{"prompt": 3, "response": "b"}], "prompt is neither text nor a list of messages"),
        ("jsonl", [IDS | {"split": "test"}], "split is 'test': use bank, update, or leave it out"),
        ("jsonl", [IDS | {"finish_reason": "eos"}], "finish_reason is 'eos': use stop, length, unknown, or leave it"),
        ("jsonl", [IDS | {"prompt_id": [1]}], "prompt_id is [1]: use text or a whole number"),
        ("jsonl", [IDS], "all 1 rollouts have the same prompt"),
        ("jsonl", [IDS | {"prompt_id": "a"}, IDS | {"prompt_id": "b"}], "prompt_id b has the same prompt as a ("),
        ("jsonl", [IDS | {"prompt_id": "a"}, {**IDS, "prompt_token_ids": [7], "prompt_id": "a"}], "another prompt at"),
        ("jsonl", [3], "r.jsonl:1: is no JSON object"),
        ("jsonl", [], "r.jsonl: holds no rollouts"),
        ("verl", [{"input": "Hi", "output": "b"}], "'Hi', lost its special tokens and is not what the student's chat"),
        ("verl", [{"input": TURNS, "output": "b"}], "lost its special tokens and can be read as more than one convers"),
        ("verl", [{"input": "system\n" + TURNS, "output": "b"}], "can be read as more than one conversation"),
        (
            "verl",
            [{"input": "system\na\nuser\nb\n" + VERL, "output": "b"}],
            "can be read as more than one conversation",
        ),
        ("verl", [{"input": VERL, "output": "b<end>c"}], "of the response cannot be recovered from its text"),
        ("verl", [{"input": VERL, "output": None}], "r.jsonl:1: has no output; it has input, output"),
        ("verl", [{"input": VERL, "output": 4}], "r.jsonl:1: output is no text but int"),
        ("verl", [{"input": VERL, "output": "\ud800"}], "r.jsonl:1: is no JSON (it holds half of a surrogate pair"),
        ("trl", [{"prompt": PROMPT}], "r.parquet, row 0: has no completion; it has prompt"),
        ("trl", [TALK | {"completion": TOOL}], "completion is more than one message of the assistant"),
        ("trl", [TALK | {"completion": [TOOL[0] | {"tool_calls": "f"}]}], "holds a message with content, role, tool_"),
        ("trl", [{"prompt": "Hi", "completion": "b"}], "'Hi', lost its special tokens"),
        ("slime", [{"response_length": 1}], "r.pt, sample 0: has no tokens"),
        ("slime", [whole(response_length=2)], "response_length is 2, but there are 2 tokens with the prompt"),
        ("slime", [whole(response_length=0)], "r.pt, sample 0: the response is empty"),
        ("slime", [whole(loss_mask=[0])], "no token of it is the student's: its mask is 0 everywhere"),
        ("slime", [whole(loss_mask=[1, 0])], "loss_mask has 2 values for 1 tokens"),
        ("slime", [whole(prompt="x")], "the prompt's ids decode to 'b', where its text is 'x'"),
        ("slime", [whole(reward=Path("x"))], "r.pt: holds objects besides plain data, tensors and arrays"),
        ("slime", [3], "r.pt: has no list 'samples' of dictionaries"),
    ],
)
def test_bad_rows_are_one_sentence(name: str, rows: list[Any], message: str, marked: str, tmp_path: Path) -> None:
    writers: dict[str, tuple[str, Callable[[Path], object]]] = {
        "trl": (".parquet", lambda path: pq.write_table(pa.Table.from_pylist(rows), path)),
        "slime": (".pt", lambda path: torch.save({"samples": rows}, path)),
    }
    suffix, write = writers.get(
        name, (".jsonl", lambda path: path.write_text("".join(json.dumps(r) + "\n" for r in rows)))
    )
    write(tmp_path / f"r{suffix}")
    refused(name, tmp_path / f"r{suffix}", message, marked)


def test_bad_files_are_one_sentence(marked: str, tmp_path: Path) -> None:
    for number, (name, suffix, content, message) in enumerate(
        [
            ("verl", ".jsonl", b'{"input": "a", "output": "b"}\n\n{"input": \n', ".jsonl:3: is no JSON ("),
            ("verl", ".jsonl", b"\xff\n", ".jsonl:1: is no JSON ("),
            ("verl", ".jsonl", b"", "holds no rollouts"),
            ("jsonl", ".parquet", b"PAR1", "cannot be read as Parquet ("),
            ("slime", ".pt", b"text", "is no file of torch.save, or is cut short"),
            ("slime", ".pt", b"PK\5\6" + bytes(18), "is damaged, torch cannot read it"),
            ("trl", ".jsonl", b"", "is no .parquet file, which this format is"),
        ]
    ):
        file = tmp_path / f"{number}{suffix}"
        file.write_bytes(content)
        refused(name, file, message, marked)
    torch.save([1], tmp_path / "list.pt")
    refused("slime", tmp_path / "list.pt", "has no list 'samples'", marked)
    refused("verl", tmp_path / "none.jsonl", "there is no file or folder", marked)
    (tmp_path / "mixed").mkdir()
    for file in ("a.jsonl", "b.jsonl.gz", "c.gz"):
        (tmp_path / "mixed" / file).write_bytes(b"")
    for given in ("mixed", "mixed/b.jsonl.gz"):  # which would be left out of the folder
        refused("verl", tmp_path / given, "mixed/b.jsonl.gz is compressed: unpack it, and give it without .gz", marked)
    (tmp_path / "empty").mkdir()
    refused("jsonl", tmp_path / "empty", "holds no .jsonl or .parquet file", marked)


def test_a_tokenizer_that_drops_a_leading_space_gives_no_responses() -> None:
    words = ["\u2581", "\u2581a", "a", "b", "<s>"]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[("\u2581", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>"), 5)
    prompt = encoder.prompt(Side(text="ab", form="stripped"))
    assert prompt == (1, 3)
    with pytest.raises(RolloutError, match="the ids of the response cannot be recovered"):
        encoder.response(Side(text="a", form="stripped"), prompt)
    assert encoder.response(Side(ids=(2,), text="a"), prompt) == (2,)


def test_prompts_without_a_chat_template() -> None:
    tokenizer = bare_tokenizer()
    encoder, start = Encoder(tokenizer, 264), tokenizer.bos_token_id
    assert (
        encoder.prompt(Side(text="Hi"))
        == encoder.prompt(Side(text="<s>Hi"))
        == (start, *byte_tokenizer()("Hi")["input_ids"])
    )
    for side, message in [
        (Side(messages=({"role": "user", "content": "Hi"},)), "the student's tokenizer has no chat template"),
        (Side(text="Hi<end>there"), "the ids of the prompt cannot be recovered from its text"),
        (Side(text="<s>Hi", form="stripped"), "the ids of the prompt cannot be recovered from its text"),
        (Side(text=""), "the prompt is empty"),
    ]:
        with pytest.raises(RolloutError, match=message):
            encoder.prompt(side)


@pytest.mark.parametrize("system", ["{{ raise_exception('no system') }}", ""])
def test_templates_without_system_messages_know_users_alone(system: str) -> None:
    tokenizer = marked_tokenizer()
    tokenizer.chat_template = f"{{% if messages[0].role == 'system' %}}{system}{{% else %}}{MARKED}{{% endif %}}"
    encoder, ids = Encoder(tokenizer, 264), encode_prompt(tokenizer, "Hi")
    assert encoder.prompt(Side(text=tokenizer.decode(ids, skip_special_tokens=True), form="stripped")) == ids
    with pytest.raises(RolloutError, match="refuses the prompt's messages" if system else "the prompt is empty"):
        encoder.prompt(Side(messages=({"role": "system", "content": "Hi"},)))


def test_special_tokens_that_leave_no_trace_leave_nothing_to_find() -> None:
    tokenizer = marked_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}<end>{% endfor %}"
    with pytest.raises(RolloutError, match="can be read as more than one conversation"):
        Encoder(tokenizer, 264).prompt(Side(text="Hi", form="stripped"))


def test_characters_without_tokens_are_refused() -> None:
    """SmolLM2's vocabulary lacks some bytes, and its tokenizer leaves them out without a word."""
    encoder, lacking = Encoder(embedded_tokenizer(), 49152), "\U00082097"
    for text in (f"<|im_start|>user\n{lacking}<|im_end|>\n<|im_start|>assistant\n", f"<|im_start|>{lacking}"):
        with pytest.raises(RolloutError, match="cannot be recovered exactly"):
            encoder.prompt(Side(text=text))
    with pytest.raises(RolloutError, match="the ids of the response cannot be recovered"):
        encoder.response(Side(text=lacking), (1,))


def test_parsed_responses_are_refused() -> None:
    tokenizer = marked_tokenizer()
    tokenizer.response_schema = {"type": "object"}
    with pytest.raises(RolloutError, match="was parsed by the student's tokenizer"):
        Encoder(tokenizer, 264).response(Side(text="4", form="parsed"), (65,))


def test_the_command_says_what_is_wrong(tmp_path: Path, refused: Callable[..., str]) -> None:
    words = ("import", "verl", tmp_path, "--student", "none", "--contexts", tmp_path / "c.parquet")
    assert refused(*words) == f"teachdiag: {tmp_path} holds no .jsonl file"


def test_bad_splits_are_one_sentence(marked: str, tmp_path: Path) -> None:
    def rows(*splits: str | None) -> Path:
        return write_jsonl(
            tmp_path / "r.jsonl",
            [{**IDS, "prompt_token_ids": [65 + i // 2], **({"split": s} if s else {})} for i, s in enumerate(splits)],
        )

    refused("jsonl", rows("bank", "update", "bank", "bank"), "is in both splits, which must not overlap", marked)
    refused("jsonl", rows("bank", None, "bank"), "r.jsonl:2: has no split, but other rows have", marked)
    refused("jsonl", rows("update", "update", "update"), "no row has the split 'bank'", marked)
    refused("jsonl", rows("bank", "bank", "update"), "--update-prompts cannot be used", marked, update_prompts=1)
    refused("jsonl", rows(None, None, None), "--update-prompts is 2: of the 2 prompts", marked, update_prompts=2)
    refused("jsonl", rows(None, None, None), "--update-prompts is -1", marked, update_prompts=-1)


def test_the_output_is_no_input(marked: str, tmp_path: Path) -> None:
    file = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist([IDS]), file)
    before = file.read_bytes()
    with pytest.raises(InputError, match="is one of the files to import"):
        imported("jsonl", [tmp_path], file, marked)
    with pytest.raises(InputError, match=r"the file to write, and end in \.parquet"):
        imported("jsonl", [tmp_path], tmp_path / "c.csv", marked)
    assert file.read_bytes() == before


def test_an_output_that_cannot_be_written_is_told(marked: str, tmp_path: Path) -> None:
    rows = [{**IDS, "prompt_token_ids": [65 + number]} for number in range(4)]
    file = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(InputError, match=r"r\.parquet/c\.parquet cannot be used: "):
        imported("jsonl", [file], file / "c.parquet", marked)
