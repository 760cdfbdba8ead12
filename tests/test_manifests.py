"""Prompt sources: what ships, what is verified, and how prompts are drawn."""

import json
from pathlib import Path

import fsspec
import pytest

from teachdiag.errors import EstimationError, InputError, ManifestError
from teachdiag.manifests import FOLDER, Prompt, manifest_names, read_manifest
from teachdiag.prompts import content_digest, load_prompts

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
    assert manifest_names() == ["arithmetic", "dapo_math_17k", "gsm8k", "gsm_symbolic", "math_500"]
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


def test_what_does_not_match_is_refused(tmp_path: Path) -> None:
    good = content_digest([Prompt("", 0, r["q"], r["s"], str(2 * a)) for a, r in enumerate(ROWS)])
    assert load_prompts(read_manifest(write(tmp_path, extra=f'rows = 6\nsha256 = ["content:{good}"]')))
    cases = [
        ({"extra": "rows = 7"}, "6 distinct rows found, 7 recorded"),
        ({"extra": 'sha256 = ["content:00"]'}, f"the data's hash is content:{good}"),
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
        ("text.jsonl", "no json", "cannot be read as json rows"),
        ("rows.csv", "q,s", "prompts are read from .jsonl, .json or .parquet files"),
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
