"""`teachdiag push`: what `datasets` reads of a run's data set is what the run's tables hold, table by table.

No network: the Hub is a stand-in that notes what it is given.
"""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from teachdiag.cli import app
from teachdiag.data_set import data_set, upload
from teachdiag.errors import SettingsError
from teachdiag.run_view import open_run


def _push(*words: object) -> str:
    done = CliRunner().invoke(app, ["push", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


def _plain(values: Any) -> Any:
    """Nested arrays as lists, and what is no number as None."""
    if isinstance(values, np.ndarray | list):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and np.isnan(values) else values


@pytest.mark.slow
def test_every_table_loads_as_it_is(analysed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, run = tmp_path / "pushed", open_run(analysed)
    _push(analysed, "--to-folder", folder)
    full = [name for name in run.tables if len(run.table(name))]
    assert datasets.get_dataset_config_names(str(folder)) == full
    kinds: set[type] = set()
    for name in full:
        loaded = datasets.load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "cache"))
        stored = pa.concat_tables(pq.read_table(file) for file in run.files(name))
        assert loaded.column_names == stored.column_names, name
        for column in stored.column_names:
            assert _plain(list(loaded[column])) == _plain(stored[column].to_pylist()), (name, column)
            kinds.add(type(loaded.features[column]))
    assert datasets.List in kinds
    assert len(datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))) == len(
        run.positions
    )


def test_paths_of_the_machine_stay_home_unless_notes_are_asked_for(analysed: Path, tmp_path: Path) -> None:
    told = _push(analysed, "--to-folder", tmp_path / "tables")
    assert "the card has the last part: --prompts, --student, --teacher" in told
    pushed = [file for file in (tmp_path / "tables").rglob("*") if file.is_file()]
    assert {file.suffix for file in pushed} == {".parquet", ".md"}
    secret = str(tmp_path.parent.parent).encode()  # where pytest keeps models and prompts
    assert not [file for file in pushed if secret in file.read_bytes()]
    assert "they hold" in _push(analysed, "--to-folder", tmp_path / "all", "--notes")
    kept = json.loads((tmp_path / "all/capture.json").read_text())
    assert kept == json.loads((analysed / "capture.json").read_text())


def test_a_place_is_needed_and_is_not_overwritten(analysed: Path, tmp_path: Path, refused: Any) -> None:
    assert "give one of them" in refused("push", analysed)
    assert "give one of them" in refused("push", analysed, "me/run", "--to-folder", tmp_path / "new")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("")
    assert "is not empty: give a new folder" in refused("push", analysed, "--to-folder", tmp_path / "taken")
    assert "there is no run directory" in refused("push", tmp_path / "none", "--to-folder", tmp_path / "new")
    assert "is no name on the Hub" in refused("push", analysed, "a b/c")


class _Hub:
    """Notes what it is given; refuses strangers as the Hub does."""

    given: dict[str, Any]

    def create_repo(self, repo: str, **how: Any) -> str:
        if repo.startswith("stranger/"):
            raise PermissionError("401: you are not logged in")
        _Hub.given = {"repo": repo, **how}
        return f"https://hub/{repo}"

    def upload_folder(self, **what: Any) -> None:
        _Hub.given |= {"files": what["allow_patterns"], "from": what["folder_path"]}

    def upload_file(self, **what: Any) -> None:
        _Hub.given |= {what["path_in_repo"]: what["path_or_fileobj"].decode()}


def test_the_hub_is_given_tables_and_card_alone(analysed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("huggingface_hub")
    module.HfApi = _Hub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    data = data_set(analysed)
    assert upload(data, "me/run", public=False) == "https://hub/me/run"
    assert (_Hub.given["private"], _Hub.given["repo_type"], _Hub.given["from"]) == (True, "dataset", analysed)
    assert _Hub.given["files"] == list(data.files)
    assert all(name.endswith(".parquet") for name in data.files)
    assert _Hub.given["README.md"] == data.card
    with pytest.raises(SettingsError, match=r"stranger/run cannot be pushed: .*401.*hf auth login"):
        upload(data, "stranger/run", public=True)
