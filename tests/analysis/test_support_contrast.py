"""Contrasts inside Q3 by thirds of a support score, against loops over rows and worlds whose answer is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from contrast_worlds import WORLD, Case, drawn_rows, found, in_thirds, numbers, percentiles, plant_case, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import World, claims_alone, plant

from teachdiag.analysis.analyze import run_analysis
from teachdiag.analysis.bank.normalised import in_q3
from teachdiag.analysis.step.matching import CALIPER
from teachdiag.analysis.step.support_contrast import contrast_rows, cut_thirds, fixed_gaps
from teachdiag.artefacts import BALANCE, BUCKETS, CONTRASTS, TOP_N
from teachdiag.progress import Reporter
from teachdiag.settings import SUPPORT_SIZES, AnalyzeSettings
from teachdiag.tables import Table

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return plant_case(tmp_path_factory.mktemp("thirds") / "run", replace(WORLD, positions=40))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = plant(tmp_path_factory.mktemp("contrasts") / "run", WORLD)
    with pytest.MonkeyPatch.context() as patch:
        claims_alone(patch, "_contrasts", "_top", "_buckets")
        run_analysis(run, AnalyzeSettings(draws=150), QUIET)
    return run


def _table(run: Path, table: Table) -> pd.DataFrame:
    return table.read(run / "analysis" / f"{table.name}.parquet")


@pytest.mark.parametrize("score", ["compatibility", "bhattacharyya"])
@pytest.mark.parametrize("outcome", ["gain", "gain_relative"])
def test_redrawn_contrast_is_that_of_a_loop_over_resampled_rows(case: Case, score: str, outcome: str) -> None:
    """Medians are those of the whole bank, even where the outcome has gaps; thirds are of what has the outcome."""
    gain = case.outcomes["one_step", outcome]
    assert gain.rows.all() == (outcome == "gain")
    resampling = case.resampling(seed=4)
    row = found(contrast_rows([gain], case.bank, resampling, redraw=True), score=score, k=8)
    y = np.full(len(gain.rows), np.nan)
    y[gain.rows] = gain.values
    h, kl, c = (case.column(name) for name in ("student_entropy", "forward_kl", f"{score}_k8"))
    drawn = [
        in_thirds(h[again], kl[again], c[again], y[again])
        for again in drawn_rows(resampling.weights("contrast"), case.bank.prompts)
    ]
    assert row["estimate"] == pytest.approx(drawn[0], abs=1e-12)
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(percentiles(drawn, case.bank.n_prompts), abs=1e-10)
    assert row["p_value"] == pytest.approx(
        max(2 * min(np.mean([x <= 0 for x in drawn[1:]]), np.mean([x >= 0 for x in drawn[1:]])), 1 / 101)
    )


def test_fixed_cuts_are_those_of_the_full_sample(case: Case) -> None:
    resampling = case.resampling()
    row = found(contrast_rows([case.gain], case.bank, resampling, redraw=False), score="compatibility", k=16)
    inside, c, y = in_q3(case.bank)[0], case.column("compatibility_k16"), case.gain.values
    low, high = np.quantile(c[inside], [1 / 3, 2 / 3])
    drawn = []
    for again in drawn_rows(resampling.weights("contrast"), case.bank.prompts):
        upper, lower = (inside & (c >= high))[again], (inside & (c <= low))[again]
        drawn.append(y[again][upper].mean() - y[again][lower].mean())
    assert [row["estimate"], row["ci_low"], row["ci_high"]] == pytest.approx(
        [drawn[0], *percentiles(drawn, case.bank.n_prompts)], abs=1e-12
    )
    assert "medians and thirds fixed" in row["method"]


def test_equal_arms_ties_and_empty_regions_are_said() -> None:
    q3 = np.ones(9, bool)
    assert cut_thirds(q3, np.arange(9.0)).note == ""
    tied = cut_thirds(q3, np.r_[0.0, np.ones(8)])
    assert "thirds share 8 of 9 positions" in tied.note
    assert "Q3 holds no position" in cut_thirds(np.zeros(9, bool), np.arange(9.0)).note


def test_a_constant_proxy_and_a_monotone_twin_are_named(case: Case) -> None:
    c = case.column("compatibility_k16")
    bank = case.with_columns(overlap_k16=np.ones(len(c)), jaccard_k16=np.exp(3 * c), compatibility_k8=1 - c)
    rows = contrast_rows([case.gain], bank, case.resampling(), redraw=True)
    constant = found(rows, score="overlap", k=16)
    assert constant["estimate"] is None
    n = int(in_q3(bank)[0].sum())
    assert constant["note"] == f"the thirds share {n} of {n} positions: the score is tied at its cuts"
    assert found(rows, score="compatibility", k=16)["note"] == ""
    twin, original = found(rows, score="jaccard", k=16), found(rows, score="compatibility", k=16)
    assert twin["note"] == "the same arms as compatibility (K=16)"
    pd.testing.assert_series_equal(numbers(twin), numbers(original))


def test_ties_that_join_the_thirds_in_some_draws_are_counted(case: Case) -> None:
    """Nearly two thirds of Q3 lie at the top: the full sample has two arms, and some draws have not."""
    inside, h, kl = in_q3(case.bank)[0], case.column("student_entropy"), case.column("forward_kl")
    score = np.linspace(0, 0.5, len(inside))
    score[np.flatnonzero(inside)[: int(0.655 * inside.sum())]] = 1.0
    tied, resampling, overlapping = case.with_columns(compatibility_k16=score), case.resampling(), 0
    for again in drawn_rows(resampling.weights("contrast")[1:], case.bank.prompts):
        q3 = (h[again] <= np.median(h[again])) & (kl[again] >= np.median(kl[again]))
        overlapping += len(set(np.quantile(score[again][q3], [1 / 3, 2 / 3]))) == 1
    assert 0 < overlapping < 100
    for redraw in (True, False):
        row = found(contrast_rows([case.gain], tied, resampling, redraw=redraw), score="compatibility", k=16)
        assert row["estimate"] is not None
        assert (row["ci_low"] is None) == (row["p_value"] is None) == redraw
        said = f"no interval: in {overlapping} of 100 draws a third is empty, or ties put positions in both"
        assert row["note"] == (said if redraw else "")


def test_a_third_that_only_one_prompt_has_is_empty_in_some_draws(case: Case) -> None:
    inside, prompts = in_q3(case.bank)[0], case.bank.prompts
    last = np.flatnonzero(inside)[: inside.sum() // 3 + 1]
    mine = np.where(np.isin(np.arange(len(inside)), last), 0, prompts)  # the whole upper third is prompt 0's
    others = np.where((mine == 0) & ~np.isin(np.arange(len(inside)), last), 1, mine)
    score = np.linspace(0, 0.5, len(inside))
    score[last] = 1 + np.linspace(0, 0.1, len(last))
    bank = replace(case.with_columns(compatibility_k16=score), prompts=others)
    gain = replace(case.gain, prompts=others)
    row = found(contrast_rows([gain], bank, case.resampling(), redraw=False), score="compatibility", k=16)
    assert row["ci_low"] is None
    empty = int((case.resampling().weights("contrast")[1:, 0] == 0).sum())
    assert f"in {empty} of 100 draws a third is empty" in row["note"]


def test_an_outcome_of_few_prompts_has_an_estimate_and_no_interval(case: Case) -> None:
    kept = case.bank.prompts < 5
    few = replace(case.gain, rows=kept, values=case.gain.values[kept], prompts=case.gain.prompts[kept])
    row = contrast_rows([few], case.bank, case.resampling(), redraw=True)[0]
    assert row["estimate"] is not None
    assert (row["ci_low"], row["ci_high"], row["p_value"]) == (None, None, None)
    assert row["note"] == "no interval: Q3 lies in only 5 prompts, and 8 are needed"


def test_a_draw_that_empties_an_arm_gives_no_interval() -> None:
    values, prompts = np.arange(4.0)[:, None], np.array([0, 0, 1, 1])
    gaps = fixed_gaps(values, prompts == 0, prompts == 1, prompts, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert gaps[0, 0] == pytest.approx(-2)
    assert np.isnan(gaps[1, 0])


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_the_order_of_rows_changes_no_contrast(case: Case, seed: int) -> None:
    mixed = shuffled(case, seed)
    one, same = (contrast_rows([c.gain], c.bank, case.resampling(1), redraw=True) for c in (case, mixed))
    for row, other in zip(one, same, strict=True):
        assert row["note"] == other["note"]
        pd.testing.assert_series_equal(numbers(row), numbers(other), rtol=1e-9)


@pytest.mark.slow
def test_the_planted_gap_is_found_by_thirds_and_by_pairs(run: Path) -> None:
    rows = _table(run, CONTRASTS)
    mine = rows[(rows["score"] == "compatibility") & (rows["outcome"] == "gain") & (rows["k"] == 16)]
    real, null = (mine[mine["update"] == update].set_index("design") for update in ("one_step", "random_direction"))
    assert (real["ci_low"] > 0).all()
    assert ((null["ci_low"] < 0) & (null["ci_high"] > 0)).all()
    assert real["n_unmatched"]["matched once"] >= real["n_unmatched"]["matched"]
    balance = _table(run, BALANCE)
    assert (balance["after"].abs() <= CALIPER).all()


def test_every_table_has_one_row_a_key_and_every_k(run: Path) -> None:
    for table in (CONTRASTS, BALANCE, TOP_N, BUCKETS):
        rows = _table(run, table)
        assert not rows.duplicated(list(table.key)).any()
        assert set(rows["k"].dropna()) == set(SUPPORT_SIZES)
    for table in (CONTRASTS, TOP_N, BUCKETS):
        assert set(_table(run, table)["outcome"]) == {"gain", "gain_reverse", "gain_relative", "gain_log"}


def test_the_summary_shows_contrasts_proxies_and_the_best_scored(run: Path) -> None:
    text = (run / "summary.md").read_text()
    for part in (
        "### Inside Q3, gain at high C less gain at low C [nats], step",
        "### The same with C's proxies in its place",
        "### The bank's best-scored 10% of positions (K=16)",
        "| random | ",
    ):
        assert part in text


def test_saturated_support_has_no_contrast_and_says_why(tmp_path: Path) -> None:
    saturated = plant_case(tmp_path / "run", World(prompts=12, positions=20, saturated=True))
    row = found(
        contrast_rows([saturated.gain], saturated.bank, saturated.resampling(), redraw=True),
        score="compatibility",
        k=16,
    )
    assert "tied at its cuts" in row["note"]
    assert (row["estimate"], row["ci_low"], row["p_value"]) == (None, None, None)
