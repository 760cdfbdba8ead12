"""How often 95% intervals of efficiency curves hold the truth, in planted worlds of the demo's size."""

import sys
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from workload import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/worlds"))
from planted_efficiency import EfficiencyWorld, draw_measured, true_norm_shares, true_shares

from teachdiag.analysis.efficiency.rows import efficiency_rows
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.scores import Array
from teachdiag.settings import HEADLINE_BUDGETS as BUDGETS
from teachdiag.signals import BASE

REPEATS, DRAWS = 160, 200
SELECTORS = (BASE, "learnable", "entropy", "random")
_CELL = ("selector", "budget", "match", "statistic")
Cell = tuple[str, float, str, str]


def efficiency_coverage_rows() -> list[Row]:
    """One row a number of blocks, match, statistic and budget: coverage over selectors, and the error's calibration."""
    with threadpool_limits(1, "blas"):
        return [row for blocks in (4, 8) for row in _rows(EfficiencyWorld(blocks=blocks))]


def _rows(world: EfficiencyWorld) -> list[Row]:
    truth = true_cells(world)
    worlds = [cells for seed in range(REPEATS) if len(cells := _cells(world, seed)) > len(("gain", "gain_shuffled"))]
    rows: list[Row] = [(f"worlds whose gain is told from 0, {world.blocks} blocks", f"{len(worlds)}", f"of {REPEATS}")]
    for match in ("norm", "rate"):
        for statistic in ("share", "share_vs_base"):
            for budget in BUDGETS:
                cells = [(s, budget, match, statistic) for s in SELECTORS]
                known = [cell for cell in cells if cell in worlds[0] and (cell[0], match) != ("random", "rate")]
                held = [np.mean([w[c][1] <= truth[c] <= w[c][2] for w in worlds]) for c in known]
                errors = [np.mean([w[c][3] for w in worlds]) / np.std([w[c][0] for w in worlds]) for c in known]
                what = f"{statistic} at {match}, {budget:.0%}, {world.blocks} blocks, {len(known)} selectors"
                rows.append((what, f"{min(held):.3f} to {max(held):.3f}", f"error / spread {np.mean(errors):.2f}"))
    return rows


def _cells(world: EfficiencyWorld, seed: int) -> dict[Cell, Array]:
    """Return estimate, both ends and error of every cell in one drawn world; none where its gain is not judged."""
    measured = draw_measured(world, seed, SELECTORS, BUDGETS)
    rows = efficiency_rows(measured, Resampling(seed, DRAWS, world.prompts))
    numbers = ("estimate", "ci_low", "ci_high", "draw_error")
    return {tuple(row[n] for n in _CELL): np.array([row[n] for n in numbers], np.float64) for row in rows}


def true_cells(world: EfficiencyWorld) -> dict[Cell, float]:
    """Return the true share of every selector, and what it is less raw KL's."""
    rate = true_shares(world, SELECTORS, BUDGETS)
    rate[SELECTORS.index("random")] = 1.0
    norm = true_norm_shares(world, SELECTORS, BUDGETS)
    return {
        (selector, budget, match, statistic): float(value)
        for match, shares in (("rate", rate), ("norm", norm))
        for statistic, values in (("share", shares), ("share_vs_base", shares - shares[SELECTORS.index(BASE)]))
        for selector, of_selector in zip(SELECTORS, values, strict=True)
        for budget, value in zip(BUDGETS, of_selector, strict=True)
    }
