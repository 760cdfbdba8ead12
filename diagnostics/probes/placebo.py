"""Kind placebo: the step with many draws of each placebo, among them responses dealt to other prompts."""

from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.diagnostics.probes.shuffles import shuffle_rollouts
from teachdiag.diagnostics.probes.steps import NOTHING, RANDOM, TEACHER, StepMeasurement, Update, take_steps
from teachdiag.diagnostics.probes.updates import Step
from teachdiag.seeds import derive_seed

ROLLOUTS = "shuffled_rollouts"


class Placebo(StepMeasurement):
    """The step with many draws of each placebo."""

    @property
    def placebos(self) -> tuple[str, ...]:
        """Names of the placebos.

        Shuffled rollouts still have their true teacher: the panel tells what they teach, the verdict on one step does
        not.
        """
        return (NOTHING, TEACHER, ROLLOUTS, RANDOM)

    def further_contexts(self, update: list[Context], limit: int) -> list[Context]:
        """Return the rollouts of the shuffled-rollouts placebo, every draw of it.

        Raises:
            EstimationError: there are too few contexts to shuffle among.
        """
        return [
            context
            for draw in range(self.settings.placebo_draws)
            for context in shuffle_rollouts(
                update, limit, -1 - draw * len(update), derive_seed(self.settings.seed, ROLLOUTS, draw)
            )
        ]

    def take_placebo(self, setup: ProbeSetup, update: Update) -> Step:
        """Move the student from theta0 by one draw of a placebo."""
        if update.name != ROLLOUTS:
            return super().take_placebo(setup, update)
        size = len(setup.update)
        return take_steps(setup, setup.further[update.draw * size : (update.draw + 1) * size], setup.teacher)
