"""Runs that are simulated in memory and judged by the analysis itself: the truth is known, and there can be hundreds.

gain = mean_gain + slope (D^L - D^I) + slope_c (C - its mean) + a mood shared by the prompt + noise

The noise has heavy tails, and grows with raw KL. A placebo has mood and noise alone, drawn anew for each of its draws.
What is left out of the analysis is the run directory and every estimate that no headline needs; what is called is what
`teachdiag analyze` calls.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from planted import World, bank_frame, decomposition
from planted_efficiency import EfficiencyWorld, draw_measured

from teachdiag.analysis.bank.measurements import Bank, Probe, Record, Step, select_outcome
from teachdiag.analysis.bank.normalised import normalised_scores, raw_scores
from teachdiag.analysis.efficiency.rows import efficiency_rows
from teachdiag.analysis.report.headline import STEP, Headline, headline
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.claims import CLAIMS
from teachdiag.analysis.step.cross_validation import draw_folds
from teachdiag.analysis.step.design import make_sample
from teachdiag.analysis.step.findings import finding_rows, primary_rows
from teachdiag.analysis.step.placebo_draws import beyond_rows, pool_draws
from teachdiag.analysis.step.profiles import mean_rows, noise_floor_row
from teachdiag.analysis.step.regression import regressions
from teachdiag.analysis.step.validity import predictor_sets, validity
from teachdiag.artefacts import EFFICIENCY, ESTIMATES, PRIMARY
from teachdiag.settings import HEADLINE_K, CaptureSettings, ProbeSettings
from teachdiag.signals import BASE

PLACEBOS = ("random_direction",)
_PROBE, _FOLDS, _REPEATS, _REFITS = "one_step", 5, 2, 30
_SETS = {
    key: predictor_sets()[key] for key in ((BASE, None), ("compatibility", HEADLINE_K), ("decomposition", HEADLINE_K))
}


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What is simulated, in nats: slopes per unit of the score, standard deviations of mood and noise."""

    mean_gain: float = 0.0
    slope: float = 0.0
    slope_c: float = 0.0
    mood: float = 0.003
    noise: float = 0.01  # at a raw KL of half a nat
    prompts: int = 48
    positions: int = 30
    placebo_draws: int = 5  # which `teachdiag probe --draws 5` makes
    draws: int = 200  # of the bootstrap
    compared: bool = True  # whether sets of signals are compared out of fold, which takes longest


def primary_of(world: Simulated, seed: int) -> list[dict[str, Any]]:
    """Return the rows of the primary claims on one simulated run."""
    rng = np.random.default_rng(seed)
    positions = bank_frame(World(prompts=world.prompts, positions=world.positions), rng)
    names, codes = np.unique(positions["prompt_id"].to_numpy(str), return_inverse=True)
    bank = Bank(positions, codes.astype(np.int64), world.prompts, list(names))
    step = _step(world, bank, rng)
    resampling = Resampling(seed, world.draws, world.prompts)
    outcomes = [select_outcome(probe, "gain", bank) for probe in step.probes]
    normalised = normalised_scores(bank)
    rows = [noise_floor_row(probe, bank) for probe in step.first_draws]
    rows += [row for outcome in outcomes for row in mean_rows(outcome, bank, resampling)]
    rows += regressions(make_sample(outcomes, normalised, HEADLINE_K, bank.n_prompts), bank, resampling)
    if world.compared:
        folds = draw_folds(bank.n_prompts, _FOLDS, _REPEATS, seed)
        rows += validity(outcomes, bank, raw_scores(bank, normalised), folds, resampling, _SETS, _REFITS)
    rows = pool_draws(rows)
    rows += beyond_rows(rows, [step], {claim.analysis for claim in CLAIMS})
    record = Record(_PROBE, "one_step", ProbeSettings().as_dict(), {})
    placebos = {update: step.draws_of(update) for update in step.placebo_ids}
    return primary_rows(finding_rows(ESTIMATES.build_rows(rows).to_pandas(), record, placebos))


def efficiency_of(world: EfficiencyWorld, seed: int, draws: int = 100) -> pd.DataFrame:
    """Return the table of what selectors keep, of one simulated probe of kind efficiency."""
    rows = efficiency_rows(draw_measured(world, seed), Resampling(seed, draws, world.prompts))
    return EFFICIENCY.build_rows(rows).to_pandas()


def headline_of(world: Simulated, efficiency: EfficiencyWorld | None, seed: int) -> tuple[pd.DataFrame, Headline]:
    """Return the table of the primary claims of one simulated run, and its headline."""
    primary = PRIMARY.build_rows(primary_of(world, seed)).to_pandas()
    kept = EFFICIENCY.build_rows([]).to_pandas() if efficiency is None else efficiency_of(efficiency, seed)
    settings = CaptureSettings().of_capture()
    return primary, headline(primary, kept, Path("runs/simulated"), settings, {_PROBE: STEP})


def _step(world: Simulated, bank: Bank, rng: np.random.Generator) -> Step:
    kl, c = (bank.column(name) for name in ("forward_kl", f"compatibility_k{HEADLINE_K}"))
    learnable, incompatible = decomposition(bank.positions)
    effect = world.mean_gain + world.slope * (learnable - incompatible) + world.slope_c * (c - c.mean())

    def probe(update: str, draw: int) -> Probe:
        mood = rng.normal(0, world.mood, bank.n_prompts)[bank.prompts]
        noise = rng.standard_t(4, len(bank)) / np.sqrt(2) * world.noise * (0.5 + kl)
        real = update == "one_step"
        gains = {"gain": mood + noise + effect * real, "noise_floor": np.full(len(bank), 1e-6)}
        return Probe(_PROBE if real else f"{_PROBE}.{update}", update, "update", "reverse_kl", gains, draw)

    placebos = tuple(probe(update, draw) for update in PLACEBOS for draw in range(world.placebo_draws))
    return Step(probe("one_step", 0), placebos)
