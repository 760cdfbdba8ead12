"""Numbers of several teachers over the same positions, resampled together, and what each is less that of the first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.analysis.resampling.bootstrap import Interval, Resampling, intervals, prompt_sums, ratio
from teachdiag.artefacts.teachers import COMMON, OWN
from teachdiag.scores import Array, Codes
from teachdiag.settings import HEADLINE_K as K

_D, _C = f"disagreement_k{K}", f"compatibility_k{K}"
BOUNDS = tuple(f"{name}_{side}_k{K}" for name in ("compatibility", "disagreement") for side in ("low", "high"))
READ = ("forward_kl", _D, _C, "teacher_logp", *BOUNDS)
RAW_KL, LEARNABLE, MOST_LEARNABLE = "raw KL", "learnable D C", "positions with most to learn"
_STATISTIC = "teachers"  # names the draws


@dataclass(frozen=True)
class Measure:
    """A mean over the bank, or a ratio of two: sums over positions, and what they are divided by (None: positions)."""

    name: str
    unit: str
    yardstick: str
    above: Array
    below: Array | None = None


@dataclass(frozen=True)
class Population:
    """Who is compared, on what: `teachers` by run; the prompt of each position, shape (N,); how prompts are drawn."""

    teachers: Mapping[str, str]
    prompts: Codes
    resampling: Resampling

    def rows(self, measures: Sequence[Sequence[Measure]]) -> list[dict[str, Any]]:
        """Return a row of the table `teachers` for each measure and run, measure by measure.

        Args:
            measures: of each run the same ones, in the same order.
        """
        rows = []
        for of_runs in zip(*measures, strict=True):
            samples = [self._sampled(measure) for measure in of_runs]
            for measure, sample, (run, teacher) in zip(of_runs, samples, self.teachers.items(), strict=True):
                interval, apart = intervals(np.stack([sample, sample - samples[0]], 1), self.resampling.n_prompts)
                rows.append(
                    {"measure": measure.name, "run": run, "teacher": teacher, "unit": measure.unit}
                    | {"yardstick": measure.yardstick}
                    | beside(interval, None if sample is samples[0] else apart)
                    | {"method": self.resampling.method("mean" if measure.below is None else "ratio of means")}
                    | {"n_positions": len(self.prompts), "n_prompts": self.resampling.n_prompts}
                )
        return rows

    def _sampled(self, measure: Measure) -> Array:
        """The measure and its draws, shape (1 + draws,)."""
        below = np.ones_like(measure.above) if measure.below is None else measure.below
        by_prompt = prompt_sums(np.stack([measure.above, below], 1), self.prompts, self.resampling.n_prompts)
        sums = self.resampling.weights(_STATISTIC) @ by_prompt
        return ratio(sums[:, 0], sums[:, 1])


def beside(interval: Interval, apart: Interval | None) -> dict[str, float | None]:
    """Return an estimate and what it is less the first run's, in the columns of their tables; None for the first."""
    columns = {name: value for name, value in interval.columns().items() if name != "draw_error"}
    less: dict[str, float | None] = dict.fromkeys(("estimate", "ci_low", "ci_high"))
    less |= apart.columns() if apart else {}
    names = {"difference": "estimate", "difference_low": "ci_low", "difference_high": "ci_high"}
    return columns | {name: less[of] for name, of in names.items()}


def bank_measures(banks: Sequence[pd.DataFrame]) -> list[list[Measure]]:
    """Return what can be said of every teacher alike before any step: of C and D bounds, where one run has no more.

    Args:
        banks: positions of each run, the same ones, with those of the columns `READ` that it has.
    """
    common = set.intersection(*(set(bank.columns) for bank in banks))
    measures = [[_of(bank, "teacher_logp", "log q of the student's tokens", COMMON)] for bank in banks]
    for of_run, bank in zip(measures, banks, strict=True):
        if "forward_kl" in common:
            of_run.append(_of(bank, "forward_kl", RAW_KL, OWN))
        if not {_D, _C} <= common:
            of_run += _bounded(bank)
    learnable = learnable_parts(banks)
    for of_run, bank, part, most in zip(measures, banks, learnable, shares_of_most(learnable), strict=False):
        of_run += [
            _of(bank, _D, "D", OWN),
            _of(bank, _C, "C", COMMON),
            Measure(LEARNABLE, "nats", OWN, part),
            Measure("learnable share of D", "1", OWN, part, bank[_D].to_numpy(np.float64)),
            Measure(MOST_LEARNABLE, "1", OWN, most),
        ]
    return measures


def learnable_parts(banks: Sequence[pd.DataFrame]) -> list[Array]:
    """Return D C of every position under each teacher, shape (N,) each; nothing where one has only their bounds."""
    if not all({_D, _C} <= set(bank.columns) for bank in banks):
        return []
    return [(bank[_D] * bank[_C]).to_numpy(np.float64) for bank in banks]


def shares_of_most(values: Sequence[Array]) -> list[Array]:
    """Return where each of several has the most: 1, or an equal part where several have as much; shape (N,) each."""
    most = np.maximum.reduce(list(values)) if values else np.zeros(0)
    ties = np.sum([of_run == most for of_run in values], axis=0)
    return [(of_run == most) / ties for of_run in values]


def _of(bank: pd.DataFrame, column: str, name: str, yardstick: str) -> Measure:
    unit = "1" if column.startswith("compatibility") else "nats"
    return Measure(name, unit, yardstick, bank[column].to_numpy(np.float64))


def _bounded(bank: pd.DataFrame) -> list[Measure]:
    """Bounds of C and D; where a run has the exact values these are both bounds."""
    exact = {"compatibility": _C, "disagreement": _D}
    return [
        _of(bank, column if column in bank else exact[name], f"{symbol}, {words}", yardstick)
        for name, symbol, yardstick in (("compatibility", "C", COMMON), ("disagreement", "D", OWN))
        for side, words in (("low", "at least"), ("high", "at most"))
        for column in (f"{name}_{side}_k{K}",)
    ]
