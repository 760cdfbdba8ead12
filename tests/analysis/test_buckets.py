"""Buckets, residuals, robust gains and the position profile, against numpy, statsmodels and loops over rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from contrast_worlds import Case, doubled, drawn_rows, found, numbers, percentiles, plant_case, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.regression.linear_model import OLS

from teachdiag.analysis.bank.normalised import in_q3
from teachdiag.analysis.step.buckets import bucket_rows, robust_rows
from teachdiag.settings import SUPPORT_SIZES
from teachdiag.signals import BUCKETS


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return plant_case(tmp_path_factory.mktemp("buckets") / "run")


@pytest.fixture(scope="module")
def rows(case: Case) -> list[dict[str, Any]]:
    return bucket_rows([case.gain], case.bank, case.scores, case.resampling())


@pytest.mark.parametrize("region", ["all", "q3"])
@pytest.mark.parametrize(("score", "k"), [("learnable", 16), ("compatibility", 8)])
def test_quarters_are_those_of_numpy(case: Case, rows: list[dict[str, Any]], score: str, k: int, region: str) -> None:
    own, y = case.scores[score, k], case.gain.values
    inside = in_q3(case.bank)[0] if region == "q3" else np.ones(len(own), bool)
    mine = [r for r in rows if (r["region"], r["score"], r["k"]) == (region, score, k)]
    mine = [r for r in mine if r["statistic"] != "residual mean"]
    assert {r["statistic"] for r in mine} == {"mean", "median", "trimmed mean"}
    assert sum(r["n_positions"] for r in mine) == 3 * inside.sum()
    for row in mine:
        members = inside & (own >= row["score_low"]) & (own <= row["score_high"])
        bucket = y[members]
        low, high = np.quantile(bucket, [0.05, 0.95])
        expected = {
            "mean": bucket.mean(),
            "median": np.median(bucket),
            "trimmed mean": bucket[(bucket >= low) & (bucket <= high)].mean(),
        }
        assert row["estimate"] == pytest.approx(expected[row["statistic"]], rel=1e-10)
        assert row["n_positions"] == len(bucket)
        if row["statistic"] == "mean":
            draws = drawn_rows(case.resampling().weights("buckets"), case.bank.prompts)
            drawn = [y[again][members[again]].mean() for again in draws]
            assert [row["ci_low"], row["ci_high"]] == pytest.approx(percentiles(drawn, case.bank.n_prompts))
        else:
            assert row["ci_low"] is None
            assert "no interval is made" in row["method"]


def test_untied_scores_have_four_equal_quarters(case: Case) -> None:
    untied = {**case.scores, ("tip", 16): np.random.default_rng(0).permutation(len(case.bank.prompts)) / 1e4}
    table = pd.DataFrame(bucket_rows([case.gain], case.bank, untied, case.resampling()))
    sizes = table[
        (table["score"] == "tip") & (table["k"] == 16) & (table["region"] == "all") & (table["statistic"] == "mean")
    ]
    assert sizes["n_positions"].tolist() == [len(case.bank.prompts) // 4] * 4


def test_a_saturated_score_has_fewer_buckets_and_splits_no_tie(case: Case) -> None:
    saturated = {**case.scores, ("compatibility", 16): np.where(np.arange(len(case.bank.prompts)) % 10 < 8, 1.0, 0.3)}
    table = pd.DataFrame(bucket_rows([case.gain], case.bank, saturated, case.resampling()))
    table = table[(table["score"] == "compatibility") & (table["k"] == 16) & (table["region"] == "all")]
    for _, own in table.groupby("statistic"):
        assert own["score_low"].tolist() == own["score_high"].tolist() == [0.3, 1.0]
        assert own["bucket"].tolist() == [1, 2]


@pytest.mark.parametrize("k", SUPPORT_SIZES)
def test_residuals_are_those_of_statsmodels(case: Case, rows: list[dict[str, Any]], k: int) -> None:
    controls = [("student_entropy", None), ("disagreement", k), ("position", None), ("teacher_entropy", None)]
    design = np.column_stack([np.ones(len(case.gain.values)), *(case.scores[key] for key in controls)])
    residual = OLS(case.gain.values, design).fit().resid
    for name in BUCKETS:
        mine = [r for r in rows if (r["score"], r["k"], r["statistic"]) == (name, k, "residual mean")]
        own = case.scores[name, k]
        for row in mine:
            members = (own >= row["score_low"]) & (own <= row["score_high"])
            assert row["estimate"] == pytest.approx(residual[members].mean(), abs=1e-12)
        assert sum(r["estimate"] * r["n_positions"] for r in mine) == pytest.approx(0, abs=1e-9)
    draws = drawn_rows(case.resampling().weights("buckets"), case.bank.prompts)
    drawn = [residual[again][members[again]].mean() for again in draws]
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(percentiles(drawn, case.bank.n_prompts))


def test_a_position_that_was_drawn_counts_for_the_tokens_it_stands_for(case: Case) -> None:
    """Weighted means and shares by position, against numpy's; other statistics stay as they are."""
    weight = np.random.default_rng(3).integers(1, 9, len(case.bank)).astype(np.float64)
    bank = case.with_columns(weight=weight)
    drawn = bucket_rows([case.gain], bank, case.scores, case.resampling())
    plain = bucket_rows([case.gain], case.bank, case.scores, case.resampling())
    assert [r for r in drawn if r["score"] != "position"] == [r for r in plain if r["score"] != "position"]
    position, y = case.column("position"), case.gain.values
    for row in (r for r in drawn if r["score"] == "position"):
        inside = (position >= row["score_low"]) & (position <= row["score_high"])
        expected = {
            "mean": np.average(y[inside], weights=weight[inside]),
            "share of tokens": weight[inside].sum() / weight.sum(),
            "share of total": (weight * y)[inside].sum() / (weight * y).sum(),
        }
        assert row["estimate"] == pytest.approx(expected[row["statistic"]], rel=1e-10)
        again = [(weight[r], inside[r], y[r]) for r in drawn_rows(case.resampling().weights("buckets"), bank.prompts)]
        if row["statistic"] == "mean":
            means = [np.average(values[of], weights=w[of]) for w, of, values in again]
            assert [row["ci_low"], row["ci_high"]] == pytest.approx(percentiles(means, case.bank.n_prompts))
    ones = case.with_columns(weight=np.ones(len(case.bank)))
    same = bucket_rows([case.gain], ones, case.scores, case.resampling())
    same = [r for r in same if r["statistic"] != "share of tokens"]
    for one, other in zip(same, plain, strict=True):
        np.testing.assert_allclose(numbers(one).astype(float), numbers(other).astype(float), rtol=1e-10)


def test_the_position_profile_sums_to_the_whole(case: Case, rows: list[dict[str, Any]]) -> None:
    position, y = case.column("position"), case.gain.values
    edges = [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 159)]
    shares = [r for r in rows if r["statistic"] == "share of total"]
    assert [(r["score_low"], r["score_high"]) for r in shares] == edges
    assert sum(r["estimate"] for r in shares) == pytest.approx(1)
    for row, (low, high) in zip(shares, edges, strict=True):
        members = (position >= low) & (position <= high)
        draws = list(drawn_rows(case.resampling().weights("buckets"), case.bank.prompts))
        drawn = [y[again][members[again]].sum() / y[again].sum() for again in draws]
        assert [row["estimate"], row["ci_low"], row["ci_high"]] == pytest.approx(
            [drawn[0], *percentiles(drawn, case.bank.n_prompts)]
        )
        mean = found(rows, score="position", statistic="mean", score_low=row["score_low"])
        assert mean["estimate"] == pytest.approx(y[members].mean())


def test_shares_of_a_total_that_may_be_nothing_have_no_interval(case: Case) -> None:
    null = replace(case.gain, values=case.gain.values - case.gain.values.mean() + 1e-6)
    rows = bucket_rows([null], case.bank, case.scores, case.resampling())
    for row in (r for r in rows if r["statistic"] == "share of total"):
        assert row["ci_low"] is None
        assert row["method"].endswith("no interval: some draws have a total that is 0 or of the other sign")
    flat = bucket_rows(
        [replace(case.gain, values=np.zeros(len(null.values)))], case.bank, case.scores, case.resampling()
    )
    assert "share of total" not in {r["statistic"] for r in flat}


def test_a_region_of_few_prompts_is_shown_and_said(case: Case) -> None:
    kept = case.bank.prompts < 6
    few = replace(case.gain, rows=kept, values=case.gain.values[kept], prompts=case.gain.prompts[kept])
    rows = bucket_rows([few], case.bank, case.scores, case.resampling())
    row = found(rows, region="q3", score="tip", k=16, statistic="mean", bucket=1)
    assert row["ci_low"] is None
    assert row["method"] == f"mean; buckets fixed; no interval from {row['n_prompts']} prompts, where 8 are needed"


def test_robust_gains_are_those_of_numpy_in_every_draw(case: Case) -> None:
    y, resampling = case.gain.values, case.resampling(5)
    one, five = np.quantile(y, [0.01, 0.99]), np.quantile(y, [0.05, 0.95])
    kept = (y >= five[0]) & (y <= five[1])
    statistics = {
        "median": lambda rows: np.median(y[rows]),
        "trimmed mean 5-95": lambda rows: y[rows][kept[rows]].mean(),
        "winsorised mean 1-99": lambda rows: np.clip(y[rows], *one).mean(),
        "winsorised mean 5-95": lambda rows: np.clip(y[rows], *five).mean(),
    }
    rows = robust_rows(case.gain, resampling)
    assert [row["term"] for row in rows] == list(statistics)
    for row in rows:
        draws = drawn_rows(resampling.weights("robust gain"), case.bank.prompts)
        drawn = [float(statistics[row["term"]](again)) for again in draws]
        assert [row["estimate"], row["ci_low"], row["ci_high"]] == pytest.approx(
            [drawn[0], *percentiles(drawn, case.bank.n_prompts)]
        )


@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_the_order_of_rows_changes_no_bucket(case: Case, rows: list[dict[str, Any]], seed: int) -> None:
    mixed = shuffled(case, seed)
    for row, other in zip(rows, bucket_rows([mixed.gain], mixed.bank, mixed.scores, case.resampling()), strict=True):
        pd.testing.assert_series_equal(numbers(row), numbers(other), rtol=1e-8, atol=1e-12)


def test_prompts_that_stand_twice_change_no_estimate(case: Case, rows: list[dict[str, Any]]) -> None:
    twice, scores = doubled(case)
    again = bucket_rows([twice.gain], twice.bank, scores, twice.resampling())
    for row, other in zip(rows, again, strict=True):
        if row["statistic"] != "trimmed mean":  # whose cuts interpolate between positions
            assert other["estimate"] == pytest.approx(row["estimate"], rel=1e-7, abs=1e-12)
        assert other["n_positions"] == 2 * row["n_positions"]
