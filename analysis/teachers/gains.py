"""What a step towards each teacher gains on the bank, and where: by its own KL, and by the success that all share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from teachdiag.analysis.bank.measurements import Record, load_aligned, load_bank
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS
from teachdiag.analysis.teachers.measures import Measure, shares_of_most
from teachdiag.artefacts import GAINS, GRADES, PREDICTIONS
from teachdiag.artefacts.teachers import COMMON, OWN
from teachdiag.runs import Stage
from teachdiag.scores import Array
from teachdiag.tables import Table

GAIN, GAIN_SHARE = "gain of the step", "gain, share of its KL"
PREDICTED_MOST = "positions with most predicted gain"
SUCCESS, SUCCESS_SHUFFLED = "success of a step", "the same, grades shuffled"
SUCCESS_MOST = "positions with most success"
_GRADED = ["context_id", "grade", "finish_reason"]
_PREDICTED, _INNER, _SHUFFLED = "predicted_gain", "success_inner", "success_inner_shuffled"


@dataclass(frozen=True)
class Found:
    """Measures of each run, the same ones in the same order; columns of each by position, shape (N,).

    `obstacle`: a sentence on why success is not compared, '' where it is.
    """

    measures: list[list[Measure]]
    columns: dict[str, list[Array]] = field(default_factory=dict)
    obstacle: str = ""


def step_gains(runs: Sequence[Path], records: Sequence[Record]) -> Found:
    """Return what the step of each run gains on the bank, each by the KL to its own teacher.

    Raises:
        RunError: a table is no longer what its probe wrote.
        ArtefactError: gains are missing, or are not of their run's bank.
    """
    measures = []
    for run, record in zip(runs, records, strict=True):
        gain, before = _columns(run, record, GAINS, ("gain", "forward_kl_before"), draw=0)
        measures.append([Measure(GAIN, "nats", OWN, gain), Measure(GAIN_SHARE, "1", OWN, gain, before)])
    return Found(measures)


def predicted_gains(runs: Sequence[Path], records: Sequence[Record]) -> Found:
    """Return where each run's step gains most to first order, and what steps on the bank do for success.

    Raises:
        RunError: a table is no longer what its probe wrote.
        ArtefactError: predictions are missing, or are not of their run's bank.
    """
    read = [
        _columns(run, record, PREDICTIONS, (_PREDICTED, _INNER, _SHUFFLED))
        for run, record in zip(runs, records, strict=True)
    ]
    predicted, success, shuffled = map(list, zip(*read, strict=True))
    measures = [[Measure(PREDICTED_MOST, "1", OWN, most)] for most in shares_of_most(predicted)]
    if obstacle := _ungraded(runs, records) or _all_alike(runs, [*success, *shuffled]):
        said = f"Success, the one yardstick that all teachers share, is not compared: {obstacle}."
        return Found(measures, {_PREDICTED: predicted}, said)
    for of_run, inner, placebo, most in zip(measures, success, shuffled, shares_of_most(success), strict=True):
        of_run += [
            Measure(SUCCESS, "1", COMMON, inner),
            Measure(SUCCESS_SHUFFLED, "1", COMMON, placebo),
            Measure("positions that raise success", "1", COMMON, (inner > 0).astype(np.float64)),
            Measure(SUCCESS_MOST, "1", COMMON, most),
        ]
    return Found(measures, {_PREDICTED: predicted, _INNER: success})


def _columns(run: Path, record: Record, table: Table, names: tuple[str, ...], **equal: int) -> list[Array]:
    Stage(run, f"probes/{record.probe_id}").require()
    read = load_aligned(table, run / table.name / record.probe_id, names, load_bank(run), **equal)
    return [np.asarray(read[name], np.float64) for name in names]


def _ungraded(runs: Sequence[Path], records: Sequence[Record]) -> str:
    """Say which run has no success to compare, or another one than the first; '' if none."""
    grades = None
    for run, record in zip(runs, records, strict=True):
        facts = record.results.get("success")
        if facts is None:
            return f"{run} was not graded (capture --grade) before its probe {record.probe_id}"
        if facts["prompts"] < MIN_PROMPTS:
            return f"{run} has graded answers to {facts['prompts']} update prompts, of the {MIN_PROMPTS} needed"
        read = GRADES.read(run / GRADES.folder, _GRADED).sort_values("context_id", ignore_index=True)
        grades = read if grades is None else grades
        if not read.equals(grades):
            return f"the answers of {run} have other grades than those of {runs[0]}"
    return ""


def _all_alike(runs: Sequence[Path], columns: Sequence[Array]) -> str:
    lacking = any(np.isnan(values).any() for values in columns)
    return f"the update batch of {runs[0]} has no answers of different grades to compare" if lacking else ""
