"""Kind one_step: one optimizer step on the update batch, or several in a row, beside placebos of its length."""

from collections.abc import Sequence
from dataclasses import replace

from teachdiag.diagnostics.contexts.contexts_table import ROLLOUT_CONTEXTS
from teachdiag.diagnostics.contexts.kept import Positions
from teachdiag.diagnostics.contexts.sampling import Rollout, check_prompts_fit, sample
from teachdiag.diagnostics.models.alignment import Context, Side, in_shards
from teachdiag.diagnostics.models.language_model import LanguageModel
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.diagnostics.probes.steps import NOTHING, RANDOM, StepMeasurement, step_batches
from teachdiag.diagnostics.probes.teacher_states import compute_teacher_states
from teachdiag.diagnostics.probes.updates import Objective, Step, optimize, step_objective
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

    def take(self, setup: ProbeSetup) -> Step:
        """Take the step or steps."""
        return _take_fresh_steps(setup) if self.settings.rollouts == "fresh" else super().take(setup)


def _take_fresh_steps(setup: ProbeSetup) -> Step:
    """Take steps on responses that are sampled, before each, from the student as it is then."""
    teacher = setup.teacher_model
    assert teacher is not None, "the teacher is kept where rollouts are fresh"
    sides: tuple[tuple[LanguageModel, Side], ...] = ((setup.student, "student"), (teacher, "teacher"))
    for model, side in sides:
        prompts = [(c.prompt_id, c.prompt(side)) for c in setup.update]
        check_prompts_fit(prompts, model, setup.capture.max_new_tokens)
    batches = step_batches(setup.settings, setup.update)
    objectives = (_fresh_objective(setup, teacher, batch, number) for number, batch in enumerate(batches))
    return optimize(setup.student, objectives, setup.settings, setup.theta0, setup.reporter)


def _fresh_objective(setup: ProbeSetup, teacher: LanguageModel, batch: Sequence[Context], number: int) -> Objective:
    sampled = on_first(_fresh_rollouts)(setup, batch, number)
    kept = [Positions.of(setup.capture).keep(index, rollout.token_ids) for index, rollout in enumerate(sampled)]
    contexts = [
        replace(c, context_id=index, response=k.response, kept=k.positions, weights=k.weights)
        for index, (c, k) in enumerate(zip(batch, kept, strict=True))
    ]
    file = setup.scratch / "fresh.npy"
    file.unlink(missing_ok=True)
    states = compute_teacher_states(teacher, [contexts], setup.settings.batch_tokens, file, Reporter(quiet=True))
    return step_objective(contexts, states, setup.settings)


def _fresh_rollouts(setup: ProbeSetup, batch: Sequence[Context], number: int) -> list[Rollout]:
    sampled: list[Rollout] = []
    for indices in in_shards(range(len(batch)), ROLLOUT_CONTEXTS):
        seeds = [derive_seed(setup.settings.seed, "fresh", number, index) for index in indices]
        prompts = [batch[index].student_prompt for index in indices]
        sampled += sample(setup.student, prompts, seeds, setup.capture.sampling)
    return sampled
