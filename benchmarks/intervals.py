"""How often 95% intervals hold the truth: simulated gains with known slopes, and moods that a prompt shares."""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import t
from threadpoolctl import threadpool_limits
from workload import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/worlds"))
from planted import World, bank_frame, decomposition

from teachdiag.analysis.bank.lookup import row_interval
from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.bank.normalised import normalised_scores, raw_scores
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.cross_validation import draw_folds
from teachdiag.analysis.step.design import GAP, make_sample
from teachdiag.analysis.step.inference import contrasts_of, crv1, crv3, model_of
from teachdiag.analysis.step.profiles import mean_rows
from teachdiag.analysis.step.regression import regressions
from teachdiag.analysis.step.support_contrast import contrast_estimates, contrast_rows
from teachdiag.analysis.step.validity import difference, predictor_sets, validity
from teachdiag.signals import BASE

K, POSITIONS, REPEATS, DRAWS, NULLS = 16, 20, 400, 400, 300
LARGE = 150, 400  # prompts
SLOPES = (0.03, 0.01)
_KINDS = ("bootstrap, cuts redrawn", "bootstrap, cuts fixed", "CRV1", "CRV3")
_MODEL = ("learnable", "incompatible", "student_entropy", "teacher_entropy", "position")


def coverage_rows() -> list[Row]:
    """One row a number of prompts and kind of interval: coverage; then, without an effect, how often 0 is left out."""
    rows: list[Row] = []
    with threadpool_limits(1, "blas"):
        for prompts in (40, 300):
            held = np.array([_held(prompts, seed) for seed in range(REPEATS)])
            for name, share in zip(
                ("bootstrap, cuts redrawn", "bootstrap, cuts fixed", "CRV1", "CRV3"), held.mean(0), strict=True
            ):
                error = np.sqrt(share * (1 - share) / REPEATS)
                rows.append((f"beta_L - beta_I at {prompts} prompts, {name}", f"{share:.3f}", f"+-{error:.3f}"))
        rows += [row for prompts in (24, 64) for row in _null_rows(prompts)]
        return [*rows, *(_refitted_row(prompts) for prompts in LARGE)]


def _refitted_row(prompts: int) -> Row:
    """How often noise is predicted better or worse by C than by raw KL, in banks of which draws refit a part."""
    left = [_told_apart(prompts, seed) for seed in range(NULLS)]
    error = np.sqrt(np.mean(left) * (1 - np.mean(left)) / NULLS)
    what = f"rank correlation of C less raw KL's without effect, {prompts} prompts, 0 left out"
    return what, f"{np.mean(left):.3f}", f"+-{error:.3f}"


def _told_apart(prompts: int, seed: int) -> bool:
    """Whether C predicts noise better or worse than raw KL does, out of fold, in one bank."""
    bank, gain = _simulated(prompts, seed, slopes=(0.0, 0.0))
    folds, resampling = draw_folds(prompts, 5, 2, seed), Resampling(seed, DRAWS, prompts)
    raw, c = raw_scores(bank, normalised_scores(bank)), ("compatibility", K)
    sets = {key: predictor_sets()[key] for key in ((BASE, None), c)}
    rows = validity([gain], bank, raw, folds, resampling, sets)
    return row_interval(next(row for row in rows if row["analysis"] == difference("cv_rank"))).side() != 0


def _null_rows(prompts: int) -> list[Row]:
    """One row a kind of claim: in how many banks whose gains are noise its interval leaves 0 out."""
    found = [_left_out(prompts, seed) for seed in range(NULLS)]
    rows: list[Row] = []
    for name in found[0]:
        share = np.mean([claims[name] for claims in found])
        error = np.sqrt(share * (1 - share) / NULLS)
        rows.append((f"{name} without effect, {prompts} prompts, 0 left out", f"{share:.3f}", f"+-{error:.3f}"))
    return rows


def _left_out(prompts: int, seed: int) -> dict[str, bool]:
    """Whether the interval of each kind of claim leaves 0 out, in one bank without an effect."""
    bank, gain = _simulated(prompts, seed, slopes=(0.0, 0.0))
    resampling = Resampling(seed, DRAWS, prompts)
    rows = mean_rows(gain, bank, resampling)[:1]
    fitted = regressions(make_sample([gain], normalised_scores(bank), K, prompts), bank, resampling)
    rows += [row for row in fitted if row["term"] == GAP and row["analysis"].endswith("_decomposition")]
    rows += [row for row in contrast_estimates(contrast_rows([gain], bank, resampling, redraw=True)) if row["k"] == K]
    return {row["analysis"]: row_interval(row).side() != 0 for row in rows}


def _held(prompts: int, seed: int) -> list[bool]:
    """Whether each kind of interval of the slope gap holds it, in one simulated bank."""
    bank, gain = _simulated(prompts, seed)
    truth = SLOPES[0] - SLOPES[1]
    resampling = Resampling(seed, DRAWS, prompts)
    sample = make_sample([gain], normalised_scores(bank), K, prompts)
    held = []
    for redraw in (True, False):
        rows = regressions(sample, bank, resampling, redraw=redraw)
        row = next(r for r in rows if r["analysis"] == "slope_decomposition" and r["term"] == GAP)
        held.append(row["ci_low"] <= truth <= row["ci_high"])
    columns = sample.columns(_MODEL, 0)
    model = model_of(sample.by_prompt, columns)
    contrast = np.r_[0.0, contrasts_of(_MODEL)[0][-1] * sample.spread[columns[-1]] / sample.spread[columns[:-1]]]
    reach = t.ppf(0.975, prompts - 1)
    for covariance in (crv1(model), crv3(model)):
        error = np.sqrt(contrast @ covariance @ contrast)
        held.append(abs(contrast @ model.coefficients - truth) <= reach * error)
    return held


def _simulated(prompts: int, seed: int, slopes: tuple[float, float] = SLOPES) -> tuple[Bank, Outcome]:
    """Gains that rise with D^L and D^I, a mood a prompt, and noise that grows with KL and has heavy tails."""
    rng = np.random.default_rng(seed)
    positions = bank_frame(World(prompts=prompts, positions=POSITIONS, saturated=False), rng)
    codes = np.unique(positions["prompt_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64)
    learnable, incompatible = decomposition(positions)
    noise = rng.standard_t(4, len(codes)) * 0.01 * (0.5 + positions["forward_kl"].to_numpy())
    gain = slopes[0] * learnable + slopes[1] * incompatible + rng.normal(0, 0.005, prompts)[codes] + noise
    everywhere = np.ones(len(codes), bool)
    return Bank(positions, codes, prompts), Outcome("simulated", "one_step", "gain", everywhere, gain, codes)
