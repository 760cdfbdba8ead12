"""Kind checkpoint: a student that was trained elsewhere, in the place of a step."""

from pathlib import Path
from typing import Any

import torch

from teachdiag.diagnostics.models.language_model import load
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

    def inputs(self, run: Path, capture: CaptureSettings, reporter: Reporter) -> dict[str, Any]:
        """Return the digest of its weights."""
        return {"student_after": _student_after(self.settings, capture, reporter).digest}

    def take(self, setup: ProbeSetup) -> Step:
        """Give the student the weights of the other."""
        return _take_checkpoint(setup)


def _student_after(settings: ProbeSettings, capture: CaptureSettings, reporter: Reporter) -> ModelSource:
    """Find the student that was trained elsewhere.

    Raises:
        ModelError: it cannot be found, or its weights are not those of its architecture.
    """
    return resolve_whole(settings.student_after, "main", (), reporter, capture.trust_remote_code)


@torch.no_grad()
def _take_checkpoint(setup: ProbeSetup) -> Step:
    """Give the student the weights of a student that was trained elsewhere.

    Raises:
        ModelError: it has other parameters than the student.
    """
    path = setup.settings.student_after
    device = "cpu" if setup.student.sharded else str(setup.student.device)
    trained = load(_student_after(setup.settings, setup.capture, setup.reporter), "float32", device)
    theirs = dict(trained.parameters())
    ours = dict(setup.student.parameters())
    if theirs.keys() != ours.keys() or any(ours[name].shape != p.shape for name, p in theirs.items()):
        raise ModelError(f"--student-after {path!r} has other parameters than the student {setup.student.name!r}")
    setup.theta0.leave(laid_out_like(parameter, theirs[name]) for name, parameter in ours.items())
    return Step(0.0, 0.0, 0, setup.theta0.distance())
