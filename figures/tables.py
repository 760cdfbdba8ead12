"""What the figures read: the analysis tables of one real step and its placebos."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from teachdiag.artefacts import DECILES, ESTIMATES, SURFACES, probes_by_step
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME


@dataclass(frozen=True)
class StepTables:
    """The tables of a run, and which of their probes belong to one real step.

    `probes`: probe_id by update, the real step first.
    """

    probe_id: str
    probes: dict[str, str]
    estimates: pd.DataFrame
    deciles: pd.DataFrame
    surfaces: pd.DataFrame

    def coefficients(self, update: str) -> pd.DataFrame:
        """Return the standardised decomposition of one update, all K."""
        rows = self.estimates[self.estimates["analysis"] == "standardized_decomposition"]
        return rows[(rows["probe_id"] == self.probes[update]) & (rows["outcome"] == OUTCOME)]

    def profile(self, update: str, score: str, k: int) -> pd.DataFrame:
        """Return mean outcome by decile of one score; K where the score has one."""
        rows = self.deciles[(self.deciles["probe_id"] == self.probes[update]) & (self.deciles["outcome"] == OUTCOME)]
        return rows[(rows["score"] == score) & (rows["k"].isna() | (rows["k"] == k))]

    def surface(self, name: str, k: int, update: str | None = None) -> pd.DataFrame:
        """Return the cells of one map; maps of the bank alone have no update."""
        rows = self.surfaces[(self.surfaces["surface"] == name) & (self.surfaces["k"] == k)]
        return rows[rows["probe_id"].isna() if update is None else rows["probe_id"] == self.probes[update]]

    def q3(self, term: str) -> float:
        """Return one number that describes Q3."""
        rows = self.estimates[(self.estimates["analysis"] == "q3") & (self.estimates["term"] == term)]
        return float(rows["estimate"].iloc[0])

    @property
    def population(self) -> str:
        """Say on whom everything was measured."""
        rows = self.estimates[(self.estimates["analysis"] == "mean") & (self.estimates["term"] == "bank")]
        row = rows[(rows["probe_id"] == self.probe_id) & (rows["outcome"] == OUTCOME)].iloc[0]
        return f"{row['n_positions']:,} bank positions of {row['n_prompts']} prompts"

    @property
    def intervals(self) -> str:
        """Say how intervals were made."""
        rows = self.estimates[(self.estimates["analysis"] == "mean") & (self.estimates["probe_id"] == self.probe_id)]
        return f"95% intervals: {rows['method'].iloc[0].removeprefix('mean; ')}"


def load_tables(run: Path) -> list[StepTables]:
    """Read the analysis tables once, and return them for every real step.

    Raises:
        ArtefactError: a table is missing.
    """
    estimates, deciles, surfaces = (t.read(run / t.place / f"{t.name}.parquet") for t in (ESTIMATES, DECILES, SURFACES))
    steps = probes_by_step(estimates)
    return [StepTables(real, probes, estimates, deciles, surfaces) for real, probes in steps.items()]
