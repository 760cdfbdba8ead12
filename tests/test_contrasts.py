"""Contrasts in Q3, matched pairs, exact top-N and buckets, against loops over rows and worlds whose answer is known."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import World, plant
from scipy.optimize import linear_sum_assignment

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.bootstrap import Resampling
from teachdiag.analysis.frame import Bank, Outcome, load_bank, load_step, select_outcomes
from teachdiag.analysis.matching import CALIPER, match_pairs, matched_rows, split_by_prompt
from teachdiag.analysis.scaling import in_q3, normalised_scores
from teachdiag.analysis.support_contrast import Arms, contrast_rows, cut_thirds, fixed_gaps
from teachdiag.artefacts import BALANCE, BUCKETS, CONTRASTS, ESTIMATES, TOP_N
from teachdiag.progress import Reporter
from teachdiag.settings import AnalyzeSettings
from teachdiag.tables import Table

QUIET = Reporter(quiet=True)
WORLD = World(prompts=16, positions=160, slope_learnable=0.06, slope_incompatible=0.01, mean_gain=0.02)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = plant(tmp_path_factory.mktemp("contrasts") / "run", WORLD)
    run_analysis(run, AnalyzeSettings(draws=150), QUIET)
    return run


@pytest.fixture(scope="module")
def case(run: Path) -> tuple[Bank, list[Outcome]]:
    bank = load_bank(run)
    return bank, select_outcomes(load_step(run, "step", bank), bank)


def _table(run: Path, table: Table) -> pd.DataFrame:
    return table.read(run / "analysis" / f"{table.name}.parquet")


def _plain_gap(positions: pd.DataFrame, y: np.ndarray, column: str) -> float:
    """The contrast from its definition, over the rows given."""
    h, kl, c = (positions[name].to_numpy(float) for name in ("student_entropy", "forward_kl", column))
    inside = (h <= np.median(h)) & (kl >= np.median(kl))
    low, high = np.quantile(c[inside], 1 / 3), np.quantile(c[inside], 2 / 3)
    return float(y[inside & (c >= high)].mean() - y[inside & (c <= low)].mean())


@pytest.mark.parametrize("redraw", [True, False])
def test_contrast_is_that_of_a_loop_over_resampled_rows(tmp_path: Path, redraw: bool) -> None:
    bank = load_bank(plant(tmp_path / "run", replace(WORLD, positions=40)))
    outcomes = select_outcomes(load_step(tmp_path / "run", "step", bank), bank)
    resampling = Resampling(4, 120, bank.n_prompts)
    gain = next(o for o in outcomes if (o.update, o.name) == ("one_step", "gain"))
    rows = contrast_rows([gain], bank, resampling, redraw=redraw)
    for column, key in (("compatibility_k16", ("compatibility", 16)), ("bhattacharyya_k16", ("bhattacharyya", 16))):
        row = next(r for r in rows if (r["score"], r["k"]) == key)
        assert row["estimate"] == pytest.approx(_plain_gap(bank.positions, gain.values, column), abs=1e-12)
        drawn = []
        arms = _arms(bank, column)
        for counts in resampling.weights("contrast")[1:]:
            again = np.repeat(np.arange(len(bank.prompts)), counts[bank.prompts].astype(int))
            if redraw:
                drawn.append(_plain_gap(bank.positions.iloc[again], gain.values[again], column))
            else:
                y = gain.values[again]
                drawn.append(y[arms.high[again]].mean() - y[arms.low[again]].mean())
        assert [row["ci_low"], row["ci_high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-10)


def test_contrast_of_an_outcome_with_gaps_keeps_the_medians_of_the_whole_bank(tmp_path: Path) -> None:
    bank = load_bank(plant(tmp_path / "run", replace(WORLD, positions=30)))
    step = load_step(tmp_path / "run", "step", bank)
    relative = next(o for o in select_outcomes(step, bank) if (o.update, o.name) == ("one_step", "gain_relative"))
    assert 0 < relative.rows.sum() < len(relative.rows)
    resampling = Resampling(2, 100, bank.n_prompts)
    row = next(r for r in contrast_rows([relative], bank, resampling, redraw=True) if r["score"] == "compatibility")
    everywhere = np.full(len(relative.rows), np.nan)
    everywhere[relative.rows] = relative.values
    h, kl, c = (bank.positions[n].to_numpy() for n in ("student_entropy", "forward_kl", "compatibility_k8"))
    drawn = []
    for counts in resampling.weights("contrast"):
        again = np.repeat(np.arange(len(h)), counts[bank.prompts].astype(int))
        inside = (h[again] <= np.median(h[again])) & (kl[again] >= np.median(kl[again])) & relative.rows[again]
        y, score = everywhere[again][inside], c[again][inside]
        low, high = np.quantile(score, [1 / 3, 2 / 3])
        drawn.append(y[score >= high].mean() - y[score <= low].mean())
    assert row["estimate"] == pytest.approx(drawn[0], abs=1e-12)
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(np.percentile(drawn[1:], [2.5, 97.5]), abs=1e-10)


def test_ties_that_join_the_thirds_in_some_draws_are_counted(case: tuple[Bank, list[Outcome]]) -> None:
    """A third and a little more of Q3 lies at the top: the full sample has two arms, not every draw does."""
    bank, outcomes = case
    gain = next(o for o in outcomes if (o.update, o.name) == ("one_step", "gain"))
    inside = in_q3(bank.positions)[0]
    score = np.linspace(0, 0.5, len(inside))
    score[np.flatnonzero(inside)[: int(0.655 * inside.sum())]] = 1.0
    tied = replace(bank, positions=bank.positions.assign(compatibility_k16=score))
    resampling, noted = Resampling(0, 100, bank.n_prompts), ""
    for redraw in (True, False):
        rows = contrast_rows([gain], tied, resampling, redraw=redraw)
        row = next(r for r in rows if (r["score"], r["k"]) == ("compatibility", 16))
        assert row["estimate"] is not None
        assert (row["ci_low"] is None) == redraw
        assert (row["p_value"] is None) == redraw
        assert bool(row["note"]) == redraw
        noted = noted or row["note"]
    overlapping = 0
    h, kl = (bank.positions[name].to_numpy() for name in ("student_entropy", "forward_kl"))
    for counts in resampling.weights("contrast")[1:]:
        again = np.repeat(np.arange(len(h)), counts[bank.prompts].astype(int))
        q3 = (h[again] <= np.median(h[again])) & (kl[again] >= np.median(kl[again]))
        overlapping += len(set(np.quantile(score[again][q3], [1 / 3, 2 / 3]))) == 1
    assert 0 < overlapping < 100
    assert noted == f"no interval: in {overlapping} of 100 draws a third is empty, or ties put positions in both"


def test_a_region_in_few_prompts_has_an_estimate_and_no_interval(case: tuple[Bank, list[Outcome]]) -> None:
    bank, outcomes = case
    gain = next(o for o in outcomes if (o.update, o.name) == ("one_step", "gain"))
    elsewhere = bank.positions.assign(student_entropy=np.where(bank.prompts < 5, 0.1, 1 + bank.prompts / 100))
    few = replace(bank, positions=elsewhere)
    inside = in_q3(elsewhere)[0]
    n = len(np.unique(bank.prompts[inside & (bank.prompts < 5)]))
    kept = bank.prompts < 5  # the outcome is defined in five prompts alone
    few_prompts = replace(gain, rows=kept, values=gain.values[kept], prompts=gain.prompts[kept])
    resampling = Resampling(0, 100, bank.n_prompts)
    thirds = contrast_rows([few_prompts], few, resampling, redraw=True)[0]
    matched = matched_rows([few_prompts], few, normalised_scores(bank.positions), resampling)[0][0]
    for row in (thirds, matched):
        assert row["estimate"] is not None
        assert (row["ci_low"], row["ci_high"], row["p_value"]) == (None, None, None)
        assert f"only {n} prompts, and 8 are needed" in row["note"]


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_the_order_of_rows_changes_no_contrast(case: tuple[Bank, list[Outcome]], seed: int) -> None:
    bank, outcomes = case
    gain = next(o for o in outcomes if (o.update, o.name) == ("one_step", "gain"))
    order = np.random.default_rng(seed).permutation(len(bank.prompts))
    other = replace(bank, positions=bank.positions.iloc[order].reset_index(drop=True), prompts=bank.prompts[order])
    mixed = replace(gain, values=gain.values[order], prompts=gain.prompts[order])
    resampling = Resampling(1, 100, bank.n_prompts)
    for one, same in zip(_contrasts_of(gain, bank, resampling), _contrasts_of(mixed, other, resampling), strict=True):
        assert _numbers(one) == pytest.approx(_numbers(same), abs=1e-12, nan_ok=True)


def _contrasts_of(outcome: Outcome, bank: Bank, resampling: Resampling) -> list[dict]:
    matched = matched_rows([outcome], bank, normalised_scores(bank.positions), resampling)[0]
    return contrast_rows([outcome], bank, resampling, redraw=True) + matched


def _numbers(row: dict) -> list[float]:
    names = ("estimate", "ci_low", "ci_high", "p_value", "n_high", "n_low", "n_unmatched", "n_positions", "n_prompts")
    return [np.nan if row[name] is None else float(row[name]) for name in names]


def _arms(bank: Bank, column: str) -> Arms:
    h, kl = bank.positions["student_entropy"].to_numpy(float), bank.positions["forward_kl"].to_numpy(float)
    q3 = (h <= np.median(h)) & (kl >= np.median(kl))
    return cut_thirds(q3, bank.positions[column].to_numpy(float))


def test_equal_arms_ties_and_empty_regions_are_said() -> None:
    q3 = np.ones(9, bool)
    assert cut_thirds(q3, np.arange(9.0)).note == ""
    tied = cut_thirds(q3, np.r_[0.0, np.ones(8)])
    assert "thirds share 8 of 9 positions" in tied.note
    assert "Q3 holds no position" in cut_thirds(np.zeros(9, bool), np.arange(9.0)).note


def test_saturated_support_has_no_contrast_and_says_why(tmp_path: Path) -> None:
    run = plant(tmp_path / "run", World(prompts=12, positions=20, saturated=True))
    run_analysis(run, AnalyzeSettings(draws=100), QUIET)
    rows = _table(run, CONTRASTS)
    thirds = rows[(rows["score"] == "compatibility") & (rows["design"] == "thirds")]
    assert thirds["note"].str.contains("tied at its cuts").all()
    assert thirds["estimate"].isna().all()


@given(st.integers(0, 1000), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_pairs_are_the_best_of_all(seed: int, per_side: int) -> None:
    rng = np.random.default_rng(seed)
    n = 2 * per_side
    sides, prompts = np.repeat([1.0, 0.0], per_side), np.zeros(n, np.int64)
    covariates = rng.normal(0, 0.4, (n, 3))
    differences = np.abs(covariates[:per_side, None] - covariates[None, per_side:])
    apart = np.where(differences.max(axis=2) <= CALIPER, np.linalg.norm(differences, axis=2), np.inf)
    nearest = match_pairs(sides, covariates, prompts, "matched")
    expected = [(i, per_side + int(apart[i].argmin())) for i in range(per_side) if apart[i].min() < np.inf]
    assert list(zip(nearest.high, nearest.low, strict=True)) == expected
    once = match_pairs(sides, covariates, prompts, "matched once")
    assert len(set(once.low)) == len(once.low)
    options = []
    for order in permutations(range(per_side)):
        near = [apart[i, j] for i, j in enumerate(order) if apart[i, j] < np.inf]
        options.append((-len(near), sum(near)))
    count, total = min(options)
    assert len(once.high) == -count
    assert sum(apart[i, j - per_side] for i, j in zip(once.high, once.low, strict=True)) == pytest.approx(total)
    assert once.n_unmatched == per_side + count


def test_pairs_stay_within_prompts_and_sides_split_at_the_median() -> None:
    rng = np.random.default_rng(2)
    prompts, score = rng.integers(0, 6, 200), rng.normal(size=200).round(1)
    inside = rng.uniform(size=200) < 0.5
    sides = split_by_prompt(score, inside, prompts)
    for prompt in range(6):
        mine = inside & (prompts == prompt)
        assert (sides[mine] == (score[mine] > np.median(score[mine]))).all()
    assert np.isnan(sides[~inside]).all()
    for design in ("matched", "matched once"):
        pairs = match_pairs(sides, rng.normal(0, 0.2, (200, 3)), prompts, design)
        assert (prompts[pairs.high] == prompts[pairs.low]).all()
        assert (sides[pairs.high] == 1).all()
        assert (sides[pairs.low] == 0).all()


@pytest.mark.parametrize("design", ["matched", "matched once"])
def test_a_matched_gap_is_that_of_a_loop_over_prompts(case: tuple[Bank, list[Outcome]], design: str) -> None:
    """A draw repeats whole prompts, and every repeat has the same pairs."""
    bank, outcomes = case
    gain = next(o for o in outcomes if (o.update, o.name) == ("one_step", "gain"))
    scores, resampling = normalised_scores(bank.positions), Resampling(3, 100, bank.n_prompts)
    rows, balance = matched_rows([gain], bank, scores, resampling)
    row = next(r for r in rows if (r["score"], r["k"], r["design"]) == ("bhattacharyya", 32, design))
    h, kl, s = (bank.positions[n].to_numpy() for n in ("student_entropy", "forward_kl", "bhattacharyya_k32"))
    inside = (h <= np.median(h)) & (kl >= np.median(kl))
    columns = np.column_stack([scores["student_entropy", None], scores["disagreement", 32], scores["position", None]])
    columns /= columns[inside].std(axis=0)
    apart: dict[int, list[float]] = {}
    shifts, unmatched, sides = [], 0, {True: [], False: []}
    for prompt in range(bank.n_prompts):
        mine = np.flatnonzero(inside & (bank.prompts == prompt))
        high = mine[s[mine] > np.median(s[mine])]
        low = mine[s[mine] <= np.median(s[mine])]
        sides[True] += list(columns[high])
        sides[False] += list(columns[low])
        cost = np.array([[np.sqrt(sum((columns[i] - columns[j]) ** 2)) for j in low] for i in high])
        near = np.array([[max(abs(columns[i] - columns[j])) <= CALIPER for j in low] for i in high])
        if design == "matched":
            chosen = [
                (i, min(np.flatnonzero(near[i]), key=lambda j: cost[i, j])) for i in range(len(high)) if near[i].any()
            ]
        else:
            chosen = [
                (i, j) for i, j in zip(*linear_sum_assignment(np.where(near, cost, 1e6)), strict=True) if near[i, j]
            ]
        unmatched += len(high) - len(chosen)
        apart[prompt] = [gain.values[high[i]] - gain.values[low[j]] for i, j in chosen]
        shifts += [columns[high[i]] - columns[low[j]] for i, j in chosen]
    drawn = []
    for counts in resampling.weights("matching"):
        drawn.append(np.mean([x for p in apart for _ in range(int(counts[p])) for x in apart[p]]))
    assert row["estimate"] == pytest.approx(drawn[0], abs=1e-12)
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(np.percentile(drawn[1:], [2.5, 97.5]), abs=1e-12)
    assert (row["n_high"], row["n_unmatched"]) == (len(shifts), unmatched)
    mine = [b for b in balance if (b["score"], b["k"], b["design"]) == ("bhattacharyya", 32, design)]
    assert [b["after"] for b in mine] == pytest.approx(np.mean(shifts, axis=0))
    assert [b["before"] for b in mine] == pytest.approx(np.mean(sides[True], axis=0) - np.mean(sides[False], axis=0))


def test_the_planted_gap_is_found_by_thirds_and_by_pairs(run: Path) -> None:
    rows = _table(run, CONTRASTS)
    mine = rows[(rows["score"] == "compatibility") & (rows["outcome"] == "gain") & (rows["k"] == 16)]
    real, null = (mine[mine["update"] == update].set_index("design") for update in ("one_step", "random_direction"))
    assert (real["ci_low"] > 0).all()
    assert ((null["ci_low"] < 0) & (null["ci_high"] > 0)).all()
    assert real["n_unmatched"]["matched once"] >= real["n_unmatched"]["matched"]
    balance = _table(run, BALANCE)
    c = balance[(balance["score"] == "compatibility") & (balance["k"] == 16)]
    assert (c["after"].abs() <= CALIPER).all()
    twins = rows[rows["note"].str.startswith("the same arms as")]
    assert (twins["estimate"].notna()).all()


def test_top_n_is_exact_and_means_what_it_says(run: Path, case: tuple[Bank, list[Outcome]]) -> None:
    bank, outcomes = case
    gain = next(o for o in outcomes if (o.update, o.name) == ("one_step", "gain"))
    table = _table(run, TOP_N)
    real = table[table["update"] == "one_step"]
    n = len(bank.prompts)
    for budget, mine in real.groupby("budget"):
        by_name = mine.set_index("selector")
        order = np.argsort(-bank.positions["forward_kl"].to_numpy(), kind="stable")[: int(np.ceil(budget * n - 1e-9))]
        assert by_name["n_positions"]["forward_kl"] == len(order)
        assert by_name["estimate"]["forward_kl"] == pytest.approx(gain.values[order].mean(), rel=1e-12)
        assert by_name["estimate"]["random"] == pytest.approx(gain.values.mean(), rel=1e-12)
        d_learnable = normalised_scores(bank.positions)["learnable", 16]
        assert by_name["mean_learnable"]["learnable"] == pytest.approx(np.sort(d_learnable)[-len(order) :].mean())
        per_keep = by_name["estimate"]["learnable"] / (len(order) / n)
        assert by_name["gain_per_keep"]["learnable"] == pytest.approx(per_keep)


def test_buckets_are_plain_means_and_shares(run: Path, case: tuple[Bank, list[Outcome]]) -> None:
    bank, outcomes = case
    gain = next(o for o in outcomes if (o.update, o.name) == ("one_step", "gain"))
    table = _table(run, BUCKETS)
    mine = table[(table["probe_id"] == "step") & (table["outcome"] == "gain")]
    score = normalised_scores(bank.positions)["learnable", 16]
    quarters = mine[(mine["score"] == "learnable") & (mine["region"] == "all")]
    for row in quarters[quarters["statistic"] != "residual mean"].itertuples():
        inside = gain.values[(score >= row.score_low) & (score <= row.score_high)]
        low, high = np.quantile(inside, [0.05, 0.95])
        expected = {
            "mean": inside.mean(),
            "median": np.median(inside),
            "trimmed mean": inside[(inside >= low) & (inside <= high)].mean(),
        }
        assert row.estimate == pytest.approx(expected[row.statistic], rel=1e-10)
        assert row.n_positions == len(inside)
    shares = mine[(mine["score"] == "position") & (mine["statistic"] == "share of total")]
    assert shares["estimate"].sum() == pytest.approx(1)
    first = gain.values[bank.positions["position"].to_numpy() == 0]
    assert shares.sort_values("bucket")["estimate"].iloc[0] == pytest.approx(first.sum() / gain.values.sum())


def test_robust_gains_are_those_of_numpy(run: Path, case: tuple[Bank, list[Outcome]]) -> None:
    _, outcomes = case
    y = next(o for o in outcomes if (o.update, o.name) == ("one_step", "gain")).values
    table = _table(run, ESTIMATES)
    mine = table[(table["analysis"] == "robust_gain") & (table["probe_id"] == "step") & (table["outcome"] == "gain")]
    found = mine.set_index("term")["estimate"]
    assert found["median"] == pytest.approx(np.median(y))
    assert found["winsorised mean 1-99"] == pytest.approx(np.clip(y, *np.quantile(y, [0.01, 0.99])).mean())
    assert (mine["ci_low"] < mine["ci_high"]).all()


def test_a_draw_that_empties_an_arm_gives_no_interval() -> None:
    values, prompts = np.arange(4.0)[:, None], np.array([0, 0, 1, 1])
    high, low = prompts == 0, prompts == 1
    gaps = fixed_gaps(values, high, low, prompts, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert gaps[0, 0] == pytest.approx(-2)
    assert np.isnan(gaps[1, 0])
