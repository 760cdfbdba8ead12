"""Matched pairs inside Q3, against every possible assignment, and loops over prompts."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from contrast_worlds import Case, doubled, found, numbers, percentiles, plant_case, shuffled
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from teachdiag.analysis.bank.normalised import in_q3
from teachdiag.analysis.step.matching import CALIPER, UNBALANCED, match_pairs, matched_rows, split_by_prompt


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return plant_case(tmp_path_factory.mktemp("matching") / "run")


@given(st.integers(0, 1000), st.integers(2, 5))
@settings(max_examples=25)
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
def test_a_matched_gap_is_that_of_a_loop_over_prompts(case: Case, design: str) -> None:
    """A draw repeats whole prompts, and every repeat has the same pairs."""
    scores, resampling, gain = case.scores, case.resampling(3), case.gain
    rows, balance = matched_rows([gain], case.bank, scores, resampling)
    row = found(rows, score="bhattacharyya", k=32, design=design)
    h, kl, s = (case.column(name) for name in ("student_entropy", "forward_kl", "bhattacharyya_k32"))
    inside = (h <= np.median(h)) & (kl >= np.median(kl))
    x = np.column_stack([scores["student_entropy", None], scores["disagreement", 32], scores["position", None]])
    x /= x[inside].std(axis=0)
    pairs: dict[int, list[tuple[int, int]]] = {}
    highs, lows = [], []
    for prompt in range(case.bank.n_prompts):
        mine = np.flatnonzero(inside & (case.bank.prompts == prompt))
        high, low = mine[s[mine] > np.median(s[mine])], mine[s[mine] <= np.median(s[mine])]
        highs += list(high)
        lows += list(low)
        cost = np.array([[np.sqrt(sum((x[i] - x[j]) ** 2)) for j in low] for i in high])
        near = np.array([[max(abs(x[i] - x[j])) <= CALIPER for j in low] for i in high])
        places = [(i, int(np.where(near[i], cost[i], 1e6).argmin())) for i in range(len(high))]
        if design == "matched once":
            places = list(zip(*linear_sum_assignment(np.where(near, cost, 1e6)), strict=True))
        pairs[prompt] = [(high[i], low[j]) for i, j in places if near[i, j]]
    together = [pair for own in pairs.values() for pair in own]
    drawn = [
        float(np.mean([gain.values[i] - gain.values[j] for p in pairs for i, j in pairs[p] * int(counts[p])]))
        for counts in resampling.weights("matching")
    ]
    assert row["estimate"] == pytest.approx(drawn[0], abs=1e-12)
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(percentiles(drawn, case.bank.n_prompts), abs=1e-12)
    assert (row["n_high"], row["n_unmatched"]) == (len(together), len(highs) - len(together))
    assert row["n_low"] == len({j for _, j in together})
    mine = [b for b in balance if (b["score"], b["k"], b["design"]) == ("bhattacharyya", 32, design)]
    assert [b["before"] for b in mine] == pytest.approx(x[highs].mean(axis=0) - x[lows].mean(axis=0))
    assert [b["after"] for b in mine] == pytest.approx(np.mean([x[i] - x[j] for i, j in together], axis=0))


def test_matching_takes_out_what_a_covariate_explains_and_says_what_is_left(case: Case) -> None:
    """Gain follows D alone, and the score follows D: the gap shrinks with the imbalance of D, and to the same share."""
    d = case.scores["disagreement", 16]
    score = d + np.random.default_rng(0).normal(0, 0.3, len(d))
    bank, follows = case.with_columns(compatibility_k16=score), replace(case.gain, values=0.1 * d)
    rows, balance = matched_rows([follows], bank, case.scores, case.resampling())
    sides = split_by_prompt(score, in_q3(bank)[0], bank.prompts)
    unmatched = follows.values[sides == 1].mean() - follows.values[sides == 0].mean()
    for design in ("matched", "matched once"):
        row = found(rows, score="compatibility", k=16, design=design)
        left = found(balance, score="compatibility", k=16, design=design, covariate="disagreement")
        assert row["estimate"] / unmatched == pytest.approx(left["after"] / left["before"], rel=1e-9)
        assert abs(left["after"]) < 0.35 * abs(left["before"])
        said = f"pairs still differ in disagreement {left['after']:+.2f} SD on average"
        assert row["note"] == (said if abs(left["after"]) > UNBALANCED else "")
    assert any(row["note"] for row in rows if (row["score"], row["k"]) == ("compatibility", 16))


def test_without_a_pair_or_in_few_prompts_the_note_says_so(case: Case) -> None:
    kept = case.bank.prompts < 5
    few = replace(case.gain, rows=kept, values=case.gain.values[kept], prompts=case.gain.prompts[kept])
    row = matched_rows([few], case.bank, case.scores, case.resampling())[0][0]
    assert row["estimate"] is not None
    assert (row["ci_low"], row["p_value"]) == (None, None)
    assert row["note"] == "no interval: pairs lie in only 5 prompts, and 8 are needed"
    bank = case.with_columns(compatibility_k16=np.ones(len(kept)))
    rows, balance = matched_rows([case.gain], bank, case.scores, case.resampling())
    constant = found(rows, score="compatibility", k=16, design="matched")
    assert (constant["estimate"], constant["n_high"]) == (None, 0)
    assert constant["note"] == "no pair lies within the caliper"
    assert not [b for b in balance if (b["score"], b["k"]) == ("compatibility", 16)]


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_the_order_of_rows_changes_no_pair(case: Case, seed: int) -> None:
    mixed = shuffled(case, seed)
    one, same = (matched_rows([c.gain], c.bank, c.scores, case.resampling(1)) for c in (case, mixed))
    for rows, others in zip(one, same, strict=True):
        for row, other in zip(rows, others, strict=True):
            pd.testing.assert_series_equal(numbers(row), numbers(other), rtol=1e-9, atol=1e-12)


def test_prompts_that_stand_twice_change_no_estimate(case: Case) -> None:
    twice, scores = doubled(case)
    (one, balance), (two, doubled_balance) = (
        matched_rows([c.gain], c.bank, s, c.resampling()) for c, s in ((case, case.scores), (twice, scores))
    )
    assert [r["estimate"] for r in two] == pytest.approx([r["estimate"] for r in one])
    assert [r["n_high"] for r in two] == [2 * r["n_high"] for r in one]
    assert [b["after"] for b in doubled_balance] == pytest.approx([b["after"] for b in balance])
