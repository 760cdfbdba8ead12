"""Stage probe: a frozen bank, one kind of question put to the student, and a table of what was measured."""

from pathlib import Path
from typing import Any

from teachdiag.artefacts import POSITIONS
from teachdiag.diagnostics.models.captured import READ, WHOLE, captured_settings, refuse_other_models
from teachdiag.diagnostics.models.pair import resolve_pair
from teachdiag.diagnostics.probes.measurement import measurement
from teachdiag.diagnostics.probes.names import find_or_name
from teachdiag.diagnostics.probes.probe_setup import set_up
from teachdiag.diagnostics.probes.trained import refuse_other_weights, trained_facts
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.processes.devices import machine_facts, process_device
from teachdiag.diagnostics.processes.group import refuse_sharding_alone
from teachdiag.diagnostics.processes.shared_stage import SharedStage, agree
from teachdiag.errors import RunError
from teachdiag.losses import LOSSES
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings


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
    captured = SharedStage(run, "capture").require(*READ)
    on_first(POSITIONS.require)(run / "positions", WHOLE)
    capture = captured_settings(run, captured)
    _refuse_biased_loss(settings, capture, reporter)
    refuse_other_weights(settings, capture)
    probe_id, recorded = on_first(find_or_name)(run, settings)
    kind = measurement(settings)
    stage = SharedStage(run, f"probes/{probe_id}", kind.folders(probe_id), scratch=f"scratch/{probe_id}")
    with stage.held():
        device = process_device(settings.device)
        sources = on_first(resolve_pair)(capture, reporter)
        refuse_other_models(run, captured, sources)
        further = on_first(kind.inputs)(run, capture, sources[0], reporter)
        inputs = captured["inputs"] | captured["tables"] | further
        if stage.claim(recorded, inputs, machine_facts(device), settings.defaults()):
            reporter.say(f"{run}: probe {probe_id} is complete")
            return dict(stage.require()["results"])
        with stage.timed():
            setup = set_up(stage, probe_id, settings, capture, sources, device, reporter, kind)
            results = {"probe_id": probe_id, "kind": settings.kind, "trained": trained_facts(setup.student)}
            results |= kind.measure(setup)
            stage.complete(results)
    return results


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
