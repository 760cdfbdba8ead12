"""Stage compare-teachers: several teachers on one bank, one run each, position by position of the same contexts.

One run has one teacher. Runs whose contexts are the same, and the student, pair up position by position: differences
are of the same tokens, and are resampled together. What a step towards each teacher gains is compared where the runs
were put to the same probes.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.teachers.curves import compare_curves
from teachdiag.analysis.teachers.gains import predicted_gains, step_gains
from teachdiag.analysis.teachers.measures import READ, Population, bank_measures, learnable_parts, shares_of_most
from teachdiag.analysis.teachers.page import page, shown_curves, verdict
from teachdiag.analysis.teachers.pairing import COMPARED, CURVE, STEP, TOKENS, Pairing, pair
from teachdiag.artefacts import POSITIONS, TEACHER_CURVES, TEACHER_TOKENS, TEACHERS
from teachdiag.errors import RunError
from teachdiag.runs import Stage
from teachdiag.scores import Array
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import CompareTeachersSettings, ProbeSettings
from teachdiag.tables import write_parquet, write_parquet_and_csv, write_text

_KEY = ("context_id", "position", "prompt_id", "token_id")
_WHOLE = ("forward_kl", "teacher_entropy")  # what a teacher behind an address may not give, and probes need


@dataclass(frozen=True)
class _Runs:
    """Runs that pair up: `teachers` by the runs' names, and the `banks`, the same positions in the same order each.

    `unprobed`: why no step can be compared, '' if it can.
    """

    folders: list[Path]
    teachers: dict[str, str]
    banks: list[pd.DataFrame]
    unprobed: str


def run_compare_teachers(settings: CompareTeachersSettings) -> dict[str, Any]:
    """Compare the teachers of several runs, and write `comparison/teacher*` beside the first run.

    Returns:
        `rows`, those of the table `teachers`: of each measure and teacher the estimate, the difference from the first
        teacher, and their 95% intervals from the prompt-cluster bootstrap; `curves`, those of `teacher_curves` that
        texts show; `sentences`; `probes`, by kind those that were compared, a run each; `files` that were written;
        `population` in words.

    Raises:
        RunError: a run has not been captured, or has another student or other contexts than the first.
        EstimationError: the bank has too few prompts.
    """
    runs = _load(settings)
    codes, prompts = pd.factorize(runs.banks[0]["prompt_id"], sort=True)
    resampling = Resampling(settings.seed, settings.draws, len(prompts))
    pairings = {} if runs.unprobed else {kind: pair(kind, runs.folders) for kind in COMPARED}
    paired = {kind: found.records for kind, found in pairings.items() if found.records}
    measures, columns = bank_measures(runs.banks), {"learnable": learnable_parts(runs.banks)}
    obstacles: list[str] = []
    for kind, measure in ((STEP, step_gains), (TOKENS, predicted_gains)):
        if kind in paired:
            found = measure(runs.folders, paired[kind])
            measures = [own + more for own, more in zip(measures, found.measures, strict=True)]
            columns |= found.columns
            obstacles += [found.obstacle]
    curves: list[dict[str, Any]] = []
    if CURVE in paired:
        compared = compare_curves(runs.folders, paired[CURVE], runs.teachers, resampling)
        curves, obstacles = compared.rows, [*obstacles, compared.obstacle]
    rows = Population(runs.teachers, codes, resampling).rows(measures)
    sentences = [*verdict(rows), *filter(None, obstacles), *_advice(runs, pairings)]
    population = f"{len(codes)} positions of {len(prompts)} prompts, K={K}"
    return {
        "rows": rows,
        "curves": shown_curves(curves),
        "sentences": sentences,
        "probes": {kind: [record.probe_id for record in records] for kind, records in paired.items()},
        "files": _write(runs, rows, curves, _tokens(runs, columns), page(rows, curves, sentences, population)),
        "population": population,
    }


def lacking_probes(settings: CompareTeachersSettings) -> list[tuple[Path, ProbeSettings]]:
    """Return the probes that runs lack for steps to be compared; those of a common rate once each has found its own.

    Raises:
        RunError: as `run_compare_teachers`, or no step can be compared whatever is probed.
    """
    runs = _load(settings)
    if runs.unprobed:
        raise RunError(f"--probe cannot help: {runs.unprobed}")
    return [wanted for kind in COMPARED for wanted in pair(kind, runs.folders).lacking]


def _load(settings: CompareTeachersSettings) -> _Runs:
    folders = [Path(run) for run in settings.runs]
    names = [run.name for run in folders]
    labels = names if len(set(names)) == len(names) else [str(run) for run in folders]
    notes = [Stage(run, "capture").record("inputs.student.digest", "inputs.teacher.name") for run in folders]
    splits = [_splits(run) for run in folders]
    banks = [split["bank"] for split in splits]
    _refuse_others(folders, notes, banks)
    teachers = dict(zip(labels, (note["inputs"]["teacher"]["name"] for note in notes), strict=True))
    return _Runs(folders, teachers, banks, _unprobed(folders, [split["update"] for split in splits]))


def _splits(run: Path) -> dict[str, pd.DataFrame]:
    """The positions of a run's splits in the order of their key, with those of the columns that it has."""
    present = POSITIONS.present(run / "positions", READ)
    table = POSITIONS.read(run / "positions", [*_KEY, "split", *present])
    table = table.sort_values(["context_id", "position"])
    return {name: table[table["split"] == name].reset_index(drop=True) for name in ("bank", "update")}


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


def _unprobed(runs: list[Path], updates: list[pd.DataFrame]) -> str:
    for run, update in zip(runs, updates, strict=True):
        if not _same(update, updates[0]):
            return (
                f"{run} has not the update contexts of {runs[0]}, so that steps on these are no comparison of teachers"
            )
        if len(POSITIONS.present(run / "positions", _WHOLE)) < len(_WHOLE):
            return f"the teacher of {run} gave no whole distributions, which a step towards it needs"
    return ""


def _same(ours: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    return ours[list(_KEY)].equals(theirs[list(_KEY)])


def _advice(runs: _Runs, pairings: Mapping[str, Pairing]) -> list[str]:
    """Say what is not compared, and which command adds it."""
    if runs.unprobed:
        return [f"The bank alone is compared: {runs.unprobed}."]
    without = [pairing for pairing in pairings.values() if not pairing.records]
    said = [f"Not compared is {COMPARED[p.kind]}: {p.differ}." for p in without if p.differ]
    if without:
        what = ", ".join(COMPARED[pairing.kind] for pairing in without)
        command = shlex.join(["teachdiag", "compare-teachers", *map(str, runs.folders), "--probe"])
        said.append(f"`{command}` takes the probes that are lacking, and adds {what}.")
    return said


def _tokens(runs: _Runs, columns: Mapping[str, Sequence[Array]]) -> pa.Table:
    """Return the table `teacher_tokens`, one run after the other."""
    first, parts = runs.banks[0], []
    most = {name: shares_of_most(values) for name, values in columns.items()}
    for place, run in enumerate(runs.teachers):
        part: dict[str, Any] = {name: pa.array(first[name]) for name in _KEY} | {"run": [run] * len(first)}
        for name in ("learnable", "predicted_gain", "success_inner"):
            there = bool(columns.get(name))
            part[name] = columns[name][place] if there else pa.nulls(len(first), pa.float64())
            part[f"{name}_most"] = most[name][place] > 0 if there else pa.nulls(len(first), pa.bool_())
        parts.append(TEACHER_TOKENS.build(part))
    return pa.concat_tables(parts)


def _write(
    runs: _Runs, rows: list[dict[str, Any]], curves: list[dict[str, Any]], tokens: pa.Table, text: str
) -> list[str]:
    folder = runs.folders[0].parent
    files = []
    for table, of_table in ((TEACHERS, rows), (TEACHER_CURVES, curves)):  # without curves an earlier comparison's go
        files += write_parquet_and_csv(table.build_rows(of_table), table.file(folder).with_suffix(""))
    by_token, written = TEACHER_TOKENS.file(folder), TEACHERS.file(folder).with_suffix(".md")
    write_parquet(tokens, by_token)
    write_text(text, written)
    return [str(file) for file in (*files, by_token, written)]
