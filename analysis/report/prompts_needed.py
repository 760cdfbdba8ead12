"""`teachdiag plan --from RUN`: the prompts, positions and hours that an effect needs, by what the run could have seen.

All but the number of prompts is taken to stay as it was: the pair, the length of responses, the update, and how much
prompts differ. Positions grow with the prompts, and so do hours: those of capture with the contexts of bank and update
together, those of the probe and of the analysis with the bank's.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.analysis.resampling.power import POWER
from teachdiag.analysis.step.reach import Reach
from teachdiag.artefacts import PRIMARY
from teachdiag.calibration import COMMAND, calibration_path, read_calibration
from teachdiag.errors import SettingsError
from teachdiag.planning import plan
from teachdiag.runs import Stage
from teachdiag.settings import PlanSettings


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
        SettingsError: no claim has that name.
    """
    Stage(run, "analyze").record()
    rows = _named(PRIMARY.read(PRIMARY.file(run)), settings.claim, run)
    bank = _Bank.of(run)
    claims = [_needs({str(n): v for n, v in row.items()}, bank, settings) for row in rows.to_dict("records")]
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
        calibration = read_calibration(Path(settings.calibration or calibration_path()))
        contexts = round(more * self.contexts) + self.update_contexts
        each = max(round(self.positions / self.contexts), 1)
        planned = replace(settings, from_="", detect=None, claim="", positions=contexts * each)
        time = plan(replace(planned, positions_per_context=each), calibration)["time_seconds"]
        return time, f"extrapolated from {calibration.device}"


def _needs(row: dict[str, Any], bank: _Bank, settings: PlanSettings) -> dict[str, Any]:
    """Return what an effect on one claim needs."""
    reach, effect = Reach.of_row(row), settings.detect
    if reach is None:
        prompts = None
    else:
        prompts = reach.prompts_needed_again(row) if effect is None else reach.prompts_needed(effect, effect)
    more = None if prompts is None else prompts / row["n_prompts"]
    seconds, source = _time(bank, row["probe_id"], more, settings)
    return {
        "probe_id": row["probe_id"],
        "claim": row["claim"],
        "unit": row["unit"],
        "detectable": dict(zip(("from_0", "from_placebo"), reach.detectable() if reach else (None, None), strict=True)),
        "effect": abs(row["estimate"]) if effect is None else effect,
        "prompts": prompts,
        "positions": None if more is None else round(more * bank.positions),
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
    own = None if settings.calibration else bank.seconds(probe_id, more)
    if own is not None:
        return own, "scaled from what the run's own stages took"
    if settings.calibration or calibration_path().exists():
        return bank.extrapolated(settings, more)
    return None, f"unknown, since a stage of the run was interrupted; `{COMMAND}` makes a calibration to go by"


def _named(rows: pd.DataFrame, name: str, run: Path) -> pd.DataFrame:
    chosen = rows[[name.lower() in claim.lower() for claim in rows["claim"]]]
    if chosen.empty:
        known = f"there are {'; '.join(rows['claim'].unique())}" if len(rows) else f"{run} has no step that was judged"
        raise SettingsError(f"--claim {name!r} is in the name of no primary claim: {known}")
    return chosen
