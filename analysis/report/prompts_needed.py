"""`teachdiag plan --from RUN`: the prompts, positions and hours that an effect needs, by what the run could have seen.

All but the number of prompts is taken to stay as it was: the pair, the length of responses, the update, and how much
prompts differ. Positions grow with the prompts, and so do hours: those of capture with the contexts of bank and update
together, those of the probe and of the analysis with the bank's. What selectors keep varies with update contexts, with
batches whose gradients are measured, and with bank prompts: all are taken to grow alike.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from teachdiag.analysis.bank.lookup import row_dicts
from teachdiag.analysis.bank.measurements import read_records
from teachdiag.analysis.kinds.kind import CONTENDER
from teachdiag.analysis.resampling.power import POWER
from teachdiag.analysis.step.reach import Reach, precision_of_row
from teachdiag.artefacts import EFFICIENCY, PRIMARY
from teachdiag.calibration import COMMAND, calibration_of, calibration_path
from teachdiag.errors import SettingsError
from teachdiag.planning import plan
from teachdiag.runs import Stage
from teachdiag.settings import HEADLINE_BUDGET, PlanSettings
from teachdiag.signals import BASE
from teachdiag.tables import rows_where

EFFICIENCY_CLAIM = f"{CONTENDER} keeps more than {BASE} at {HEADLINE_BUDGET:.0%} of the tokens"


def prompts_needed(run: Path, settings: PlanSettings) -> dict[str, Any]:
    """Answer what it takes to tell an effect apart from 0 and from the nearest placebo, for each primary claim.

    Args:
        run: an analysed run.
        settings: effect and claim; models and calibration, from which hours are extrapolated if one is given, or if the
            run's own are not known.

    Returns:
        Plain values: `power`; `prompts`, `positions` of the run's bank; `claims`: of each, what the run could detect,
        and what the effect needs (None: no number of prompts would do, or the time is not known); `timed_by`: where
        hours come from.

    Raises:
        RunError: the run was not captured, or not analysed.
        ArtefactError: its table of primary claims, or the calibration that is given, cannot be read.
        SettingsError: no claim has that name, or none was judged.
    """
    Stage(run, "analyze").record()
    bank = _Bank.of(run)
    asked = [*_of_steps(run, settings.detect), *_of_selectors(run, settings.detect)]
    claims = [_needs(claim, bank, settings) for claim in _named(asked, settings.claim, run)]
    sources = {source for claim in claims if (source := claim.pop("timed_by"))}
    return {
        "run": str(run),
        "power": POWER,
        "prompts": bank.prompts,
        "positions": bank.positions,
        "claims": claims,
        "timed_by": "; ".join(sorted(sources)),
    }


@dataclass(frozen=True)
class _Bank:
    """How large a run is: prompts and positions of its bank, contexts of the bank and of updates."""

    run: Path
    prompts: int
    positions: int
    contexts: int
    update_contexts: int

    @classmethod
    def of(cls, run: Path) -> "_Bank":
        capture = Stage(run, "capture").record("results.contexts", "results.prompts", "results.positions")["results"]
        contexts = capture["contexts"]
        return cls(run, capture["prompts"]["bank"], capture["positions"]["bank"], contexts["bank"], contexts["update"])

    def seconds(self, probe_id: str, more: float) -> dict[str, float] | None:
        """Return how long stages take with so many times the prompts; None where it is not known how long they took."""
        grown = (more * self.contexts + self.update_contexts) / (self.contexts + self.update_contexts)
        growth = {"capture": grown, f"probes/{probe_id}": more, "analyze": more}
        taken = [Stage(self.run, name).seconds() for name in growth]
        times = [
            seconds * factor for seconds, factor in zip(taken, growth.values(), strict=True) if seconds is not None
        ]
        return dict(zip(("capture", "probe", "analyze"), times, strict=True)) if len(times) == len(taken) else None

    def extrapolated(self, settings: PlanSettings, more: float) -> tuple[dict[str, float], str]:
        """Return the same from a calibration, and where that was measured."""
        calibration = calibration_of(settings.calibration)
        contexts = round(more * self.contexts) + self.update_contexts
        each = max(round(self.positions / self.contexts), 1)
        planned = replace(settings, from_="", detect=None, claim="", positions=contexts * each)
        time = plan(replace(planned, positions_per_context=each), calibration)["time_seconds"]
        return time, f"extrapolated from {calibration.source}"


@dataclass(frozen=True)
class _Claim:
    """An effect on a claim: what the run could detect, from 0 and from the nearest placebo, and the prompts it needs.

    `more`: how many times the prompts that it has. `update_contexts`, `batches`: what has to grow likewise.
    """

    probe_id: str
    name: str
    unit: str
    detectable: tuple[float | None, float | None]
    effect: float
    prompts: int | None
    more: float | None
    update_contexts: int | None = None
    batches: int | None = None


def _of_steps(run: Path, effect: float | None) -> list[_Claim]:
    """Return the primary claims on every step."""
    claims = []
    for row in row_dicts(PRIMARY.read(PRIMARY.file(run))):
        reach, estimate = Reach.of_row(row), abs(row["estimate"])
        needed = None
        if reach is not None:
            needed = reach.prompts_needed_again(row) if effect is None else reach.prompts_needed(effect, effect)
        detectable = reach.detectable() if reach else (None, None)
        more = None if needed is None else needed / row["n_prompts"]
        size = estimate if effect is None else effect
        claims.append(_Claim(row["probe_id"], row["claim"], row["unit"], detectable, size, needed, more))
    return claims


def _of_selectors(run: Path, effect: float | None) -> list[_Claim]:
    """Return the claim of every probe of kind efficiency, at equal length of the step."""
    rows = EFFICIENCY.read(EFFICIENCY.file(run))
    chosen = {"selector": CONTENDER, "statistic": "share_vs_base", "match": "norm", "budget": HEADLINE_BUDGET}
    batches = {record.probe_id: record.settings["norm_batches"] for record in read_records(run)}
    claims = []
    for row in row_dicts(rows_where(rows, **chosen)):
        precision, size = precision_of_row(row), abs(row["estimate"]) if effect is None else effect
        needed = precision.prompts_needed(size) if precision else None
        more = None if needed is None else needed / row["n_prompts"]
        grown = [None if more is None else math.ceil(more * n) for n in (row["n_contexts"], batches[row["probe_id"]])]
        detectable = precision.detectable() if precision else None
        claims.append(
            _Claim(row["probe_id"], EFFICIENCY_CLAIM, row["unit"], (detectable, None), size, needed, more, *grown)
        )
    return claims


def _needs(claim: _Claim, bank: _Bank, settings: PlanSettings) -> dict[str, Any]:
    """Return what an effect on one claim needs, as plain values."""
    seconds, source = _time(bank, claim.probe_id, claim.more, settings)
    return {
        "probe_id": claim.probe_id,
        "claim": claim.name,
        "unit": claim.unit,
        "detectable": dict(zip(("from_0", "from_placebo"), claim.detectable, strict=True)),
        "effect": claim.effect,
        "prompts": claim.prompts,
        "positions": None if claim.more is None else round(claim.more * bank.positions),
        "update_contexts": claim.update_contexts,
        "norm_batches": claim.batches,
        "hours": None if seconds is None else sum(seconds.values()) / 3600,
        "seconds": seconds,
        "timed_by": source,
    }


def _time(
    bank: _Bank, probe_id: str, more: float | None, settings: PlanSettings
) -> tuple[dict[str, float] | None, str]:
    """Return seconds by stage, and what they were taken from: the run itself, if no calibration is asked for."""
    if more is None:
        return None, ""
    scaled = None if settings.calibration else bank.seconds(probe_id, more)
    if scaled is not None:
        return scaled, "scaled from what the run's own stages took"
    if settings.calibration or calibration_path().exists():
        return bank.extrapolated(settings, more)
    return None, f"unknown, since a stage of the run was interrupted; `{COMMAND}` makes a calibration to go by"


def _named(claims: list[_Claim], name: str, run: Path) -> list[_Claim]:
    chosen = [claim for claim in claims if name.lower() in claim.name.lower()]
    if not claims:
        raise SettingsError(f"--from {run} has no claim that was judged: probe it with a kind that takes a step")
    if not chosen:
        known = "; ".join(dict.fromkeys(claim.name for claim in claims))
        raise SettingsError(f"--claim {name!r} is in the name of no primary claim: there are {known}")
    return chosen
