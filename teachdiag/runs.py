"""The run directory: who may write, what a stage was run with, whether it has ended, and resuming.

Each stage owns one note. It is written when the stage begins (status `running`) and rewritten when it ends
(`complete`). It holds nothing that changes between two identical runs; clock times go to `events.jsonl`.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from filelock import FileLock, Timeout

from teachdiag.errors import ContextError, EstimationError, InputError, RunError, SettingsError, place_error, using
from teachdiag.notes import OBJECT, Schema, fields_schema, read_note, write_note
from teachdiag.settings import (
    AnalyzeSettings,
    CaptureSettings,
    EvaluateSettings,
    FiguresSettings,
    ProbeSettings,
    TrainSettings,
)
from teachdiag.tables import CHECKSUM, file_digest

_SETTINGS: dict[str, type[Any]] = {
    "capture": CaptureSettings,
    "probes": ProbeSettings,
    "analyze": AnalyzeSettings,
    "analyze-released": AnalyzeSettings,
    "figures": FiguresSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
}
SUMMARY = "analysis/summary.json"  # what `summary.md` says, as data
_MODEL = {"digest?": str, "dropped_layers?": list[int], ...: Any}
_PROMPTED = {"inputs": {"prompts?": {"manifest?": str, "template_options?": dict[str, Any], ...: Any}, ...: Any}}
_RUNG = {
    **dict.fromkeys(("share", "learning_rate", "mean_gain", "noise"), float),
    **dict.fromkeys(("first_order_gain", "r2"), float | None),
    "short_enough": bool | None,
}
_FURTHER: dict[str, dict[Any, Schema]] = {  # what later stages read beside the settings
    "capture": {"inputs": _PROMPTED["inputs"] | {"student?": _MODEL, "teacher?": _MODEL}},
    "train": {"inputs": _PROMPTED["inputs"] | {"student?": _MODEL, "cells?": dict[str, dict[str, Any]]}},
    "evaluate": _PROMPTED,
    "probes": {
        "results?": {
            "noise_floor?": float | None,
            "fix_contexts?": list[int],
            "doubts?": list[str],
            "ladder?": {"learning_rate": float, "short_enough": bool | None, "longest": float | None, "rungs": [_RUNG]},
            ...: Any,
        }
    },
    "import": {"settings": {"k": int, ...: Any}},
}
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

    @property
    def command(self) -> str:
        """What makes or continues the stage on the command line, with its usual options."""
        if self.name in ("analyze", "figures"):
            return f"teachdiag {self.name} {self.run}"
        if self.name == "analyze-released":
            return f"teachdiag analyze {self.run} --compat released"
        return f"teachdiag {'import released' if self.name == 'import' else self._kind} --run {self.run}"

    @property
    def begun(self) -> bool:
        """Whether the stage has begun and not ended."""
        note = self.read()
        return note is not None and note["status"] != "complete"

    def read(self) -> dict[str, Any] | None:
        """Return the stage's note, or None if the stage never began.

        Raises:
            RunError: the file is not the note of this stage as it was written.
        """
        with using(self.note):
            there = self.note.exists()
        if not there:
            return None
        schema = {
            "stage?": str,
            "status": Literal["running", "complete"],
            "settings": OBJECT,
            "inputs": OBJECT,
            "made_with": OBJECT,
            "tables?": {...: str},
            "results?": OBJECT,
        }
        declared = _SETTINGS.get(self._key)
        if declared is not None:
            schema["settings"] = fields_schema(declared, optional=True, without=declared.UNRECORDED)
        if self.name in ("analyze", "figures"):
            advice = f"run `{self.command}` again"
        elif self._key == "probes":
            advice = "restore it, or delete it and the tables of that probe, and run the probe again"
        else:
            advice = f"restore it, or delete {self.run}, or choose another --run"
        return read_note(self.note, schema | _FURTHER.get(self._key, {}), advice)

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
        begun = self._computed(self._folders())
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

    def complete(
        self, results: Mapping[str, Any], files: Sequence[str] = (), earlier: Mapping[str, str] | None = None
    ) -> None:
        """Mark the claimed stage as complete; record its summary and the digests of what it wrote.

        Args:
            results: the summary.
            files: tables and other files, relative to the run, that the stage wrote beside its `tables`.
            earlier: digests of files that it left as an earlier one had written them.
        """
        content = self.read()
        assert content is not None, "complete() follows claim()"
        digests = {**(earlier or {})} | {t: table_digest(self.run / t) for t in (*self.tables, *files)}
        self._write(content | {"status": "complete", "tables": digests, "results": _plain(results)})
        self._remove_checksums()
        self._remove_scratch()

    def require(self, *needed: str) -> dict[str, Any]:
        """Return the note of a stage that must be complete, with everything that it wrote as it left it.

        Args:
            needed: keys that the caller reads, as `settings.seed`.

        Raises:
            RunError: the stage never began or never ended, its note lacks a key, or something it wrote is no longer
                what it was.
        """
        content = self.record(*needed)
        for table, digest in content.get("tables", {}).items():
            if table_digest(self.run / table) != digest:
                again = (
                    f"run `{self.command}` again"
                    if self.name in ("analyze", "figures")
                    else f"restore it, or delete {self.run} and run again"
                )
                raise RunError(f"{self.run / table} is no longer what the {self.name} stage wrote: {again}")
        return content

    def record(self, *needed: str) -> dict[str, Any]:
        """Return the note of a stage that must be complete, without reading its tables again.

        Args:
            needed: keys that the caller reads, as `settings.seed`.

        Raises:
            RunError: the stage never began or never ended, or its note lacks a key.
        """
        content = self.read()
        if content is None:
            raise RunError(f"{self.run} has no {self.name} stage: run `{self.command}` first")
        if content["status"] != "complete":
            raise RunError(
                f"the {self.name} stage of {self.run} is unfinished: run `{self.command}` again to continue it"
            )
        for key in needed:
            value: Any = content
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is None:
                raise RunError(f"{self.note} is damaged ({key} is missing): restore it, or run that stage again")
        if self._key in ("capture", "probes"):  # what older versions had no choice about
            content["settings"] = _SETTINGS[self._key].defaults() | content["settings"]
        return content

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Record when the stage began and ended, in `events.jsonl`; of one that is refused nothing else stays."""
        self._event("begin")
        start = time.perf_counter()
        try:
            yield
        except InputError as error:
            # Whatever else went wrong, as a full disk, is mended without other settings, and continued.
            self._withdraw(settings_refused=isinstance(error, SettingsError | EstimationError | ContextError))
            raise
        self._event("end", seconds=round(time.perf_counter() - start, 3))

    def seconds(self) -> float | None:
        """Return how long the stage took, s, over all its starts; None where one of them has no end, or none is known.

        What is recomputed at every start, as an analysis is, took as long as its last one.
        """
        log = self.run / "events.jsonl"
        try:
            events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            taken = [event.get("seconds") for event in events if event["stage"] == self.name]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # it is a log, which nothing else hangs on
            return None
        ends = [float(seconds) for seconds in taken if isinstance(seconds, int | float)]
        if self.name == "analyze":
            return ends[-1] if ends else None
        return sum(ends) if ends and 2 * len(ends) == len(taken) else None

    def _event(self, event: str, **facts: float) -> None:
        line = {"stage": self.name, "event": event, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
        log = self.run / "events.jsonl"
        with using(log), log.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")

    def _refuse_mixture(self, before: dict[str, Any], ours: dict[str, Any]) -> None:
        parts = ["settings", "inputs"] + (["made_with"] if before["status"] != "complete" else [])
        differing = ([*_differences(before.get(part, {}), ours[part])] for part in parts)
        changed = next(filter(None, differing), None)  # what settings change of the inputs goes without saying
        if changed:
            changes = [f"{name} was {theirs!r}, now {ours!r}" for name, theirs, ours in changed]
            elsewhere = "--name" if self.name.startswith("probes/") else "--run"
            raise RunError(
                f"{self.note} was made with another configuration ({'; '.join(changes)}): choose another {elsewhere}, "
                f"or delete {', '.join([self.note.name, *self._folders()])}"
            )

    @property
    def _kind(self) -> str:
        """Name of the command that the stage belongs to."""
        return {"probes": "probe", "grade": "capture --grade"}.get(self._key, self.name)

    @property
    def _key(self) -> str:
        return self.name.partition("/")[0]

    def _withdraw(self, *, settings_refused: bool) -> None:
        """Take a claim back where there is nothing to continue: nothing was computed, or only for refused settings."""
        kept = self.tables if settings_refused else self._folders()
        if self.begun and not self._computed(kept):
            self._remove_scratch()
            self.note.unlink()

    def _folders(self) -> list[str]:
        return [*self.tables, *([self.scratch] if self.scratch else [])]

    def _computed(self, folders: Iterable[str]) -> bool:
        return any(any((self.run / folder).rglob("*.parquet")) for folder in folders)

    def _remove_scratch(self) -> None:
        if self.scratch:
            shutil.rmtree(self.run / self.scratch, ignore_errors=True)

    def _remove_checksums(self) -> None:
        """Delete the checksums of single shards: those of the tables stand in the stage's JSON."""
        for folder in self.tables:
            for checksum in (self.run / folder).rglob(f"*{CHECKSUM}"):
                checksum.unlink()

    def _remove_parts(self) -> None:
        """Delete what killed processes left half-written: whoever holds the run is the only one that writes."""
        for part in self.run.rglob("*.part"):
            where = part.parent.relative_to(self.run)
            if re.search(r"\.\d+\.part$", part.name) or any(where.is_relative_to(folder) for folder in self._folders()):
                part.unlink()

    def _write(self, content: dict[str, Any]) -> None:
        write_note(content, self.note)


_HELD: set[Path] = set()  # run directories that this process holds


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Hold the run directory against other processes, creating it if needed.

    Raises:
        RunError: it cannot be created or written, or another process holds it.
    """
    try:
        fresh = not run.exists()
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{run} is in use by another teachdiag process: wait for it, or choose another --run") from None
    except OSError as error:
        reason = place_error(error, run) or error.strerror
        raise RunError(f"{run} cannot be used as a run directory, which is written to: {reason}") from error
    _HELD.add(run.resolve())
    try:
        yield
    finally:
        _HELD.discard(run.resolve())
        if fresh and [file.name for file in run.glob("*")] == [".lock"]:  # what was refused leaves nothing
            shutil.rmtree(run)
        lock.release()


def joining(run: Path) -> AbstractContextManager[None]:
    """Hold a run that is there, unless this process holds it already: for what is made from a run's tables.

    Raises:
        RunError: as `writing`, or there is no such run.
    """
    with using(run):
        if not run.is_dir():
            raise RunError(f"{run} has no capture stage: run `teachdiag capture --run {run}` first")
        return nullcontext() if run.resolve() in _HELD else writing(run)


def end_with_parent() -> None:
    """Let this process, a worker, end when the one that started it dies, with whom the lock on the run goes."""
    parent = parent_process()
    assert parent is not None, "a worker is started by another process"

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def probe_names(run: Path) -> list[str]:
    """Return the names of a run's probes, finished or not, in order: `one_step-2` comes before `one_step-10`."""
    names = [note.stem for note in (run / "probes").glob("*.json")]
    return sorted(names, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])


def bank_prompts(capture: Mapping[str, Any]) -> str:
    """Name what a capture's prompts are from: its manifest's id, or the file of contexts that brought them."""
    brought = capture["settings"]["contexts"]
    return Path(brought).name if brought else str(capture["inputs"].get("prompts", {}).get("manifest", "unrecorded"))


def teacher_prompt(capture: Mapping[str, Any]) -> str:
    """Name what a capture's teacher read: the 'same' prompt, a 'privileged' one, or an 'other' that was brought."""
    settings = capture["settings"]
    if capture.get("results", {}).get("same_prompts", settings["teacher_prompt"] == "same"):
        return "same"
    return "privileged" if settings["teacher_prompt"] == "privileged" and not settings["contexts"] else "other"


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
    """SHA-256 over the names and bytes of a table's Parquet files, in order, or of one file."""
    digest = hashlib.sha256()
    with using(path):
        for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.exists() else []:
            digest.update(f"{file.name} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def _differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(theirs.keys() | ours.keys()):
        old, new = theirs.get(name), ours.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield prefix + name, old, new


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content as JSON gives it back, so that a fresh note compares equal to a stored one."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain
