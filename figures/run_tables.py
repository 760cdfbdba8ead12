"""What the figures read: the analysis tables of a run, of one real step, and of its other probes."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.artefacts import TABLES, probes_by_step
from teachdiag.errors import RunError
from teachdiag.figures.seen import TITLES
from teachdiag.notes import read_note
from teachdiag.runs import SUMMARY, Stage
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.tables import rows_where

_GRID = {"columns": list[str], "rows": list[list[Any]]}
_FRONT = {
    **dict.fromkeys(("action", "command", "caveats", "legend", "ceiling"), str),
    "sentences": list[str],
    "primary": [{"probe_id": str, **_GRID}],
    "efficiency": [{"probe_id": str, "gain": str, **_GRID}],
}
_SECTION = {
    **dict.fromkeys(("probe_id", "kind", "title", "text", "legend"), str),
    **dict.fromkeys(("sentences", "figures"), list[str]),
    "tables": [{"title": str, "legend": str, **_GRID}],
}


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """The tables of a run.

    `kinds`: kind by probe_id, of every probe that was analysed.
    """

    run: Path
    kinds: dict[str, str]
    estimates: pd.DataFrame
    findings: pd.DataFrame
    primary: pd.DataFrame
    deciles: pd.DataFrame
    surfaces: pd.DataFrame
    selection: pd.DataFrame
    efficiency: pd.DataFrame
    placebo_panel: pd.DataFrame
    contrasts: pd.DataFrame
    balance: pd.DataFrame
    top_n: pd.DataFrame
    buckets: pd.DataFrame
    inference: pd.DataFrame
    saturation: pd.DataFrame
    scales: pd.DataFrame
    specifications: pd.DataFrame

    def bank_surface(self, name: str, k: int) -> pd.DataFrame:
        """Return the cells of one map of the bank alone."""
        return rows_where(self.surfaces, surface=name, k=k, probe_id=None)

    def q3(self, term: str) -> float:
        """Return one number that describes Q3."""
        return float(rows_where(self._q3, term=term)["estimate"].iloc[0])

    def scale(self, quantity: str, probe_id: str = "") -> pd.Series:
        """Return how a quantity is spread that is drawn in colour: low, high, median_size, unit and kind."""
        return rows_where(self.scales, quantity=quantity, probe_id=probe_id).iloc[0]

    def probes(self, kind: str) -> list[str]:
        """Return the probes of a kind of which the analysis has numbers."""
        tables = (self.estimates, self.selection, self.efficiency, self.placebo_panel)
        measured = {probe_id for table in tables for probe_id in table["probe_id"]}
        return [probe_id for probe_id, its_kind in self.kinds.items() if its_kind == kind and probe_id in measured]

    @property
    def population(self) -> str:
        """Say on whom everything was measured."""
        return f"{self._q3['n_positions'].iloc[0]:,} bank positions of {self.n_prompts} prompts"

    @property
    def n_prompts(self) -> int:
        """Prompts of the bank."""
        return int(self._q3["n_prompts"].iloc[0])

    @property
    def _q3(self) -> pd.DataFrame:
        return rows_where(self.estimates, analysis="q3")


@dataclass(frozen=True, kw_only=True)
class StepTables(RunTables):
    """The tables of a run, and which of their probes belong to one real step.

    `updates`: probe_id by update, the real step first.
    """

    probe_id: str
    updates: dict[str, str]

    def coefficients(self, update: str) -> pd.DataFrame:
        """Return the standardised decomposition of one update, all K."""
        return rows_where(
            self.estimates, analysis="standardized_decomposition", probe_id=self.updates[update], outcome=OUTCOME
        )

    def profile(self, update: str, score: str, k: int) -> pd.DataFrame:
        """Return mean outcome by decile of one score; K where the score has one."""
        rows = rows_where(self.deciles, probe_id=self.updates[update], outcome=OUTCOME, score=score)
        return rows[rows["k"].isna() | (rows["k"] == k)]

    def surface(self, name: str, k: int, update: str) -> pd.DataFrame:
        """Return the cells of one map of an update."""
        return rows_where(self.surfaces, surface=name, k=k, probe_id=self.updates[update])

    @property
    def own_specifications(self) -> pd.DataFrame:
        """Return the specifications of the step and its placebos."""
        return self.specifications[self.specifications["probe_id"].isin(self.updates.values())]

    @property
    def specified_population(self) -> str:
        """Say on whom everything was measured, and on whom specifications, where that is a part."""
        prompts = int(self.own_specifications["n_prompts"].max())
        part = f", specifications on {prompts:,} of these, evenly spaced" if prompts < self.n_prompts else ""
        return self.population + part

    @property
    def placebos(self) -> str:
        """Name the placebos that stand beside the step; nothing where it has none."""
        names = [TITLES.get(update, update) for update in list(self.updates)[1:]]
        return f"Grey: placebos ({'; '.join(names)}), without intervals." if names else "No placebos."

    @property
    def intervals(self) -> str:
        """Say how intervals were made."""
        rows = rows_where(self.estimates, analysis="mean", probe_id=self.probe_id)
        return f"95% intervals: {rows['method'].iloc[0].removeprefix('mean; ')}"


def load_tables(run: Path) -> RunTables:
    """Read the analysis tables of a run, which must be as the analysis wrote them.

    Raises:
        RunError: the run has not been analysed, or a table is no longer what the analysis wrote.
        ArtefactError: a table is missing.
    """
    Stage(run, "analyze").require()
    wanted = {entry.name for entry in fields(RunTables)}
    frames = {table.name: table.read(table.file(run)) for table in TABLES if table.name in wanted}
    kinds = {section["probe_id"]: section["kind"] for section in read_summary(run)["sections"]}
    return RunTables(run=run, kinds=kinds, **frames)


def read_summary(run: Path) -> dict[str, Any]:
    """Read what `analyze` has to say as data.

    Raises:
        RunError: it is missing or damaged.
    """
    if not (run / SUMMARY).exists():
        raise RunError(f"{run} has no {SUMMARY}: run `teachdiag analyze {run}` first")
    schema = {
        "front?": _FRONT,
        "pair": str,
        "sections": [_SECTION],
        "grades?": {"title": str, "counts": str, "note": str, **_GRID},
        "saturation": _GRID | {"note": str},
        "caveats": [[str]],
    }
    return read_note(run / SUMMARY, schema, f"run `teachdiag analyze {run}` again")


def steps_of(tables: RunTables) -> list[StepTables]:
    """Return the tables of every real step that went through the full analysis."""
    steps = probes_by_step(tables.estimates)
    return [StepTables(**vars(tables), probe_id=real, updates=updates) for real, updates in steps.items()]
