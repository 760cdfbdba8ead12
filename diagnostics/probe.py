"""Stage probe: a frozen bank, one kind of question put to the student, and a table of what was measured."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from teachdiag.artefacts import POSITIONS
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.models.pair import pinned, resolve_pair
from teachdiag.diagnostics.models.sources import Sources
from teachdiag.diagnostics.probes.isolated import check_sample, measure_isolated
from teachdiag.diagnostics.probes.masks import oracle_probe, resolve_choosers
from teachdiag.diagnostics.probes.predicted import measure_predicted
from teachdiag.diagnostics.probes.selectors import measure_interventions
from teachdiag.diagnostics.probes.steps import (
    check_steps,
    further_contexts,
    gains_folders,
    measure_steps,
    student_after,
)
from teachdiag.diagnostics.probes.workbench import Check, Workbench, set_up
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.processes.devices import machine_facts, process_device
from teachdiag.diagnostics.processes.group import refuse_sharding_alone
from teachdiag.diagnostics.processes.shared_stage import SharedStage, agree
from teachdiag.errors import RunError, SettingsError
from teachdiag.losses import LOSSES
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings, ProbeSettings


def _no_check(run: Path, settings: ProbeSettings, bank: list[Context], update: list[Context]) -> None:
    pass


class _Measurement(NamedTuple):
    """How a kind of probe works: what it does on the bench, which folders it fills, and what it refuses at once."""

    measure: Callable[[Workbench], dict[str, Any]]
    folders: tuple[str, ...] = ()
    check: Check = _no_check


_KINDS: dict[str, _Measurement] = {
    "one_step": _Measurement(measure_steps, check=check_steps),
    "placebo": _Measurement(measure_steps, check=check_steps),
    "checkpoint": _Measurement(measure_steps),
    "isolated": _Measurement(measure_isolated, ("isolated",), check_sample),
    "predicted": _Measurement(measure_predicted, ("predictions",)),
    "selectors": _Measurement(measure_interventions, ("interventions", "intervention_gains", "predictions")),
    "lds": _Measurement(measure_interventions, ("interventions", "predictions")),
}


_READ = (  # of the capture's note
    *("settings.student", "settings.teacher", "settings.prompts", "settings.positions"),
    *("inputs.student.digest", "inputs.teacher.digest"),
)
_NEEDED = ("forward_kl", "teacher_entropy")  # of the columns that a teacher behind an engine may not give


def run_probe(run: Path, settings: ProbeSettings, reporter: Reporter) -> dict[str, Any]:
    """Put one probe's question to the student of a run, and write its tables.

    Returns:
        The probe's summary, which is also the `results` of `probes/<probe_id>.json`.

    Raises:
        InputError: anything that the user can mend; nothing already computed is lost.
    """
    agree(settings.as_dict())
    if settings.shard_model:
        refuse_sharding_alone("probe")
    captured = SharedStage(run, "capture").require(*_READ)
    on_first(POSITIONS.require)(run / "positions", _NEEDED)
    capture = _capture_settings(run, captured)
    _refuse_biased_loss(settings, capture, reporter)
    probe_id = settings.name or _default_name(settings)
    stage = SharedStage(run, f"probes/{probe_id}", _tables(settings, probe_id), scratch=f"scratch/{probe_id}")
    with stage.held():
        device = process_device(settings.device)
        sources = on_first(resolve_pair)(capture, reporter)
        _refuse_other_models(run, captured, sources)
        further = on_first(_further_inputs)(run, settings, capture, reporter)
        inputs = captured["inputs"] | captured["tables"] | further
        if stage.claim(settings.as_dict(), inputs, machine_facts(device), settings.defaults()):
            reporter.say(f"{run}: probe {probe_id} is complete")
            return dict(stage.require()["results"])
        with stage.timed():
            kind, made = _KINDS[settings.kind], partial(further_contexts, settings)
            bench = set_up(stage, probe_id, settings, capture, sources, device, reporter, kind.check, made)
            results = {"probe_id": probe_id, "kind": settings.kind} | kind.measure(bench)
            stage.complete(results)
    return results


def _further_inputs(run: Path, settings: ProbeSettings, capture: CaptureSettings, reporter: Reporter) -> dict[str, Any]:
    """What goes into a probe beside the capture; a change of it between two processes is a change of the probe."""
    if settings.kind == "checkpoint":
        return {"student_after": student_after(settings, capture, reporter).digest}
    if settings.kind == "selectors" and any(
        "isolated_gain" in chooser.columns for chooser in resolve_choosers(run, settings)
    ):
        oracle = oracle_probe(run, settings)
        return {"oracle": Stage(run, f"probes/{oracle}").require()["tables"]}
    return {}


def _tables(settings: ProbeSettings, probe_id: str) -> tuple[str, ...]:
    folders = _KINDS[settings.kind].folders
    return tuple(f"{folder}/{probe_id}" for folder in folders) or gains_folders(settings, probe_id)


def _capture_settings(run: Path, captured: dict[str, Any]) -> CaptureSettings:
    try:
        return CaptureSettings(**captured["settings"])
    except (TypeError, SettingsError) as error:
        note = run / "capture.json"
        raise RunError(f"{note} has settings that this version refuses ({error}): capture again") from error


def _refuse_other_models(run: Path, captured: dict[str, Any], sources: Sources) -> None:
    """Refuse to probe models that are not, byte for byte and layer for layer, those whose predictors the run holds."""
    for side, source in zip(("student", "teacher"), sources, strict=True):
        before, now = captured["inputs"][side], pinned(source)
        for what, held in (("digest", now["digest"]), ("dropped_layers", list(now["dropped_layers"]))):
            if before[what] != held:
                raise RunError(
                    f"{run} was captured with another {side}: {what} of {source.name} was {before[what]}, now {held}: "
                    "restore those weights, or capture again"
                )


def _refuse_biased_loss(settings: ProbeSettings, capture: CaptureSettings, reporter: Reporter) -> None:
    """A sampled loss is unbiased only on tokens that follow the student's own distribution."""
    if not LOSSES[settings.loss].sampled:
        return
    if capture.contexts:
        reporter.say(f"--loss {settings.loss} is unbiased only if the imported rollouts were sampled from theta0")
    elif (capture.temperature, capture.top_p, capture.top_k) != (1.0, 1.0, 0):
        raise RunError(
            f"--loss {settings.loss} is biased on rollouts sampled with temperature, top-p or top-k other than 1, 1 "
            "and 0: capture with these, or choose a full-vocabulary loss"
        )
    if settings.steps > 1 and settings.rollouts == "fixed":
        raise RunError(
            f"--loss {settings.loss} is biased from the second step on, whose rollouts are of an earlier student: "
            "use --rollouts fresh, or choose a full-vocabulary loss"
        )


def _default_name(settings: ProbeSettings) -> str:
    digest = hashlib.sha256(json.dumps(settings.as_dict(), sort_keys=True).encode()).hexdigest()
    return f"{settings.kind}-{settings.loss}-{settings.optimizer}-{digest[:6]}"
