"""What each selector keeps of the whole batch's gain under each teacher, and by how much the shares differ.

A draw holds the same update prompts and weighs the bank's blocks alike for every teacher, whose selectors choose in it
by its own scores. Norms of masked gradients are measured under each teacher, with errors of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.efficiency.drawn import Drawn
from teachdiag.analysis.efficiency.rows import (
    GAIN,
    SHARE,
    Measured,
    Population,
    Resampled,
    few_draws,
    load_measured,
    population_of,
    resampled,
)
from teachdiag.analysis.efficiency.step_lengths import ALL, length_ratios
from teachdiag.analysis.resampling.bootstrap import Interval, Resampling
from teachdiag.analysis.teachers.measures import beside
from teachdiag.artefacts import TEACHER_CURVES
from teachdiag.runs import Stage
from teachdiag.seeds import derive_seed

Rows = list[dict[str, Any]]
Cell = tuple[str, float]  # selector and budget


@dataclass(frozen=True)
class Compared:
    """The rows of `teacher_curves`, and a sentence on why they hold no shares, '' where they do."""

    rows: Rows
    obstacle: str


@dataclass(frozen=True)
class _Run:
    """What a run's probe measured, and the draws of it."""

    name: str
    teacher: str
    measured: Measured
    resampled: Resampled
    population: Population


def compare_curves(
    runs: Sequence[Path], records: Sequence[Record], teachers: Mapping[str, str], resampling: Resampling
) -> Compared:
    """Compare what selectors keep in several runs, of those that all runs can compare.

    Args:
        runs: the run directories.
        records: of each a probe of kind efficiency, taken with the same settings.
        teachers: by the name of each run.
        resampling: of the bank's prompts; its seed and draws are those of update batches too.

    Raises:
        RunError: a table is no longer what its probe wrote.
        ArtefactError: a table is missing.
    """
    few = few_draws(resampling)
    read: list[Measured] = []
    for run, record in zip(runs, records, strict=True):
        Stage(run, f"probes/{record.probe_id}").require()
        read.append(load_measured(run, record))
    shared = [name for name in read[0].selectors if all(name in measured.selectors for measured in read)]
    compared = []
    for (name, teacher), whole in zip(teachers.items(), read, strict=True):
        measured = replace(whole, selectors={selector: whole.selectors[selector] for selector in shared})
        compared.append(_Run(name, teacher, measured, resampled(measured, few), population_of(measured, few)))
    rows = list(_gain_rows(compared))
    for each in compared:
        if each.resampled.curve is None:
            gain = f"{each.resampled.gain} nats per unit of learning rate"
            said = (
                f"What selectors keep is not compared: the whole batch's gain in {each.name}, {gain}, is not clearly "
            )
            return Compared(rows, f"{said}told from 0.")
    return Compared([*rows, *_share_rows(compared, few.seed)], "")


def _gain_rows(compared: Sequence[_Run]) -> Iterator[dict[str, Any]]:
    """Yield the gain of a step of learning rate 1 on the whole batch."""
    gains = [Drawn(run.resampled.whole.values[:, :1], run.resampled.whole.influence[:, :1]) for run in compared]
    yield from _rows(compared, [(ALL, 1.0)], "rate", GAIN, gains, gains)


def _share_rows(compared: Sequence[_Run], seed: int) -> Iterator[dict[str, Any]]:
    curves = [run.resampled.curve for run in compared if run.resampled.curve is not None]
    cells = [(selector, budget) for selector in curves[0].selectors for budget in curves[0].budgets]
    lengths = [length_ratios(r.measured.steps, c.selectors, c.budgets) for r, c in zip(compared, curves, strict=True)]
    at_rate = [curve.share for curve in curves]
    yield from _rows(compared, cells, "rate", SHARE, at_rate, at_rate)
    at_norm = [curve.at_norm(length, seed) for curve, length in zip(curves, lengths, strict=True)]
    # Beside the first run, errors of norms are drawn apart from its own.
    seeds = [derive_seed(seed, "teachers", run.name) for run in compared]
    apart = [curve.at_norm(length, other) for curve, length, other in zip(curves, lengths, seeds, strict=True)]
    measured = [
        replace(run, population=run.population.at_norm(length)) for run, length in zip(compared, lengths, strict=True)
    ]
    yield from _rows(measured, cells, "norm", SHARE, at_norm, apart)


def _rows(
    compared: Sequence[_Run],
    cells: Sequence[Cell],
    match: str,
    statistic: str,
    drawn: Sequence[Drawn],
    beside_first: Sequence[Drawn],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each cell and run, cell by cell, of cells that have the statistic in every run.

    Args:
        compared: the runs.
        cells: selectors and budgets, m of them.
        match: at what steps are equal.
        statistic: which number.
        drawn: m numbers of each run.
        beside_first: the same, as drawn where those of the first run are taken off.
    """
    alone = [_intervals(run, of_run) for run, of_run in zip(compared, drawn, strict=True)]
    apart = [_intervals(run, of_run - drawn[0]) for run, of_run in zip(compared, beside_first, strict=True)]
    for number, (selector, budget) in enumerate(cells):
        if any(np.isnan(of_run[number].estimate) for of_run in alone):
            continue
        for index, run in enumerate(compared):
            unit = "nats" if statistic == GAIN else "1"
            row = run.population.row(selector, budget, match, statistic, alone[index][number], unit)
            row |= {"run": run.name, "teacher": run.teacher}
            row |= beside(alone[index][number], apart[index][number] if index else None)
            yield {column.name: row[column.name] for column in TEACHER_CURVES.columns}


def _intervals(run: _Run, drawn: Drawn) -> list[Interval]:
    """Return intervals where there are update prompts enough for one."""
    intervals = drawn.intervals(run.resampled.blocks)
    return intervals if run.resampled.gain.known else [Interval(i.estimate, np.nan, np.nan) for i in intervals]
