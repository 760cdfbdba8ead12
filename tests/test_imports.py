"""Rollouts from elsewhere: every format gives back exactly the ids that were sampled, or says why it cannot."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import byte_tokenizer, save_model
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer
from typer.testing import CliRunner

from teachdiag.artefacts import CONTEXTS
from teachdiag.cli import app
from teachdiag.diagnostics.capture import run_capture
from teachdiag.diagnostics.embedded import embedded_model
from teachdiag.diagnostics.imports.contexts import import_rollouts
from teachdiag.diagnostics.imports.encoding import Encoder
from teachdiag.diagnostics.imports.records import Form, Side
from teachdiag.diagnostics.rollouts import encode_messages, encode_prompt
from teachdiag.errors import InputError, RolloutError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

END = 256
ANSWERS = ("4.", "Let me think:\n\n2 + 2 = 4", " naïve 你好 🙂", "\u2028odd\r\nlines\x85")
QUESTIONS = [f"What is {a} + {a}?" for a in range(8)]
QUIET = Reporter(quiet=True)
MARKED = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def marked_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer with a template whose marks are special tokens, as chat models have it."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = MARKED
    return tokenizer


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer without a template, which begins every text with a special token."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[start])
    return tokenizer


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "marked", seed=1, tokenizer=marked_tokenizer())


def imported(name: str, places: Sequence[Path], out: Path, student: str, **options: Any) -> list[dict[str, Any]]:
    given = {"revision": "main", "update_prompts": None, "seed": 0, "reporter": QUIET} | options
    import_rollouts(name, places, out, student, **given)
    return CONTEXTS.read_arrow(out).to_pylist()  # type: ignore[no-any-return]


def pairs(rows: list[dict[str, Any]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return sorted((tuple(row["prompt_token_ids"]), tuple(row["response_token_ids"])) for row in rows)


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    return path


def rollouts(tokenizer: Any, end: int = END) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Two responses a question, every other one ended."""
    return [
        (encode_prompt(tokenizer, q), (*tokenizer(a, add_special_tokens=False)["input_ids"], *([end] * (place % 2))))
        for place, (q, a) in enumerate(zip([q for q in QUESTIONS for _ in range(2)], cycle(ANSWERS), strict=False))
    ]


def stripped(tokenizer: Any, said: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[dict[str, Any]]:
    """What verl writes of rollouts."""
    texts = [tokenizer.batch_decode([list(p[side]) for p in said], skip_special_tokens=True) for side in (0, 1)]
    return [{"input": p, "output": r, "gts": None, "score": 0.5, "step": 1} for p, r in zip(*texts, strict=True)]


def without_end(said: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], end: int = END) -> list[tuple[Any, Any]]:
    return sorted((prompt, response[:-1] if response[-1] == end else response) for prompt, response in said)


def talking(kind: type) -> type:
    """TRL's trainer, saying what it is told to, and keeping the ids that it logs as text."""

    class Talking(kind):  # type: ignore[misc]
        said: list[tuple[tuple[int, ...], tuple[int, ...]]]

        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            own = byte_tokenizer()
            ids = [[*own(a)["input_ids"], END] for a, _ in zip(cycle(ANSWERS), prompt_ids, strict=False)]
            self.said = [(tuple(p), tuple(r)) for p, r in zip(prompt_ids, ids, strict=True)]
            return (ids, None) if issubclass(kind, GRPOTrainer) else ids

    return Talking


@pytest.mark.filterwarnings("ignore")  # of TRL's own making
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("kind", "config"), [(GRPOTrainer, GRPOConfig), (DistillationTrainer, DistillationConfig)])
def test_what_trl_logs_is_what_it_sampled(kind: Any, config: Any, chat: bool, tmp_path: Path) -> None:
    tokenizer = marked_tokenizer() if chat else bare_tokenizer()
    student = save_model(tmp_path / "student", seed=1, tokenizer=tokenizer)
    grouped = kind is GRPOTrainer
    own = {"reward_funcs": lambda completions, **_: [float(len(str(c))) for c in completions]} if grouped else {}
    own |= {} if grouped else {"teacher_model": Qwen3ForCausalLM.from_pretrained(student)}
    trainer = talking(kind)(
        model=Qwen3ForCausalLM.from_pretrained(student),
        args=config(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=8,
            max_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            log_completions=True,
            **({"num_generations": 2} if grouped else {"activation_checkpointing": False}),
        ),
        train_dataset=Dataset.from_dict(
            {"prompt": [[{"role": "user", "content": q}] if chat else q for q in QUESTIONS]}
        ),
        processing_class=tokenizer,
        **own,
    )
    trainer.train()
    rows = imported("trl", [tmp_path / "out/completions"], tmp_path / "c.parquet", student)
    assert len(rows) == 8
    assert pairs(rows) == without_end(trainer.said)
    assert {row["finish_reason"] for row in rows} == {"unknown"}


def test_a_batch_that_trl_logged_twice_counts_once(marked: str, tmp_path: Path) -> None:
    rows = [
        {"step": 1, "prompt": [{"role": "user", "content": q}], "completion": "4", "advantage": 0.0} for q in QUESTIONS
    ]
    for step in (1, 2):
        table = pa.Table.from_pylist([row | {"step": step} for row in rows])
        pq.write_table(table, tmp_path / f"completions_{step:05d}.parquet")
    assert len(imported("trl", [tmp_path], tmp_path / "out/c.parquet", marked)) == len(QUESTIONS)


def test_what_verl_dumps_is_what_it_sampled(marked: str, tmp_path: Path) -> None:
    said = rollouts(marked_tokenizer())
    write_jsonl(tmp_path / "1.jsonl", stripped(marked_tokenizer(), said))
    rows = imported("verl", [tmp_path], tmp_path / "c.parquet", marked)
    assert pairs(rows) == without_end(said)
    assert {row["finish_reason"] for row in rows} == {"unknown"}


def test_the_embedded_models_prompts_are_found_again() -> None:
    embedded = embedded_tokenizer()
    encoder = Encoder(embedded, 49152)
    chats = [[{"role": "user", "content": q}] for q in (*QUESTIONS, *ANSWERS)]
    chats += [[{"role": "system", "content": "Be brief."}, *chat] for chat in chats]
    for chat in chats:
        ids = encode_messages(embedded, chat)
        assert encoder.prompt(Side(text=embedded.decode(ids, skip_special_tokens=True), form="stripped")) == ids
        assert encoder.prompt(Side(text=embedded.decode(ids))) == ids
        assert encoder.prompt(Side(messages=tuple(chat))) == ids
        for answer in ANSWERS:
            own = tuple(embedded(answer, add_special_tokens=False)["input_ids"])
            assert encoder.response(Side(text=answer, form="stripped"), ids) == own
            assert encoder.response(Side(text=answer + "<|im_end|>"), ids) == (*own, 2)


def sample(prompt: tuple[int, ...], response: tuple[int, ...], status: str, **more: Any) -> dict[str, Any]:
    """The fields of slime's `Sample.to_dict()` that are read, and some that are not."""
    tokenizer = marked_tokenizer()
    return {
        "group_index": 0,
        "prompt": tokenizer.decode(list(prompt)),
        "tokens": [*prompt, *response],
        "response": tokenizer.decode(list(response), skip_special_tokens=True),
        "response_length": len(response),
        "loss_mask": [1] * len(response),
        "status": status,
        "reward": 1.0,
        "spec_info": {"spec_accept_token_num": 0},
    } | more


def test_what_slime_saves_is_what_it_sampled(marked: str, tmp_path: Path) -> None:
    said = rollouts(marked_tokenizer())
    statuses = ["completed" if response[-1] == END else "truncated" for _, response in said]
    samples = [sample(*pair, status) for pair, status in zip(said, statuses, strict=True)]
    samples[1]["tokens"] = torch.tensor(samples[1]["tokens"])
    samples[2]["response"] += "\ufffd"  # what is left of a character that was cut
    torch.save({"rollout_id": 3, "samples": samples}, tmp_path / "3.pt")
    rows = imported("slime", [tmp_path / "3.pt"], tmp_path / "c.parquet", marked)
    assert pairs(rows) == sorted(said)
    assert all(row["finish_reason"] == ("stop" if row["response_token_ids"][-1] == END else "length") for row in rows)


def ids_and_text(tokenizer: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> list[dict[str, Any]]:
    """The ways in which a row of the plain format can say one rollout."""
    ids = {"prompt_token_ids": list(prompt), "response_token_ids": list(response)}
    text = {"prompt": tokenizer.decode(list(prompt)), "response": tokenizer.decode(list(response))}
    return [ids, text, ids | text, {"prompt": text["prompt"], "response_token_ids": list(response)}]


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_plain_rows_are_what_was_sampled(way: int, suffix: str, marked: str, tmp_path: Path) -> None:
    said = rollouts(marked_tokenizer())
    rows = [ids_and_text(marked_tokenizer(), *pair)[way] for pair in said]
    file = tmp_path / f"rows{suffix}"
    write_jsonl(file, rows) if suffix == ".jsonl" else pq.write_table(pa.Table.from_pylist(rows), file)
    found = imported("jsonl", [file], tmp_path / "c.parquet", marked)
    assert pairs(found) == sorted(said)
    ends = {tuple(row["response_token_ids"])[-1] == END: row["finish_reason"] for row in found}
    assert ends == {True: "stop", False: "unknown"}


def test_names_splits_and_teacher_prompts_are_kept(marked: str, tmp_path: Path) -> None:
    tokenizer = marked_tokenizer()
    rows = [
        {"prompt_id": place, "split": split, "finish_reason": "length", "tokenizer": "own", "response": "4"}
        | {"prompt": [{"role": "user", "content": q}], "teacher_prompt": [{"role": "user", "content": f"{q} 4!"}]}
        for place, (q, split) in enumerate(zip(QUESTIONS, cycle(("update", "bank")), strict=False))
    ]
    found = imported("jsonl", [write_jsonl(tmp_path / "r.jsonl", rows)], tmp_path / "c.parquet", marked)
    assert [row["prompt_id"] for row in found] == ["1", "3", "5", "7", "0", "2", "4", "6"]
    assert [row["split"] for row in found] == ["bank"] * 4 + ["update"] * 4
    assert [row["source_row"] for row in found] == [1, 3, 5, 7, 0, 2, 4, 6]
    assert {row["finish_reason"] for row in found} == {"length"}
    assert tuple(found[0]["teacher_prompt_token_ids"]) == encode_prompt(tokenizer, QUESTIONS[1] + " 4!")


def test_splits_are_drawn_by_prompt_whatever_the_order_of_files(marked: str, tmp_path: Path) -> None:
    rows = stripped(marked_tokenizer(), rollouts(marked_tokenizer()))
    one, other = write_jsonl(tmp_path / "1.jsonl", rows[:5]), write_jsonl(tmp_path / "2.jsonl", rows[5:])
    draws = []
    for number, (files, seed) in enumerate([([one, other], 0), ([other, one], 0), ([one, other], 1)]):
        found = imported("verl", files, tmp_path / f"{number}.parquet", marked, update_prompts=3, seed=seed)
        draws.append({row["prompt_id"] for row in found if row["split"] == "update"})
        assert not draws[-1] & {row["prompt_id"] for row in found if row["split"] == "bank"}
        assert sum(row["split"] == "update" for row in found) == 2 * 3
    assert draws[0] == draws[1] != draws[2]
    assert all(len(draw) == 3 for draw in draws)
    quarter = imported("verl", [one, other], tmp_path / "q.parquet", marked)
    assert len({row["prompt_id"] for row in quarter if row["split"] == "update"}) == 2


def test_capture_scores_what_was_imported(tiny_settings: CaptureSettings, tmp_path: Path) -> None:
    said = rollouts(byte_tokenizer())
    file = write_jsonl(tmp_path / "1.jsonl", stripped(byte_tokenizer(), said))
    out = tmp_path / "contexts.parquet"
    options = ["--student", tiny_settings.student, "--contexts", str(out), "--update-prompts", "3"]
    done = CliRunner().invoke(app, ["import", "verl", str(file), *options])
    assert done.exit_code == 0, done.output
    assert done.output == f"{out}: 16 contexts of 5 bank, 3 update prompts; finish_reason 16 unknown\n"
    settings = CaptureSettings(**tiny_settings.as_dict() | {"contexts": str(out)})
    summary = run_capture(tmp_path / "run", settings, QUIET)
    assert summary["contexts"] == {"bank": 10, "update": 6}
    assert pairs(CONTEXTS.read_arrow(tmp_path / "run/contexts").to_pylist()) == without_end(said)


PROMPT = [{"role": "user", "content": "Hi"}]
IDS = {"prompt_token_ids": [65], "response_token_ids": [66]}
VERL = "<|turn|>user\nHi<end>\n<|turn|>assistant\n".replace("<|turn|>", "").replace("<end>", "")
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
        ("jsonl", [{"prompt": PROMPT, "response": ""}], "r.jsonl:1: the response is empty"),
        ("jsonl", [IDS | {"response_token_ids": [264]}], "holds id 264, but the student's vocabulary has 264 ids"),
        ("jsonl", [IDS | {"response_token_ids": [-1]}], "holds id -1"),
        (
            "jsonl",
            [IDS | {"response_token_ids": [END, 66]}],
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
        ("verl", [{"input": VERL, "output": "b<end>c"}], "of the response cannot be recovered from its text"),
        ("verl", [{"input": VERL, "output": None}], "r.jsonl:1: has no output; it has input, output"),
        ("verl", [{"input": VERL, "output": "\ud800"}], "its text is no valid Unicode"),
        ("trl", [{"prompt": PROMPT}], "r.parquet, row 0: has no completion; it has prompt"),
        ("trl", [TALK | {"completion": TOOL}], "completion is more than one message of the assistant"),
        ("trl", [TALK | {"completion": [TOOL[0] | {"tool_calls": "f"}]}], "holds a message with content, role, tool_"),
        ("trl", [{"prompt": "Hi", "completion": "b"}], "'Hi', lost its special tokens"),
        ("slime", [{"response_length": 1}], "r.pt, sample 0: has no tokens"),
        ("slime", [whole(response_length=2)], "response_length is 2, but there are 2 tokens with the prompt"),
        ("slime", [whole(response_length=0)], "r.pt, sample 0: the response is empty"),
        (
            "slime",
            [whole(tokens=[65, 66, 67], response_length=2, loss_mask=[1, 0])],
            "parts of the response are masked",
        ),
        ("slime", [whole(prompt="x")], "the prompt's ids decode to 'b', where its text is 'x'"),
        ("slime", [whole(reward=np.float64(1))], "r.pt: holds objects besides plain data and tensors"),
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


def refused(name: str, place: Path, message: str, student: str, **options: Any) -> None:
    out = place.parent / "out" / "c.parquet"
    with pytest.raises(InputError) as error:
        imported(name, [place], out, student, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not out.parent.exists()


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
    (tmp_path / "empty").mkdir()
    refused("jsonl", tmp_path / "empty", "holds no .jsonl or .parquet file", marked)


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
    refused("jsonl", rows(None, None, None), "--update-prompts is 0", marked, update_prompts=0)


def test_the_output_is_no_input(marked: str, tmp_path: Path) -> None:
    file = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist([IDS]), file)
    before = file.read_bytes()
    with pytest.raises(InputError, match="is one of the files to import"):
        imported("jsonl", [tmp_path], file, marked)
    with pytest.raises(InputError, match=r"it must end in \.parquet"):
        imported("jsonl", [tmp_path], tmp_path / "c.csv", marked)
    assert file.read_bytes() == before


def test_rollouts_of_many_students_are_told_of(marked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = stripped(marked_tokenizer(), rollouts(marked_tokenizer()))
    write_jsonl(tmp_path / "1.jsonl", [row | {"step": place} for place, row in enumerate(rows)])
    imported("verl", [tmp_path], tmp_path / "c.parquet", marked, reporter=Reporter())
    assert "training steps 0 to 15" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["marked", "bare", "embedded"])
@settings(deadline=None)
@given(question=st.text(max_size=30), answer=st.text(max_size=30), form=st.sampled_from(["stripped", "written"]))
def test_any_text_is_what_it_was_or_is_refused(kind: str, question: str, answer: str, form: Form) -> None:
    tokenizer, end = KINDS[kind]()
    for text in (question, answer):  # SmolLM2 has no token for some bytes, and leaves them out
        assume(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text)
    prompt = encode_prompt(tokenizer, question)
    response = (*tokenizer(answer, add_special_tokens=False)["input_ids"], end)
    texts = [tokenizer.decode(list(ids), skip_special_tokens=form == "stripped") for ids in (prompt, response)]
    encoder = Encoder(tokenizer, 1 << 20)
    try:
        found = encoder.prompt(Side(text=texts[0], form=form))
    except RolloutError:
        return
    assert found == prompt
    try:
        own = encoder.response(Side(text=texts[1], form=form), prompt)
    except RolloutError:
        return
    assert own == (response if form == "written" else response[:-1])


@cache
def embedded_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(embedded_model(QUIET))


KINDS: dict[str, Callable[[], tuple[Any, int]]] = {
    "marked": lambda: (marked_tokenizer(), END),
    "bare": lambda: (bare_tokenizer(), END),
    "embedded": lambda: (embedded_tokenizer(), 2),
}
