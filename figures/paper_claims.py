"""What holds on all pairs, what on some, what on none: the paper's claims as rows, runs as columns.

Nothing is estimated: numbers and statuses are those of each run's analysis. Of selectors, whose table has no statuses,
the interval says on which side of 0 a number lies.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.seen import interval_text
from teachdiag.glossary import GAINS
from teachdiag.markdown import markdown_table
from teachdiag.settings import HEADLINE_BUDGET, HEADLINE_K, HEADLINE_OUTCOME
from teachdiag.signals import BASE, BASE_LABEL
from teachdiag.tables import rows_where

_Q3 = "high C beats low C inside Q3"  # TA-OPD's own, of the findings
_AT = f"at {HEADLINE_BUDGET:.0%} of tokens"
_KEPT = {  # claim: outcome, selector and statistic of the efficiency table
    f"{who} keeps more of the {gain} than {than}, {_AT}": (outcome, selector, statistic)
    for outcome, gain in GAINS.items()
    for who, selector, than, statistic in (
        ("TA-OPD's learnable score", "learnable", BASE_LABEL, "share_vs_base"),
        ("TA-OPD's learnable score", "learnable", "random tokens", "share_vs_random"),
        (BASE_LABEL, BASE, "random tokens", "share_vs_random"),
    )
}
_ENDS = ("estimate", "ci_low", "ci_high")
HOLDS, REVERSED, NOT_SHOWN, NOT_JUDGED = "holds", "reversed", "not shown", "not judged"
_JUDGED = (HOLDS, REVERSED, NOT_SHOWN, "artefact", "unclear")  # statuses of a claim that a run could answer


@dataclass(frozen=True)
class Answer:
    """What one probe of a run says of a claim; without a number where it could not be estimated."""

    claim: str
    run: str
    probe_id: str
    status: str
    unit: str = "1"
    estimate: float = np.nan
    ci_low: float = np.nan
    ci_high: float = np.nan

    def __str__(self) -> str:
        if np.isnan(self.estimate):
            return self.status
        number = interval_text(self.estimate, self.ci_low, self.ci_high)
        return f"{number}{' nats' if self.unit == 'nats' else ''}: {self.status}"


def answers(runs: Mapping[str, RunTables]) -> list[Answer]:
    """Return what every probe of some runs, by name, says of the claims, claim by claim."""
    every = [answer for name, tables in runs.items() for answer in _answers(name, tables)]
    order = list(dict.fromkeys(answer.claim for answer in every if answer.claim not in (_Q3, *_KEPT)))
    order += [_Q3, *_KEPT]
    return sorted(every, key=lambda answer: order.index(answer.claim))


def holds_on(given: Sequence[Answer]) -> str:
    """Say on how many pairs a claim holds, of those that could answer, and on how many its opposite does."""
    judged = [answer.status for answer in given if answer.status in _JUDGED]
    if not judged:
        return NOT_JUDGED
    held, against = judged.count(HOLDS), judged.count(REVERSED)
    how_many = "all" if held == len(judged) else "some" if held else "none"
    opposite = f"; the opposite on {against}" if against else ""
    return f"{how_many}: {held} of {len(judged)}{opposite}"


def long_table(given: Sequence[Answer]) -> pd.DataFrame:
    """Return one row an answer, with what holds over all of them."""
    columns = ["claim", "run", "probe_id", *_ENDS, "unit", "status"]
    verdicts = {claim: holds_on(own) for claim, own in _by_claim(given).items()}
    return pd.DataFrame(
        [[getattr(answer, name) for name in columns] + [verdicts[answer.claim]] for answer in given],
        columns=[*columns, "holds_on"],
    )


def wide_table(given: Sequence[Answer], runs: Sequence[str]) -> str:
    """Return the claims in Markdown, one a line: what each run says, and on how many of them the claim holds."""
    rows = []
    for claim, own in _by_claim(given).items():
        cells = {run: _cell([answer for answer in own if answer.run == run]) for run in runs}
        rows.append({"claim": claim} | cells | {"holds on": holds_on(own)})
    return markdown_table(pd.DataFrame(rows))


def _cell(given: Sequence[Answer]) -> str:
    """Return the answers of a run's probes, named where there are several."""
    if len(given) < 2:
        return "".join(map(str, given)) or "-"
    return "; ".join(f"{answer.probe_id} {answer}" for answer in given)


def _by_claim(given: Sequence[Answer]) -> dict[str, list[Answer]]:
    claims: dict[str, list[Answer]] = {}
    for answer in given:
        claims.setdefault(answer.claim, []).append(answer)
    return claims


def _answers(run: str, tables: RunTables) -> Iterator[Answer]:
    for row in tables.primary.to_dict("records"):
        yield _answer(row, run, row["claim"], row["status"])
    q3 = rows_where(tables.findings, finding=_Q3, outcome=HEADLINE_OUTCOME, k=HEADLINE_K)
    for row in q3.to_dict("records"):
        yield _answer(row, run, _Q3, row["status"])
    for claim, (outcome, selector, statistic) in _KEPT.items():
        measured = rows_where(tables.efficiency, outcome=outcome)
        for probe_id in measured["probe_id"].unique():
            at = rows_where(measured, probe_id=probe_id, match="norm", budget=HEADLINE_BUDGET)
            rows = rows_where(at, selector=selector, statistic=statistic)
            if rows.empty:  # no share where the whole batch's gain is not told from 0
                yield Answer(claim, run, str(probe_id), NOT_JUDGED)
            for row in rows.to_dict("records"):
                side = int(row["ci_low"] > 0) - int(row["ci_high"] < 0)
                yield _answer(row, run, claim, {1: HOLDS, -1: REVERSED}.get(side, NOT_SHOWN))


def _answer(row: Mapping[Any, Any], run: str, claim: str, status: str) -> Answer:
    numbers = {name: np.nan if pd.isna(row[name]) else float(row[name]) for name in _ENDS}
    return Answer(claim, run, str(row["probe_id"]), status, str(row["unit"]), **numbers)
