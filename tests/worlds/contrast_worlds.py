"""A planted bank with more gain at high C, as the modules of the contrasts take it, and its draws row by row."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from planted import World, plant
from scipy.stats import norm, t

from teachdiag.analysis.bank.measurements import Bank, Outcome, load_bank, load_step, select_outcomes
from teachdiag.analysis.bank.normalised import Scores, normalised_scores
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.artefacts import POSITIONS

WORLD = World(prompts=16, positions=160, slope_learnable=0.06, slope_incompatible=0.01, mean_gain=0.02)


@dataclass(frozen=True)
class Case:
    """A bank, and the outcomes of its step and placebos by (update, outcome)."""

    bank: Bank
    outcomes: dict[tuple[str, str], Outcome]

    @property
    def gain(self) -> Outcome:
        return self.outcomes["one_step", "gain"]

    @property
    def relative(self) -> Outcome:
        """An outcome that some positions do not have."""
        return self.outcomes["one_step", "gain_relative"]

    @property
    def scores(self) -> Scores:
        return normalised_scores(self.bank)

    def column(self, name: str) -> np.ndarray:
        return self.bank.column(name)

    def with_columns(self, **columns: np.ndarray) -> Bank:
        return replace(self.bank, positions=self.bank.positions.assign(**columns))

    def resampling(self, seed: int = 0, draws: int = 100) -> Resampling:
        return Resampling(seed, draws, self.bank.n_prompts)


def plant_case(run: Path, world: World = WORLD) -> Case:
    """Plant a run and load what the contrasts are made from."""
    stored = load_bank(plant(run, world))
    columns = {name: stored.positions[name] for name in POSITIONS.present(run / "positions", list(stored.positions))}
    flat = {name: column for name, column in columns.items() if column.ndim == 1}
    bank = replace(stored, positions=pd.DataFrame(flat))
    outcomes = select_outcomes(load_step(run, "step", bank), bank)
    return Case(bank, {(outcome.update, outcome.name): outcome for outcome in outcomes})


def shuffled(case: Case, seed: int) -> Case:
    """The same case with its rows in another order; only outcomes that every position has."""
    order = np.random.default_rng(seed).permutation(len(case.bank.prompts))
    positions = case.bank.positions.iloc[order].reset_index(drop=True)
    bank = replace(case.bank, positions=positions, prompts=case.bank.prompts[order])
    whole = {key: outcome for key, outcome in case.outcomes.items() if outcome.rows.all()}
    return Case(bank, {k: replace(o, values=o.values[order], prompts=o.prompts[order]) for k, o in whole.items()})


def doubled(case: Case) -> tuple[Case, Scores]:
    """The same case with every prompt twice, and its scores, whose scale is that of the single bank."""
    bank, n = case.bank, case.bank.n_prompts
    positions = pd.concat([bank.positions] * 2, ignore_index=True)
    twice = Bank(positions, np.r_[bank.prompts, bank.prompts + n], 2 * n)
    gain = replace(
        case.gain, rows=np.tile(case.gain.rows, 2), values=np.tile(case.gain.values, 2), prompts=twice.prompts
    )
    return Case(twice, {("one_step", "gain"): gain}), {key: np.tile(own, 2) for key, own in case.scores.items()}


def drawn_rows(weights: np.ndarray, prompts: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each draw, those of a prompt as often as the draw has it; the full sample comes first."""
    for counts in weights:
        yield np.repeat(np.arange(len(prompts)), counts[prompts].astype(int))


def moments(columns: np.ndarray, prompts: np.ndarray, n_prompts: int) -> np.ndarray:
    """Cross-products of [1, columns] of each prompt."""
    extended = np.column_stack([np.ones(len(columns)), columns])
    return np.stack([extended[prompts == p].T @ extended[prompts == p] for p in range(n_prompts)])


def percentiles(drawn: list[float], n_prompts: int) -> list[float]:
    """The 95% interval of draws whose first is the estimate, cut where Student's t has its tails (Hesterberg 2015)."""
    tail = norm.cdf(-np.sqrt(n_prompts / (n_prompts - 1)) * t.ppf(0.975, n_prompts - 1))
    return list(np.quantile(drawn[1:], [tail, 1 - tail]))


def found(rows: list[dict[str, Any]], **key: object) -> dict[str, Any]:
    """The one row with this key."""
    (row,) = [row for row in rows if all(row[name] == value for name, value in key.items())]
    return row


def in_thirds(h: np.ndarray, kl: np.ndarray, score: np.ndarray, y: np.ndarray) -> float:
    """The contrast from its definition, over the rows given; y is NaN where the outcome is undefined."""
    inside = (h <= np.median(h)) & (kl >= np.median(kl)) & ~np.isnan(y)
    low, high = np.quantile(score[inside], 1 / 3), np.quantile(score[inside], 2 / 3)
    return float(y[inside & (score >= high)].mean() - y[inside & (score <= low)].mean())


def numbers(row: dict[str, Any]) -> pd.Series:
    """The numbers of a row, NaN where there is none."""
    return pd.to_numeric(pd.Series({k: v for k, v in row.items() if not isinstance(v, str | np.ndarray)}, dtype=object))
