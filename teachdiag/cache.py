"""Where teachdiag keeps what is made once for many runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where models and calibrations are cached: `TEACHDIAG_CACHE`, or teachdiag/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TEACHDIAG_CACHE") or Path(base) / "teachdiag")
