"""The prompts of a source: fetched or made, mapped, verified, de-duplicated, and drawn from."""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from teachdiag.arithmetic import problems
from teachdiag.errors import EstimationError, ManifestError, cause
from teachdiag.jsontext import is_written_messages, parse_json
from teachdiag.manifests import Manifest, Prompt, manifest_names, read_manifest
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed
from teachdiag.settings.base import HUB_PATIENCE
from teachdiag.tables import file_digest

Row = Mapping[str, Any]
Content = tuple[str | tuple[tuple[str, str], ...], str | None, str | None]
_BATCH_ROWS = 10_000


@dataclass(frozen=True)
class PromptSet:
    """The verified, de-duplicated prompts of one source, in the order of their content hashes.

    Attributes:
        manifest: the source.
        prompts: those that can be drawn, each question once.
        content_sha256: of all rows, whatever their order.
        duplicates: rows that are no prompt of their own.
        contradictory: questions that are left out, since their rows have different answers.
    """

    manifest: Manifest
    prompts: tuple[Prompt, ...]
    content_sha256: str
    duplicates: int
    contradictory: int = 0

    @property
    def left_out(self) -> dict[str, int]:
        """What a run records of questions that are left out; nothing where there are none."""
        return {"contradictory_left_out": self.contradictory} if self.contradictory else {}

    def draw(
        self, bank: int, update: int, seed: int, fits: Callable[[Prompt], bool] | None = None
    ) -> tuple[list[Prompt], list[Prompt]]:
        """Draw two disjoint sets of prompts, the same for the same seed whatever copy of the source was read.

        Args:
            bank: prompts of the first set.
            update: prompts of the second.
            seed: of the order in which prompts are drawn.
            fits: whether a drawn prompt is taken; another is drawn in place of one that is not.

        Raises:
            EstimationError: the source has too few distinct prompts.
        """
        order = np.random.default_rng(derive_seed(seed, "prompts")).permutation(len(self.prompts))
        in_order = (self.prompts[i] for i in order)
        drawn = list(islice(in_order if fits is None else filter(fits, in_order), bank + update))
        if len(drawn) < bank + update:
            raise EstimationError(
                f"{self.manifest.id} has {len(drawn)} distinct prompts{' that are short enough' * (fits is not None)}, "
                f"too few for {bank} bank and {update} update prompts: ask for fewer"
            )
        return drawn[:bank], drawn[bank:]


def load_prompts(manifest: Manifest, data_file: str = "") -> PromptSet:
    """Load every row of a source, verify its hash and row count, and drop repeated questions.

    Of a question's rows with the same answer one is taken, and of rows with different answers none: no order decides.

    Args:
        manifest: the source.
        data_file: a copy, local or at a path that fsspec knows (`protocol://...`); else the environment variable
            `TEACHDIAG_DATA_<ID>`; else what the manifest names.

    Raises:
        ManifestError: the data is missing, lacks a mapped column, or has another hash or row count than recorded.
    """
    distinct: dict[Content, Prompt] = {}  # repeated rows are dropped as they come
    count = 0
    try:
        rows, file_sha256 = _read_source(manifest, data_file)
        for row in rows:
            prompt = _map_row(manifest, count, row)
            distinct.setdefault(_content(prompt), prompt)
            count += 1
    except OSError as error:
        raise ManifestError(f"{manifest.id}: its data cannot be read: {cause(error)}") from error
    content = content_digest(distinct.values())
    _verify(manifest, {f"content:{content}", f"file:{file_sha256}"}, len(distinct))
    by_question: dict[str, list[Prompt]] = {}
    for prompt in distinct.values():
        by_question.setdefault(prompt.prompt_id, []).append(prompt)
    agreed = {name: rows for name, rows in by_question.items() if len({row.answer for row in rows}) == 1}
    prompts = tuple(min(agreed[name], key=_line) for name in sorted(agreed))
    contradictory = len(by_question) - len(agreed)
    return PromptSet(manifest, prompts, content, count - len(by_question), contradictory)


def say_contradictory(prompts: PromptSet, reporter: Reporter) -> None:
    """Say how many questions are left out, if any."""
    if prompts.contradictory:
        reporter.say(
            f"{prompts.manifest.id}: {prompts.contradictory} questions stand in the data with different answers, and "
            "are left out"
        )


def content_digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 over the distinct (question, solution, answer) rows, whatever their order, repeats or file format."""
    lines = sorted({_line(prompt) for prompt in prompts})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _line(prompt: Prompt) -> str:
    return json.dumps(_content(prompt), ensure_ascii=False)


def _content(prompt: Prompt) -> Content:
    return prompt.conversation or prompt.question, prompt.solution, prompt.answer


def _verify(manifest: Manifest, hashes: set[str], rows: int) -> None:
    """Refuse rows that are not those recorded, and say which they are, or how to record them.

    Raises:
        ManifestError: their number or their hash is another.
    """
    if manifest.rows in (None, rows) and (not manifest.sha256 or hashes & set(manifest.sha256)):
        return
    facts = f"{manifest.id}: the data has {rows} distinct rows and the hash {' or '.join(sorted(hashes))}"
    for name in manifest_names():
        if hashes & set(read_manifest(name).sha256):
            raise ManifestError(f"{facts}, which are those of {name}: use --prompts {name}")
    recorded = f"{manifest.rows or 'any number of'} rows{' of another hash' * bool(manifest.sha256)}"
    raise ManifestError(
        f"{facts}, where {manifest.path} records {recorded}: another split, revision or an edited copy; if that is "
        "what you want, copy the manifest to a .toml file of your own, put these rows and this hash into its rows and "
        "sha256, and give its path as --prompts"
    )


def local_file(manifest: Manifest, data_file: str = "") -> Path | None:
    """Return the file of this machine that a source is read from; None where its rows are fetched or made.

    Raises:
        ManifestError: it is not there, or of no format that is read.
    """
    copy, kind = _copy(manifest, data_file), manifest.source["kind"]
    if "://" in copy or (not copy and kind != "file"):
        return None
    path = Path(copy or manifest.source["file"])
    if not os.path.isfile(path):  # a name that no file can have is none
        raise ManifestError(f"{manifest.id}: no data file at {str(path)[:200]}: give --data-file")
    _format(path)
    return path


def _copy(manifest: Manifest, data_file: str) -> str:
    """Where the user has a copy of the source; '' for nowhere."""
    return data_file or os.environ.get(f"TEACHDIAG_DATA_{manifest.id.upper()}", "")


def _read_source(manifest: Manifest, data_file: str) -> tuple[Iterable[Row], str]:
    """Return the rows, and the SHA-256 of the file they came from ('' for generated rows)."""
    copy, kind = _copy(manifest, data_file), manifest.source["kind"]
    if kind in _GENERATED and not copy:
        return _GENERATED[kind](manifest), ""
    path = local_file(manifest, data_file) or (_fetch(manifest, copy) if copy else _download(manifest))
    return _format(path)(path, manifest), file_digest(path)


def _format(path: Path) -> Callable[[Path, Manifest], Iterator[Row]]:
    if path.suffix not in _FORMATS:
        raise ManifestError(f"{path}: prompts are read from {' or '.join(_FORMATS)} files")
    return _FORMATS[path.suffix]


def _parquet_rows(path: Path, manifest: Manifest) -> Iterator[Row]:
    """Yield the mapped columns, in batches, so that a file larger than memory can be read."""
    wanted = {value.split(".")[0] for name, value in manifest.columns.items() if name != "answer_after"}
    try:
        with pq.ParquetFile(path) as file:
            known = wanted <= set(file.schema_arrow.names)  # else the first row tells what there is
            for batch in file.iter_batches(_BATCH_ROWS, columns=sorted(wanted) if known else None):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # text that is no UTF-8 too
        raise ManifestError(f"{path} cannot be read as Parquet: {cause(error)}") from error


def _line_rows(path: Path, manifest: Manifest) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object a line."""
    with path.open("rb") as stream:  # as bytes: text would also be cut at the line ends that JSON strings may hold
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield from _objects(f"{path}:{number}", line, many=False)


def _json_rows(path: Path, manifest: Manifest) -> Iterator[Row]:
    """Yield the rows of a JSON file: a list of objects, or one object a line."""
    with path.open("rb") as stream:
        listed = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    yield from _objects(str(path), path.read_bytes(), many=True) if listed else _line_rows(path, manifest)


def _objects(where: str, text: bytes, *, many: bool) -> list[Row]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ManifestError(f"{where} is no JSON: {error}") from error
    rows = content if many else [content]
    if not all(isinstance(row, dict) for row in rows):
        raise ManifestError(f"{where} is no JSON object, which one prompt must be")
    return rows


_FORMATS = {".jsonl": _line_rows, ".json": _json_rows, ".parquet": _parquet_rows}


def _download(manifest: Manifest) -> Path:
    """Fetch a file of the Hub, which must answer soon; out of reach, the copy in the cache."""
    source, hub = manifest.source, _require("huggingface_hub")
    where = {"repo_id": source["dataset"], "repo_type": "dataset", "revision": source.get("revision", "main")}
    cached = hub.try_to_load_from_cache(filename=source["file"], **where)
    try:
        hub.HfApi().repo_info(timeout=HUB_PATIENCE, **where)
        return Path(hub.hf_hub_download(filename=source["file"], **where))
    except Exception as error:  # each way to the Hub has errors of its own
        if isinstance(cached, str):
            return Path(cached)
        raise ManifestError(
            f"{manifest.id}: {source['dataset']} cannot be fetched from the Hub ({cause(error)}): give a local "
            f"copy with --data-file or TEACHDIAG_DATA_{manifest.id.upper()}"
        ) from error


def _fetch(manifest: Manifest, url: str) -> Path:
    """Bring a file that fsspec can reach to this machine, until the process ends."""
    fsspec = _require("fsspec")
    try:
        return Path(fsspec.open_local(f"simplecache::{url}", simplecache={"same_names": True}))
    except Exception as error:  # each protocol has errors of its own
        raise ManifestError(f"{manifest.id}: --data-file {url} cannot be fetched: {cause(error)}") from error


def _generate(manifest: Manifest) -> list[dict[str, Any]]:
    source = manifest.source
    reasoning_gym = _require("reasoning_gym")
    try:
        return list(reasoning_gym.create_dataset(source["dataset"], size=source["size"], seed=source["seed"]))
    except Exception as error:
        raise ManifestError(
            f"{manifest.path}: reasoning-gym cannot make {source['dataset']!r}: {cause(error)}"
        ) from error


def _chains(manifest: Manifest) -> list[dict[str, Any]]:
    return [asdict(problem) for problem in problems(manifest.source["size"], manifest.source["seed"])]


_GENERATED = {"reasoning_gym": _generate, "arithmetic": _chains}


def _map_row(manifest: Manifest, number: int, row: Row) -> Prompt:
    columns = manifest.columns
    values = {name: _look_up(manifest, number, row, path) for name, path in columns.items() if name != "answer_after"}
    asked, texts = values.pop("question"), dict[str, str]()
    with _of_column(manifest, number, "question"):
        single = not isinstance(asked, list)
        conversation = (("user", _text(asked, columns["question"])),) if single else _conversation(asked, manifest)
    for name, value in values.items():
        with _of_column(manifest, number, name):
            texts[name] = _text(value, columns[name], number=True)
    question = [content for role, content in conversation if role == "user"][-1]
    if not question.strip():
        raise ManifestError(f"{manifest.id}: row {number} has an empty question (columns.question)")
    if "answer" in texts and "answer_after" in columns:
        _, mark, texts["answer"] = texts["answer"].rpartition(columns["answer_after"])
        if not mark:
            raise ManifestError(
                f"{manifest.id}: row {number}, column {columns['answer']!r} (columns.answer) has no "
                f"{columns['answer_after']!r} (columns.answer_after) in front of an answer"
            )
        texts["answer"] = texts["answer"].strip()
    if len(conversation) == 1:
        conversation = ()
    named = json.dumps(conversation) if conversation else " ".join(question.split())
    digest = hashlib.sha256(named.encode()).hexdigest()[:12]
    return Prompt(f"{manifest.id}/{digest}", number, question, texts.get("solution"), texts.get("answer"), conversation)


@contextmanager
def _of_column(manifest: Manifest, number: int, name: str) -> Iterator[None]:
    try:
        yield
    except ManifestError as error:
        column = f"column {manifest.columns[name]!r} (columns.{name})"
        raise ManifestError(f"{manifest.id}: row {number}, {column} {error}") from error


def _look_up(manifest: Manifest, number: int, row: Row, path: str) -> Any:  # noqa: ANN401 (nested JSON)
    value: Any = row
    try:
        for part in [path] if path in row else path.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (KeyError, IndexError, ValueError, TypeError):
        raise ManifestError(
            f"{manifest.id}: row {number} has no column {path!r}; it has {', '.join(row)}: mend [columns] in "
            f"{manifest.path}"
        ) from None
    if value is None:
        raise ManifestError(f"{manifest.id}: row {number} has nothing in column {path!r}")
    return value


def _text(value: Any, path: str, *, number: bool = False) -> str:  # noqa: ANN401 (nested JSON)
    """Text of a value by its meaning; numbers as they are written in full, where they may be.

    Raises:
        ManifestError: it has none; the message says what it is, not where.
    """
    if isinstance(value, str):
        if is_written_messages(value):
            raise ManifestError("holds a list of messages that was written as text: store it as a list")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ManifestError("holds half of a surrogate pair, which is no valid Unicode") from None
        return value
    if isinstance(value, dict):
        names = ", ".join(f"{path}.{name}" for name in value)
        raise ManifestError(f"holds an object: name the entry that is meant ({names or 'it has none'})")
    if isinstance(value, list):
        raise ManifestError(f"holds a list of {len(value)}: name the entry that is meant, such as {path}.0")
    if number and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if exact.is_finite():
            whole = isinstance(value, float) and exact == exact.to_integral_value()  # made of an integer
            return f"{exact.to_integral_value() if whole else exact:f}"
    raise ManifestError(f"holds {value!r:.60} ({type(value).__name__}), which is no text{' and no number' * number}")


def _conversation(messages: list[Any], manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Role and content of every message; entries that hold null, as Parquet fills them in, count for nothing.

    Raises:
        ManifestError: there is more in them than text, or they are no prompt; the message does not say where.
    """
    spoken = []
    for message in messages:
        if not isinstance(message, dict):
            raise ManifestError("holds a list that is no list of messages: name the entry that is meant")
        kept = {name: part for name, part in message.items() if part is not None}
        if kept.keys() != {"role", "content"}:
            raise ManifestError(
                f"holds a message with {', '.join(kept) or 'nothing'}: only role and content can be rendered"
            )
        content = kept["content"]
        if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
            parts = {name: part for name, part in content[0].items() if part is not None}
            content = parts["text"] if parts.keys() == {"type", "text"} and parts["type"] == "text" else content
        if not isinstance(kept["role"], str) or not isinstance(content, str):
            raise ManifestError("holds a message of more than one text, such as an image: only text can be rendered")
        spoken.append((_text(kept["role"], "role"), _text(content, "content")))
    roles = [role for role, _ in spoken]
    if "user" not in roles:
        raise ManifestError("holds no message of the user's")
    if roles[-1] == "assistant" and not manifest.prefilled:
        raise ManifestError(
            "ends with a message of the assistant's: cut it off if it is the answer, or set prefilled = true in "
            "[template] if it is to be continued"
        )
    if roles[-1] not in ("user", "assistant"):
        raise ManifestError(f"ends with a message of the {roles[-1]}'s, so that nobody asks for an answer")
    return tuple(spoken)


def _require(package: str) -> Any:  # noqa: ANN401 (a module)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ManifestError(
            f"this prompt source needs {package}: pip install 'teachdiag[prompts]' ({error})"
        ) from error
