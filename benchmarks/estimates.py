"""What the analysis costs at the paper's size, beside the released code's published figures and a plain pandas loop."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from workload import Row, best

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/worlds"))
from planted import World, plant

from teachdiag.analysis.bank.measurements import Bank, Outcome, load_bank, load_step, select_outcome
from teachdiag.analysis.bank.normalised import in_q3, normalised_scores
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.design import make_sample
from teachdiag.analysis.step.matching import matched_rows
from teachdiag.analysis.step.regression import regressions
from teachdiag.analysis.step.support_contrast import contrast_rows
from teachdiag.progress import Reporter

PROMPTS, POSITIONS, DRAWS = 300, 192, 1000
RELEASED_S, RELEASED_MB = 540, 533  # per-run analysis, cross-dataset builder and within-Q3 tool together, as published
_LOOPED = 10  # draws of the pandas loop; the rest is extrapolated
QUIET = Reporter(quiet=True)


def estimate_rows() -> list[Row]:
    """Time single statistics in this process, and the whole stage in processes of its own."""
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1, "blas"):
        run = plant(Path(folder) / "run", _world(PROMPTS))
        bank = load_bank(run)
        gain = select_outcome(load_step(run, "step", bank).real, "gain", bank)
        rows = _statistics(bank, gain)
    for what, prompts, placebos in (("1 update", PROMPTS, False), ("4 updates", PROMPTS, True)):
        seconds, peak = _measured_world(prompts, placebos)
        name = f"whole analysis of {prompts * POSITIONS:,} positions, {what}"
        rows.append((name, f"{seconds:.1f} s", f"{RELEASED_S / seconds:.0f}x"))
        rows.append(("  peak memory", f"{peak:.0f} MB", f"{peak / RELEASED_MB:.2f}"))
    half, _ = _measured_world(PROMPTS // 2, placebos=True)
    return [*rows, ("  beside half as many positions", f"{half:.1f} s", f"{seconds / half:.2f}")]


def _measured_world(prompts: int, placebos: bool) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = plant(Path(folder) / "run", _world(prompts))
        if not placebos:
            for placebo in (run / "gains").glob("step.*"):
                shutil.rmtree(placebo)
        return measured_analysis(run)


def measured_analysis(run: Path) -> tuple[float, float]:
    """Seconds and peak MB of an analysis in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("analysis_alone.py")), str(run), str(DRAWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def _statistics(bank: Bank, gain: Outcome) -> list[Row]:
    scores, resampling = normalised_scores(bank), Resampling(0, DRAWS, bank.n_prompts)
    sample = make_sample([gain], scores, 16, bank.n_prompts)
    looped = best(lambda: _pandas_loop(bank, gain), repeats=1) * DRAWS / _LOOPED
    timed = {
        "7 regressions, cuts fixed": lambda: regressions(sample, bank, resampling, redraw=False),
        "7 regressions, cuts redrawn": lambda: regressions(sample, bank, resampling),
        "18 support contrasts, cuts fixed": lambda: contrast_rows([gain], bank, resampling, redraw=False),
        "18 support contrasts, cuts redrawn": lambda: contrast_rows([gain], bank, resampling, redraw=True),
        "36 matched contrasts": lambda: matched_rows([gain], bank, scores, resampling),
    }
    rows: list[Row] = [(f"{DRAWS:,} draws of one contrast in a plain pandas loop", f"{looped:.0f} s", "1")]
    for name, work in timed.items():
        seconds = best(work, repeats=2)
        rows.append((f"{DRAWS:,} draws of {name}", f"{seconds:.2f} s", f"{looped / seconds:.0f}x"))
    return rows


def _pandas_loop(bank: Bank, gain: Outcome) -> list[float]:
    """Draw whole prompts by concatenating their frames, as one would write it first."""
    columns = {"compatibility_k16": bank.column("compatibility_k16"), "gain": gain.values, "prompt": bank.prompts}
    table = pd.DataFrame(columns)[in_q3(bank)[0]]
    low, high = table["compatibility_k16"].quantile([1 / 3, 2 / 3])
    groups = [group for _, group in table.groupby("prompt")]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_LOOPED):
        drawn = pd.concat([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        upper, lower = drawn["compatibility_k16"] >= high, drawn["compatibility_k16"] <= low
        found.append(drawn[upper]["gain"].mean() - drawn[lower]["gain"].mean())
    return found


def _world(prompts: int) -> World:
    return World(prompts=prompts, positions=POSITIONS, slope_learnable=0.06, slope_incompatible=0.01)
