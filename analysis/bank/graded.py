"""Grades of the bank's responses, as the analysis reads them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teachdiag.analysis.bank.measurements import Bank
from teachdiag.artefacts import GRADE_NAMES, GRADES
from teachdiag.errors import ArtefactError
from teachdiag.runs import Stage
from teachdiag.scores import Codes, Mask


@dataclass(frozen=True)
class Graded:
    """What grade the response of each bank position has.

    `codes`: shape (N,), its number in `GRADE_NAMES`. `contexts`: shape (N,), its response.
    """

    codes: Codes
    contexts: Codes

    def of(self, grade: str) -> Mask:
        """Return which positions lie in responses of a grade, shape (N,)."""
        return np.asarray(self.codes == GRADE_NAMES.index(grade))

    def responses(self, rows: Mask) -> int:
        """Count the responses that some positions lie in."""
        return len(np.unique(self.contexts[rows]))


def load_grades(run: Path, bank: Bank) -> Graded | None:
    """Read the grades of a run's bank, or None where it was not graded.

    Raises:
        RunError: grading is unfinished, or the grades are no longer what it wrote.
        ArtefactError: a response of the bank has no grade.
    """
    stage = Stage(run, "grade")
    if stage.read() is None:
        return None
    stage.require()
    grades = GRADES.read(run / GRADES.folder, ["context_id", "grade"]).set_index("context_id")["grade"]
    contexts = np.asarray(bank.positions["context_id"], np.int64)
    known = grades.reindex(np.unique(contexts))
    codes = known.map({name: code for code, name in enumerate(GRADE_NAMES)})
    if codes.isna().any():
        raise ArtefactError(
            f"{run / GRADES.folder} has no grade of context {codes.index[codes.isna()][0]}: delete {stage.note.name} "
            f"and grades, and run `{stage.command}` again"
        )
    of_position = codes.to_numpy(np.int64)[np.searchsorted(codes.index, contexts)]
    return Graded(np.asarray(of_position, np.int64), contexts)
