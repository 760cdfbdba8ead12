"""The tables that the analysis reads: the bank at theta0, and the gains of every probe, row by row the same."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teachdiag.analysis.bank.stored_columns import StoredColumns, position_key
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval
from teachdiag.artefacts import GAINS
from teachdiag.errors import ArtefactError, RunError, SettingsError
from teachdiag.formulas import stored_name
from teachdiag.runs import Stage, probe_names
from teachdiag.scores import Array, Codes, Mask
from teachdiag.settings import HEADLINE_K, KINDS, SUPPORT_SIZES, ProbeSettings
from teachdiag.signals import SUPPORT, Signal, added_signals, positions_of
from teachdiag.tables import Table

_LARGE = 500_000  # positions

OUTCOMES = {"gain": "nats", "gain_reverse": "nats", "gain_relative": "1", "gain_log": "1"}  # outcome: unit

_PROBE_TEXTS = ("probe_id", "update", "update_on", "loss")
_GAIN_COLUMNS = (*OUTCOMES, "noise_floor")
_BANK_COLUMNS = (
    *("context_id", "position", "token_id"),
    *("pos_norm", "student_entropy", "teacher_entropy", "forward_kl", "logit_alignment", "hidden_norm_sq"),
    *(f"{name}_k{k}" for name in ("disagreement", *SUPPORT) for k in SUPPORT_SIZES),
)


class _Rows(Mapping[str, Any]):
    """Columns at some rows: each is read whole when it is first asked for, and held at these rows alone."""

    def __init__(self, columns: Mapping[str, Any], rows: Codes) -> None:
        self._columns, self._rows = columns, rows
        self._held: dict[str, npt.NDArray[Any]] = {}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._held:
            self._held[name] = self._columns[name][self._rows]
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclass(frozen=True)
class Record:
    """One finished probe: its name, its kind, and the settings and results of its JSON."""

    probe_id: str
    kind: str
    settings: dict[str, Any]
    results: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Bank:
    """Every bank position at theta0, in the order of (context_id, position). Equal is what is the same object.

    `positions`: shape (N,) each, by name. `prompts`: shape (N,), the number of each row's prompt, 0-based in the order
    of prompt_id. `n_prompts`: how many prompts there are. `names`: their prompt_id. `added`: the signals of installed
    packages whose columns are there.
    """

    positions: Mapping[str, Any]
    prompts: Codes
    n_prompts: int
    names: Sequence[str] = ()
    added: tuple[Signal, ...] = ()

    def __len__(self) -> int:
        """Count the positions."""
        return len(self.prompts)

    @property
    def large(self) -> bool:
        """Whether memory is spared where time would not be: estimates are made two at a time."""
        return len(self) > _LARGE

    @property
    def key(self) -> Codes:
        """Context and position in one number, shape (N,), rising."""
        return position_key(*(np.asarray(self.positions[name]) for name in ("context_id", "position")))

    def column(self, name: str) -> Array:
        """Return one column as float64, shape (N,)."""
        return np.asarray(self.positions[name], np.float64)

    def part(self, prompts: Codes) -> tuple["Bank", Codes]:
        """Return the positions of some prompts, rising, as a bank of its own; and their rows of this one."""
        rows = np.flatnonzero(np.isin(self.prompts, prompts))
        owners, names = np.searchsorted(prompts, self.prompts[rows]), [self.names[number] for number in prompts]
        return replace(
            self, positions=_Rows(self.positions, rows), prompts=owners, n_prompts=len(prompts), names=names
        ), rows

    @cached_property
    def weight(self) -> Array | None:
        """How many of the student's tokens each position stands for, shape (N,); None where none were drawn."""
        weight = self.column("weight") if "weight" in self.positions else None
        return None if weight is None or np.isnan(weight).any() else weight


@dataclass(frozen=True)
class Probe:
    """One update and its gains, aligned with the bank's rows. `draw`: number of the placebo's draw."""

    probe_id: str
    update: str
    update_on: str
    loss: str
    gains: Mapping[str, Any]
    draw: int = 0

    def column(self, name: str) -> Array:
        """Return one column of the gains as float64, shape (N,); NaN where it is undefined."""
        return np.asarray(self.gains[name], np.float64)

    def at(self, rows: Codes) -> "Probe":
        """Return the same update at some of the bank's rows."""
        return replace(self, gains=_Rows(self.gains, rows))


@dataclass(frozen=True)
class Step:
    """A real step and its placebos, the draws of each after one another."""

    real: Probe
    placebos: tuple[Probe, ...]

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The real step first, then every draw of its placebos."""
        return (self.real, *self.placebos)

    @property
    def first_draws(self) -> tuple[Probe, ...]:
        """The real step first, then one draw of each placebo."""
        return (self.real, *(probe for probe in self.placebos if probe.draw == 0))

    def at(self, rows: Codes) -> "Step":
        """Return the same updates at some of the bank's rows."""
        return Step(self.real.at(rows), tuple(probe.at(rows) for probe in self.placebos))

    @property
    def placebo_ids(self) -> dict[str, str]:
        """The probe_id of each placebo, by its update."""
        return {probe.update: probe.probe_id for probe in self.placebos}

    def draws_of(self, update: str) -> int:
        """Count the draws of a placebo."""
        return sum(probe.update == update for probe in self.placebos)


@dataclass(frozen=True)
class Outcome:
    """One gain of one probe, where it is defined. `draw`: number of the placebo's draw.

    `rows`: shape (N,), which bank positions have it. `values`: shape (n,), the outcome there, in its unit.
    `prompts`: shape (n,), their prompts.
    """

    probe_id: str
    update: str
    name: str
    rows: Mask
    values: Array
    prompts: Codes
    draw: int = 0

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a column of the bank, shape (N,), where the outcome is defined: (n,), the same array if everywhere."""
        return values if len(values) == len(self.prompts) else values[self.rows]

    def within(self, rows: Mask) -> "Outcome":
        """Return the outcome at those of its positions that are among some of the bank's, a mask of shape (N,)."""
        kept = self.of(rows)
        return replace(self, rows=self.rows & rows, values=self.values[kept], prompts=self.prompts[kept])

    @property
    def unit(self) -> str:
        """Unit of the outcome."""
        return OUTCOMES[self.name]

    @cached_property
    def _size(self) -> tuple[int, int]:
        return len(self.prompts), _count(self.prompts)

    @property
    def n_prompts(self) -> int:
        """Count the prompts in which it is defined."""
        return self._size[1]

    @property
    def obstacle(self) -> str:
        """Why no model can be fitted to this outcome, or an empty text."""
        if self.n_prompts < MIN_PROMPTS:
            return f"above the noise floor in only {self.n_prompts} prompts of the {MIN_PROMPTS} needed"
        if np.ptp(self.values) == 0:
            return f"exactly {self.values[0]:g} everywhere"
        return ""

    def row(
        self,
        analysis: str,
        term: str,
        k: int | None,
        unit: str,
        interval: Interval,
        method: str,
        std_error: float | None = None,
        inside: Mask | None = None,
    ) -> dict[str, Any]:
        """Return one row of the estimates table; `inside`, of shape (n,), marks the positions behind it, if not all."""
        n_positions, n_prompts = self._size if inside is None else (int(inside.sum()), _count(self.prompts[inside]))
        return {
            "analysis": analysis,
            "probe_id": self.probe_id,
            "update": self.update,
            "outcome": self.name,
            "k": k,
            "term": term,
            "unit": unit,
            **interval.columns(),
            "draw": self.draw,  # this and the samples pool draws and pair differences; neither is a column
            "draws": interval.draws,
            "std_error": std_error,
            "method": method,
            "n_positions": n_positions,
            "n_prompts": n_prompts,
            "n_dropped": int((~self.rows).sum()),
        }


def _count(prompts: Codes) -> int:
    return int((np.bincount(prompts) > 0).sum()) if len(prompts) else 0


def load_bank(run: Path) -> Bank:
    """Read the bank's positions, predictors only.

    Raises:
        ArtefactError: the table is missing, holds no bank position, or holds one twice; or a column is not what the
            installed package declares that measures it.
    """
    positions = StoredColumns(positions_of(run / "positions"), run / "positions", _BANK_COLUMNS, split="bank")
    if not positions.n_rows:
        raise ArtefactError(f"{run / 'positions'} holds no position of the bank: run `teachdiag capture` again")
    names, prompts = positions.texts("prompt_id")
    added = tuple(
        signal
        for signal in added_signals().values()
        if all(stored_name(name, HEADLINE_K) in positions for name in signal.score.columns)
    )
    return Bank(positions, prompts, len(names), names, added)


def finished_probes(run: Path) -> list[Record]:
    """Return every probe of the run that has ended, in the order of probe_id.

    Raises:
        RunError: there is none, or a table is no longer what its probe wrote.
    """
    stages, left_out = _probes(run)
    if not stages:
        further = "".join(f"; {sentence}" for sentence in left_out)
        raise RunError(f"{run} has no finished probe: run `teachdiag probe --run {run}` first{further}")
    return [_record(stage.note.stem, stage.require()) for stage in stages]


def left_out_probes(run: Path) -> list[str]:
    """Say of each probe that was interrupted, or whose kind is not installed, that it is left out, and what helps."""
    return _probes(run)[1]


def read_records(run: Path) -> list[Record]:
    """Return every finished probe of an analysed run without reading its tables again, in the order of probe_id."""
    return [_record(stage.note.stem, stage.record()) for stage in _probes(run)[0]]


def _probes(run: Path) -> tuple[list[Stage], list[str]]:
    """The probes that have ended, and a sentence on each of the others."""
    stages = [Stage(run, f"probes/{name}") for name in probe_names(run)]
    finished, left_out = [], []
    for stage in stages:
        note = stage.read()
        if note is None:
            continue
        name, kind = stage.note.stem, _kind(note)
        if kind not in KINDS:
            left_out.append(
                f"probe {name} is of kind {kind}, which is not installed, and left out: install the package that "
                f"brings it (there are {', '.join(KINDS)})"
            )
        elif note["status"] == "complete":
            finished.append(stage)
        else:
            continuing = _continuing(run, note["settings"])
            left_out.append(f"probe {name} is unfinished and left out: `{continuing}` continues it")
    return finished, left_out


def _continuing(run: Path, settings: Mapping[str, Any]) -> str:
    """Return the command that continues a probe of these settings."""
    try:
        words = ProbeSettings(**settings).words()
    except (TypeError, SettingsError):  # an older version's, which this one refuses
        words = ["--name", settings["name"]] if settings.get("name") else []
    return shlex.join(["teachdiag", "probe", "--run", str(run), *words])


def load_step(run: Path, probe_id: str, bank: Bank) -> Step:
    """Read one real step and every draw of its placebos.

    Raises:
        ArtefactError: the gains are missing, or are not of this bank.
    """
    placebos = [
        _load_probe(folder, bank, draw)
        for folder in _placebo_folders(run, probe_id)
        for draw in sorted(GAINS.read_arrow(folder, ["draw"])["draw"].unique().to_pylist())
    ]
    return Step(_load_probe(run / "gains" / probe_id, bank), tuple(placebos))


def load_aligned(table: Table, folder: Path, names: tuple[str, ...], bank: Bank, **equal: int) -> StoredColumns:
    """Read columns that have a row for each of the bank's.

    Raises:
        ArtefactError: the table is missing, or its rows are not of this bank.
    """
    columns = StoredColumns(table, folder, names, **equal)
    known, prompts = columns.texts("prompt_id")
    # One prompt_id or another is missing where the names differ, and their numbers mean nothing.
    if not (np.array_equal(columns.key, bank.key) and known == list(bank.names) and (prompts == bank.prompts).all()):
        raise ArtefactError(
            f"{folder} holds {table.name} of {columns.n_rows} positions that are not the bank's {len(bank)}, by "
            "context, position and prompt: run the probe again in this run directory"
        )
    return columns


def select_outcome(probe: Probe, name: str, bank: Bank) -> Outcome:
    """Return one outcome of one probe, over the positions where it is above the noise floor."""
    values = probe.column(name)
    rows = ~np.isnan(values)
    if rows.all():
        return Outcome(probe.probe_id, probe.update, name, rows, values, bank.prompts, probe.draw)
    return Outcome(probe.probe_id, probe.update, name, rows, values[rows], bank.prompts[rows], probe.draw)


def select_outcomes(step: Step, bank: Bank) -> list[Outcome]:
    """Return each outcome of the step and its placebos, over the positions where each is defined."""
    return [select_outcome(probe, name, bank) for probe in step.probes for name in OUTCOMES]


def _record(probe_id: str, note: dict[str, Any]) -> Record:
    return Record(probe_id, _kind(note), note["settings"], note.get("results", {}))


def _kind(note: Mapping[str, Any]) -> str:
    return str(note["settings"].get("kind", "one_step"))  # what probes were before they had kinds


def _placebo_folders(run: Path, probe_id: str) -> list[Path]:
    # The name of a real step holds no dot, so this pattern finds its placebos alone.
    return sorted((run / "gains").glob(f"{probe_id}.*"))


def _load_probe(folder: Path, bank: Bank, draw: int = 0) -> Probe:
    gains = load_aligned(GAINS, folder, _GAIN_COLUMNS, bank, draw=draw)
    probe_id, update, update_on, loss = (gains.texts(name)[0][0] for name in _PROBE_TEXTS)
    return Probe(probe_id, update, update_on, loss, gains, draw)
