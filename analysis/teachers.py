"""Several teachers on one bank: what each has to teach this student, token by token of the same contexts.

One run has one teacher. Runs whose contexts are the same, and the student, pair up position by position: differences
are of the same tokens, and are resampled together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from teachdiag.analysis.resampling.bootstrap import Resampling, intervals, prompt_sums, ratio
from teachdiag.artefacts import POSITIONS
from teachdiag.errors import RunError
from teachdiag.markdown import markdown_table
from teachdiag.runs import Stage
from teachdiag.scores import Array, Codes
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import CompareTeachersSettings
from teachdiag.tables import write_parquet_and_csv, write_text

_KEY = ("context_id", "position", "prompt_id", "token_id")
_D, _C = f"disagreement_k{K}", f"compatibility_k{K}"
_BOUNDS = tuple(f"{name}_{side}_k{K}" for name in ("compatibility", "disagreement") for side in ("low", "high"))
_READ = ("forward_kl", _D, _C, "teacher_logp", *_BOUNDS)
_STATISTIC = "teachers"  # names the draws


@dataclass(frozen=True)
class _Measure:
    """A mean over the bank, or a ratio of two: sums over positions, and what they are divided by (None: positions)."""

    name: str
    unit: str
    above: Array
    below: Array | None = None


def run_compare_teachers(settings: CompareTeachersSettings) -> dict[str, Any]:
    """Compare the teachers of several runs, and write `comparison/teachers.*` beside the first run.

    Returns:
        `rows`, a measure of a teacher each: estimate, difference from the first teacher, and their 95% intervals from
        the prompt-cluster bootstrap; `files` that were written; `population` in words.

    Raises:
        RunError: a run has not been captured, or has another student or other contexts than the first.
        EstimationError: the bank has too few prompts.
    """
    runs = [Path(run) for run in settings.runs]
    names = [run.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run) for run in runs]
    notes = [Stage(run, "capture").record("inputs.student.digest", "inputs.teacher.name") for run in runs]
    banks = {label: _bank(run) for label, run in zip(labels, runs, strict=True)}
    _refuse_others(runs, notes, list(banks.values()))
    codes, prompts = pd.factorize(banks[labels[0]]["prompt_id"], sort=True)
    resampling = Resampling(settings.seed, settings.draws, len(prompts))
    measured = {
        label: {m.name: (m, _sampled(m, codes, resampling)) for m in measures}
        for label, measures in _measures(banks).items()
    }
    teachers = dict(zip(labels, (note["inputs"]["teacher"]["name"] for note in notes), strict=True))
    rows = _rows(measured, teachers, resampling)
    population = f"{len(codes)} positions of {len(prompts)} prompts, K={K}"
    return {"rows": rows, "files": _write(runs[0].parent / "comparison", rows, population), "population": population}


def _bank(run: Path) -> pd.DataFrame:
    """The bank's positions of a run in the order of their key, with those of the columns that it has."""
    present = POSITIONS.present(run / "positions", _READ)
    table = POSITIONS.read(run / "positions", [*_KEY, "split", *present])
    bank = table[table["split"] == "bank"]
    return bank.sort_values(["context_id", "position"], ignore_index=True)


def _refuse_others(runs: list[Path], notes: list[dict[str, Any]], banks: list[pd.DataFrame]) -> None:
    """Refuse runs that do not pair up with the first."""
    students = [
        {name: note["inputs"]["student"].get(name) for name in ("digest", "dropped_layers", "adapter")}
        for note in notes
    ]
    for run, student, bank in zip(runs[1:], students[1:], banks[1:], strict=True):
        what = "student" if student != students[0] else "contexts" if not _same(bank, banks[0]) else ""
        if what:
            raise RunError(
                f"{run} has not the {what} of {runs[0]}, so that their teachers cannot be compared token by token: "
                f"capture it with that student and --contexts {runs[0] / 'contexts'}, and as many --positions"
            )


def _same(ours: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    return ours[list(_KEY)].equals(theirs[list(_KEY)])


def _measures(banks: Mapping[str, pd.DataFrame]) -> dict[str, list[_Measure]]:
    """What can be said of every teacher alike, by run: of C and D bounds, where one run has no more."""
    common = set.intersection(*(set(bank.columns) for bank in banks.values()))
    measures = {label: [_of(bank, "teacher_logp", "log q of the student's tokens")] for label, bank in banks.items()}
    for label, bank in banks.items():
        if "forward_kl" in common:
            measures[label].append(_of(bank, "forward_kl", "raw KL"))
        if not {_D, _C} <= common:
            measures[label] += _bounded(bank)
    if {_D, _C} <= common:
        learnable = {label: (bank[_D] * bank[_C]).to_numpy(np.float64) for label, bank in banks.items()}
        most = np.maximum.reduce(list(learnable.values()))
        ties = np.sum([values == most for values in learnable.values()], axis=0)
        for label, bank in banks.items():
            d = bank[_D].to_numpy(np.float64)
            measures[label] += [
                _of(bank, _D, "D"),
                _of(bank, _C, "C"),
                _Measure("learnable D C", "nats", learnable[label]),
                _Measure("learnable share of D", "1", learnable[label], d),
                _Measure("positions with most to learn", "1", (learnable[label] == most) / ties),
            ]
    return measures


def _of(bank: pd.DataFrame, column: str, name: str) -> _Measure:
    unit = "1" if column.startswith("compatibility") else "nats"
    return _Measure(name, unit, bank[column].to_numpy(np.float64))


def _bounded(bank: pd.DataFrame) -> list[_Measure]:
    """Bounds of C and D; where a run has the exact values these are both bounds."""
    exact = {"compatibility": _C, "disagreement": _D}
    return [
        _of(bank, column if column in bank else exact[name], f"{symbol}, {words}")
        for name, symbol in (("compatibility", "C"), ("disagreement", "D"))
        for side, words in (("low", "at least"), ("high", "at most"))
        for column in (f"{name}_{side}_k{K}",)
    ]


def _sampled(measure: _Measure, codes: Codes, resampling: Resampling) -> Array:
    """The measure and its draws, shape (1 + draws,)."""
    below = np.ones_like(measure.above) if measure.below is None else measure.below
    by_prompt = prompt_sums(np.stack([measure.above, below], 1), codes, resampling.n_prompts)
    sums = resampling.weights(_STATISTIC) @ by_prompt
    return ratio(sums[:, 0], sums[:, 1])


def _rows(
    measured: Mapping[str, Mapping[str, tuple[_Measure, Array]]], teachers: Mapping[str, str], resampling: Resampling
) -> list[dict[str, Any]]:
    """One row a measure and teacher, measure by measure; the first teacher has no difference."""
    first = next(iter(measured.values()))
    rows = []
    for name in first:
        for label, of_teacher in measured.items():
            measure, samples = of_teacher[name]
            own, apart = intervals(np.stack([samples, samples - first[name][1]], 1), resampling.n_prompts)
            row: dict[str, Any] = {"measure": name, "run": label, "teacher": teachers[label], "unit": measure.unit}
            row |= {"estimate": own.estimate, "ci_low": own.low, "ci_high": own.high}
            ends = (None,) * 3 if of_teacher is first else (apart.estimate, apart.low, apart.high)
            rows.append(row | dict(zip(("difference", "difference_low", "difference_high"), ends, strict=True)))
    return rows


def _write(folder: Path, rows: list[dict[str, Any]], population: str) -> list[str]:
    table = pd.DataFrame(rows)
    shown = table.map(lambda cell: f"{cell:.3g}" if isinstance(cell, float) else cell).fillna("")
    page = folder / "teachers.md"
    files = [*write_parquet_and_csv(pa.Table.from_pandas(table, preserve_index=False), folder / "teachers"), page]
    text = "Differences are from the first run's teacher, on the same tokens; intervals are of 95%, over prompts."
    write_text(f"# Teachers of one bank\n\n{population}. {text}\n\n{markdown_table(shown)}\n", page)
    return [str(file) for file in files]
