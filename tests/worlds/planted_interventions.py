"""Planted truth for selector experiments, random masks and placebo draws, written into a run as finished probes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from planted import PLACEBOS, World, _built, _finish, _positions, gains_frame, write_gains, write_positions

from teachdiag.artefacts import INTERVENTION_GAINS, INTERVENTIONS, PREDICTIONS
from teachdiag.settings import CaptureSettings, ProbeSettings
from teachdiag.tables import shard_path, write_parquet

DRAWN = (*PLACEBOS, "shuffled_rollouts")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A selector experiment. A selector's effect is its mean gain at any budget, nats."""

    effects: Mapping[str, float]
    budgets: Sequence[float] = (0.1, 0.3)
    seeds: int = 5
    matches: Sequence[str] = ("rate", "norm")
    effect_of_all: float = 0.01
    high_c_bonus: float = 0.0  # share of the KL by which positions of C = 1 gain more than those of C = 0
    seed_mood: float = 0.001  # standard deviation shared by all cells of a seed, nats
    prompt_mood: float = 0.002  # shared by a prompt in all cells, nats
    noise: float = 0.002  # of each position in each cell, nats
    n_batch: int = 90
    contexts: int = 0  # bank contexts that are rescored; 0 is all
    seed: int = 0


def plant_bank(run: Path, world: World) -> pd.DataFrame:
    """Write a captured run without any probe; return its positions."""
    positions = _positions(world, np.random.default_rng(world.seed))
    write_positions(run, positions)
    inputs = {side: {"dropped_layers": dropped} for side, dropped in (("student", [20]), ("teacher", []))}
    inputs["prompts"] = {"manifest": "gsm_symbolic"}
    _finish(run, "capture", CaptureSettings(bank_prompts=world.prompts).of_capture(), inputs)
    return positions


def plant_selectors(run: Path, positions: pd.DataFrame, what: Experiment, probe_id: str = "chosen") -> None:
    """Write a finished probe of kind selectors."""
    rng = np.random.default_rng(what.seed)
    bank = positions[positions["split"] == "bank"].reset_index(drop=True)
    bank = bank[bank["context_id"].isin(sorted(bank["context_id"].unique())[: what.contexts or None])]
    codes = np.unique(bank["prompt_id"].to_numpy(str), return_inverse=True)[1]
    mood = rng.normal(0, what.prompt_mood, codes.max() + 1)[codes]
    cells, gains = [], []
    for seed in range(what.seeds):
        seed_mood = rng.normal(0, what.seed_mood)
        for selector, budget, effect in _grid(what):
            for match in what.matches:
                gain = effect + seed_mood + mood + rng.normal(0, what.noise, len(bank))
                gain += what.high_c_bonus * bank["forward_kl"] * bank["compatibility_k16"]
                place = {"selector": selector, "budget": budget, "seed": seed, "match": match}
                cells.append(place | _composition(what, budget, seed, rng) | _outcomes(gain.to_numpy(), effect, rng))
                keys = bank[["context_id", "position", "prompt_id"]]
                gains.append(keys.assign(**place, forward_kl_before=bank["forward_kl"], gain=gain))
    table = INTERVENTIONS.build_rows([cell | {"probe_id": probe_id, "loss": "reverse_kl"} for cell in cells])
    write_parquet(table, shard_path(run / "interventions" / probe_id, 0))
    for place, rows in enumerate(gains):
        shard = _built(INTERVENTION_GAINS, rows.assign(probe_id=probe_id))
        write_parquet(shard, shard_path(run / "intervention_gains" / probe_id, place))
    settings = ProbeSettings(name=probe_id, kind="selectors", seeds=what.seeds)
    _finish(run, f"probes/{probe_id}", settings.as_dict(), results={"noise_floor": 1e-5})


def plant_lds(
    run: Path,
    positions: pd.DataFrame,
    truth: np.ndarray,
    masks: int = 120,
    share: float = 0.2,
    noise: float = 0.0,
    probe_id: str = "masks",
) -> pd.DataFrame:
    """Write a finished probe of kind lds whose masks gain the mean of `truth` over what they keep, and noise.

    Args:
        run: the run.
        positions: its positions.
        truth: gain of each position of the update split, in the order of the table.
        masks: how many.
        share: of the batch that each keeps.
        noise: standard deviation added to each mask's gain.
        probe_id: name of the probe.

    Returns:
        The update split's positions.
    """
    rng = np.random.default_rng(7)
    update = positions[positions["split"] == "update"].reset_index(drop=True)
    rows = []
    for mask in range(masks):
        kept = np.sort(rng.choice(len(update), round(share * len(update)), replace=False))
        gain = np.full(4, truth[kept].mean() + rng.normal(0, noise))
        what = Experiment(effects={}, n_batch=len(update))
        place = {"selector": "random_mask", "budget": share, "seed": mask, "match": "rate"}
        lists = {f"kept_{name}s": update[name].to_numpy()[kept] for name in ("context_id", "position")}
        rows.append(place | _composition(what, share, mask, rng) | _outcomes(gain, float(gain[0]), rng) | lists)
    table = INTERVENTIONS.build_rows([row | {"probe_id": probe_id, "loss": "reverse_kl"} for row in rows])
    write_parquet(table, shard_path(run / "interventions" / probe_id, 0))
    keys = update[["context_id", "position", "prompt_id", "split"]]
    nothing = [c.name for c in PREDICTIONS.columns if c.name.startswith("gain_at_")] + ["predicted_gain"]
    predictions = keys.assign(
        probe_id=probe_id, loss="reverse_kl", fix_inner=rng.normal(size=len(update)), bank_inner=truth
    ).assign(**dict.fromkeys(nothing, np.nan))
    write_parquet(_built(PREDICTIONS, predictions), shard_path(run / "predictions" / probe_id, 0))
    settings = ProbeSettings(name=probe_id, kind="lds", masks=masks, mask_budget=share)
    _finish(run, f"probes/{probe_id}", settings.as_dict(), results={"noise_floor": 1e-5})
    return update


def plant_placebos(
    run: Path, positions: pd.DataFrame, world: World, draws: int = 5, probe_id: str = "many", seed: int = 3
) -> None:
    """Write a finished probe of kind placebo: one real step, and several draws of each placebo."""
    rng = np.random.default_rng(seed)
    bank = positions[positions["split"] == "bank"].reset_index(drop=True)
    write_gains(run, gains_frame(bank, world, rng, probe_id, "one_step"), probe_id)
    for update in DRAWN:
        drawn = [gains_frame(bank, world, rng, probe_id, update).assign(draw=draw) for draw in range(draws)]
        write_gains(run, pd.concat(drawn), f"{probe_id}.{update}")
    settings = ProbeSettings(name=probe_id, kind="placebo", draws=draws)
    _finish(run, f"probes/{probe_id}", settings.as_dict(), results={"noise_floor": 1e-5})


def _grid(what: Experiment) -> list[tuple[str, float, float]]:
    chosen = [(name, budget, effect) for budget in what.budgets for name, effect in what.effects.items()]
    return [("all", 1.0, what.effect_of_all), *chosen]


def _composition(what: Experiment, budget: float, seed: int, rng: np.random.Generator) -> dict[str, Any]:
    """What a cell kept: its size is exact, the rest is made up."""
    n_kept = int(np.ceil(budget * what.n_batch - 1e-9))
    names = ("disagreement", "compatibility", "learnable", "incompatible", "student_entropy", "position")
    return (
        {"n_batch": what.n_batch, "n_kept": n_kept, "keep": n_kept / what.n_batch, "topped_up": 0, "tied": 0.0}
        | {"kept_context_ids": np.zeros(n_kept, int), "kept_positions": np.arange(n_kept)}
        | {"q3_share": float(rng.uniform()), "step_loss": 0.3, "gradient_norm": 1.0, "update_norm": 1e-3 * (1 + seed)}
        | {f"mean_{name}": float(rng.uniform()) for name in names}
    )


def _outcomes(gain: np.ndarray, effect: float, rng: np.random.Generator) -> dict[str, float]:
    return {
        "mean_gain": float(np.mean(gain.astype(np.float32))),
        "gain_q3": float(np.mean(gain)),
        "first_order_gain": effect + float(rng.normal(0, 1e-4)),
    }


def built(frame: pd.DataFrame) -> pa.Table:
    """Return gains of interventions as a table of their schema."""
    return _built(INTERVENTION_GAINS, frame)
