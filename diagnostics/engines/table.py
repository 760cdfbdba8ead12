"""Every engine by its name: what --engine and --teacher-engine choose from."""

from teachdiag.diagnostics.engines.in_process import TransformersRollouts, TransformersTeacher
from teachdiag.diagnostics.engines.protocol import RolloutEngine, TeacherEngine
from teachdiag.diagnostics.engines.ray_pipeline import RayRollouts, RayTeacher
from teachdiag.diagnostics.engines.served.teacher import ServedTeacher
from teachdiag.diagnostics.engines.vllm_rollouts import VllmRollouts
from teachdiag.diagnostics.engines.vllm_teacher import VllmTeacher
from teachdiag.settings import CaptureSettings

# None of these modules imports vLLM or Ray before its engine is asked for something.
_ROLLOUTS: dict[str, RolloutEngine] = {
    "transformers": TransformersRollouts(),
    "vllm": VllmRollouts(),
    "ray": RayRollouts(),
}
_TEACHERS: dict[str, TeacherEngine] = {
    "transformers": TransformersTeacher(),
    "vllm": VllmTeacher(),
    "ray": RayTeacher(),
    "served": ServedTeacher(),
}


def engines(settings: CaptureSettings) -> tuple[RolloutEngine, TeacherEngine]:
    """Return what samples the rollouts, and what answers as the teacher; Ray's workers do both.

    Raises:
        InputError: one of them, or what it is to do here, is not possible; what is brought needs no sampling.
    """
    rollouts = _ROLLOUTS[settings.engine]
    teacher = _TEACHERS["served" if settings.teacher_url else settings.teacher_engine]
    if settings.engine == "ray":
        teacher = _TEACHERS["ray"]
    teacher.require(settings)
    if not settings.contexts:
        rollouts.require(settings)
    return rollouts, teacher
