"""A stage of a run that several processes work on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate.utils import gather_object

from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.processes.group import is_first, many
from teachdiag.errors import SettingsError
from teachdiag.runs import Stage, writing
from teachdiag.settings import flag


class SharedStage(Stage):
    """A `Stage` that speaks for all processes: the first one acts, every process gets its answer, or its InputError.

    All processes must make these calls together; anything else of a `Stage` is for the first one alone.
    """

    claim = on_first(Stage.claim)
    complete = on_first(Stage.complete)
    require = on_first(Stage.require)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run directory, by the first process.

        Raises:
            RunError: it cannot be held; every process raises it.
        """
        hold = writing(self.run)
        on_first(hold.__enter__)()
        try:
            yield
        finally:
            if is_first():
                hold.__exit__(None, None, None)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Record when the stage began and ended, once."""
        with super().timed() if is_first() else nullcontext():
            yield


def agree(settings: Mapping[str, Any]) -> None:
    """Refuse processes that were started with different settings.

    Raises:
        SettingsError: they were; the message names the first option that differs, and its values.
    """
    if not many():
        return
    everybody = gather_object([dict(settings)])
    for name in settings:
        values = [theirs.get(name) for theirs in everybody]
        if any(value != values[0] for value in values):
            listed = ", ".join(f"{value!r} in process {number}" for number, value in enumerate(values))
            raise SettingsError(f"the processes were started with different settings: {flag(name)} is {listed}")
