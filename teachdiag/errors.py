"""What can go wrong through no fault of the program: one sentence each, exit code 2, nothing lost."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """The user's input is wrong. The message says what is wrong, where, and what to do."""


class SettingsError(InputError):
    """An option or recipe entry has an impossible value."""


class ManifestError(InputError):
    """A prompt manifest, or the data it points at, is not what it says."""


class ModelError(InputError):
    """A model or tokenizer cannot be used, or a pair does not share its vocabulary."""


class ContextError(InputError):
    """A context cannot be scored: too long, empty, or with non-finite logits."""


class RolloutError(InputError):
    """Rollouts from elsewhere cannot be read, or their token ids cannot be recovered exactly."""


class ArtefactError(InputError):
    """A table of a run directory is missing, unfinished, or not of its schema."""


class RunError(InputError):
    """A run directory is in use, was made with another configuration, or lacks an earlier stage."""


class PlaceError(InputError):
    """A file or folder cannot be read or written: no space, no permission, read-only, a name too long."""


class EstimationError(InputError):
    """The tables do not carry the estimate: a constant predictor, or too few prompts."""


def cause(error: BaseException) -> str:
    """Return the first line of what lies at the root of an exception, for the message of an `InputError`."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


_ELSEWHERE = "choose another place"
_REMEDIES = {
    errno.ENOSPC: f"free some space, or {_ELSEWHERE}",
    errno.EDQUOT: f"free some space, or {_ELSEWHERE}",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or make fewer positions a shard",
    errno.EROFS: f"{_ELSEWHERE}, or copy the run to one that can be written",
    errno.EACCES: f"change its permissions, or {_ELSEWHERE}",
    errno.EPERM: f"change its permissions, or {_ELSEWHERE}",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: f"a folder of it is a file: {_ELSEWHERE}",
    errno.EEXIST: f"a file is in the way: {_ELSEWHERE}",
    errno.EISDIR: f"a folder is in the way: {_ELSEWHERE}",
    errno.EIO: "the disk or its connection fails: check it",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def place_error(error: BaseException, path: Path | str = "") -> PlaceError | None:
    """Return what to tell of a file or folder that cannot be used, or None where an exception is something else.

    Args:
        error: the exception; of libraries in Rust, whose errors carry the system's number as text, too.
        path: what was being read or written, where the exception does not say.
    """
    code = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(code[1]) if code else None
    if number not in _REMEDIES:
        return place_error(error.__cause__, path) if error.__cause__ else None
    name = path or getattr(error, "filename", None) or "a file"
    return PlaceError(f"{name} cannot be used: {os.strerror(number)}: {_REMEDIES[number]}")


@contextmanager
def using(path: Path | str) -> Iterator[None]:
    """Tell of a place that cannot be read or written in one sentence that names it.

    Raises:
        PlaceError: it cannot; other exceptions stay what they are.
    """
    try:
        yield
    except OSError as error:
        refused = place_error(error, path)
        if refused is None:
            raise
        raise refused from error
