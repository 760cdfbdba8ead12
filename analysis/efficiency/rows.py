"""The rows of the table `efficiency`: what each selector keeps of the whole batch's gain, and beside it real steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.efficiency.drawn import Drawn, mean_of, ratio_of
from teachdiag.analysis.efficiency.kept_means import RANDOM, Pool, kept_means
from teachdiag.analysis.efficiency.pool import compared_selectors, load_pool
from teachdiag.analysis.efficiency.real_steps import RealShare, cells_beside_all, real_shares, share_of_batches
from teachdiag.analysis.efficiency.step_lengths import ALL, LengthRatios, length_ratios
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling
from teachdiag.analysis.resampling.few_blocks import block_weights, clear_side
from teachdiag.artefacts import MASKED_GAINS, MASKED_STEPS
from teachdiag.scores import Array
from teachdiag.seeds import derive_seed
from teachdiag.selectors import Selector
from teachdiag.settings import HEADLINE_OUTCOME, MATCHES
from teachdiag.signals import BASE

MOST_DRAWS = 300  # of the update batch: in each, every selector chooses anew
GAIN, SHARE = "gain", "share"
_LESS = {"share_vs_base": BASE, "share_vs_random": RANDOM}  # statistic: whose share is taken off
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Population:
    """What stands behind every number of a probe, and the text of its `method` column."""

    probe_id: str
    outcome: str
    n_contexts: int
    n_prompts: int
    n_blocks: int
    method: str

    def at_norm(self, lengths: LengthRatios) -> "Population":
        """Return the same for numbers at equal length of the step."""
        method = (
            f"{self.method}; norms of {lengths.n_batches} batches of {lengths.n_contexts} contexts, read off where "
            "these would keep that share, with their own error"
        )
        return replace(self, method=method)

    def row(
        self, selector: str, budget: float, match: str, statistic: str, interval: Interval, unit: str = "1"
    ) -> dict[str, Any]:
        """Return a row without norm error and real steps."""
        return {
            "probe_id": self.probe_id,
            "selector": selector,
            "budget": budget,
            "match": match,
            "outcome": self.outcome,
            "statistic": statistic,
            "unit": unit,
            **interval.columns(),
            "method": self.method,
            "n_contexts": self.n_contexts,
            "n_prompts": self.n_prompts,
            "n_blocks": self.n_blocks,
            **dict.fromkeys(("norm_error", "real_share", "real_low", "real_high", "real_first_order")),
        }


@dataclass(frozen=True)
class Curve:
    """Shares of every selector at every budget, flattened: m = selectors x budgets.

    `share` and `placebo`: with the teacher's own rows and with shuffled ones, over the whole batch's gain with the
    teacher's own; at equal rate.
    """

    selectors: Sequence[str]
    budgets: Sequence[float]
    share: Drawn
    placebo: Drawn

    def of(self, drawn: Drawn, selector: str) -> Drawn:
        """Return one selector's numbers, as often as there are selectors: what all of them are compared with."""
        first = len(self.budgets) * list(self.selectors).index(selector)
        columns = np.tile(np.arange(first, first + len(self.budgets)), len(self.selectors))
        return Drawn(drawn.values[:, columns], drawn.influence[:, columns])

    def compared(self, drawn: Drawn) -> Iterator[tuple[str, Drawn]]:
        """Yield shares at one match, and what they are less those of raw KL and of random positions, by statistic."""
        yield SHARE, drawn
        for statistic, name in _LESS.items():
            if name in self.selectors:
                yield statistic, drawn - self.of(drawn, name)

    def at_norm(self, lengths: LengthRatios, seed: int) -> Drawn:
        """Return the shares at equal length of the step, NaN where no norm was measured.

        Args:
            lengths: of these selectors and budgets.
            seed: of the draws of their own error.
        """
        shares = self.share.values.reshape(-1, *lengths.ratio.shape)
        return self.share.scaled(lengths.at(shares, seed).reshape(len(shares), -1))

    def at_rate(self) -> Iterator[tuple[str, Drawn]]:
        """Yield every statistic at equal learning rate."""
        yield from self.compared(self.share)
        yield "share_shuffled", self.placebo
        yield "share_vs_shuffled", self.share - self.placebo


@dataclass(frozen=True)
class Resampled:
    """The gain of a step on the whole batch, and what selectors keep of it, in every draw.

    Attributes:
        whole: the gain with the teacher's own rows and with shuffled ones, nats per unit of learning rate.
        gain: the first of these with its interval; none from fewer than `MIN_PROMPTS` update prompts.
        gain_shuffled: the second.
        blocks: weights of the bank's blocks, shape (1 + draws, blocks).
        curve: shares of the gain; None where it is not clearly told from 0, and a share could be anything.
    """

    whole: Drawn
    gain: Interval
    gain_shuffled: Interval
    blocks: Array
    curve: Curve | None


@dataclass(frozen=True)
class Measured:
    """What a probe of kind efficiency measured.

    Attributes:
        probe_id: the probe.
        outcome: what counts as gain on the bank, 'gain' or 'gain_reverse'.
        pool: its update positions.
        selectors: those that are compared, by name.
        budgets: shares of the batch that are kept, below 1.
        n_prompts: prompts of the bank.
        steps: rows of `masked_steps`.
        gains: rows of `masked_gains`.
    """

    probe_id: str
    outcome: str
    pool: Pool
    selectors: Mapping[str, Selector]
    budgets: Sequence[float]
    n_prompts: int
    steps: pd.DataFrame
    gains: pd.DataFrame


def outcome_of(settings: Mapping[str, Any]) -> str:
    """Return what a probe counts as gain: 'gain' for those that were made before one could choose."""
    return str(settings.get("outcome", HEADLINE_OUTCOME))


def load_measured(run: Path, record: Record) -> Measured:
    """Read what a probe of kind efficiency measured.

    Raises:
        ArtefactError: a table is missing, or does not hold each position once in each block.
        SettingsError: a selector is unknown.
    """
    settings, probe_id = record.settings, record.probe_id
    selectors = compared_selectors(run, settings)
    return Measured(
        probe_id,
        outcome_of(settings),
        load_pool(run, probe_id, selectors, int(settings["seed"])),
        selectors,
        [budget for budget in dict.fromkeys(map(float, settings["budgets"].split(","))) if budget < 1],
        sum(int(block["prompts"]) for block in record.results["blocks"]),
        MASKED_STEPS.read(run / "masked_steps" / probe_id),
        MASKED_GAINS.read(run / "masked_gains" / probe_id),
    )


def efficiency_rows(measured: Measured, resampling: Resampling) -> Rows:
    """Return the rows of one probe of kind efficiency: of the whole batch alone where its gain is not told from 0.

    Args:
        measured: what it measured.
        resampling: of the bank's prompts; its seed and draws are those of update batches too, of these at most
            `MOST_DRAWS`.

    Raises:
        SettingsError: the scores of a selector are no scores.
    """
    few = few_draws(resampling)
    found, population = resampled(measured, few), population_of(measured, few)
    rows = [
        population.row(ALL, 1.0, "rate", statistic, interval, "nats")
        for statistic, interval in ((GAIN, found.gain), ("gain_shuffled", found.gain_shuffled))
    ]
    curve, blocks = found.curve, found.blocks
    if curve is None:
        return rows
    for statistic, drawn in curve.at_rate():
        rows += _cell_rows(curve, population, blocks, "rate", statistic, drawn)
    rows += _norm_rows(curve, population, blocks, length_ratios(measured.steps, curve.selectors, curve.budgets), few)
    rows += _own_optimizer_rows(measured.steps, population)
    _add_real_steps(rows, real_shares(measured.steps, measured.gains, resampling), measured.steps["optimizer"].iloc[0])
    return rows


def few_draws(resampling: Resampling) -> Resampling:
    """Return as many draws as there are of update batches."""
    return replace(resampling, draws=min(resampling.draws, MOST_DRAWS))


def resampled(measured: Measured, resampling: Resampling) -> Resampled:
    """Return the whole batch's gain and every selector's shares of it, in every draw.

    Args:
        measured: what a probe of kind efficiency measured.
        resampling: of update batches and of blocks, by its seed and draws.
    """
    pool, budgets = measured.pool, measured.budgets
    means = kept_means(pool, measured.selectors, budgets, prompt_weights(resampling, pool.n_prompts))
    blocks = block_weights(resampling, pool.n_blocks)
    whole = mean_of(means.whole.transpose(1, 0, 2), pool.sizes)
    gain, shuffled = (_known(interval, pool) for interval in whole.intervals(blocks))
    curve = None
    if clear_side(gain, pool.n_blocks) == 1:
        flat = means.kept.reshape(2, len(blocks), -1, pool.n_blocks)
        shares = [ratio_of(kept, means.whole[0], pool.sizes) for kept in flat]
        curve = Curve(list(measured.selectors), budgets, *shares)
    return Resampled(whole, gain, shuffled, blocks, curve)


def prompt_weights(resampling: Resampling, n_prompts: int) -> Array:
    """Return how often each prompt of the update split counts in each draw, shape (1 + draws, prompts), row 0 all ones.

    n - 1 of n are drawn, so that variances are not too small by (n - 1) / n (Rao and Wu 1988).
    """
    rng = np.random.default_rng(derive_seed(resampling.seed, "bootstrap", "update batches"))
    counts = rng.multinomial(max(n_prompts - 1, 1), np.full(n_prompts, 1 / n_prompts), size=resampling.draws)
    return np.vstack([np.ones(n_prompts), counts])


def population_of(measured: Measured, resampling: Resampling) -> Population:
    """Return what stands behind the numbers of a probe, at equal rate."""
    pool = measured.pool
    n_contexts = len(np.unique(pool.tokens.stored("context_id")))
    method = (
        f"first order under SGD; {resampling.draws} draws of update prompts, in each of which the selector chooses "
        f"anew, and Student weights of {pool.n_blocks} blocks of bank prompts, percentile"
    )
    return Population(measured.probe_id, measured.outcome, n_contexts, measured.n_prompts, pool.n_blocks, method)


def _known(interval: Interval, pool: Pool) -> Interval:
    """Return an interval, if there are prompts enough for one."""
    return interval if pool.n_prompts >= MIN_PROMPTS else Interval(interval.estimate, np.nan, np.nan)


def _norm_rows(
    curve: Curve, population: Population, blocks: Array, lengths: LengthRatios, resampling: Resampling
) -> Rows:
    """Return the rows at equal length of the step, of cells whose norm was measured."""
    measured = population.at_norm(lengths)
    rows = [
        row
        for statistic, drawn in curve.compared(curve.at_norm(lengths, resampling.seed))
        for row in _cell_rows(curve, measured, blocks, "norm", statistic, drawn)
    ]
    errors = dict(zip(curve.budgets, lengths.error.tolist(), strict=True))
    for row in rows:
        row["norm_error"] = None if np.isnan(errors[row["budget"]]) else errors[row["budget"]]
    return rows


def _cell_rows(
    curve: Curve, population: Population, blocks: Array, match: str, statistic: str, drawn: Drawn
) -> Iterator[dict[str, Any]]:
    """Yield a row for every selector and budget that has the statistic."""
    cells = [(selector, budget) for selector in curve.selectors for budget in curve.budgets]
    for (selector, budget), interval in zip(cells, drawn.intervals(blocks), strict=True):
        if not np.isnan(interval.estimate) and selector != _LESS.get(statistic):
            yield population.row(selector, budget, match, statistic, interval)


def _own_optimizer_rows(steps: pd.DataFrame, population: Population) -> Rows:
    """Return what cells keep under an optimizer other than SGD, whose steps are not linear in what is kept."""
    optimizer, n_batches = str(steps["optimizer"].iloc[0]), steps["batch"].nunique()
    if optimizer == "sgd":
        return []
    measured = replace(
        population,
        method=f"first order under {optimizer}'s first step, on {n_batches} batches of "
        f"{len(steps['context_ids'].iloc[0])} contexts; no interval from so few",
    )
    return [
        measured.row(
            str(cell["selector"].iloc[0]),
            float(cell["budget"].iloc[0]),
            match,
            f"{SHARE}_{optimizer}",
            Interval(share_of_batches(cell, whole, match), np.nan, np.nan),
        )
        for cell, whole in cells_beside_all(steps)
        for match in MATCHES
    ]


def _add_real_steps(rows: Rows, shares: Sequence[RealShare], optimizer: str) -> None:
    """Put what real steps kept beside the shares of their cells under the same optimizer."""
    by_cell = {(real.selector, real.budget, real.match): real for real in shares}
    statistic = SHARE if optimizer == "sgd" else f"{SHARE}_{optimizer}"
    for row in rows:
        real = by_cell.get((row["selector"], row["budget"], row["match"]))
        if real is not None and row["statistic"] == statistic:
            ends = real.real.columns()
            row |= {"real_share": ends["estimate"], "real_low": ends["ci_low"], "real_high": ends["ci_high"]}
            row["real_first_order"] = real.first_order
