"""Where workers on many machines leave their shards: a folder by its fsspec path, local, on a share, or of a bucket."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from teachdiag.errors import SettingsError, cause
from teachdiag.tables import CHECKSUM, file_digest, is_intact, write_text

_PATIENCE = 90.0  # seconds; a share tells other machines of a new file only when it looks again


class Store:
    """Shards by their names, each as it was written or not there: its checksum, which is sent last, vouches for it."""

    def __init__(self, path: str) -> None:
        """Name a folder; it is made when something is sent.

        Args:
            path: any path that fsspec understands: a folder, or `protocol://...`.

        Raises:
            SettingsError: the protocol is unknown, or its package is missing.
        """
        self.path = path
        with self._reached():
            self.files, self.root = fsspec.url_to_fs(path)
        self.path = self.files.unstrip_protocol(self.root)  # which says the same in every working directory

    def send(self, folder: Path, name: str) -> None:
        """Put an intact shard of a local folder here, unless it is here already.

        Args:
            folder: the local folder.
            name: the shard's path relative to it, and to this store.

        Raises:
            SettingsError: the store cannot be written.
        """
        shard = folder / name
        checksum = shard.with_suffix(CHECKSUM)
        with self._reached():
            if self._checksum(name) == checksum.read_text(encoding="utf-8", errors="replace") and self._is_there(name):
                return
            self._put(shard, self._target(name))
            self._put(checksum, self._vouching(name))

    def fetch(self, folder: Path, name: str) -> bool:
        """Bring a shard into a local folder, unless it is there already; return whether it is there, intact.

        Raises:
            SettingsError: the store cannot be read.
        """
        target = folder / name
        if is_intact(target):
            return True
        with self._reached():
            checksum = self._checksum(name)
            if not checksum:
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{os.getpid()}.part")
            with suppress(FileNotFoundError):
                self.files.get_file(self._target(name), str(part))
            if part.exists() and file_digest(part) == checksum:
                os.replace(part, target)
                write_text(checksum, target.with_suffix(CHECKSUM))
                return True
            part.unlink(missing_ok=True)
            self.files.rm_file(self._vouching(name))  # so that nobody takes what is there for the shard
        return False

    def await_shard(self, folder: Path, name: str) -> bool:
        """Bring a shard that another machine has sent; return whether it came, intact."""
        deadline = time.monotonic() + _PATIENCE
        while not (arrived := self.fetch(folder, name)) and time.monotonic() < deadline:
            time.sleep(1.0)
            self.files.invalidate_cache()
        return arrived

    def _put(self, file: Path, target: str) -> None:
        """Copy a file here: at once where the place is a folder, so that one of two writers wins."""
        local = "file" in self.files.protocol
        part = f"{target}.{os.getpid()}.part" if local else target
        try:
            self.files.put_file(str(file), part)
        except FileNotFoundError:  # its folder; buckets have none
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(file), part)
        if local:
            os.replace(part, target)

    def _checksum(self, name: str) -> str:
        """Return the checksum of a shard that is here; '' where there is none."""
        with suppress(FileNotFoundError):
            return str(self.files.read_text(self._vouching(name), errors="replace"))
        return ""

    def _is_there(self, name: str) -> bool:
        return bool(self.files.exists(self._target(name)))

    def _target(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _vouching(self, name: str) -> str:
        return f"{self.root}/{Path(name).with_suffix(CHECKSUM).as_posix()}"

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Tell of a place that cannot be reached, whatever its protocol raises."""
        try:
            yield
        except Exception as error:
            raise SettingsError(f"--store {self.path!r} cannot be used: {cause(error)}") from error
