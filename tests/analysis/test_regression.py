"""Regressions against statsmodels fitted here, and their bootstrap against a loop that stacks rows and refits."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from contrast_worlds import percentiles
from planted import World, plant

from teachdiag.analysis.bank.measurements import Bank, Outcome, load_bank, load_step, select_outcomes
from teachdiag.analysis.bank.normalised import normalised_scores
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.resampling.redrawn_quantiles import redrawn_quantiles
from teachdiag.analysis.step.design import BASES, GAP, MODELS, make_sample
from teachdiag.analysis.step.redrawn_cuts import redraw_cuts
from teachdiag.analysis.step.regression import regressions
from teachdiag.artefacts import POSITIONS
from teachdiag.errors import EstimationError

K = 16


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bank, list[Outcome]]:
    world = World(prompts=12, positions=20, slope_learnable=0.03, slope_incompatible=0.01, mood=0.01)
    run = plant(tmp_path_factory.mktemp("regression") / "run", world)
    bank = load_bank(run)
    return bank, select_outcomes(load_step(run, "step", bank), bank)


def _estimates(
    case: tuple[Bank, list[Outcome]], place: int, resampling: Resampling | None = None, redraw: bool = False
) -> pd.DataFrame:
    bank, outcomes = case
    resampling = resampling or Resampling(0, 100, bank.n_prompts)
    sample = make_sample([outcomes[place]], normalised_scores(bank), K, bank.n_prompts)
    return pd.DataFrame(regressions(sample, bank, resampling, redraw=redraw))


def _design(case: tuple[Bank, list[Outcome]], place: int, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Build predictors, outcome and prompts of one model without the code under test (but for `norm`)."""
    bank, outcomes = case
    z = {
        name: np.clip((column - (low := np.quantile(column, 0.05))) / (np.quantile(column, 0.95) - low), 0, 1)
        for name, column in (
            (name, bank.column(name))
            for name in ("student_entropy", "teacher_entropy", f"disagreement_k{K}", f"compatibility_k{K}")
        )
    }
    h, d, c = z["student_entropy"], z[f"disagreement_k{K}"], z[f"compatibility_k{K}"]
    built = {
        "student_entropy": h,
        "teacher_entropy": z["teacher_entropy"],
        "position": bank.column("pos_norm"),
        "disagreement": d,
        "compatibility": c,
        "entropy_x_disagreement": h * d,
        "learnable": d * c,
        "incompatible": d * (1 - c),
        "disagreement^2": d**2,
        "disagreement^3": d**3,
        "(disagreement - 1/3)+^3": np.where(d > 1 / 3, (d - 1 / 3) ** 3, 0),
        "(disagreement - 2/3)+^3": np.where(d > 2 / 3, (d - 2 / 3) ** 3, 0),
    }
    rows = outcomes[place].rows
    return np.column_stack([built[term] for term in MODELS[model]])[rows], outcomes[place].values, bank.prompts[rows]


def _zscored(columns: np.ndarray) -> np.ndarray:
    return (columns - columns.mean(axis=0)) / columns.std(axis=0)


def _row(estimates: pd.DataFrame, analysis: str, term: str) -> "pd.Series[Any]":
    rows = estimates[(estimates["analysis"] == analysis) & (estimates["term"] == term) & (estimates["k"] == K)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("place", [0, 2], ids=["gain", "gain_relative"])
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("scale", ["standardized", "slope"])
def test_coefficients_and_errors_are_those_of_statsmodels(
    case: tuple[Bank, list[Outcome]], place: int, model: str, scale: str
) -> None:
    x, y, prompts = _design(case, place, model)
    if scale == "standardized":
        x, y = _zscored(x), _zscored(y)
    reference = sm.OLS(y, sm.add_constant(x)).fit(cov_type="cluster", cov_kwds={"groups": prompts})
    estimates = _estimates(case, place)
    for number, term in enumerate(MODELS[model], start=1):
        row = _row(estimates, f"{scale}_{model}", term)
        assert row["estimate"] == pytest.approx(reference.params[number], rel=1e-8)
        assert row["std_error"] == pytest.approx(reference.bse[number], rel=1e-8)
        assert row["n_positions"] == len(y)
    assert _row(estimates, f"fit_{model}", "r2")["estimate"] == pytest.approx(reference.rsquared, rel=1e-8)
    if model in BASES:
        base = sm.OLS(y, sm.add_constant(_design(case, place, BASES[model])[0])).fit().rsquared
        gained = _row(estimates, f"fit_{model}", "delta_r2")["estimate"]
        assert gained == pytest.approx(reference.rsquared - base, abs=1e-10)
    if {"learnable", "incompatible"} <= set(MODELS[model]):
        contrast = np.zeros(x.shape[1] + 1)
        contrast[[1 + MODELS[model].index(name) for name in ("learnable", "incompatible")]] = 1, -1
        gap = _row(estimates, f"{scale}_{model}", GAP)
        assert gap["estimate"] == pytest.approx(contrast @ reference.params, rel=1e-8)
        assert gap["std_error"] == pytest.approx(reference.t_test(contrast).sd.item(), rel=1e-8)


def test_bootstrap_is_that_of_a_loop_over_stacked_rows(case: tuple[Bank, list[Outcome]]) -> None:
    bank, _ = case
    resampling = Resampling(3, 100, bank.n_prompts)
    estimates = _estimates(case, 0, resampling)
    draws: dict[tuple[str, str], list[float]] = {}
    x, y, prompts = _design(case, 0, "nested")
    base = _design(case, 0, "baseline")[0]
    for counts in resampling.weights("regression")[1:]:
        rows = np.concatenate(
            [np.flatnonzero(prompts == p) for p, count in enumerate(counts) for _ in range(int(count))]
        )
        for scale, design, outcome in (
            ("standardized", _zscored(x[rows]), _zscored(y[rows])),
            ("slope", x[rows], y[rows]),
        ):
            b = np.linalg.lstsq(sm.add_constant(design), outcome, rcond=None)[0][1:]
            draws.setdefault((f"{scale}_nested", "learnable"), []).append(b[0])
            draws.setdefault((f"{scale}_nested", GAP), []).append(b[0] - b[1])
        shares = [sm.OLS(y[rows], sm.add_constant(design[rows])).fit().rsquared for design in (x, base)]
        draws.setdefault(("fit_nested", "delta_r2"), []).append(shares[0] - shares[1])
    for (analysis, term), samples in draws.items():
        row = _row(estimates, analysis, term)
        assert [row["ci_low"], row["ci_high"]] == pytest.approx(
            percentiles([row["estimate"], *samples], bank.n_prompts), rel=1e-8
        )


def test_outcomes_together_are_those_alone(case: tuple[Bank, list[Outcome]]) -> None:
    bank, outcomes = case
    together = make_sample(outcomes[:2], normalised_scores(bank), K, bank.n_prompts)
    found = pd.DataFrame(regressions(together, bank, Resampling(0, 100, bank.n_prompts)))
    alone = pd.concat([_estimates(case, place, redraw=True) for place in (0, 1)], ignore_index=True)
    for column in ("estimate", "ci_low", "ci_high", "std_error"):
        np.testing.assert_allclose(found[column].astype(float), alone[column].astype(float), rtol=1e-7, atol=1e-9)


def test_redrawn_cuts_are_those_of_a_loop_that_normalises_every_draw(tmp_path: Path) -> None:
    world = World(prompts=60, positions=40, slope_learnable=0.03, slope_incompatible=0.01, mood=0.004)
    run = plant(tmp_path / "run", world)
    bank = load_bank(run)
    outcome = select_outcomes(load_step(run, "step", bank), bank)[0]
    resampling = Resampling(0, 150, bank.n_prompts)
    weights = resampling.weights("regression")
    sample = make_sample([outcome], normalised_scores(bank), K, bank.n_prompts)
    drawn = redraw_cuts(sample, bank, resampling)
    exact, quantiles = [], []
    stored = POSITIONS.present(run / "positions", list(bank.positions))
    for counts in weights:
        picked = np.repeat(np.arange(len(bank.prompts)), counts[bank.prompts].astype(int))
        again = Bank({name: bank.positions[name][picked] for name in stored}, bank.prompts[picked], bank.n_prompts)
        everywhere = np.ones(len(picked), bool)
        stacked = Outcome("step", "one_step", "gain", everywhere, outcome.values[picked], again.prompts)
        alone = make_sample([stacked], normalised_scores(again), K, again.n_prompts)
        rows = regressions(alone, again, Resampling(0, 2, again.n_prompts), redraw=False)
        found = {(row["analysis"], row["term"]): row["estimate"] for row in rows}
        exact.append([found["standardized_decomposition", GAP], found["slope_nested", "learnable"]])
        quantiles.append(np.quantile(again.positions[f"disagreement_k{K}"], [0.05, 0.95]))
    moved = redrawn_quantiles(bank.column(f"disagreement_k{K}"), bank.prompts, weights, (0.05, 0.95))
    np.testing.assert_allclose(moved, quantiles, rtol=1e-12)
    assert np.abs(drawn.moves[1:]).max() > 1.5  # the cuts do move
    estimates = pd.DataFrame(regressions(sample, bank, resampling))
    fixed = pd.DataFrame(regressions(sample, bank, resampling, redraw=False))
    for place, key in enumerate((("standardized_decomposition", GAP), ("slope_nested", "learnable"))):
        true = np.array(exact)[:, place]
        mine, stiff = (np.asarray(_row(table, *key)["draws"]) for table in (estimates, fixed))
        assert mine[0] == pytest.approx(true[0], rel=1e-8)
        assert np.abs(mine - true).std() < 0.1 * true.std()
        assert np.abs(mine - true).std() < np.abs(stiff - true).std()


def test_every_seed_has_its_own_draws(case: tuple[Bank, list[Outcome]]) -> None:
    bank, _ = case
    one, same, other = (_estimates(case, 0, Resampling(seed, 100, bank.n_prompts)) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same)
    assert (one["estimate"] == other["estimate"]).all()
    assert (one["ci_low"] != other["ci_low"]).all()


def test_a_constant_or_redundant_predictor_is_named(case: tuple[Bank, list[Outcome]]) -> None:
    bank, outcomes = case
    scores = dict(normalised_scores(bank))
    with pytest.raises(EstimationError, match=r"predictor position is 0\.5 at every position that has gain"):
        make_sample(outcomes[:1], scores | {("position", None): np.full(len(bank.prompts), 0.5)}, 8, bank.n_prompts)
    with pytest.raises(EstimationError, match=r"predictor position \(K=8\) is a combination of"):
        make_sample(outcomes[:1], scores | {("position", None): scores["teacher_entropy", None]}, 8, bank.n_prompts)


def test_too_few_prompts_are_counted() -> None:
    with pytest.raises(EstimationError, match="the bank has 7 prompts and intervals need at least 8"):
        Resampling(0, 100, 7)


def test_slopes_are_recovered(tmp_path: Path) -> None:
    truth = World(prompts=60, positions=40, slope_learnable=0.03, slope_incompatible=0.01)
    run = plant(tmp_path / "run", truth)
    bank = load_bank(run)
    estimates = _estimates((bank, select_outcomes(load_step(run, "step", bank), bank)), 0)
    for term, slope in (("learnable", 0.03), ("incompatible", 0.01), (GAP, 0.02)):
        row = _row(estimates, "slope_decomposition", term)
        assert abs(row["estimate"] - slope) < 3.5 * row["std_error"]
        assert row["unit"] == "nats"
