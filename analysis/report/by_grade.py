"""What differs between right and wrong responses, as a sentence and a table of text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.analysis.bank.lookup import lookup_text
from teachdiag.analysis.kinds.kind import Results
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS
from teachdiag.artefacts import GRADE_NAMES, RIGHT_LESS_WRONG, SAME_PROMPT
from teachdiag.markdown import markdown_table
from teachdiag.runs import Stage
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import SIGNALS

TITLE = "By grade of the response"
_GROUPS = (*GRADE_NAMES, RIGHT_LESS_WRONG, SAME_PROMPT)
_NOTE = (
    f"Means over positions at K={HEADLINE_K}; then the primary numbers, from the responses of one grade alone. Right "
    "and wrong responses are of other prompts, easy ones and hard ones: the last column compares those of the same "
    f"prompt, where there are both. Fewer than {MIN_PROMPTS} prompts have no interval. Placebos stand beside steps."
)


@dataclass(frozen=True)
class ByGrade:
    """What is told of grades: how many there are of each, the table of text, and how it is read."""

    counts: str
    table: pd.DataFrame

    def markdown(self) -> list[str]:
        """Return it as paragraphs of Markdown."""
        return [f"## {TITLE}", self.counts, markdown_table(self.table), _NOTE]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for whoever lays it out."""
        grid = {"columns": list(self.table.columns), "rows": self.table.to_numpy().tolist()}
        return grid | {"title": TITLE, "counts": self.counts, "note": _NOTE}


def by_grade(run: Path, results: Results) -> ByGrade | None:
    """Return what is told of a run's grades, or None where it has none.

    Args:
        run: the run directory.
        results: the tables of its analysis.
    """
    if results.by_grade.empty:
        return None
    counted = Stage(run, "grade").record("results.bank")["results"]["bank"]
    listed = ", ".join(f"{counted[grade]} {grade}" for grade in GRADE_NAMES)
    cut = counted["cut_before_an_answer"]
    of_cut = (
        f" {cut} of these were cut before they gave an answer: what they would have said is unknown." if cut else ""
    )
    return ByGrade(f"The bank's responses: {listed}.{of_cut}", grade_table(results.by_grade))


def grade_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table `by_grade` as text: a line a number, a column a group of responses."""
    groups = [group for group in _GROUPS if group in set(rows["group"])]
    sizes = rows.drop_duplicates("group").set_index("group")
    counts = {group: f"{sizes['n_responses'][group]} ({sizes['n_prompts'][group]})" for group in groups}
    lines = [{"number": "responses (prompts)", "of": "bank"} | counts]
    for probe_id, of_probe in rows.groupby("probe_id", sort=False):
        for quantity, of_number in of_probe.groupby("quantity", sort=False):
            cells = {group: lookup_text(of_number.dropna(subset="estimate"), group=group) for group in groups}
            lines.append(
                {"number": _named(str(quantity), of_number["unit"].iloc[0]), "of": str(probe_id) or "bank"} | cells
            )
    return pd.DataFrame(lines)


def _named(quantity: str, unit: str) -> str:
    name = SIGNALS[quantity].label if quantity in SIGNALS else quantity
    return name if unit == "1" else f"{name} [{unit}]"
