"""Kind checkpoint: a student that was trained elsewhere."""

from teachdiag.analysis.kinds.steps import StepAnalysis
from teachdiag.analysis.text.text_tables import model_name


class Checkpoint(StepAnalysis):
    """A student that was trained elsewhere."""

    title = "Checkpoint"

    def text(self) -> str:
        """Say which student it is, and what its placebos are."""
        return (
            f"The student trained elsewhere, {model_name(self.settings['student_after'])}, beside theta0 in another "
            "batch layout and a random direction of the same length."
        )
