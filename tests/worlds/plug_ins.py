"""Packages of one module, installed as pip leaves them: their metadata in a folder on `sys.path`."""

import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import pytest


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, entries: Mapping[str, Mapping[str, str]]
) -> Path:
    """Install a package until the monkeypatch ends, and return where; other processes need that on PYTHONPATH.

    Args:
        folder: of the test.
        monkeypatch: puts things back.
        name: of the package and of its one module.
        text: of the module.
        entries: entry-point group -> name -> attribute of the module.
    """
    site = folder / "site-packages"
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{name}.py").write_text(text)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{entry} = {name}:{attribute}\n" for entry, attribute in names.items())
        for group, names in entries.items()
    )
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.delitem(sys.modules, name, raising=False)
    find_installed(folder, monkeypatch)
    return site


def find_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the packages that were installed in a folder until the monkeypatch ends."""
    monkeypatch.setattr("teachdiag.registry.installed", lambda group: entry_points(group=group))
    monkeypatch.syspath_prepend(folder / "site-packages")
