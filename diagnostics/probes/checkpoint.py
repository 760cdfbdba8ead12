"""Kind checkpoint: a student that was trained elsewhere, in the place of a step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from teachdiag.adapters import is_adapter
from teachdiag.diagnostics.models.adapters import merge
from teachdiag.diagnostics.models.language_model import load
from teachdiag.diagnostics.models.pair import adapted
from teachdiag.diagnostics.models.sources import ModelSource
from teachdiag.diagnostics.models.weights import resolve_whole
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.diagnostics.probes.steps import NOTHING, RANDOM, StepMeasurement
from teachdiag.diagnostics.probes.updates import Step
from teachdiag.diagnostics.processes.parameters import laid_out_like
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings, ProbeSettings


class Checkpoint(StepMeasurement):
    """A student that was trained elsewhere; it cannot be shuffled after the fact."""

    update = "checkpoint"
    placebos = (NOTHING, RANDOM)

    def inputs(self, run: Path, capture: CaptureSettings, student: ModelSource, reporter: Reporter) -> dict[str, Any]:
        """Return the digest of its weights."""
        return {"student_after": _student_after(self.settings, capture, student, reporter).whole_digest}

    def take(self, setup: ProbeSetup) -> Step:
        """Give the student the weights of the other."""
        return _take_checkpoint(setup)


def _student_after(
    settings: ProbeSettings, capture: CaptureSettings, student: ModelSource, reporter: Reporter
) -> ModelSource:
    """Find the student that was trained elsewhere; an adapter is one of this student, without its own.

    Raises:
        ModelError: it cannot be found, or its weights are not those of its architecture.
    """
    if is_adapter(Path(settings.student_after)):
        return adapted(replace(student, adapter=None), settings.student_after, reporter)
    return resolve_whole(settings.student_after, "main", (), reporter, capture.trust_remote_code)


@torch.no_grad()
def _take_checkpoint(setup: ProbeSetup) -> Step:
    """Give the student the weights of a student that was trained elsewhere.

    Raises:
        ModelError: it has other parameters than the student.
    """
    path = setup.settings.student_after
    device = "cpu" if setup.student.sharded else str(setup.student.device)
    after = _student_after(setup.settings, setup.capture, setup.student.source, setup.reporter)
    trained = load(after, "float32", device)
    if after.adapter and not setup.student.source.adapter:
        merge(trained.model)
    theirs = dict(trained.parameters())
    ours = dict(setup.student.parameters())
    if theirs.keys() != ours.keys() or any(ours[name].shape != p.shape for name, p in theirs.items()):
        raise ModelError(f"--student-after {path!r} has other parameters than the student {setup.student.name!r}")
    setup.theta0.leave(laid_out_like(parameter, theirs[name]) for name, parameter in ours.items())
    return Step(0.0, 0.0, 0, setup.theta0.distance())
