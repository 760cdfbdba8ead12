"""The pair that a run was captured with: its settings, and whether the models are still those."""

from pathlib import Path
from typing import Any

from teachdiag.artefacts import POSITIONS
from teachdiag.diagnostics.models.pair import pinned, resolve_pair
from teachdiag.diagnostics.models.sources import Sources
from teachdiag.errors import RunError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings

READ = (  # of the capture's note
    *("settings.student", "settings.teacher", "settings.prompts", "settings.positions"),
    *("inputs.student.digest", "inputs.teacher.digest"),
)
WHOLE = ("forward_kl", "teacher_entropy")  # columns that a teacher behind an engine may not give


def captured_pair(run: Path, reporter: Reporter) -> tuple[CaptureSettings, Sources]:
    """Return the settings of a run's capture, and its student and teacher, both of which can be loaded here.

    Raises:
        InputError: the run has no capture, its teacher answered from behind an engine, or a model is not what it was.
    """
    captured = Stage(run, "capture").require(*READ)
    POSITIONS.require(run / "positions", WHOLE)
    settings = captured_settings(run, captured)
    sources = resolve_pair(settings, reporter)
    refuse_other_models(run, captured, sources)
    return settings, sources


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
