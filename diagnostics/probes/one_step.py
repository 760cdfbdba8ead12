"""Kind one_step: one optimizer step on the update batch, or several in a row, beside placebos of its length."""

from collections.abc import Sequence
from dataclasses import replace

from teachdiag.diagnostics.contexts.contexts_table import ROLLOUT_CONTEXTS
from teachdiag.diagnostics.contexts.sampling import Rollout, check_prompts_fit, sample
from teachdiag.diagnostics.models.alignment import Context, Side, in_shards
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.probes.steps import NOTHING, RANDOM, StepMeasurement, step_batches
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.updates import Objective, Step, optimize, step_objective
from teachdiag.diagnostics.probes.workbench import Workbench
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed


class OneStep(StepMeasurement):
    """One optimizer step, or several in a row, on the run's rollouts or on fresh ones."""

    @property
    def placebos(self) -> tuple[str, ...]:
        """Names of the placebos; fresh rollouts cannot be shuffled after the fact."""
        return (NOTHING, RANDOM) if self.settings.rollouts == "fresh" else super().placebos

    def batch(self, contexts: list[Context]) -> list[Context]:
        """Return all contexts where several steps draw from them, the update batch otherwise."""
        return contexts if self.settings.steps > 1 else super().batch(contexts)

    def take(self, bench: Workbench) -> Step:
        """Take the step or steps."""
        return _take_fresh_steps(bench) if self.settings.rollouts == "fresh" else super().take(bench)


def _take_fresh_steps(bench: Workbench) -> Step:
    """Take steps on responses that are sampled, before each, from the student as it is then."""
    teacher = bench.teacher_model
    assert teacher is not None, "the teacher is kept where rollouts are fresh"
    sides: tuple[tuple[LanguageModel, Side], ...] = ((bench.student, "student"), (teacher, "teacher"))
    for model, side in sides:
        prompts = [(c.prompt_id, c.prompt(side)) for c in bench.update]
        check_prompts_fit(prompts, model, bench.capture.max_new_tokens)
    batches = step_batches(bench.settings, bench.update)
    objectives = (_fresh_objective(bench, teacher, batch, number) for number, batch in enumerate(batches))
    return optimize(bench.student, objectives, bench.settings, bench.theta0, bench.reporter)


def _fresh_objective(bench: Workbench, teacher: LanguageModel, batch: Sequence[Context], number: int) -> Objective:
    sampled = on_first(_fresh_rollouts)(bench, batch, number)
    contexts = [
        replace(c, context_id=index, response=rollout.token_ids[: bench.capture.positions])
        for index, (c, rollout) in enumerate(zip(batch, sampled, strict=True))
    ]
    file = bench.scratch / "fresh.npy"
    file.unlink(missing_ok=True)
    states = compute_teacher_states(teacher, [contexts], bench.settings.batch_tokens, file, Reporter(quiet=True))
    return step_objective(contexts, states, bench.settings)


def _fresh_rollouts(bench: Workbench, batch: Sequence[Context], number: int) -> list[Rollout]:
    sampled: list[Rollout] = []
    for indices in in_shards(range(len(batch)), ROLLOUT_CONTEXTS):
        seeds = [derive_seed(bench.settings.seed, "fresh", number, index) for index in indices]
        prompts = [batch[index].student_prompt for index in indices]
        sampled += sample(bench.student, prompts, seeds, bench.capture.sampling)
    return sampled
