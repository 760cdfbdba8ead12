"""The selector experiment: what each selector's step gained at each budget, and what it kept.

Means are over update seeds. Gains are resampled over seeds and bank prompts; what was kept depends on the update batch
alone, and is resampled over seeds. All selectors share batches, prompts and draws, so differences are paired.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bank.measurements import Bank
from teachdiag.analysis.bank.normalised import in_q3
from teachdiag.analysis.kinds.gain_matrix import GROUP, Cells
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling, intervals, prompt_sums
from teachdiag.analysis.resampling.multiplicity import add_q_values, bootstrap_p
from teachdiag.analysis.resampling.two_way import TwoWay, cell_means, over_seeds, seed_intervals, two_way
from teachdiag.analysis.step.rank_correlations import spearman
from teachdiag.analysis.step.released_gap import arms
from teachdiag.analysis.step.support_contrast import fixed_gaps
from teachdiag.errors import EstimationError
from teachdiag.scores import Array, Mask
from teachdiag.settings import HEADLINE_K, NOISE_SAFETY

RANDOM, ALL = "random", "all"
MIN_SEEDS = 5  # update batches below which intervals over them are too short for a verdict
_OF_THE_BATCH = {  # columns of `interventions` that are averaged over seeds as they stand: unit
    "keep": "1",
    "tied": "1",
    "topped_up": "positions",
    "q3_share": "1",
    "mean_disagreement": "nats",
    "mean_compatibility": "1",
    "mean_learnable": "1",
    "mean_incompatible": "1",
    "mean_student_entropy": "nats",
    "mean_position": "tokens",
    "update_norm": "1",
    "first_order_gain": "nats",
}
Rows = list[dict[str, Any]]


class Statistic(NamedTuple):
    """One number of every cell in every draw.

    `values`: shape (draws, cells), or (1, cells) where no prompt enters; NaN where a cell has none.
    """

    name: str
    unit: str
    what: str
    values: Array
    n_positions: int
    n_dropped: int = 0


def selection_rows(cells: Cells, gains: Sequence[Statistic], draws: TwoWay) -> Rows:
    """Return the rows of the selection table of one probe.

    Args:
        cells: the experiment.
        gains: what `gain_statistics` made of it.
        draws: of seeds and prompts.
    """
    groups, group = cells.groups
    rows: Rows = []
    for statistic in (*gains, *_composition(cells)):
        samples = over_seeds(statistic.values, group, cells.seeds, draws.seeds)
        of_prompts = len(statistic.values) > 1
        estimated = intervals(samples) if of_prompts else seed_intervals(samples, draws.n_seeds)
        method = draws.method(statistic.what) if of_prompts else draws.seed_method(statistic.what)
        tested = statistic.name == f"mean_gain_vs_{RANDOM}" and draws.n_seeds >= MIN_SEEDS
        rows += [
            {"probe_id": cells.probe_id, "statistic": statistic.name, "unit": statistic.unit}
            | {name: labels[name] for name in GROUP}
            | interval.columns()
            | {"p_value": bootstrap_p(interval.draws) if tested and interval.draws is not None else None}
            | {"method": method, "n_seeds": len(np.unique(cells.seeds[group == number]))}
            | {"n_positions": statistic.n_positions, "n_prompts": cells.n_prompts, "n_dropped": statistic.n_dropped}
            for number, (labels, interval) in enumerate(zip(groups.to_dict("records"), estimated, strict=True))
            if not np.isnan(interval.estimate)
        ]
    add_q_values(rows, ("probe_id", "match", "statistic"))
    return rows


def draw_seeds_and_prompts(cells: Cells, resampling: Resampling) -> TwoWay:
    """Draw the update seeds, and the prompts that were rescored.

    Raises:
        EstimationError: these are too few.
    """
    if cells.n_prompts < MIN_PROMPTS:
        raise EstimationError(
            f"probe {cells.probe_id} rescored {cells.n_prompts} prompts and intervals need at least {MIN_PROMPTS}: "
            "probe again with more --bank-contexts"
        )
    return two_way(replace(resampling, n_prompts=cells.n_prompts), int(cells.seeds.max()) + 1)


def agreement_rows(cells: Cells) -> Rows:
    """Say how well the first-order form foretells the real mean gain over cells: rows of the estimates table.

    Selectors of the same batch and budget are compared with one another, as batches and budgets move both sides alike:
    `spearman` ranks the cells' deviations from their group's mean, `r2` is 1 - sum (real - first order)^2 / sum (real -
    group mean)^2, without any fitted slope. No interval: ranks made anew in draws of few batches do not surround them.
    """
    table = cells.table.assign(real=cells.gains.mean(axis=1))
    table = table[table["selector"] != ALL]
    table = table.assign(form=table["first_order_gain"].astype(np.float64))
    groups = table.groupby(["match", "seed", "budget"])[["real", "form"]]
    table[["real_centred", "form_centred"]] = table[["real", "form"]] - groups.transform("mean")
    rows: Rows = []
    for match, matched in table.groupby("match"):
        y, x = matched["real_centred"].to_numpy(), matched["form_centred"].to_numpy()
        if len(matched) < 3 or np.ptp(y) == 0 or np.ptp(x) == 0:
            continue
        r2 = 1 - ((matched["real"] - matched["form"]) ** 2).sum() / (y**2).sum()
        what = f"real mean gain against its first-order form, {len(matched)} cells, within batch and budget"
        for term, value in (("spearman", spearman(y, x)), ("r2", float(r2))):
            interval = Interval(value, np.nan, np.nan)
            rows.append(_agreement(cells, "first_order_agreement", f"{term} ({match})", interval, what))
    return rows


def released_rows(cells: Cells, gains: Sequence[Statistic]) -> Rows:
    """Say whether the released statistic orders selectors as their mean gain does: rows of the estimates table.

    Spearman over selectors and budgets below 1, both means over seeds; no interval, as ranks of noisy means shrink in
    every draw.
    """
    groups, group = cells.groups
    by_name = {s.name: s.values[:1] for s in gains}  # the estimates alone
    if "released_gap" not in by_name:
        return []
    every_seed = np.ones((1, int(cells.seeds.max()) + 1))
    gain, gap = (over_seeds(by_name[name], group, cells.seeds, every_seed)[0] for name in ("mean_gain", "released_gap"))
    rows: Rows = []
    for match in sorted(groups["match"].unique()):
        compared = ((groups["match"] == match) & (groups["budget"] < 1)).to_numpy()
        if compared.sum() < 3:
            continue
        interval = Interval(spearman(gain[compared], gap[compared]), np.nan, np.nan)
        method = f"released gap against mean gain, {compared.sum()} selectors and budgets"
        if not np.isnan(interval.estimate):
            rows.append(_agreement(cells, "released_agreement", f"spearman ({match})", interval, method))
    return rows


def gain_statistics(cells: Cells, bank: Bank, noise_floor: float, weights: Array) -> list[Statistic]:
    """Return what the steps did to the bank, in every cell and draw.

    Args:
        cells: the experiment.
        bank: the bank that was rescored, or of which a part was.
        noise_floor: that of the probe, nats: bounds the positions of the released statistic.
        weights: of the prompts, shape (draws, prompts).
    """
    everywhere = np.ones(len(cells.rows), bool)
    q3 = in_q3(bank, cells.rows)[0]
    gain = _mean(cells, everywhere, weights)
    n_kept = cells.table["n_kept"].to_numpy(np.float64)
    whole, inside, itself = len(cells.rows), int(q3.sum()), np.arange(len(cells.table))
    statistics = [
        Statistic("mean_gain", "nats", "mean gain", gain, whole),
        Statistic("gain_per_kept", "nats per position", "mean gain / n_kept", gain / n_kept, whole),
    ]
    for name, partner in ((RANDOM, cells.partners(RANDOM)), (ALL, cells.partners(ALL, 1.0))):
        if (partner >= 0).any():
            less = np.where((partner >= 0) & (partner != itself), gain - gain[:, partner], np.nan)
            what = f"mean gain less that of {name} on the same batches, paired"
            statistics.append(Statistic(f"mean_gain_vs_{name}", "nats", what, less, whole))
    if inside:
        of_q3 = _mean(cells, q3, weights)
        statistics.append(Statistic("gain_q3", "nats", "mean gain inside Q3 of the rescored bank", of_q3, inside))
    return statistics + _released(cells, bank, q3, noise_floor, weights)


def _released(cells: Cells, bank: Bank, q3: Mask, noise_floor: float, weights: Array) -> list[Statistic]:
    compatibility = bank.column(f"compatibility_k{HEADLINE_K}")[cells.rows]
    measurable = (cells.before >= NOISE_SAFETY * noise_floor) & (cells.before > 0)
    cut = arms(q3, compatibility, measurable)
    if not cut:
        return []
    relative = np.divide(cells.gains, cells.before, out=np.zeros_like(cells.gains), where=measurable)
    gaps = fixed_gaps(relative.T, cut.high, cut.low, cells.prompts, weights)
    what = f"relative gain inside Q3, C (K={HEADLINE_K}) in its upper third less lower third, as released"
    return [Statistic("released_gap", "1", what, gaps, cut.size, cut.n_dropped)]


def _composition(cells: Cells) -> list[Statistic]:
    """Return what the selectors kept of their update batches."""
    n_batch = int(cells.table["n_batch"].mean())
    return [
        Statistic(name, unit, name.replace("_", " "), cells.table[name].to_numpy(np.float64)[None], n_batch)
        for name, unit in _OF_THE_BATCH.items()
    ]


def _mean(cells: Cells, inside: Mask, weights: Array) -> Array:
    """Return the mean gain of every cell over the marked positions, shape (draws, cells)."""
    gains, prompts = cells.gains[:, inside].T, cells.prompts[inside]
    sums = prompt_sums(np.column_stack([np.ones(len(gains)), gains]), prompts, cells.n_prompts)
    return cell_means(sums[:, 1:].T, sums[:, 0], weights)


def _agreement(cells: Cells, analysis: str, term: str, interval: Interval, method: str) -> dict[str, Any]:
    return {
        "analysis": analysis,
        "probe_id": cells.probe_id,
        "update": "selectors",
        "outcome": "mean_gain",
        "k": None,
        "term": term,
        "unit": "1",
        **interval.columns(),
        "std_error": None,
        "method": method,
        "n_positions": len(cells.rows),
        "n_prompts": cells.n_prompts,
        "n_dropped": 0,
    }
