"""Planted truth for efficiency curves: gradients in a few dimensions, whose products with the held-out one are known.

The gradient of an update position is g = (a, further), and that of a bank prompt's KL is h = (1, 0, ...) and noise, so
that the inner product with that of the whole population is a: what the scores foretell of it is planted. The efficiency
of a selector is that of an infinite batch, E[a | kept] / E[a], which a very large sample gives; at equal norm it is the
ratio of what many batches give.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from planted import World, _finish, _positions, finish_capture, write_positions

from teachdiag.analysis.efficiency.kept_means import Pool
from teachdiag.analysis.efficiency.rows import Measured, Rows
from teachdiag.artefacts import INNER_PRODUCTS, MASKED_GAINS, MASKED_STEPS
from teachdiag.scores import Array, Codes, Mask
from teachdiag.selectors import SELECTORS, Tokens, counts_at
from teachdiag.selectors.budget import select_each
from teachdiag.settings import HEADLINE_BUDGETS, HEADLINE_SELECTORS, ProbeSettings
from teachdiag.tables import shard_path, write_parquet

_LARGE = 8000  # contexts of the sample that gives the truth
_DIMENSIONS = 8
BUDGETS = ProbeSettings(kind="efficiency").budget_shares[:-1]


@dataclass(frozen=True, kw_only=True)
class EfficiencyWorld:
    """What is planted. a = mean + slope_kl * kl + slope_learnable * kl * C + a mood of the context + noise.

    A shuffled teacher leaves `placebo` of the mean of a, whatever the position.
    """

    contexts: int = 64
    positions: int = 54
    prompts: int = 64  # of the bank
    blocks: int = 8
    batch: int = 16  # contexts of a real update batch
    mean: float = 0.1
    slope_kl: float = 0.3
    slope_learnable: float = 0.0
    mood: float = 0.15  # standard deviation shared by the positions of a context, in every dimension
    noise: float = 1.0  # of each position, t with 4 degrees of freedom along a, growing with its KL
    prompt_noise: float = 1.0  # of the gradient of a bank prompt, beside its length of 1, in every dimension
    placebo: float = 0.1


@dataclass(frozen=True)
class Bank:
    """The bank's prompts: gradients, shape (prompts, dimensions); positions and block of each, shape (prompts,)."""

    gradients: Array
    positions: Codes
    block: Codes

    def by_block(self, n_blocks: int) -> tuple[Array, Codes]:
        """Return the gradient of every block's mean KL, shape (blocks, dimensions), and its positions, (blocks,)."""
        held = np.eye(n_blocks)[self.block].T * self.positions  # (blocks, prompts)
        sizes = held.sum(axis=1)
        return held @ self.gradients / sizes[:, None], sizes.astype(np.int64)


def draw_columns(world: EfficiencyWorld, contexts: int, rng: np.random.Generator) -> dict[str, Array]:
    """Draw the statistics of the positions of some contexts, by column, shape (n,) each."""
    n, codes = contexts * world.positions, np.repeat(np.arange(contexts), world.positions)
    kl = rng.lognormal(-1.5, 1.2, n) * np.exp(rng.normal(0, 0.3, contexts))[codes]
    return {
        "context_id": codes,
        "position": np.tile(np.arange(world.positions), contexts),
        "forward_kl": kl,
        "student_entropy": rng.gamma(1.2, 0.8, n) + 0.2 * kl,
        "disagreement_k16": kl * rng.uniform(0.7, 1, n),
        "compatibility_k16": 1 - rng.beta(1, 4, n) * np.minimum(1, kl),
    }


def expected_gain(world: EfficiencyWorld, columns: dict[str, Array]) -> Array:
    """Return what a is on average at positions of these statistics, shape (n,)."""
    slope = world.slope_kl + world.slope_learnable * columns["compatibility_k16"]
    return world.mean + slope * columns["forward_kl"]


def draw_gradients(world: EfficiencyWorld, columns: dict[str, Array], rng: np.random.Generator) -> Array:
    """Draw the gradients of positions, shape (n, dimensions)."""
    n, codes = len(columns["context_id"]), columns["context_id"].astype(np.int64)
    spread = (0.2 + np.minimum(columns["forward_kl"], 2)) * world.noise
    own = np.column_stack([rng.standard_t(4, n) / np.sqrt(2), rng.normal(0, 1, (n, _DIMENSIONS - 1))])
    gradients = rng.normal(0, world.mood, (codes.max() + 1, _DIMENSIONS))[codes] + own * spread[:, None]
    gradients[:, 0] += expected_gain(world, columns)
    return gradients


def draw_bank(world: EfficiencyWorld, rng: np.random.Generator) -> Bank:
    """Draw the bank's prompts, dealt into blocks."""
    gradients = rng.normal(0, world.prompt_noise, (world.prompts, _DIMENSIONS))
    gradients[:, 0] += 1
    return Bank(gradients, rng.integers(20, 60, world.prompts), rng.permutation(world.prompts) % world.blocks)


def draw_pool(world: EfficiencyWorld, seed: int) -> tuple[Pool, Array, Bank]:
    """Draw an update split, one prompt a context, with its gradients, and a bank."""
    rng = np.random.default_rng(seed)
    columns = draw_columns(world, world.contexts, rng)
    gradients, bank = draw_gradients(world, columns, rng), draw_bank(world, rng)
    of_blocks, sizes = bank.by_block(world.blocks)
    own = gradients @ of_blocks.T
    shuffled = world.placebo * expected_gain(world, columns).mean() + rng.normal(0, 1, own.shape) * own.std()
    tokens = Tokens(columns | {"isolated_gain": own @ (sizes / sizes.sum())})
    return Pool(tokens, np.stack([own, shuffled]), columns["context_id"].astype(np.int64), sizes), gradients, bank


def draw_measured(
    world: EfficiencyWorld,
    seed: int,
    selectors: tuple[str, ...] = HEADLINE_SELECTORS,
    budgets: tuple[float, ...] = HEADLINE_BUDGETS,
) -> Measured:
    """Draw what a probe of kind efficiency measures in a world, real batches included."""
    pool, gradients, bank = draw_pool(world, seed)
    steps, gains = masked_steps(world, pool.tokens, gradients, bank, selectors, budgets)
    chosen = {name: SELECTORS[name] for name in selectors}
    return Measured(
        "efficiency", "gain", pool, chosen, budgets, world.prompts, pd.DataFrame(steps), pd.DataFrame(gains)
    )


def true_shares(world: EfficiencyWorld, selectors: tuple[str, ...], budgets: tuple[float, ...]) -> Array:
    """Return the efficiency of every selector at every budget at equal rate, shape (selectors, budgets)."""
    columns = draw_columns(world, _LARGE, np.random.default_rng(0))
    gain, tokens = expected_gain(world, columns), Tokens(columns)
    means = [[gain[s.kept].mean() for s in select_each(tokens, SELECTORS[name], budgets)] for name in selectors]
    return np.array(means) / gain.mean()


def true_norm_shares(
    world: EfficiencyWorld, selectors: tuple[str, ...], budgets: tuple[float, ...], batches: int = 1000
) -> Array:
    """Return the same at equal length of the step, over many batches of the world's size.

    What is expected to be kept, mean of <masked gradient, h> / |masked gradient|, over what is expected of all.
    """
    rng, kept, whole = np.random.default_rng(1), np.zeros((len(selectors), len(budgets))), 0.0
    for _ in range(batches):
        columns = draw_columns(world, world.batch, rng)
        gradients, tokens = draw_gradients(world, columns, rng), Tokens(columns)
        mean = gradients.mean(axis=0)
        whole += mean[0] / np.linalg.norm(mean)
        for row, name in enumerate(selectors):
            if name == "random":
                kept[row] += [mean[0] / _random_norm(gradients, budget) for budget in budgets]
            else:
                means = [gradients[mask].mean(axis=0) for mask in _masks(tokens, name, budgets)]
                kept[row] += [masked[0] / np.linalg.norm(masked) for masked in means]
    return kept / whole


def _masks(tokens: Tokens, selector: str, budgets: tuple[float, ...]) -> list[Mask]:
    return [selection.kept for selection in select_each(tokens, SELECTORS[selector], budgets)]


def plant_efficiency(run: Path, world: EfficiencyWorld, probe_id: str = "efficiency", selector: str = "all") -> Pool:
    """Write a captured run with a finished probe of kind efficiency, real steps included; return what it measured."""
    rng = np.random.default_rng(0)
    positions = _positions(World(prompts=world.prompts + world.contexts - 3, positions=world.positions), rng)
    bank_rows = positions["context_id"] < world.prompts
    positions["split"] = np.where(bank_rows, "bank", "update")
    write_positions(run, positions)
    finish_capture(run, World(prompts=world.prompts))
    update = positions[~bank_rows].reset_index(drop=True)
    columns = {name: update[name].to_numpy() for name in update.select_dtypes("number")}
    gradients = draw_gradients(world, columns | {"context_id": columns["context_id"] - world.prompts}, rng)
    bank = draw_bank(world, rng)
    of_blocks, sizes = bank.by_block(world.blocks)
    own = (gradients @ of_blocks.T).astype(np.float32).astype(np.float64)
    shuffled = (world.placebo * own.mean() + rng.normal(0, 1, own.shape) * own.std()).astype(np.float32)
    tokens = Tokens(columns | {"isolated_gain": own @ (sizes / sizes.sum())})
    _write_products(run, probe_id, update, np.stack([own, shuffled], axis=2), sizes)
    steps, gains = masked_steps(world, tokens, gradients, bank, probe_id=probe_id)
    write_parquet(MASKED_STEPS.build_rows(steps), shard_path(run / "masked_steps" / probe_id, 0))
    write_parquet(MASKED_GAINS.build_rows(gains), shard_path(run / "masked_gains" / probe_id, 0))
    settings = ProbeSettings(name=probe_id, kind="efficiency", blocks=world.blocks, selector=selector)
    prompts = np.bincount(bank.block, minlength=world.blocks)
    blocks = [{"prompts": int(m), "positions": int(n)} for m, n in zip(prompts, sizes, strict=True)]
    _finish(run, f"probes/{probe_id}", settings.as_dict(), results={"noise_floor": 1e-5, "blocks": blocks})
    codes = np.unique(update["prompt_id"].to_numpy(str), return_inverse=True)[1]
    return Pool(tokens, np.stack([own, shuffled.astype(np.float64)]), codes, sizes.astype(np.float64))


def _write_products(run: Path, probe_id: str, update: pd.DataFrame, inner: Array, sizes: Codes) -> None:
    """Write `inner_products`; `inner`: shape (n, blocks, 2)."""
    n, n_blocks = inner.shape[:2]
    each = np.repeat(np.arange(n), n_blocks)
    columns = {name: update[name].to_numpy()[each] for name in ("context_id", "position", "prompt_id")}
    columns |= {"probe_id": [probe_id] * len(each), "loss": ["reverse_kl"] * len(each)}
    columns |= {"block": np.tile(np.arange(n_blocks), n), "block_positions": np.tile(sizes, n)}
    columns |= {"inner": inner[..., 0].ravel(), "inner_shuffled": inner[..., 1].ravel()}
    columns["prompt_id"] = pa.array(columns["prompt_id"].tolist())
    write_parquet(INNER_PRODUCTS.build(columns), shard_path(run / "inner_products" / probe_id, 0))


_REAL = (("forward_kl", 0.1), ("entropy", 0.1))  # cells of which a real step is taken


def masked_steps(
    world: EfficiencyWorld,
    tokens: Tokens,
    gradients: Array,
    bank: Bank,
    selectors: tuple[str, ...] = HEADLINE_SELECTORS,
    budgets: tuple[float, ...] = BUDGETS,
    probe_id: str = "efficiency",
) -> tuple[Rows, Rows]:
    """Return the rows of `masked_steps` of two batches, and of `masked_gains`: steps taken on the first of them."""
    contexts, rows, gains = np.unique(tokens.stored("context_id")), [], []
    for batch in range(2):
        ids = contexts[batch * world.batch : (batch + 1) * world.batch]
        inside = np.flatnonzero(np.isin(tokens.stored("context_id"), ids))
        drawn = Tokens({name: values[inside] for name, values in tokens.columns.items()})
        cells = {("all", 1.0): np.ones(len(inside), bool)}
        for name in selectors:
            cells |= {(name, budget): mask for budget, mask in zip(budgets, _masks(drawn, name, budgets), strict=True)}
        for (name, budget), mask in cells.items():
            place = {"probe_id": probe_id, "selector": name, "budget": budget, "batch": batch}
            taken = batch == 0 and (name == "all" or (name, budget) in _REAL)
            random = _random_norm(gradients[inside], budget) if name == "random" else None
            kept = inside if name == "random" else inside[mask]  # random positions gain what all do, in expectation
            row, gained = _masked_step(gradients[kept].mean(axis=0), bank, taken, random)
            rows.append(place | row | {"context_ids": ids, "n_batch": len(inside), "n_kept": int(mask.sum())})
            gains += [place | of_prompt for of_prompt in gained]
    return rows, gains


def _masked_step(
    mean: Array, bank: Bank, taken: bool, random: float | None = None, length: float = 1e-3
) -> tuple[dict[str, Any], Rows]:
    """Return what is known of one masked gradient, and what a step of that length along it gains on every prompt."""
    norm = float(np.linalg.norm(mean)) if random is None else random
    first_order = float(np.average(bank.gradients, 0, bank.positions) @ mean)
    of_prompts = length * bank.gradients @ mean / norm
    real = {"learning_rate": length / norm, "update_norm": length, "real_gain": length / norm * first_order}
    row = {"loss": "reverse_kl", "optimizer": "sgd", "gradient_norm": norm, "direction_norm": norm}
    row |= {"first_order": first_order, "exact_first_order": first_order, **(real if taken else dict.fromkeys(real))}
    facts = zip(bank.block, bank.positions, of_prompts, strict=True)
    gains = [
        {"prompt_id": f"b{number:03d}", "block": int(block), "n_positions": int(n), "gain": float(gain)}
        for number, (block, n, gain) in enumerate(facts)
    ]
    return row, gains if taken else []


def _random_norm(gradients: Array, budget: float) -> float:
    """Root mean square, over all masks of a size, of the norm of the mean gradient of what they keep."""
    n, kept = len(gradients), int(counts_at(budget, np.array([len(gradients)]))[0])
    mean = (gradients.mean(axis=0) ** 2).sum()
    spread = (gradients**2).sum(axis=1).mean() - mean
    return float(np.sqrt(mean + spread / kept * (n - kept) / (n - 1)))
