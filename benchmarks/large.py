"""The analysis of a bank that memory cannot hold: ten million positions in shards, read column by column."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from estimates import measured_analysis
from workload import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/worlds"))
from planted import World, bank_frame, finish_capture, finish_probe, gains_frame, positions_table

from teachdiag.artefacts import GAINS
from teachdiag.tables import shard_path, write_parquet

POSITIONS, SHARD_PROMPTS, LENGTH = 10_000_000, 200, 500
WORLD = World(prompts=SHARD_PROMPTS, positions=LENGTH, slope_learnable=0.06, slope_incompatible=0.01)
UPDATES = ("one_step", "shuffled_teacher")


def large_rows() -> list[Row]:
    """Time the whole stage on ten million positions, and on a tenth of them, in processes of their own."""
    rows: list[Row] = []
    each = []
    for n in (POSITIONS // 10, POSITIONS):
        seconds, peak = measured(n)
        each.append(seconds / n)
        rows.append((f"analysis of {n:,} positions, {len(UPDATES)} updates", f"{seconds:.0f} s", ""))
        rows.append(("  peak memory", f"{peak / 1024:.2f} GB", ""))
    return [*rows, ("  time a position, beside that of the smaller bank", "", f"{each[1] / each[0]:.2f}")]


def measured(n: int) -> tuple[float, float]:
    """Seconds and peak MB of one analysis."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        plant_large(run, n)
        return measured_analysis(run)


def plant_large(run: Path, n: int) -> None:
    """Write a run shard by shard, no two of which share a prompt."""
    for shard in range(round(n / (SHARD_PROMPTS * LENGTH))):
        rng = np.random.default_rng(shard)
        bank = bank_frame(replace(WORLD, seed=shard), rng)
        bank["context_id"] += shard * SHARD_PROMPTS
        bank["prompt_id"] = f"{shard:05d}-" + bank["prompt_id"].astype(str)
        write_parquet(positions_table(bank), shard_path(run / "positions", shard))
        for update in UPDATES:
            gains = gains_frame(bank, WORLD, rng, "step", update)
            folder = run / "gains" / ("step" if update == "one_step" else f"step.{update}")
            write_parquet(GAINS.build(_columns(gains)), shard_path(folder, shard))
    finish_capture(run, WORLD)
    finish_probe(run, "step")


def _columns(gains: pd.DataFrame) -> dict[str, pa.Array]:
    return {name: pa.array(gains[name], from_pandas=True) for name in gains}
