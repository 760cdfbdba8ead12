"""A run as a data set: its tables, one configuration each, and a card, on the Hub or in a folder, for `datasets`.

    datasets.load_dataset("me/my-run", "positions")

Files keep their places in the run directory. Stages' notes stay behind unless they are asked for: they hold paths of
the machine. The card names the settings that are not usual, and of a path its last part.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from teachdiag.analysis.text.text_tables import altered, model_name
from teachdiag.artefacts import TABLES
from teachdiag.errors import RunError, SettingsError, cause, using
from teachdiag.markdown import markdown_table
from teachdiag.run_view import Run, open_run
from teachdiag.runs import SUMMARY, Stage, environment, probe_names
from teachdiag.settings import CaptureSettings, ProbeSettings, flag
from teachdiag.settings.base import shown

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0")  # as the Hub spells them
_FIRST = "positions"  # the configuration that is loaded where none is named


@dataclass(frozen=True)
class DataSet:
    """What is pushed of a run.

    Attributes:
        run: the run directory.
        files: relative to it.
        card: the data set's README.md.
        shortened: options of whose value, a local path, the card has the last part alone.
    """

    run: Path
    files: tuple[str, ...]
    card: str
    shortened: tuple[str, ...]


def data_set(path: Path, *, notes: bool = False) -> DataSet:
    """Return what is pushed of a run, which may be unfinished: the tables of stages that have ended.

    Args:
        path: the run directory.
        notes: whether stages' notes and the summary are pushed as well, as they are.

    Raises:
        RunError: it is no run directory, or no table of it is finished.
        ArtefactError: a table of it is damaged.
    """
    run = open_run(path)
    counts = {name: sum(pq.read_metadata(file).num_rows for file in run.files(name)) for name in run.tables}
    rows = {name: count for name, count in counts.items() if count}  # `datasets` cannot read a table without any
    if not rows:
        raise RunError(f"{path} has no finished table to push: run `teachdiag capture --run {path}` first")
    files = [file.relative_to(path).as_posix() for name in rows for file in run.files(name)]
    if notes:
        kept = ("capture.json", "grade.json", "analyze.json", "summary.md", SUMMARY, *_probe_notes(path))
        files += [name for name in kept if (path / name).exists()]
    stages = dict(_unusual(path))
    shortened = {option for options in stages.values() for option, value in options.items() if _is_local(value)}
    return DataSet(path, tuple(files), _card(run, rows, stages), tuple(sorted(shortened)))


def write_folder(data: DataSet, folder: Path) -> None:
    """Write a data set into a folder, which `datasets.load_dataset` takes like a name on the Hub.

    Raises:
        SettingsError: there is something in that folder already.
        PlaceError: it cannot be written.
    """
    with using(folder):
        if folder.exists() and any(folder.iterdir()):
            raise SettingsError(f"--to-folder is {shown(str(folder))}, which is not empty: give a new folder")
        for name in data.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data.run / name, folder / name)
        (folder / "README.md").write_text(data.card, encoding="utf-8")


def upload(data: DataSet, repo: str, *, public: bool) -> str:
    """Upload a data set to the Hub, made if it is not there; return its address.

    Raises:
        SettingsError: the name is none, or the Hub does not take it; the message has its reason.
    """
    from huggingface_hub import HfApi

    if _HUB_ID.fullmatch(repo) is None:
        raise SettingsError(f"{shown(repo)} is no name on the Hub: give one such as me/my-run, or --to-folder DIR")
    api, kind = HfApi(), "dataset"
    try:
        address = api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, repo_type=kind, folder_path=data.run, allow_patterns=list(data.files))
        api.upload_file(path_or_fileobj=data.card.encode(), path_in_repo="README.md", repo_id=repo, repo_type=kind)
    except Exception as error:  # each way to the Hub has errors of its own
        raise SettingsError(
            f"{repo} cannot be pushed: {cause(error)}: log in with `hf auth login`, or write a folder (--to-folder)"
        ) from error
    return str(address)


def _probe_notes(path: Path) -> list[str]:
    return [f"probes/{name}.json" for name in probe_names(path)]


def _unusual(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every stage that made numbers, with its settings that are not the defaults, by option."""
    stages = {"capture": CaptureSettings} | {f"probes/{name}": ProbeSettings for name in probe_names(path)}
    for name, declared in stages.items():
        if note := Stage(path, name).read():
            defaults = declared.defaults()
            changed = {flag(key): value for key, value in note["settings"].items() if value != defaults.get(key)}
            yield name.removeprefix("probes/"), changed


def _is_local(value: object) -> bool:
    """Whether a setting is a path of this machine: one that is there, or that no name on the Hub can be."""
    if not isinstance(value, str) or value.startswith("{"):
        return False
    return os.path.exists(value) or (os.sep in value and _HUB_ID.fullmatch(value) is None)


def _public(value: object) -> str:
    return f"…/{Path(str(value)).name}" if _is_local(value) else str(value)


def _model(capture: Mapping[str, Any], side: str) -> str:
    """Say which model a side is, without where it lies on this machine."""
    pinned = dict(capture["inputs"].get(side, {}))
    if adapter := pinned.get("adapter"):
        pinned["adapter"] = adapter | {"name": _public(adapter["name"])}
    return model_name(_public(capture["settings"].get(side, "unknown"))) + altered(pinned)


def _card(run: Run, rows: Mapping[str, int], stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the card: what `datasets` and the Hub read of it, and what people do."""
    capture = Stage(run.path, "capture").read() or {"settings": {}, "inputs": {}}
    student, teacher = (_model(capture, side) for side in ("student", "teacher"))
    licence = str(capture["inputs"].get("prompts", {}).get("licence", "unknown"))
    tables = [(f"`{t.name}`", f"{rows[t.name]:,}", t.meaning) for t in TABLES if t.name in rows]
    return "\n".join(
        [
            *_front_matter(run, rows, licence),
            "# Which of the teacher's token-level signals can this student learn?",
            "",
            f"Student: {student}. Teacher: {teacher}. Measured by teachdiag, for on-policy distillation.",
            "",
            *_found(run),
            "```python",
            "from datasets import load_dataset",
            "",
            f'{_FIRST} = load_dataset("NAME OR FOLDER OF THIS DATA SET", "{_FIRST}", split="train")',
            "```",
            "",
            "Units and meanings of columns lie in the Parquet field metadata.",
            "",
            markdown_table(pd.DataFrame(tables, columns=["configuration", "rows", "what"])),
            "",
            f"Licence of the prompts: {licence}. Responses are the student's.",
            "",
            "Settings that are not the defaults (of local paths the last part):",
            "",
            *(f"- {name}: {_listed(options) or 'none'}" for name, options in stages.items()),
            "",
            f"Written by teachdiag {environment()['packages']['teachdiag']}.",
            "",
        ]
    )


def _front_matter(run: Run, names: Iterable[str], licence: str) -> Iterator[str]:
    """Yield what the Hub and `datasets` read: values are JSON, which is YAML."""
    known = licence.split()[0].lower()
    yield "---"
    yield from (
        [f"license: {known}"] if known in _LICENCES else ["license: other", f"license_name: {json.dumps(licence)}"]
    )
    yield 'tags: ["teachdiag", "distillation", "on-policy-distillation"]'
    yield "configs:"
    for name in names:
        folders = dict.fromkeys(_pattern(file.relative_to(run.path)) for file in run.files(name))
        yield f"- config_name: {name}"
        yield from ["  default: true"] * (name == _FIRST)
        yield f"  data_files: {json.dumps(list(folders))}"
    yield "---"
    yield ""


def _pattern(file: Path) -> str:
    """Return what finds a file: that of a shard finds all of its folder."""
    return (file.parent / "*.parquet" if file.name.startswith("part-") else file).as_posix()


def _found(run: Run) -> Iterator[str]:
    if run.stages.get("analyze") == "complete":
        yield " ".join(run.verdict.sentences)
        yield ""


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{option} {_public(value)}`" for option, value in options.items())
