"""Where teachdiag keeps what is made once for many runs, and how it knows that it is still what was made."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from teachdiag.errors import RunError
from teachdiag.tables import file_digest

_SUMS = "SHA256SUMS"  # what was written, in the format of sha256sum


def cache_folder() -> Path:
    """Where models and calibrations are cached: `TEACHDIAG_CACHE`, or teachdiag/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TEACHDIAG_CACHE") or Path(base) / "teachdiag")


def made_once(name: str, make: Callable[[Path], None]) -> tuple[Path, str]:
    """Return a folder of the cache and the SHA-256 of its content.

    On first use, or where a file of it is not what was written, `make` fills it under a lock, whole or not at all.
    Every use reads the files again: times and sizes say nothing of a block that a disk has lost.

    Raises:
        RunError: the cache cannot be written.
    """
    folder = cache_folder() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            digest = _digest_if_intact(folder)
            if digest is None:
                digest = _make(folder, make)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be made: {error.strerror or error}: mend it, or set TEACHDIAG_CACHE to another folder"
        ) from error
    return folder, digest


def _make(folder: Path, make: Callable[[Path], None]) -> str:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed: whoever is alive holds the lock
    shutil.rmtree(folder, ignore_errors=True)
    part.mkdir()
    try:
        make(part)
        sums = _sums(part)
        (part / _SUMS).write_text(sums, encoding="utf-8")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return file_digest(folder / _SUMS)


def _digest_if_intact(folder: Path) -> str | None:
    """SHA-256 of a folder's content, which stands for that of every file; None where a file is not what was written."""
    sums = folder / _SUMS
    if not sums.is_file() or sums.read_text(encoding="utf-8", errors="replace") != _sums(folder):
        return None
    return file_digest(sums)


def _sums(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _SUMS)
    return "".join(f"{file_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)
