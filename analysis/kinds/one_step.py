"""Kind one_step: one optimizer step, or several in a row, beside placebos of its length."""

from teachdiag.analysis.kinds.steps import StepAnalysis, step_text


class OneStep(StepAnalysis):
    """One optimizer step, or several in a row."""

    title = "Step"

    def text(self) -> str:
        """Say how the step was taken, and what its placebos are."""
        return step_text(self.record)
