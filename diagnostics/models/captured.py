"""The pair that a run was captured with: its settings, and whether the models are still those."""

from pathlib import Path
from typing import Any

from teachdiag.diagnostics.models.pair import pinned
from teachdiag.diagnostics.models.sources import Sources
from teachdiag.errors import RunError, SettingsError
from teachdiag.settings import CaptureSettings

READ = (  # of the capture's note
    *("settings.student", "settings.teacher", "settings.prompts", "settings.positions"),
    *("inputs.student.digest", "inputs.teacher.digest"),
)


def captured_settings(run: Path, captured: dict[str, Any]) -> CaptureSettings:
    """Return the settings of a run's capture, from its note.

    Raises:
        RunError: this version refuses them.
    """
    try:
        return CaptureSettings(**captured["settings"])
    except (TypeError, SettingsError) as error:
        note = run / "capture.json"
        raise RunError(f"{note} has settings that this version refuses ({error}): capture again") from error


def refuse_other_models(run: Path, captured: dict[str, Any], sources: Sources) -> None:
    """Refuse models that are not, byte for byte and layer for layer, those whose predictors the run holds.

    Raises:
        RunError: one is not.
    """
    for side, source in zip(("student", "teacher"), sources, strict=True):
        before, now = (_decisive(facts) for facts in (captured["inputs"][side], pinned(source)))
        for what, held in now.items():
            if before[what] != held:
                raise RunError(
                    f"{run} was captured with another {side}: {what} of {source.name} was {before[what]}, now {held}: "
                    "restore those weights, or capture again"
                )


def _decisive(facts: dict[str, Any]) -> dict[str, Any]:
    """What decides a model's numbers, of the facts that pin it."""
    adapter = facts.get("adapter", {"digest": "none"})
    return {
        "digest": facts["digest"],
        "dropped_layers": list(facts["dropped_layers"]),
        "digest of the adapter": adapter["digest"],
    }
