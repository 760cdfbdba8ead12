"""The prompts of a source: fetched or made, mapped, verified, de-duplicated, and drawn from."""

import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from teachdiag.arithmetic import problems
from teachdiag.errors import EstimationError, ManifestError, cause
from teachdiag.manifests import Manifest, Prompt
from teachdiag.seeds import derive_seed
from teachdiag.tables import file_digest

_BATCH_ROWS = 10_000


@dataclass(frozen=True)
class PromptSet:
    """The verified, de-duplicated prompts of one source, in the order of their content hashes."""

    manifest: Manifest
    prompts: tuple[Prompt, ...]
    content_sha256: str
    duplicates: int

    def draw(self, bank: int, update: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
        """Draw two disjoint sets of prompts, the same for the same seed whatever copy of the source was read.

        Raises:
            EstimationError: the source has too few distinct prompts.
        """
        if bank + update > len(self.prompts):
            raise EstimationError(
                f"{self.manifest.id} has {len(self.prompts)} distinct prompts, too few for {bank} bank and {update} "
                "update prompts: ask for fewer"
            )
        order = np.random.default_rng(derive_seed(seed, "prompts")).permutation(len(self.prompts))
        drawn = [self.prompts[i] for i in order[: bank + update]]
        return drawn[:bank], drawn[bank:]


def load_prompts(manifest: Manifest, data_file: str = "") -> PromptSet:
    """Load every row of a source, verify its hash and row count, and drop repeated questions.

    Args:
        manifest: the source.
        data_file: a copy, local or at a path that fsspec knows (`protocol://...`); else the environment variable
            `TEACHDIAG_DATA_<ID>`; else what the manifest names.

    Raises:
        ManifestError: the data is missing, lacks a mapped column, or has another hash or row count than recorded.
    """
    batches, file_sha256 = _read_source(manifest, data_file)
    distinct: dict[tuple[str, str | None, str | None], Prompt] = {}  # repeated rows are dropped as they come
    count = 0
    for rows in batches:
        for row in rows:
            prompt = _map_row(manifest, count, row)
            distinct.setdefault(_content(prompt), prompt)
            count += 1
    content = content_digest(distinct.values())
    _verify(manifest, {f"content:{content}", f"file:{file_sha256}"}, len(distinct))
    by_question: dict[str, Prompt] = {}
    for prompt in distinct.values():
        by_question.setdefault(prompt.prompt_id, prompt)
    prompts = tuple(by_question[prompt_id] for prompt_id in sorted(by_question))
    return PromptSet(manifest, prompts, content, duplicates=count - len(prompts))


def content_digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 over the distinct (question, solution, answer) rows, whatever their order, repeats or file format."""
    lines = sorted({json.dumps(_content(p), ensure_ascii=False) for p in prompts})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _content(prompt: Prompt) -> tuple[str, str | None, str | None]:
    return prompt.question, prompt.solution, prompt.answer


def _verify(manifest: Manifest, found: set[str], rows: int) -> None:
    if manifest.rows is not None and rows != manifest.rows:
        raise ManifestError(f"{manifest.id}: {rows} distinct rows found, {manifest.rows} recorded in {manifest.path}")
    if manifest.sha256 and not found & set(manifest.sha256):
        raise ManifestError(
            f"{manifest.id}: the data's hash is {' or '.join(sorted(found))}, none of those recorded in "
            f"{manifest.path}: another revision or an edited copy; record the new hash if that is what you want"
        )


def local_file(manifest: Manifest, data_file: str = "") -> Path | None:
    """Return the file of this machine that a source is read from; None where its rows are fetched or made.

    Raises:
        ManifestError: it is not there, or of no format that is read.
    """
    place, kind = _copy(manifest, data_file), manifest.source["kind"]
    if "://" in place or (not place and kind != "file"):
        return None
    path = Path(place or manifest.source["file"])
    if not path.is_file():
        raise ManifestError(f"{manifest.id}: no data file at {path}: give --data-file")
    _format(path)
    return path


def _copy(manifest: Manifest, data_file: str) -> str:
    """Where the user has a copy of the source; '' for nowhere."""
    return data_file or os.environ.get(f"TEACHDIAG_DATA_{manifest.id.upper()}", "")


def _read_source(manifest: Manifest, data_file: str) -> tuple[Iterator[list[dict[str, Any]]], str]:
    """Return the rows in batches, and the SHA-256 of the file they came from ('' for generated rows)."""
    place, kind = _copy(manifest, data_file), manifest.source["kind"]
    if kind in _GENERATED and not place:
        return iter([_GENERATED[kind](manifest)]), ""
    path = local_file(manifest, data_file) or (_fetch(manifest, place) if place else _download(manifest))
    return _read_file(path, manifest), file_digest(path)


def _format(path: Path) -> str:
    formats = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
    if path.suffix not in formats:
        raise ManifestError(f"{path}: prompts are read from .jsonl, .json or .parquet files")
    return formats[path.suffix]


def _read_file(path: Path, manifest: Manifest) -> Iterator[list[dict[str, Any]]]:
    """Yield the mapped columns in batches, so that a file larger than memory can be read."""
    datasets = _require("datasets")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(_format(path), data_files=str(path), split="train")
    except Exception as error:
        raise ManifestError(f"{path} cannot be read as {_format(path)} rows: {cause(error)}") from error
    paths = [value for name, value in manifest.columns.items() if name != "answer_after"]
    wanted = {path.split(".")[0] for path in paths}
    if wanted <= set(rows.column_names):  # else the first row tells what is missing among what there is
        rows = rows.select_columns(sorted(wanted))
    for batch in rows.with_format("arrow").iter(_BATCH_ROWS):
        try:
            yield batch.to_pylist()
        except UnicodeDecodeError as error:  # which the readers below take as it comes
            raise ManifestError(f"{path} holds text that is not UTF-8 ({error})") from error


def _download(manifest: Manifest) -> Path:
    source = manifest.source
    hub = _require("huggingface_hub")
    try:
        return Path(
            hub.hf_hub_download(
                source["dataset"], source["file"], repo_type="dataset", revision=source.get("revision", "main")
            )
        )
    except Exception as error:
        raise ManifestError(
            f"{manifest.id}: {source['dataset']} cannot be fetched from the Hub ({cause(error)}): give a local "
            f"copy with --data-file or TEACHDIAG_DATA_{manifest.id.upper()}"
        ) from error


def _fetch(manifest: Manifest, place: str) -> Path:
    """Bring a file that fsspec can reach to this machine, until the process ends."""
    fsspec = _require("fsspec")
    try:
        return Path(fsspec.open_local(f"simplecache::{place}", simplecache={"same_names": True}))
    except Exception as error:  # each protocol has errors of its own
        raise ManifestError(f"{manifest.id}: --data-file {place} cannot be fetched: {cause(error)}") from error


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


def _map_row(manifest: Manifest, number: int, row: Mapping[str, Any]) -> Prompt:
    columns = manifest.columns
    values = {
        name: _look_up(manifest, number, row, columns[name]) if name in columns else None
        for name in ("question", "solution", "answer")
    }
    question = values["question"]
    if not question or not question.strip():
        raise ManifestError(f"{manifest.id}: row {number} has an empty question (columns.question)")
    answer, mark = values["answer"], columns.get("answer_after")
    if answer is not None and mark:
        answer = answer.rsplit(mark, 1)[-1].strip()
    digest = hashlib.sha256(" ".join(question.split()).encode()).hexdigest()[:12]
    return Prompt(f"{manifest.id}/{digest}", number, question, values["solution"], answer)


def _look_up(manifest: Manifest, number: int, row: Any, path: str) -> str:  # noqa: ANN401 (nested JSON)
    value = row
    try:
        for part in path.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (KeyError, IndexError, ValueError, TypeError):
        raise ManifestError(
            f"{manifest.id}: row {number} has no column {path!r}; it has {', '.join(row)}: mend [columns] in "
            f"{manifest.path}"
        ) from None
    if value is None:
        raise ManifestError(f"{manifest.id}: row {number} has nothing in column {path!r}")
    return str(value)


def _require(package: str) -> Any:  # noqa: ANN401 (a module)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ManifestError(
            f"this prompt source needs {package}: pip install 'teachdiag[prompts]' ({error})"
        ) from error
