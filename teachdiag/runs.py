"""The run directory: who may write, what a stage was run with, whether it has ended, and resuming.

Each stage owns one JSON. It is written when the stage begins (status `running`) and rewritten when it ends
(`complete`). It holds nothing that changes between two identical runs; clock times go to `events.jsonl`.
"""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from teachdiag.errors import RunError
from teachdiag.tables import CHECKSUM, file_digest, write_text

_KEYS = {"status", "settings", "inputs", "made_with"}
_PACKAGES = ("teachdiag", "torch", "transformers", "numpy", "pandas", "pyarrow", "scipy", "statsmodels")


@dataclass(frozen=True)
class Stage:
    """One stage of one run directory, known by its JSON file.

    Attributes:
        run: the run directory.
        name: what the JSON is called, without its ending.
        tables: folders of the tables that the stage writes, relative to the run directory.
        scratch: folder of what it needs only until it ends; '' for none.
    """

    run: Path
    name: str
    tables: tuple[str, ...] = ()
    scratch: str = ""

    @property
    def note(self) -> Path:
        """Where the stage's JSON lies."""
        return self.run / f"{self.name}.json"

    def read(self) -> dict[str, Any] | None:
        """Return the stage's JSON, or None if the stage never began.

        Raises:
            RunError: the file is not the JSON of a stage.
        """
        if not self.note.exists():
            return None
        try:
            content = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError):
            content = None
        if not isinstance(content, dict) or not content.keys() >= _KEYS:
            raise RunError(f"{self.note} is damaged: delete {self.run} or choose another --run")
        return content

    def claim(
        self,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        machine: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> bool:
        """Begin, or resume, or find the stage complete.

        Args:
            settings: resolved settings of the stage.
            inputs: digests and facts of what goes in (models, prompts, earlier stages).
            machine: what else decides the last digits of the numbers: device, threads.
            defaults: what settings were that a note lacks, since there were none when it was written.

        Returns:
            True if the stage is complete with these very settings and inputs, so that nothing is left to do.

        Raises:
            RunError: the stage has results that were made with other settings or inputs, or, unfinished, under other
                versions or on another machine, or that nobody knows the making of; the message names what differs.
        """
        made_with = environment() | dict(machine or {})
        ours = _plain({"settings": settings, "inputs": inputs, "made_with": made_with})
        before = self.read()
        begun = any(any((self.run / folder).rglob("*.parquet")) for folder in self._folders())
        if before is None and begun:
            raise RunError(
                f"{self.run} has results of {self.name} but no {self.note.name} that says how they were made: delete "
                f"{', '.join(self._folders())}, or choose another --run"
            )
        if before is not None:
            before["settings"] = _plain(defaults or {}) | before["settings"]
        if before is not None and (begun or before["status"] == "complete"):
            self._refuse_mixture(before, ours)
            if before["status"] == "complete":
                self._remove_scratch()
                self._remove_checksums()
                return True
        elif self.scratch:
            self._remove_scratch()  # of a stage that was refused before it computed anything
        self._remove_parts()
        self._write({"stage": self.name, "status": "running", **ours})
        return False

    def complete(self, results: Mapping[str, Any]) -> None:
        """Mark the claimed stage as complete; record its summary and the digests of its tables."""
        content = self.read()
        assert content is not None, "complete() follows claim()"
        digests = {table: table_digest(self.run / table) for table in self.tables}
        self._write(content | {"status": "complete", "tables": digests, "results": _plain(results)})
        self._remove_checksums()
        self._remove_scratch()

    def require(self) -> dict[str, Any]:
        """Return the JSON of a stage that must be complete, with its tables as it left them.

        Raises:
            RunError: the stage never began or never ended, or one of its tables is no longer what it wrote.
        """
        content = self.record()
        for table, digest in content.get("tables", {}).items():
            if table_digest(self.run / table) != digest:
                raise RunError(
                    f"{self.run / table} is no longer what the {self.name} stage wrote: restore it, or delete "
                    f"{self.run} and run again"
                )
        return content

    def record(self) -> dict[str, Any]:
        """Return the JSON of a stage that must be complete, without reading its tables again.

        Raises:
            RunError: the stage never began or never ended.
        """
        content = self.read()
        command = f"teachdiag {self.name.split('/')[0]} --run {self.run}"
        if content is None:
            raise RunError(f"{self.run} has no {self.name} stage: run `{command}` first")
        if content["status"] != "complete":
            raise RunError(f"the {self.name} stage of {self.run} is unfinished: run `{command}` again to continue it")
        return content

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Record when the stage began and ended, in `events.jsonl`."""
        self._event("begin")
        start = time.perf_counter()
        yield
        self._event("end", seconds=round(time.perf_counter() - start, 3))

    def _event(self, event: str, **facts: float) -> None:
        line = {"stage": self.name, "event": event, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
        with (self.run / "events.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _refuse_mixture(self, before: dict[str, Any], ours: dict[str, Any]) -> None:
        parts = ["settings", "inputs"] + (["made_with"] if before["status"] != "complete" else [])
        differing = ([*_differences(before.get(part, {}), ours[part])] for part in parts)
        found = next(filter(None, differing), None)  # what settings change of the inputs goes without saying
        if found:
            changes = [f"{name} was {theirs!r}, now {mine!r}" for name, theirs, mine in found]
            elsewhere = "--name" if self.name.startswith("probes/") else "--run"
            raise RunError(
                f"{self.note} was made with another configuration ({'; '.join(changes)}): choose another {elsewhere}, "
                f"or delete {', '.join([self.note.name, *self._folders()])}"
            )

    def _folders(self) -> list[str]:
        return [*self.tables, *([self.scratch] if self.scratch else [])]

    def _remove_scratch(self) -> None:
        if self.scratch:
            shutil.rmtree(self.run / self.scratch, ignore_errors=True)

    def _remove_checksums(self) -> None:
        """Delete the checksums of single shards: those of the tables stand in the stage's JSON."""
        for folder in self.tables:
            for checksum in (self.run / folder).rglob(f"*{CHECKSUM}"):
                checksum.unlink()

    def _remove_parts(self) -> None:
        """Delete what a killed process left half-written in the stage's own folders."""
        for folder in self._folders():
            for part in (self.run / folder).rglob("*.part"):
                part.unlink()

    def _write(self, content: dict[str, Any]) -> None:
        write_text(json.dumps(content, indent=2, sort_keys=False) + "\n", self.note)


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Hold the run directory against other processes, creating it if needed.

    Raises:
        RunError: it cannot be created or written, or another process holds it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{run} is in use by another teachdiag process: wait for it, or choose another --run") from None
    except OSError as error:
        raise RunError(f"{run} cannot be used as a run directory: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def environment() -> dict[str, Any]:
    """Versions of what computes the numbers, and the machine's kind."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "machine": platform.machine(), "packages": versions}


def table_digest(path: Path) -> str:
    """SHA-256 over the names and bytes of a table's Parquet files, in order."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.exists() else []:
        digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def _differences(theirs: dict[str, Any], mine: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(theirs.keys() | mine.keys()):
        old, new = theirs.get(name), mine.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield prefix + name, old, new


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content as JSON gives it back, so that a fresh note compares equal to a stored one."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain
