"""Planted truth for several teachers on one bank: runs of the same contexts and student, each with its own numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from planted import (
    World,
    _finish,
    gains_frame,
    plant_grades,
    plant_predicted,
    predicted_frame,
    write_gains,
    write_positions,
)
from planted_efficiency import EfficiencyWorld, plant_efficiency
from stages import amend

from teachdiag.artefacts import POSITIONS
from teachdiag.settings import ProbeSettings

RATE = 1e-5
SELECTORS = "forward_kl,learnable,entropy,random"
_STUDENT = {"digest": "s", "dropped_layers": []}


def plant_teacher(run: Path, world: EfficiencyWorld, seed: int) -> pd.DataFrame:
    """Write a captured run of a world's contexts, with a probe of kind efficiency, under a teacher of its own.

    Teachers of worlds of one size have the same contexts and student. Returns the run's bank.
    """
    plant_efficiency(run, world, selector=SELECTORS)
    teacher = {"digest": run.name, "dropped_layers": [], "name": f"{run.name}-teacher"}
    amend(run / "capture.json", lambda note: note["inputs"].update(student=_STUDENT, teacher=teacher))
    positions, rng = POSITIONS.read(run / "positions"), np.random.default_rng(seed)
    far = rng.uniform(0.3, 3, len(positions))
    positions[["forward_kl", "disagreement_k16"]] *= far[:, None]
    positions["compatibility_k16"] = rng.beta(5, 1, len(positions))
    write_positions(run, positions)
    return positions[positions["split"] == "bank"].reset_index(drop=True)


def plant_step(run: Path, bank: pd.DataFrame, seed: int, mean_gain: float, **settings: Any) -> pd.DataFrame:
    """Write a finished step of a run, at the rate that its ladder found; return its gains."""
    world = World(mean_gain=mean_gain)
    gains = gains_frame(bank, world, np.random.default_rng(seed), "one_step", "one_step")
    write_gains(run, gains, "one_step")
    finish_step(run, "one_step", **settings)
    return gains


def finish_step(run: Path, name: str, found: float = RATE, **settings: Any) -> None:
    """Say that a step has ended, whose ladder found a rate."""
    run.mkdir(exist_ok=True)
    ladder = {"learning_rate": found, "short_enough": True, "longest": found, "rungs": []}
    _finish(run, f"probes/{name}", ProbeSettings(name=name, **settings).as_dict(), results={"ladder": ladder})


def plant_success(run: Path, bank: pd.DataFrame, seed: int, push: float, prompts: int = 12) -> pd.DataFrame:
    """Write a finished probe of kind predicted of a graded run; return its table."""
    rng = np.random.default_rng(seed)
    table = predicted_frame(bank, rng).assign(
        success_inner=rng.normal(push, 1, len(bank)), success_inner_shuffled=rng.normal(0, 1, len(bank))
    )
    plant_predicted(run, table, "predicted", success={"prompts": prompts})
    return table


def plant_right_and_wrong(run: Path, bank: pd.DataFrame, right: int) -> None:
    """Grade a run's answers: the first ones are right."""
    contexts = sorted(bank["context_id"].unique())
    plant_grades(run, bank, {c: "right" if number < right else "wrong" for number, c in enumerate(contexts)})
