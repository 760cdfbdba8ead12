"""Probes that several runs were put to alike, and those that are lacking for it.

What must agree is every setting that decides a number: the update batch, the loss, the optimizer, the rate. What only
says where and how a probe is computed may differ, and so may its placebos, which nothing here is made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from teachdiag.analysis.bank.measurements import Record, read_records
from teachdiag.settings import ProbeSettings, kind_reads
from teachdiag.settings.base import SCALE, flag

STEP, CURVE, TOKENS = "one_step", "efficiency", "predicted"
COMPARED = {
    STEP: "what a step gains",
    CURVE: "what selectors keep",
    TOKENS: "first-order gains, token by token",
}
_IDLE = ("name", "draws", "real_steps")  # settings that nothing compared here depends on
_RATE = "learning_rate"


@dataclass(frozen=True)
class Pairing:
    """The probes of one kind, one a run in their order, that were taken alike; or what there is instead.

    `records`: empty where there are none. `lacking`: probes that would make such a row, or a first step to it.
    `differ`: how those that there are differ, '' where some run has none.
    """

    kind: str
    records: tuple[Record, ...]
    lacking: tuple[tuple[Path, ProbeSettings], ...] = ()
    differ: str = ""


def pair(kind: str, runs: Sequence[Path]) -> Pairing:
    """Find probes of a kind that all runs were put to alike, graded ones first."""
    of_runs = [_candidates(run, kind) for run in runs]
    for record in of_runs[0]:
        alike = [next((o for o in others if _decisive(o) == _decisive(record)), None) for others in of_runs]
        found = tuple(other for other in alike if other is not None)
        if len(found) == len(runs):
            return Pairing(kind, found)
    return Pairing(kind, (), _lacking(kind, runs, of_runs), _difference(runs, of_runs) if all(of_runs) else "")


def _candidates(run: Path, kind: str) -> list[Record]:
    """The run's finished probes of the kind; not those that sampled rollouts of their own."""
    records = [r for r in read_records(run) if r.kind == kind and r.settings["rollouts"] == "fixed"]
    return sorted(records, key=lambda record: "success" not in record.results)


def _decisive(record: Record) -> dict[str, Any]:
    """The settings that decide the numbers that are compared; first order has no rate of its own to agree on."""
    return _held(record.kind, record.settings) | ({} if record.kind == CURVE else {_RATE: _rate(record)})


def _held(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    names = (f.name for f in fields(ProbeSettings) if f.metadata["panel"] != SCALE and f.name not in (*_IDLE, _RATE))
    return {name: settings[name] for name in names if kind_reads(kind, name)}


def _rate(record: Record) -> float:
    """The rate of its step: what its ladder found, where that was asked for."""
    return float(record.results.get("ladder", {}).get(_RATE, record.settings[_RATE]))


def _lacking(
    kind: str, runs: Sequence[Path], of_runs: Sequence[Sequence[Record]]
) -> tuple[tuple[Path, ProbeSettings], ...]:
    """What the first probe that there is asks of other runs; where all have it, one at the smallest of the rates."""
    first = next((record for records in of_runs for record in records), None)
    wanted = ProbeSettings(kind=kind) if first is None else replace(ProbeSettings(**first.settings), name="")
    held = _held(kind, wanted.as_dict())
    alike = [[record for record in records if _held(kind, record.settings) == held] for records in of_runs]
    lacking = tuple((run, wanted) for run, own in zip(runs, alike, strict=True) if not own)
    if lacking:
        return lacking
    rates = [[_rate(record) for record in own] for own in alike]
    smallest = min(max(own) for own in rates)
    at_it = replace(wanted, learning_rate=smallest)
    return tuple((run, at_it) for run, own in zip(runs, rates, strict=True) if smallest not in own)


def _difference(runs: Sequence[Path], of_runs: Sequence[Sequence[Record]]) -> str:
    """Say in what the first run's first probe differs from the nearest one of a run that has no such probe."""
    ours = _decisive(of_runs[0][0])
    for run, records in zip(runs[1:], of_runs[1:], strict=True):
        apart = [{name: held for name, held in _decisive(r).items() if held != ours[name]} for r in records]
        nearest = min(apart, key=len)
        if nearest:
            return ", ".join(f"{flag(n)} {ours[n]} in {runs[0]} and {held} in {run}" for n, held in nearest.items())
    return ""
