"""Does the real step's number exceed each placebo's? Paired differences, from the same bootstrap draws."""

from collections.abc import Collection, Sequence
from typing import Any

from teachdiag.analysis.bank.measurements import Step
from teachdiag.analysis.resampling.bootstrap import intervals


def beyond(analysis: str) -> str:
    """Return the name of the analysis that holds the real step's number less a placebo's."""
    return f"{analysis}_beyond_placebo"


def beyond_rows(
    rows: Sequence[dict[str, Any]], steps: Sequence[Step], analyses: Collection[str]
) -> list[dict[str, Any]]:
    """Return the real step's number less each placebo's, under the placebo's probe_id.

    Two intervals of which one holds 0 and the other does not say little about their difference: this is it. Both sides
    were computed with the same weights, so the draws are paired.

    Args:
        rows: estimates with their draws.
        steps: real steps and their placebos.
        analyses: those for which differences are wanted.
    """
    by_key = {(row["probe_id"], *_term(row)): row for row in rows if row["analysis"] in analyses}
    pairs = [
        (row, by_key[placebo.probe_id, *_term(row)])
        for step in steps
        for row in rows
        if row["probe_id"] == step.real.probe_id and row["analysis"] in analyses
        for placebo in step.placebos
        if (placebo.probe_id, *_term(row)) in by_key
    ]
    return [
        placebo
        | intervals((real["draws"] - placebo["draws"])[:, None])[0].columns()
        | {"analysis": beyond(placebo["analysis"]), "std_error": None}
        | {"method": f"real step less this placebo, paired draws; {placebo['method']}"}
        for real, placebo in pairs
    ]


def _term(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["analysis"], row["outcome"], row["k"], row["term"]
