"""Kind efficiency: what share of the whole batch's held-out gain a step keeps on what each selector chose."""

from teachdiag.analysis.kinds.kind import Estimates, Inputs, KindAnalysis, Results, Tables
from teachdiag.analysis.step.step_length import learning_rate


class Efficiency(KindAnalysis):
    """Efficiency of selectors, to first order."""

    title = "Efficiency of selectors"
    question = "Which tokens to train on?"

    def estimates(self, inputs: Inputs) -> Estimates:
        """Return no rows yet."""
        return {}

    def text(self) -> str:
        """Say how gains were foreseen and measured."""
        return f"First-order gains of masked steps, {self.settings['optimizer']}, rate {learning_rate(self.record)}."

    def sentences(self, results: Results) -> list[str]:
        """Say nothing yet."""
        return []

    def tables(self, results: Results) -> Tables:
        """Return no tables yet."""
        return {}
