"""Looks at the checkpoints of a training that is over, with the monitor, as it would have taken them on the way."""

from pathlib import Path

from teachdiag.artefacts.monitored import CANARY
from teachdiag.diagnostics.models.captured import captured_pair
from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.weights import resolve_whole
from teachdiag.diagnostics.monitoring.in_training import ModelInTraining
from teachdiag.diagnostics.monitoring.monitor import Monitor
from teachdiag.diagnostics.processes.devices import pick_device
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.settings import TimelineSettings


def look_at_checkpoints(folder: Path, settings: TimelineSettings, reporter: Reporter) -> None:
    """Look at the untouched student and at every checkpoint; steps that were looked at are left as they are.

    Args:
        folder: where the looks go, as `Monitor` writes them.
        settings: checkpoints, and the run whose bank is the canary.
        reporter: progress, and what looks wrong.

    Raises:
        InputError: the run has no bank, a checkpoint cannot be loaded, or it does not speak the bank's tokens.
    """
    run, device = Path(settings.canary), pick_device(settings.device)
    capture, (student, _) = captured_pair(run, reporter)
    trusted = capture.trust_remote_code
    sources = {0: student}
    for step, name in (settings.steps or {}).items():
        sources[step] = resolve_whole(name, "main", (), reporter, trusted)
    watch = Monitor(
        folder, run, contexts=settings.contexts, positions=settings.positions, device=device, reporter=reporter
    )
    assert watch.canary is not None, "it was given one"
    known = watch.canary.known
    for step in reporter.track(sorted(sources.keys() - set(watch.looked_at(CANARY))), "Checkpoints"):
        model = load(sources[step], capture.dtype, device)
        if model.known != known:
            raise ModelError(
                f"{model.name} knows {model.known.count} ids, and the bank's models {known.count}: give "
                "checkpoints of the run's student"
            )
        watch.observe_canary(step, ModelInTraining(model.model, known))
        del model  # or two would be on the device while the next is loaded
