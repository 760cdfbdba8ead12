"""Planted truth: a run directory whose gains follow a known law, so that the analysis can be asked to find it.

gain = slope_learnable * D^L + slope_incompatible * D^I + a mood shared by the prompt + noise

with D^L and D^I at K=16. The placebos have mood and noise alone, unless the world says otherwise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from teachdiag.analysis import tasks
from teachdiag.analysis.step import by_grade, specifications, validity
from teachdiag.artefacts import BOUNDS, GAINS, GRADE_NAMES, GRADES, ISOLATED, POSITIONS, PREDICTIONS, TOP
from teachdiag.runs import Stage
from teachdiag.settings import SHRINKS, SUPPORT_SIZES, CaptureSettings, ProbeSettings
from teachdiag.tables import Table, shard_path, write_parquet

UPDATE_PROMPTS = 3
PLACEBOS = ("theta0", "shuffled_teacher", "random_direction")


@dataclass(frozen=True, kw_only=True)
class World:
    """What is planted. Slopes are in nats per unit of the normalised score."""

    prompts: int = 24
    positions: int = 30
    slope_learnable: float = 0.0
    slope_incompatible: float = 0.0
    placebo_slope_learnable: float = 0.0
    mood: float = 0.002  # standard deviation shared by a prompt's positions, nats
    noise: float = 0.01  # standard deviation of each position, nats
    mean_gain: float = 0.0
    saturated: bool = False  # most positions have C = 1 to the last digit
    constant_c: bool = False
    placebo_noise: float = 0.0  # of the placebos' gains, where it differs from `noise`
    null_theta0: bool = False  # the other batch layout changes nothing at all
    seed: int = 0


def claims_alone(patch: pytest.MonkeyPatch, *keep: str, refits: bool = False) -> None:
    """Leave out of analyses what no claim reads but for some tasks, and most of the time with it.

    Without refits the intervals of cross-validated numbers hold predictions fixed, which is for tests that judge none.
    """
    every = {"_top", "_contrasts", "_buckets", "_deciles", "_plane", "_gain_surfaces", "_specifications"}
    for task in every - set(keep):
        patch.setattr(tasks, task, lambda *_: {})
    patch.setattr(tasks, "inference_rows", lambda *_: [])
    if not refits:
        without_refits(patch)


def without_refits(patch: pytest.MonkeyPatch) -> None:
    """Hold predictions fixed in all draws, for tests that judge no interval of a cross-validated number."""
    for module in (validity, specifications, by_grade):
        patch.setattr(module, "REFIT_EVERY", 10**9)


def plant(run: Path, world: World, probe_id: str = "step") -> Path:
    """Write a run directory with one finished probe and its placebos; return the run."""
    rng = np.random.default_rng(world.seed)
    positions = _positions(world, rng)
    write_positions(run, positions)
    finish_capture(run, world)
    plant_probe(run, positions, world, rng, probe_id)
    return run


def plant_probe(run: Path, positions: pd.DataFrame, world: World, rng: np.random.Generator, probe_id: str) -> None:
    """Write one more finished probe into a run."""
    bank = positions[positions["split"] == "bank"].reset_index(drop=True)
    for update in ("one_step", *PLACEBOS):
        own_id = probe_id if update == "one_step" else f"{probe_id}.{update}"
        write_gains(run, gains_frame(bank, world, rng, probe_id, update), own_id)
    finish_probe(run, probe_id)


def finish_capture(run: Path, world: World) -> None:
    """Say that capture has ended."""
    settings = CaptureSettings(bank_prompts=world.prompts).of_capture()
    inputs = {side: {"dropped_layers": dropped} for side, dropped in (("student", [20]), ("teacher", []))}
    inputs["prompts"] = {"manifest": "gsm_symbolic"}
    prompts = {"bank": world.prompts, "update": UPDATE_PROMPTS}
    positions = {split: count * world.positions for split, count in prompts.items()}
    _finish(run, "capture", settings, inputs, {"contexts": prompts, "prompts": prompts, "positions": positions})


def finish_probe(run: Path, probe_id: str) -> None:
    """Say that a one-step probe has ended."""
    _finish(run, f"probes/{probe_id}", ProbeSettings(name=probe_id).as_dict())


def write_positions(run: Path, positions: pd.DataFrame) -> None:
    """Write the positions table, top-K lists included, in two shards."""
    table = positions_table(positions)
    half = len(positions) // 2
    write_parquet(table[:half], shard_path(run / "positions", 0))
    write_parquet(table[half:], shard_path(run / "positions", 1))


def positions_table(positions: pd.DataFrame) -> pa.Table:
    """Make the positions table, with top-K lists of zeros."""
    lists = {name: np.zeros((len(positions), TOP)) for name in _LISTS}
    columns = {name: positions[name].to_numpy() for name in positions} | lists
    return POSITIONS.build(
        {name: pa.array(v) if v.dtype == object or v.dtype.kind in "UT" else v for name, v in columns.items()}
    )


def write_gains(run: Path, gains: pd.DataFrame, own_id: str) -> None:
    """Write the gains of one probe or placebo."""
    columns = {name: pa.array(gains[name], from_pandas=True) for name in gains}
    write_parquet(GAINS.build(columns), shard_path(run / "gains" / own_id, 0))


def gains_frame(bank: pd.DataFrame, world: World, rng: np.random.Generator, probe_id: str, update: str) -> pd.DataFrame:
    """Make the gains of one update; relative and logarithmic gains are null for the smallest KLs."""
    gain = _gain(bank, world, rng, update)
    before = bank["forward_kl"].to_numpy()
    measurable = before > np.quantile(before, 0.1)
    after = np.maximum(before - gain, 1e-6)
    real = update == "one_step"
    text = {
        "update": update,
        "draw": 0,
        "placebo_of": None if real else probe_id,
        "update_on": "update",
        "loss": "reverse_kl",
    }
    return pd.DataFrame(
        {"probe_id": probe_id if real else f"{probe_id}.{update}"}
        | text
        | {name: bank[name] for name in ("context_id", "position", "prompt_id")}
        | {"forward_kl_before": before, "forward_kl_after": after}
        | {"reverse_kl_before": before, "reverse_kl_after": after}
        | {"gain": gain, "gain_reverse": 0.8 * gain}
        | {"gain_relative": np.where(measurable, gain / before, np.nan)}
        | {"gain_log": np.where(measurable, np.log(before / after), np.nan)}
        | {"noise_floor": 1e-5}
    )


def bank_frame(world: World, rng: np.random.Generator) -> pd.DataFrame:
    """Return the positions of a bank alone, in the order of context and position."""
    positions = _positions(world, rng)
    return positions[positions["split"] == "bank"].reset_index(drop=True)


def decomposition(bank: pd.DataFrame, k: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return D^L and D^I of the bank, written out from the definition."""
    scaled = {}
    for name in ("disagreement", "compatibility"):
        z = bank[f"{name}_k{k}"].to_numpy()
        low, high = np.quantile(z, 0.05), np.quantile(z, 0.95)
        scaled[name] = np.clip((z - low) / (high - low), 0, 1) if high > low else np.zeros_like(z)
    d, c = scaled["disagreement"], scaled["compatibility"]
    return d * c, d * (1 - c)


_LISTS = [c.name for c in POSITIONS.columns if pa.types.is_fixed_size_list(c.type)]


def _positions(world: World, rng: np.random.Generator) -> pd.DataFrame:
    """Make the bank and a few update positions, which the analysis must leave alone."""
    prompts, length = world.prompts + UPDATE_PROMPTS, world.positions
    n = prompts * length
    kl = rng.lognormal(-1.5, 1.2, n)
    columns: dict[str, Any] = {
        "context_id": np.repeat(np.arange(prompts), length),
        "position": np.tile(np.arange(length), prompts),
        "prompt_id": np.repeat([f"p{i:03d}" for i in rng.permutation(prompts)], length),
        "split": np.repeat(["bank"] * world.prompts + ["update"] * UPDATE_PROMPTS, length),
        "token_id": rng.integers(0, 100, n),
        "pos_norm": np.tile(np.arange(length) / max(length - 1, 1), prompts),
        "student_entropy": rng.gamma(1.2, 0.8, n) + 0.2 * kl,
        "teacher_entropy": rng.gamma(1.2, 0.7, n),
        "forward_kl": kl,
        "logit_alignment": 0.3 * kl * rng.uniform(0, 1, n) + 0.01 * rng.normal(size=n),
        "hidden_norm_sq": rng.gamma(20, 5, n),
        "tail_mass": np.minimum(kl, 1) / 10,  # which nothing is estimated from
    }
    c = 1 - rng.beta(1, 4, n) * np.minimum(1, kl)
    for k in SUPPORT_SIZES:
        columns[f"disagreement_k{k}"] = kl * rng.uniform(0.7, 1, n)
        columns[f"compatibility_k{k}"] = _compatibility(c ** (16 / k), world, rng)
    left_out = {*columns, *_LISTS, "weight", *(column.name for column in BOUNDS)}
    others = [x.name for x in POSITIONS.columns if x.name not in left_out]
    frame = pd.DataFrame(columns | {name: rng.uniform(0, 1, n) for name in others})
    # Stored as float32, like a real table, and the law of the gains is stated on what is stored.
    reals = frame.select_dtypes("float64").columns
    return frame.astype(dict.fromkeys(reals, np.float32)).astype(dict.fromkeys(reals, np.float64))


def _compatibility(c: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    if world.constant_c:
        return np.ones_like(c)
    return np.where(rng.uniform(size=len(c)) < 0.7, 1.0, c) if world.saturated else c


def _gain(bank: pd.DataFrame, world: World, rng: np.random.Generator, update: str) -> np.ndarray:
    learnable, incompatible = decomposition(bank)
    codes = np.unique(bank["prompt_id"].to_numpy(str), return_inverse=True)[1]
    mood = rng.normal(0, world.mood, codes.max() + 1)[codes]
    placebo = update not in ("one_step", "theta0")
    gain = mood + rng.normal(0, world.placebo_noise or world.noise if placebo else world.noise, len(bank))
    if update == "theta0":
        return np.zeros(len(bank)) if world.null_theta0 else gain * 1e-5
    if update == "one_step":
        return gain + world.mean_gain + world.slope_learnable * learnable + world.slope_incompatible * incompatible
    return gain + world.placebo_slope_learnable * learnable


def _finish(
    run: Path,
    name: str,
    settings: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
) -> None:
    stage = Stage(run, name)
    with stage.timed():
        stage.claim(settings, inputs or {})
        stage.complete(results or {})


def plant_grades(run: Path, bank: pd.DataFrame, grades: dict[int, str]) -> None:
    """Grade the responses of a bank, by context_id."""
    rows = [
        {"context_id": context, "prompt_id": prompt, "split": "bank", "finish_reason": "stop", "grade": grades[context]}
        | {"answer": None if grades[context] == "unparseable" else "1", "reference": "1"}
        for context, prompt in bank.groupby("context_id")["prompt_id"].first().items()
    ]
    write_parquet(GRADES.build_rows(rows), shard_path(run / "grades", 0))
    counts = {name: sum(grade == name for grade in grades.values()) for name in GRADE_NAMES}
    _finish(run, "grade", {}, results={"bank": counts | {"cut_before_an_answer": 0}, "warnings": []})


def plant_isolated(run: Path, table: pd.DataFrame, probe_id: str = "alone", **results: Any) -> None:
    """Write one more finished probe of kind isolated into a run, with the table of its steps."""
    write_parquet(_built(ISOLATED, table.assign(probe_id=probe_id)), shard_path(run / "isolated" / probe_id, 0))
    _finish(run, f"probes/{probe_id}", ProbeSettings(name=probe_id, kind="isolated").as_dict(), results=results)


def plant_predicted(run: Path, table: pd.DataFrame, probe_id: str = "ahead", **results: Any) -> None:
    """Write one more finished probe of kind predicted into a run, with the table of its predictions."""
    write_parquet(_built(PREDICTIONS, table.assign(probe_id=probe_id)), shard_path(run / "predictions" / probe_id, 0))
    _finish(run, f"probes/{probe_id}", ProbeSettings(name=probe_id, kind="predicted").as_dict(), results=results)


def isolated_frame(positions: pd.DataFrame, rng: np.random.Generator, step_size: float = 1e-3) -> pd.DataFrame:
    """Make isolated steps on the given positions: own_inner follows logit_alignment, fix_inner follows D^L.

    gain = eta own_inner - eta^2 curvature, and the same for L_fix with a tenth of either.
    """
    n, learnable = len(positions), decomposition(positions)[0]
    own = positions["hidden_norm_sq"] * positions["logit_alignment"] + rng.normal(0, 2, n)
    fix = 0.1 * learnable + rng.normal(0, 0.01, n)
    gain = step_size * own - step_size**2 * rng.uniform(0, 400, n)
    fix_gain = step_size * fix - step_size**2 * rng.uniform(0, 4, n)
    return pd.DataFrame(
        {name: positions[name] for name in ("context_id", "position", "prompt_id", "split")}
        | {"loss": "reverse_kl", "stratum": 0, "weight": 1.0, "step_size": step_size, "gradient_norm_sq": own**2}
        | {"forward_kl_before": positions["forward_kl"], "forward_kl_after": positions["forward_kl"] - gain}
        | {"gain": gain, "own_inner": own, "own_remainder": gain - step_size * own}
        | {"fix_before": 0.5, "fix_gain": fix_gain, "fix_inner": fix, "fix_remainder": fix_gain - step_size * fix}
    )


def predicted_frame(
    bank: pd.DataFrame, rng: np.random.Generator, curvature: float = 0.02, rounding: float = 0.0
) -> pd.DataFrame:
    """Make predictions over a bank: the gain of a share s is s p - curvature s^2 h + rounding, p and h standard."""
    n = len(bank)
    p, h = rng.normal(0, 0.05, n), rng.normal(0, 1, n)
    gains = {f"gain_at_{round(1 / s)}": s * p - curvature * s**2 * h + rounding * rng.normal(0, 1, n) for s in SHRINKS}
    return pd.DataFrame(
        {name: bank[name] for name in ("context_id", "position", "prompt_id", "split")}
        | {"loss": "reverse_kl", "fix_inner": bank["forward_kl"] + rng.normal(0, 0.2, n), "predicted_gain": p}
        | {"bank_inner": np.full(n, np.nan)}
        | gains
    )


def _built(table: Table, frame: pd.DataFrame) -> pa.Table:
    return table.build({name: pa.array(frame[name], from_pandas=True) for name in frame})
