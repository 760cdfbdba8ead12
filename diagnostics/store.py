"""Where workers on many machines leave their shards: a folder by its fsspec path, local, on a share, or of a bucket."""

import os
from pathlib import Path

import fsspec

from teachdiag.errors import SettingsError, cause
from teachdiag.tables import CHECKSUM, file_digest, is_intact, write_text


class Store:
    """Shards by their names, each whole or not there: its checksum, which arrives last, vouches for it."""

    def __init__(self, path: str) -> None:
        """Open a folder, making it where it is not there.

        Args:
            path: any path that fsspec understands: a folder, or `protocol://...`.

        Raises:
            SettingsError: the protocol is unknown or its package is missing, or the folder cannot be made.
        """
        try:
            self.files, self.root = fsspec.url_to_fs(path)
            self.files.makedirs(self.root, exist_ok=True)
        except Exception as error:  # each protocol has errors of its own
            raise SettingsError(f"--store {path!r} cannot be used: {cause(error)}") from error
        self.path = path

    def send(self, folder: Path, name: str) -> None:
        """Put an intact shard of a local folder here, unless it is here already.

        Args:
            folder: the local folder.
            name: the shard's path relative to it, and to this store.
        """
        checksum = (folder / name).with_suffix(CHECKSUM)
        if self._checksum(name) == checksum.read_text(encoding="utf-8"):
            return
        for file in (folder / name, checksum):
            place = f"{self.root}/{file.relative_to(folder).as_posix()}"
            self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
            if "file" in self.files.protocol:  # elsewhere an upload is whole, or it is not there
                self.files.put_file(str(file), f"{place}.part")
                os.replace(f"{place}.part", place)
            else:
                self.files.put_file(str(file), place)

    def fetch(self, folder: Path, name: str) -> bool:
        """Bring a shard into a local folder, unless it is there already; return whether it is there, intact."""
        target = folder / name
        if is_intact(target):
            return True
        checksum = self._checksum(name)
        if not checksum or not self.files.exists(f"{self.root}/{name}"):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        self.files.get_file(f"{self.root}/{name}", str(part))
        if file_digest(part) != checksum:
            part.unlink()
            self.files.rm_file(self._vouching(name))  # so that nobody takes it for the shard
            return False
        os.replace(part, target)
        write_text(checksum, target.with_suffix(CHECKSUM))
        return True

    def _checksum(self, name: str) -> str:
        """Return the checksum of a shard that is here; '' where there is none."""
        place = self._vouching(name)
        return str(self.files.read_text(place)) if self.files.exists(place) else ""

    def _vouching(self, name: str) -> str:
        return f"{self.root}/{Path(name).with_suffix(CHECKSUM).as_posix()}"
