"""Which weights a probe moves: all of its student's, those of the student's adapter, or those of a fresh adapter.

Steps, directions, norms, placebos and derivatives lie in the space of `LanguageModel.parameters()`: what is chosen
here, before theta0 is taken, holds for all of them.
"""

from typing import Any

from teachdiag.diagnostics.models.adapters import put_fresh_on
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.errors import SettingsError
from teachdiag.seeds import derive_seed
from teachdiag.settings import CaptureSettings, ProbeSettings


def refuse_other_weights(settings: ProbeSettings, capture: CaptureSettings) -> None:
    """Refuse to move weights that the student of a run does not have, or that are under an adapter.

    Raises:
        SettingsError: it does not have them, or they are.
    """
    if settings.train == "adapter" and not capture.student_adapter:
        raise SettingsError(
            "--train adapter: the student of this run has none; capture with --student-adapter, or take a fresh one by "
            "--train lora:r=16"
        )
    if settings.train not in ("auto", "adapter") and capture.student_adapter:
        raise SettingsError(
            f"--train {settings.train}: the student of this run has an adapter, which is what steps move: leave it "
            "out, or capture the merged model"
        )
    if settings.shard_model and capture.student_adapter:
        raise SettingsError("--shard-model: the student of this run has an adapter, which is not sharded: leave it out")


def choose_weights(student: LanguageModel, settings: ProbeSettings) -> None:
    """Let a student's parameters be the weights that a probe moves; a fresh adapter, made here, changes no logit.

    While its B is 0 its A has no gradient: one step moves B alone, and a random direction with a part in A would be a
    shorter one.

    Raises:
        ModelError: it cannot be put on the student.
    """
    if settings.fresh_adapter is not None:
        seed = derive_seed(settings.seed, "adapter")
        put_fresh_on(student.model, student.name, settings.fresh_adapter, seed, whole=settings.steps > 1)


def trained_facts(student: LanguageModel) -> dict[str, Any]:
    """Return how many weights steps move, and of how many: what a probe's results say."""
    moved = sum(weight.numel() for _, weight in student.parameters())
    return {"parameters": moved, "of": sum(weight.numel() for weight in student.model.parameters())}
