"""A kind of probe in diagnostics: what it refuses, what it needs, and how it measures."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.sources import ModelSource
from teachdiag.errors import SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import KINDS, CaptureSettings, ProbeSettings

if TYPE_CHECKING:
    from teachdiag.diagnostics.probes.probe_setup import ProbeSetup


class Measurement:
    """One probe of one kind, as it is measured; each kind says what differs.

    Attributes:
        fix_apart: whether the contexts of L_fix are kept out of the update batch.
        settings: the probe's.
    """

    fix_apart = True

    def __init__(self, settings: ProbeSettings) -> None:
        """Take a probe's settings."""
        self.settings = settings

    def folders(self, probe_id: str) -> tuple[str, ...]:
        """Return the folders of the tables that the probe writes, relative to the run."""
        return tuple(f"{folder}/{probe_id}" for folder in KINDS[self.settings.kind].folders)

    def inputs(self, run: Path, capture: CaptureSettings, student: ModelSource, reporter: Reporter) -> dict[str, Any]:
        """Return what goes in beside the capture; a change of it between two processes is a change of the probe."""
        return {}

    def check(self, run: Path, bank: list[Context], update: list[Context]) -> None:
        """Refuse, before a model is loaded, what cannot be measured on these contexts.

        Raises:
            InputError: it cannot.
        """

    def batch(self, contexts: list[Context]) -> list[Context]:
        """Return the update batch, from the contexts that it may use."""
        return contexts[: self.settings.update_contexts or None]

    def further_contexts(self, update: list[Context], limit: int) -> list[Context]:
        """Return the contexts that it needs beside the run's.

        Args:
            update: the update batch.
            limit: the longest sequence that both models can read.
        """
        return []

    def measure(self, setup: "ProbeSetup") -> dict[str, Any]:
        """Measure, write the tables, and return the probe's results: plain values, for its JSON.

        Called by all processes together, with the student at theta0, where it is again afterwards.
        """
        raise NotImplementedError


def measurement(settings: ProbeSettings) -> Measurement:
    """Return a probe as its kind measures it.

    Raises:
        InputError: the kind's end in diagnostics cannot be imported.
    """
    kind = KINDS[settings.kind]
    end = kind.end(kind.measured_by)
    if not (isinstance(end, type) and issubclass(end, Measurement)):
        raise SettingsError(f"kind of probe {kind.name}: {kind.measured_by} is no Measurement of teachdiag")
    return end(settings)
