"""Where teachdiag keeps what is made once for many runs."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """Where models and calibrations are cached: `TEACHDIAG_CACHE`, or teachdiag/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TEACHDIAG_CACHE") or Path(base) / "teachdiag")


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; on first use, under a lock, `make` fills it, whole or not at all."""
    folder = cache_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                make(part)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder
