"""Does the verdict keep its promises? Hundreds of simulated runs with a known truth, judged by the analysis itself.

`python benchmarks/simulation.py > docs/simulation.md` writes the page; `make bench PARTS=simulation` prints
its numbers.
"""

import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm
from threadpoolctl import threadpool_limits
from workload import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/worlds"))
from planted_efficiency import EfficiencyWorld, true_norm_shares
from simulated_runs import Simulated, efficiency_of, headline_of, primary_of

from teachdiag.analysis.kinds.kind import CONTENDER
from teachdiag.analysis.report.headline import ENOUGH, Headline
from teachdiag.analysis.resampling.power import Precision
from teachdiag.analysis.step.claims import PRIMARY_CLAIMS
from teachdiag.analysis.step.reach import Reach, precision_of_row
from teachdiag.markdown import markdown_table
from teachdiag.settings import HEADLINE_BUDGET, HEADLINE_BUDGETS
from teachdiag.tables import rows_where

RUNS = 200
HELPS, GAP, C, DECOMPOSED = (claim.finding for claim in PRIMARY_CLAIMS[:4])
FROM_0 = {  # of each claim, an effect near the smallest that is detectable
    HELPS: Simulated(mean_gain=0.0016, compared=False),
    GAP: Simulated(slope=0.009, compared=False),
    C: Simulated(slope_c=0.05),
    DECOMPOSED: Simulated(slope=0.014),
}
FROM_PLACEBO = {  # the same of the margin over a placebo
    HELPS: Simulated(mean_gain=0.0026, compared=False),
    GAP: Simulated(slope=0.013, compared=False),
    C: Simulated(slope_c=0.18),
    DECOMPOSED: Simulated(slope=0.0225),
}
_QUIET = {"contexts": 96, "batch": 48, "noise": 0.3, "mood": 0.03, "prompt_noise": 0.5}
BETTER = EfficiencyWorld(mean=0.05, slope_kl=-1.0, slope_learnable=1.2, **_QUIET)  # gain where C is high
WORSE = EfficiencyWorld(mean=0.06, slope_kl=1.0, slope_learnable=-1.2, **_QUIET)  # gain where C is low
FAINT = EfficiencyWorld(mean=0.05, slope_kl=1.0, slope_learnable=-1.1, **_QUIET)
_SELECTORS = ("forward_kl", "learnable", "entropy", "random")


class Promise(NamedTuple):
    """One comparison in many runs: mean effect, mean promised power, and the share of runs that found it."""

    what: str
    effect: float
    promised: float
    found: float


class Family(NamedTuple):
    """Runs of one truth: what they are, and whether a headline is right."""

    truth: str
    worlds: tuple[tuple[Simulated, EfficiencyWorld | None], ...]  # taken in turn
    right: Callable[[Headline, int], bool]  # of a run, by the number of its world


class Headlines(NamedTuple):
    """Share of runs whose headline is right, and of those in which each primary claim holds or is reversed."""

    right: float
    claimed: dict[str, float]


def simulation_rows() -> list[Row]:
    """One row a family of runs, one a claim where there is no effect, and one a comparison whose power is promised."""
    judged = {name: headlines(name, RUNS) for name in FAMILIES}
    return [
        *((FAMILIES[name].truth, f"{runs.right:.1%}", "right headlines") for name, runs in judged.items()),
        *((claim, f"{share:.1%}", "claimed without an effect") for claim, share in judged["nothing"].claimed.items()),
        *((p.what, f"power {p.found:.2f}", f"promised {p.promised:.2f}") for p in promises(RUNS)),
    ]


def promises(runs: int) -> list[Promise]:
    """Return promised and found power of every claim, from 0 and from the nearest placebo."""
    found: list[Promise] = []
    for claim in FROM_0:
        told = [(r, row) for row in _all(partial(_claimed, FROM_0[claim], claim), runs) if (r := Reach.of_row(row))]
        zero = [(r.of_number, row["estimate"] - r.zero, row["ci_low"] - r.zero) for r, row in told]
        found.append(_promise(f"{claim}, from 0", zero))
        beside = _all(partial(_claimed, FROM_PLACEBO[claim], claim), runs)
        margin = [(r.of_margin, row["margin"], row["margin_low"]) for row in beside if (r := Reach.of_row(row))]
        found.append(_promise(f"{claim}, from the placebo", margin))
    kept = [row for row in _all(partial(_less, FAINT), runs) if row]
    turned = [(precision_of_row(row), -row["estimate"], -row["ci_high"]) for row in kept]
    return [*found, _promise(f"{CONTENDER} keeps less than raw KL at {HEADLINE_BUDGET:.0%}, from 0", turned)]


def headlines(name: str, runs: int) -> Headlines:
    """Judge the runs of one family."""
    rights, tables = zip(*_all(partial(_judged, name), runs), strict=True)
    statuses = pd.concat(tables)
    stated = statuses["status"].isin(("holds", "reversed")).groupby(statuses["claim"], sort=False).mean()
    return Headlines(float(np.mean(rights)), {str(claim): float(share) for claim, share in stated.items()})


_STATED = (  # of a gain, of harm, of a share of a gain
    "off the bank's mean KL",
    "further from the teacher",
    "takes the student away from the teacher",
    "of the whole batch's gain",
)


def _nothing(said: Headline, _: int) -> bool:
    """Nothing is claimed of the step, no share of its gain is stated, and nothing advised."""
    text = " ".join(said.sentences)
    return not any(part in text for part in _STATED) and not said.command.startswith("teachdiag train")


def _effect(said: Headline, _: int) -> bool:
    """The headline says that the step helps, and the two claims that were planted."""
    text = " ".join(said.sentences)
    planted = [claim for claim in PRIMARY_CLAIMS if claim.finding in (GAP, DECOMPOSED)]
    told = text.partition("Not told")[0].lower()
    return "beyond every placebo" in text and all(claim.above.lower() in told for claim in planted)


def _efficiency(said: Headline, world: int) -> bool:
    """The headline says which score is better, and what it advises to train on keeps enough in truth."""
    verdict = ("is supported", "is not supported")[world]
    if not any(verdict in sentence for sentence in said.sentences):
        return False
    words = said.command.split()
    if words[:2] != ["teachdiag", "train"]:
        return True  # left open
    chosen = dict(pairwise(words))
    truth = true_at_norm((BETTER, WORSE)[world])
    if chosen["--selector"] == "full":
        return max(truth.values()) < ENOUGH
    return truth[chosen["--selector"], float(chosen["--budget"])] >= ENOUGH


_NO_GAIN = EfficiencyWorld(mean=0.0, slope_kl=0.0)
FAMILIES: Mapping[str, Family] = {
    "nothing": Family("no effect: nothing is claimed, nothing advised", ((Simulated(), _NO_GAIN),), _nothing),
    "effect": Family(
        "known effect: the step helps, beta_L > beta_I, {D^L, D^I} beats raw KL",
        ((Simulated(mean_gain=0.01, slope=0.03), None),),
        _effect,
    ),
    "efficiency": Family(
        "known efficiency: TA-OPD's score keeps more than raw KL, or less",
        tuple((Simulated(compared=False), world) for world in (BETTER, WORSE)),
        _efficiency,
    ),
}


@cache
def true_at_norm(world: EfficiencyWorld) -> dict[tuple[str, float], float]:
    """Return the true share of every selector and budget at equal length of the step."""
    norm = true_norm_shares(world, _SELECTORS, HEADLINE_BUDGETS, batches=200)
    return {(s, b): float(norm[i, j]) for i, s in enumerate(_SELECTORS) for j, b in enumerate(HEADLINE_BUDGETS)}


def _judged(name: str, seed: int) -> tuple[bool, pd.DataFrame]:
    family = FAMILIES[name]
    number = seed % len(family.worlds)
    primary, said = headline_of(*family.worlds[number], seed)
    return family.right(said, number), primary[["claim", "status"]]


def _claimed(world: Simulated, claim: str, seed: int) -> dict[str, Any]:
    return next(row for row in primary_of(world, seed) if row["claim"] == claim)


def _less(world: EfficiencyWorld, seed: int) -> dict[str, Any]:
    """Return the row of TA-OPD's share less raw KL's; empty where the whole batch's gain is not told from 0."""
    chosen = {"selector": CONTENDER, "statistic": "share_vs_base", "match": "norm", "budget": HEADLINE_BUDGET}
    rows = rows_where(efficiency_of(world, seed), **chosen)
    return {} if rows.empty else {str(name): value for name, value in rows.iloc[0].items()}


def _promise(what: str, runs: list[tuple[Precision, float, float]]) -> Promise:
    """Summarise precision, estimate and the interval's end nearest to 0 of many runs.

    Promised is the power at which the effect would be the smallest that is detectable, on average over runs.
    """
    effect = float(np.mean([estimate for _, estimate, _ in runs]))
    near, error = (float(np.mean(sizes)) for sizes in zip(*((p.near, p.end_error) for p, _, _ in runs), strict=True))
    return Promise(what, effect, float(norm.cdf((effect - near) / error)), float(np.mean([e > 0 for _, _, e in runs])))


def _all(work: Callable[[int], Any], runs: int) -> list[Any]:
    """Do the same for every seed, in as many processes as there are cores."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork"), threadpool_limits, (1, "blas")) as pool:
        return list(pool.map(work, range(runs), chunksize=4))


def page(runs: int = RUNS) -> str:
    """Return docs/simulation.md; a share of 80% needs more runs than one of 5%."""
    power_runs = 3 * runs
    judged = {name: headlines(name, runs) for name in FAMILIES}
    right = [{"truth": FAMILIES[name].truth, "right": f"{found.right:.1%}"} for name, found in judged.items()]
    claimed = [{"claim": claim, "claimed": f"{share:.1%}"} for claim, share in judged["nothing"].claimed.items()]
    power = [
        {"comparison": p.what, "effect": f"{p.effect:.3g}", "promised": f"{p.promised:.2f}", "found": f"{p.found:.2f}"}
        for p in promises(power_runs)
    ]
    return _PAGE.format(
        runs=runs,
        power_runs=power_runs,
        world=Simulated(),
        enough=f"{ENOUGH:.0%}",
        right=markdown_table(pd.DataFrame(right)),
        claimed=markdown_table(pd.DataFrame(claimed)),
        power=markdown_table(pd.DataFrame(power)),
        error=1.96 * np.sqrt(0.16 / power_runs),
    )


_PAGE = """# Simulated runs: does the verdict keep its promises?

`python benchmarks/simulation.py > docs/simulation.md` makes this page, in some minutes on two cores; `make bench
PARTS=simulation` prints the same numbers. {runs} runs of each kind are simulated in memory and judged by the functions
of `teachdiag analyze`, headline included: {world.prompts} prompts of {world.positions} positions, gains with a mood
that each prompt shares and heavy-tailed noise that grows with raw KL, and {world.placebo_draws} draws of a placebo;
inner products of gradients whose law is known for what selectors keep. What is left out is the run directory, and
estimates that no headline needs; of the bootstrap there are {world.draws} draws, 30 of them fitted anew.

## Headlines

{right}

A headline is wrong under no effect if it states a gain or a harm, what is kept of a gain, or advises a selector; that
a step seems to do harm (below 0 at 95%, not at 99%) is no such statement. With a known effect it is right if it states
every planted claim. With a known efficiency it is right if it states which score keeps more, and if what it advises to
train on, if anything, keeps at least {enough} of the gain in truth.

Each primary claim by itself, where there is no effect: how often it holds or is reversed, placebo included. The
headline mentions the last three only where the first holds.

{claimed}

## Power

Each run says which effect it would have seen with which power. Promised is the power with which {power_runs} runs,
taken together, would have called the planted effect just detectable; found is the share of them whose interval leaves 0
out on the right side, with a Monte-Carlo error of up to {error:.2f}. Effects are of the size that a run would see about
four times in five.

{power}
"""


if __name__ == "__main__":
    print(page(*map(int, sys.argv[1:2])), end="")
