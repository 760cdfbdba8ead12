"""A kind of probe in the analysis: its estimates, and what it has to say to people."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.graded import Graded
from teachdiag.analysis.bank.measurements import Bank, Record, Step
from teachdiag.analysis.bank.normalised import Scores, normalised_scores, raw_scores
from teachdiag.analysis.resampling.bootstrap import Resampling, evenly_spaced
from teachdiag.analysis.step.cross_validation import draw_folds
from teachdiag.artefacts import (
    BUCKETS,
    BY_GRADE,
    CONTRASTS,
    EFFICIENCY,
    ESTIMATES,
    FINDINGS,
    INFERENCE,
    PLACEBO_PANEL,
    PRIMARY,
    SATURATION,
    SELECTION,
    TOP_N,
)
from teachdiag.errors import EstimationError, SettingsError
from teachdiag.scores import Codes
from teachdiag.settings import KINDS, AnalyzeSettings
from teachdiag.tables import Table

_PART = 128, 500_000  # prompts that a part of a large bank has at least, and positions that it is to have
CONTENDER = "learnable"  # TA-OPD's score, the claim under test

Rows = list[dict[str, Any]]
Estimates = dict[Table, Rows]
Tables = dict[str, pd.DataFrame]  # of text, by title


@dataclass(frozen=True)
class Inputs:
    """What the estimates are made from; `graded` is None where responses were not graded."""

    run: Path
    settings: AnalyzeSettings
    bank: Bank
    records: list[Record]
    steps: list[Step]
    normalised: Scores
    raw: Scores
    resampling: Resampling
    graded: Graded | None = None

    @cached_property
    def part(self) -> "Inputs":
        """The same of a part of a large bank, as if it were the bank: prompts evenly spaced; else these themselves.

        For what would make hundreds of passes over the bank, and is there to compare its numbers with one another. It
        is the whole where a part cannot be normalised, since nearly all of its positions are alike.
        """
        most = max(_PART[0], self.bank.n_prompts * _PART[1] // len(self.bank))
        if most >= self.bank.n_prompts:
            return self
        bank, rows = self.bank.part(evenly_spaced(self.bank.n_prompts, most))
        try:
            normalised = normalised_scores(bank)
        except EstimationError:
            return self
        return replace(
            self,
            settings=replace(self.settings, folds=min(self.settings.folds, bank.n_prompts)),
            bank=bank,
            steps=[step.at(rows) for step in self.steps],
            normalised=normalised,
            raw=raw_scores(bank, normalised),
            resampling=replace(self.resampling, n_prompts=bank.n_prompts),
            graded=None,
        )

    def folds(self) -> Codes:
        """Draw the fold of each prompt in every assignment that cross-validation averages over."""
        settings = self.settings
        return draw_folds(self.bank.n_prompts, settings.folds, settings.fold_repeats, settings.seed)


@dataclass(frozen=True)
class Results:
    """The tables of the analysis that people read."""

    estimates: pd.DataFrame
    findings: pd.DataFrame
    saturation: pd.DataFrame
    selection: pd.DataFrame
    panel: pd.DataFrame
    contrasts: pd.DataFrame
    inference: pd.DataFrame
    top_n: pd.DataFrame
    buckets: pd.DataFrame
    primary: pd.DataFrame
    efficiency: pd.DataFrame
    by_grade: pd.DataFrame


RESULT_TABLES = (
    ESTIMATES,
    FINDINGS,
    SATURATION,
    SELECTION,
    PLACEBO_PANEL,
    CONTRASTS,
    INFERENCE,
    TOP_N,
    BUCKETS,
    PRIMARY,
    EFFICIENCY,
    BY_GRADE,
)


def read_results(run: Path) -> Results:
    """Read them from a run.

    Raises:
        ArtefactError: the analysis has not been run.
    """
    return Results(*(table.read(table.file(run)) for table in RESULT_TABLES))


class KindAnalysis:
    """One probe of one kind, as the analysis treats it; each kind says what differs.

    Attributes:
        title: heads its section.
        question: heads it in the documentation.
        record: the probe; `results` are those of its JSON.
    """

    title: ClassVar[str]
    question: ClassVar[str] = ""

    def __init__(self, record: Record) -> None:
        """Take a finished probe."""
        self.record, self.probe_id, self.settings = record, record.probe_id, record.settings

    def estimates(self, inputs: Inputs) -> Estimates:
        """Return its rows of the analysis' tables; not asked of a real step, all of which are analysed together."""
        raise NotImplementedError

    def text(self) -> str:
        """Say how its steps were taken, and what its placebos are."""
        raise NotImplementedError

    def sentences(self, results: Results) -> list[str]:
        """Say what it shows: its verdict."""
        raise NotImplementedError

    def secondary(self, results: Results) -> list[str]:
        """Say what it shows of secondary claims, which are folded away."""
        return []

    def tables(self, results: Results) -> Tables:
        """Return its tables for `summary.md` and the report."""
        raise NotImplementedError

    def central_tables(self, results: Results) -> Tables:
        """Return those that a terminal shows."""
        return self.tables(results)

    def headlines(self, results: Results) -> list[str]:
        """Say what the documentation says of it."""
        return self.sentences(results)

    def compact_tables(self, results: Results) -> Tables:
        """Return those that the documentation shows."""
        return {}

    def measured(self, title: str) -> list[Grid | str]:
        """Return what a terminal shows when the probe has just ended, from its record's results alone."""
        return [title]


def analysis_of(record: Record) -> KindAnalysis:
    """Return a probe as its kind treats it.

    Raises:
        InputError: the kind is unknown, or its end in the analysis cannot be imported.
    """
    kind = KINDS[record.kind]
    end = kind.end(kind.analysed_by)
    if not (isinstance(end, type) and issubclass(end, KindAnalysis)):
        raise SettingsError(f"kind of probe {kind.name}: {kind.analysed_by} is no KindAnalysis of teachdiag")
    return end(record)


def grid(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    """Return a table of text for the terminal, numbers to the right of their names."""
    table = Grid(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table
