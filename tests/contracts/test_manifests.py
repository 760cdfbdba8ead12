"""Prompt sources: what ships, what is verified, and how prompts are drawn.

Files, hashes, prompts and answers are made here, and what becomes of each is written by hand.
"""

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teachdiag import prompts
from teachdiag.errors import EstimationError, InputError, ManifestError
from teachdiag.manifests import FOLDER, Prompt, manifest_names, read_manifest
from teachdiag.prompts import content_digest, load_prompts, say_contradictory

ROWS = [{"q": f"{a} and {a}?", "s": f"{2 * a}", "deep": [{"a": f"so #### {2 * a}"}]} for a in range(6)]


def write(folder: Path, rows: list[dict] = ROWS, extra: str = "", source: str = "", **entries: str) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question": "q", "solution": "s", "answer": "deep.0.a", "answer_after": "####"} | entries
    (folder / "m.toml").write_text(
        f'id = "mine"\nlicence = "x"\n{extra}\n[source]\n'
        + (source or f'kind = "file"\nfile = "{folder}/rows.jsonl"')
        + "\n[columns]\n"
        + "".join(f'{k} = "{v}"\n' for k, v in columns.items())
        + '[template]\nprompt = "Q {question} {{x}}"\nprivileged = "{question} {solution} {answer}"\n'
    )
    return str(folder / "m.toml")


def test_every_shipped_manifest_is_whole() -> None:
    assert manifest_names() == ["arithmetic", "dapo_math_17k", "gsm8k", "gsm8k_test", "gsm_symbolic", "math_500"]
    for name in manifest_names():
        manifest = read_manifest(name)
        assert manifest.id == name
        assert manifest.licence
        assert manifest.rows
        assert manifest.sha256
        assert manifest.source["revision"] not in ("", "main")
    assert read_manifest(str(FOLDER / "own.toml")).source["kind"] == "file"


def test_the_offline_default_is_generated_and_verified() -> None:
    prompts = load_prompts(read_manifest("gsm_symbolic"))
    assert len(prompts.prompts) + prompts.duplicates == 2000
    assert all(p.solution and p.answer for p in prompts.prompts)


def test_columns_templates_and_content_hash(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path))
    loaded = load_prompts(manifest)
    first = next(p for p in loaded.prompts if p.source_row == 3)
    assert (first.question, first.solution, first.answer) == ("3 and 3?", "6", "6")
    assert manifest.student_messages(first) == [{"role": "user", "content": "Q 3 and 3? {x}"}]
    assert manifest.privileged_messages(first) == [{"role": "user", "content": "3 and 3? 6 6"}]
    backwards = load_prompts(read_manifest(write(tmp_path, ROWS[::-1] + ROWS[:2])))
    assert backwards.content_sha256 == loaded.content_sha256  # order and repeats do not matter
    assert [p.prompt_id for p in backwards.prompts] == [p.prompt_id for p in loaded.prompts]
    assert backwards.duplicates == 2


def test_a_local_file_replaces_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(write(tmp_path))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(ROWS[0]) + "\n")
    assert len(load_prompts(manifest, str(other)).prompts) == 1
    monkeypatch.setenv("TEACHDIAG_DATA_MINE", str(other))
    assert len(load_prompts(manifest).prompts) == 1


def test_a_copy_in_a_bucket_replaces_the_source(tmp_path: Path) -> None:
    """Fsspec's memory, which stands for every place with a protocol."""
    manifest = read_manifest(write(tmp_path))
    local = load_prompts(manifest)
    fsspec.filesystem("memory").pipe_file("/bucket/copy.jsonl", Path(manifest.source["file"]).read_bytes())
    assert load_prompts(manifest, "memory://bucket/copy.jsonl") == local
    with pytest.raises(ManifestError, match=r"--data-file memory://bucket/none.jsonl cannot be fetched: "):
        load_prompts(manifest, "memory://bucket/none.jsonl")


def test_draws_are_disjoint_seeded_and_bounded(tmp_path: Path) -> None:
    prompts = load_prompts(read_manifest(write(tmp_path)))
    bank, update = prompts.draw(3, 3, seed=0)
    assert not {p.prompt_id for p in bank} & {p.prompt_id for p in update}
    assert prompts.draw(3, 3, seed=0) == (bank, update)
    assert any(prompts.draw(3, 3, seed=s) != (bank, update) for s in range(1, 4))
    with pytest.raises(EstimationError, match="mine has 6 distinct prompts, too few for 4 bank and 3 update prompts"):
        prompts.draw(4, 3, seed=0)
    unwanted = bank[0]  # passed over, without moving any other
    assert prompts.draw(3, 2, seed=0, fits=lambda p: p != unwanted) == ([*bank[1:], update[0]], update[1:])
    with pytest.raises(EstimationError, match="mine has 5 distinct prompts that are short enough, too few for 3 bank"):
        prompts.draw(3, 3, seed=0, fits=lambda p: p != unwanted)


def test_what_does_not_match_is_refused(tmp_path: Path) -> None:
    good = content_digest([Prompt("", 0, r["q"], r["s"], str(2 * a)) for a, r in enumerate(ROWS)])
    assert load_prompts(read_manifest(write(tmp_path, extra=f'rows = 6\nsha256 = ["content:{good}"]')))
    cases = [
        (
            {"extra": "rows = 7"},
            "6 distinct rows and the hash content:.* records 7 rows: .* put these rows",
        ),
        ({"extra": 'sha256 = ["content:00"]'}, f"hash content:{good} or .* records any number of rows of another hash"),
        ({"question": "text"}, "row 0 has no column 'text'; it has q, s, deep"),
        ({"answer": "deep.4.a"}, "row 0 has no column 'deep.4.a'"),
        ({"rows": [{"q": " ", "s": "", "deep": [{"a": ""}]}]}, "row 0 has an empty question"),
        ({"extra": "speed = 3"}, "unknown entries speed"),
        ({"colour": "red"}, r"unknown entries columns\.colour"),
        ({"extra": 'rows = "6"'}, "the entry rows must be a whole number"),
        ({"extra": f'sha256 = "content:{good}"'}, "the entry sha256 must be a list"),
        ({"source": 'kind = "web"'}, "source.kind is 'web': choose file, hub, reasoning_gym"),
        ({"source": 'kind = "file"'}, "the entry source.file is missing, which kind file needs"),
        ({"source": 'kind = "reasoning_gym"\ndataset = "gsm_symbolic"\nseed = 1'}, "source.size is missing"),
        ({"source": 'kind = "reasoning_gym"\ndataset = "no_gym"\nsize = 1\nseed = 1'}, "cannot make 'no_gym'"),
    ]
    for changes, message in cases:
        with pytest.raises(ManifestError, match=message):
            load_prompts(read_manifest(write(tmp_path, **changes)))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no prompt manifest 'gsm9k': choose from arithmetic, dapo_math_17k, gsm8k"):
        read_manifest("gsm9k")
    (tmp_path / "broken.toml").write_text("id = ")
    with pytest.raises(ManifestError, match=r"broken.toml is not TOML"):
        read_manifest(str(tmp_path / "broken.toml"))
    manifest = read_manifest(write(tmp_path))
    for name, content, message in (
        ("absent.jsonl", None, "no data file at"),
        ("text.jsonl", "no json", "text.jsonl:1 is no JSON"),
        ("rows.csv", "q,s", "prompts are read from .jsonl or .json or .parquet files"),
    ):
        if content:
            (tmp_path / name).write_text(content)
        with pytest.raises(ManifestError, match=message):
            load_prompts(manifest, str(tmp_path / name))
    without = read_manifest(write(tmp_path, [{"q": "1", "deep": [{"a": "1"}]}], solution="q"))
    with pytest.raises(InputError, match="needs worked solutions, and mine has none"):
        without.privileged_messages(Prompt("", 0, "q", None, None))
    with pytest.raises(ManifestError, match=r"template.privileged uses 'answer', which \[columns\] does not map"):
        without.privileged_messages(Prompt("", 0, "q", "s", None))


CHAT = [{"role": "system", "content": "One number."}, {"role": "user", "content": "1+1?"}]
OPEN = [*CHAT, {"role": "assistant", "content": "It is"}]


def plain(folder: Path, rows: list[dict], **entries: str) -> str:
    """A manifest of columns q and a, with [template] entries as TOML."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = "".join(f"{name} = {value}\n" for name, value in entries.items())
    (folder / "m.toml").write_text(
        f'id = "mine"\nlicence = "x"\n[source]\nkind = "file"\nfile = "{folder}/rows.jsonl"\n'
        f'[columns]\nquestion = "q"\nanswer = "a"\n[template]\n{template}'
    )
    return str(folder / "m.toml")


def test_lists_of_messages_are_conversations(tmp_path: Path) -> None:
    rows = [{"q": chat, "a": "2"} for chat in (CHAT, OPEN, CHAT[1:], [CHAT[0] | {"name": None}, CHAT[1]])]
    rows.append({"q": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}], "a": "4"})
    entries = {"prefilled": "true", "prompt": '"{question} Go!"', "privileged": '"{question} Psst, {answer}."'}
    manifest = read_manifest(plain(tmp_path, rows, **entries))
    prompts = sorted(load_prompts(manifest).prompts, key=lambda prompt: prompt.source_row)
    asked = [manifest.student_messages(prompt) for prompt in prompts]
    go = {"role": "user", "content": "1+1? Go!"}
    assert asked == [
        [CHAT[0], go],
        [CHAT[0], go, OPEN[2]],
        [go],
        [{"role": "user", "content": "2+2? Go!"}],
    ]
    assert [prompt.question for prompt in prompts] == ["1+1?", "1+1?", "1+1?", "2+2?"]
    told = manifest.privileged_messages(Prompt("", 0, "1+1?", "s", "2", prompts[1].conversation))
    assert [message["content"] for message in told] == ["One number.", "1+1? Psst, 2.", "It is"]
    table = pa.Table.from_pylist([{"q": row["q"], "a": row["a"]} for row in rows[:2]])
    pq.write_table(table, tmp_path / "rows.parquet")
    assert (
        load_prompts(manifest, str(tmp_path / "rows.parquet")).prompts
        == load_prompts(read_manifest(plain(tmp_path, rows[:2], **entries))).prompts
    )


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (CHAT[:1], "holds no message of the user's"),
        (OPEN, "ends with a message of the assistant's: cut it off if it is the answer, or set prefilled = true"),
        ([*CHAT, CHAT[0]], "ends with a message of the system's"),
        ([CHAT[1] | {"tool_calls": [{"id": 1}]}], "holds a message with role, content, tool_calls"),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}], "more than one text"),
        ([{"role": "user", "content": 3}], "more than one text"),
        (["What?"], "holds a list that is no list of messages"),
        (str(CHAT), "holds a list of messages that was written as text"),
        (json.dumps(CHAT), "holds a list of messages that was written as text"),
        ([{"role": "user", "content": " "}], "has an empty question"),
        ({"text": "What?"}, r"holds an object: name the entry that is meant \(q.text\)"),
        (3, r"holds 3 \(int\), which is no text"),
        ([], "holds no message of the user's"),
    ],
)
def test_what_is_no_prompt_is_refused_by_row_and_column(tmp_path: Path, question: Any, message: str) -> None:
    path = plain(tmp_path, [{"q": "fine?", "a": "1"}, {"q": question, "a": "2"}])
    with pytest.raises(ManifestError, match=f"mine: row 1.*{message}"):
        load_prompts(read_manifest(path))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        *[
            (7, "7"),
            (-3, "-3"),
            (10**30, "1" + "0" * 30),
            ("3.0", "3.0"),
            (3.0, "3"),
            (0.1, "0.1"),
            (1e-7, "0.0000001"),
        ],
        *[(1e22, "1" + "0" * 22), (-2.5, "-2.5"), ("2024-01-01", "2024-01-01"), (Decimal("1.50"), "1.50")],
        *[(True, r"holds True \(bool\)"), (None, "has nothing in column"), (b"7", r"\(bytes\)")],
        *[(date(2024, 1, 1), r"\(date\)"), ([7], "a list of 1: name the entry that is meant, such as a.0")],
        ({"ground_truth": "0", "style": "rule"}, r"name the entry that is meant \(a.ground_truth, a.style\)"),
    ],
)
def test_answers_are_taken_by_meaning_or_refused(tmp_path: Path, answer: Any, text: str) -> None:
    manifest = read_manifest(plain(tmp_path, []))
    if isinstance(answer, bytes | date | Decimal):
        pq.write_table(pa.Table.from_pylist([{"q": "?", "a": answer}]), tmp_path / "rows.parquet")
        manifest = replace(manifest, source={"kind": "file", "file": str(tmp_path / "rows.parquet")})
    else:
        plain(tmp_path, [{"q": "?", "a": answer}])
    if "(" in text or " " in text:
        with pytest.raises(ManifestError, match=f"mine: row 0.*{text}"):
            load_prompts(manifest)
    else:
        assert [prompt.answer for prompt in load_prompts(manifest).prompts] == [text]


@pytest.mark.parametrize(
    "template", ["{question.__class__}", "{question!r}", "{question[0]}", "{question:>999999999999}"]
)
def test_a_template_holds_plain_fields_alone(tmp_path: Path, template: str) -> None:
    for name in ("prompt", "privileged"):
        with pytest.raises(ManifestError, match=rf"template.{name} may use \{{question\}}, .* is wrong"):
            read_manifest(plain(tmp_path, ROWS, **{name: f'"{template}"'}))


def test_what_a_manifest_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    for template, message in (("Hello", "lacks {question}"), ("{question", r"doubled \("), ("{}", r"\({} is wrong")):
        with pytest.raises(ManifestError, match=message):
            read_manifest(plain(tmp_path, ROWS, prompt=f'"{template}"'))
    with pytest.raises(InputError, match=r"m.toml: template.options has tokenize, which is no option"):
        read_manifest(plain(tmp_path, ROWS, options="{ tokenize = true }"))
    with pytest.raises(ManifestError, match=r"template.prefilled must be a true or false"):
        read_manifest(plain(tmp_path, ROWS, prefilled="1"))
    dated = read_manifest(plain(tmp_path, ROWS, options="{ strftime_now = 2030-01-02, depth = 1 }"))
    assert dated.template_options == {"strftime_now": "2030-01-02", "depth": 1}
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ManifestError, match=r"folder.toml is a folder"):
        read_manifest(str(tmp_path / "folder.toml"))
    for name in ("m" * 300 + ".toml", "m" * 300, "a\0b"):
        with pytest.raises(ManifestError, match="no prompt manifest"):
            read_manifest(name)


def test_files_are_read_as_they_are_written_or_refused_in_one_sentence(tmp_path: Path) -> None:
    manifest = read_manifest(plain(tmp_path, []))
    good, file = b'{"q": "caf\xc3\xa9 \xe2\x80\xa8 1?", "a": 1}', tmp_path / "rows.jsonl"
    for name, content in (
        ("rows.jsonl", b"\xef\xbb\xbf" + good + b"\n\n"),  # a byte order mark, a blank line, a separator in a string
        ("rows.json", b"\xef\xbb\xbf [" + good + b"]"),
        ("lines.json", good + b"\r\n"),
    ):
        (tmp_path / name).write_bytes(content)
        assert [p.question for p in load_prompts(manifest, str(tmp_path / name)).prompts] == ["caf\xe9 \u2028 1?"]
    for content, message in (
        (good + b'\n{"q": "caf\xe9?", "a": 1}', "rows.jsonl:2 is no JSON: .*utf-8"),
        (good + b"\n[1]", "rows.jsonl:2 is no JSON object"),
        (b'{"q": "?", "a": 1e999}', "rows.jsonl:1 is no JSON: 1e999 is no finite number"),
        (b'{"q": "?", "a": ' + b"9" * 5000 + b"}", "rows.jsonl:1 is no JSON"),
        (b'{"q": "\\ud800", "a": 1}', "rows.jsonl:1 is no JSON: it holds half of a surrogate pair"),
        (b"[" * 100_000, "rows.jsonl:1 is no JSON"),
    ):
        file.write_bytes(content)
        with pytest.raises(ManifestError, match=message):
            load_prompts(manifest)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"bad.parquet cannot be read as Parquet"):
        load_prompts(manifest, str(tmp_path / "bad.parquet"))
    (tmp_path / "f.jsonl").mkdir()
    for name in ("f.jsonl", "f" * 300 + ".jsonl", "a\0b.jsonl"):
        with pytest.raises(ManifestError, match="no data file at"):
            load_prompts(manifest, str(tmp_path / name))
    file.write_bytes(b"")
    with pytest.raises(EstimationError, match="mine has 0 distinct prompts"):
        load_prompts(manifest).draw(1, 1, 0)


def test_another_split_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "?", "answer": "so #### 1"}\n')
    manifest = read_manifest("gsm8k")
    monkeypatch.setattr(prompts, "manifest_names", lambda: ["gsm8k", "other"])
    found = f"content:{content_digest([Prompt('', 0, '?', 'so #### 1', '1')])}"
    known = {"gsm8k": manifest, "other": replace(manifest, id="other", sha256=(found,))}
    monkeypatch.setattr(prompts, "read_manifest", lambda name: known[name])
    with pytest.raises(ManifestError, match=f"1 distinct rows and the hash {found} .* use --prompts other"):
        load_prompts(manifest, str(tmp_path / "a.jsonl"))


def test_a_hub_that_is_out_of_reach_is_told_of_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is asked once; what the cache has is read all the same."""
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def unreachable(*args: Any, **kwargs: Any) -> None:
        asked.append(kwargs["timeout"])
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(hub.HfApi, "repo_info", unreachable)
    manifest = replace(read_manifest("gsm8k"), rows=1, sha256=())
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda **_: None)
    with pytest.raises(ManifestError, match=r"cannot be fetched from the Hub \(Name or .*--data-file"):
        load_prompts(manifest)
    assert asked == [5.0]
    pq.write_table(pa.table({"question": ["?"], "answer": ["so #### 1"]}), tmp_path / "rows.parquet")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda **_: str(tmp_path / "rows.parquet"))
    assert load_prompts(manifest).prompts[0].answer == "1"


def test_a_question_with_two_answers_is_left_out_whatever_the_order(tmp_path: Path) -> None:
    again = [ROWS[0] | {"deep": [{"a": "#### 7"}]}, ROWS[1] | {"s": "another way"}]  # another answer; another solution
    told: list[str] = []
    for rows in (ROWS + again, again + ROWS):
        found = load_prompts(read_manifest(write(tmp_path, rows)))
        assert (len(found.prompts), found.duplicates, found.contradictory) == (5, 2, 1)
        assert {p.question: p.solution for p in found.prompts}["1 and 1?"] == "2"
        assert found.left_out == {"contradictory_left_out": 1}
        say_contradictory(found, SimpleNamespace(say=told.append))
    assert set(told) == {"mine: 1 questions stand in the data with different answers, and are left out"}
    assert load_prompts(read_manifest(write(tmp_path))).left_out == {}


def test_a_box_that_would_show_the_answer_is_refused(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    whole = path.read_text()
    path.write_text(whole.replace("Q {question}", r"{question} Put it in \\boxed{answer}."))
    with pytest.raises(ManifestError, match=r"\\boxed\{answer\} would be filled in"):
        read_manifest(str(path))
    path.write_text(whole.replace("Q {question}", r"{question} Put it in \\boxed{{answer}}."))
    loaded = load_prompts(read_manifest(str(path)))
    sent = read_manifest(str(path)).student_messages(loaded.prompts[0])[0]["content"]
    assert r"Put it in \boxed{answer}." in sent


def test_an_answer_without_its_mark_is_refused_and_a_column_may_have_a_dot(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"row 0, column 'deep\.0\.a'.* has no '%%%'"):
        load_prompts(read_manifest(write(tmp_path, answer_after="%%%")))
    rows = [row | {"a.b": "so #### 1"} for row in ROWS]
    loaded = load_prompts(read_manifest(write(tmp_path, rows, answer="a.b")))
    assert {prompt.answer for prompt in loaded.prompts} == {"1"}
