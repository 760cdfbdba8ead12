"""What no selection may break: the order of rows, exact budgets, ties, minimum and scope.

The truth: counts and masks by plain sorting, and selections of the same rows in other orders.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_worlds import COLUMNS, TOKENS, by, rearranged, small

from teachdiag.errors import EstimationError, SettingsError
from teachdiag.formulas import Score, column, complement, normed, soft_or
from teachdiag.selectors.budget import counts_at, ranks, select, select_each
from teachdiag.selectors.catalogue import SELECTORS
from teachdiag.selectors.tokens import Tokens


def test_unknown_gains_rank_last() -> None:
    gain = COLUMNS["isolated_gain"]
    known = ~np.isnan(gain)
    chosen = select(TOKENS, SELECTORS["oracle"], known.mean())
    assert chosen.kept.tolist() == known.tolist()
    assert chosen.tied == 0
    more = select(TOKENS, SELECTORS["oracle"], (known.sum() + 6) / 60)
    assert more.kept[known].all()
    assert more.tied == pytest.approx(6 / (known.sum() + 6))


NAMES = st.sampled_from(sorted(SELECTORS))
SCOPES, TIES = st.sampled_from(["global", "sequence"]), st.sampled_from(["random", "earliest"])
NORMALISATIONS = st.sampled_from(["quantile", "rank", "none"])
BUDGETS = st.floats(0.01, 1)


@given(NAMES, NORMALISATIONS, SCOPES, TIES, BUDGETS, st.integers(0, 2), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(name, normalisation, scope, ties, budget, minimum, random) -> None:  # noqa: ANN001
    rows = np.array(random.sample(range(60), 60))
    arguments = (SELECTORS[name], budget, normalisation, scope, minimum, ties)
    here, there = select(TOKENS, *arguments), select(rearranged(TOKENS, rows), *arguments)
    assert here.kept[rows].tolist() == there.kept.tolist()
    assert (here.topped_up, here.tied) == (there.topped_up, there.tied)


@given(st.integers(0, 99), st.integers(1, 60), st.integers(1, 4), BUDGETS, SCOPES, TIES, NORMALISATIONS)
def test_budgets_are_exact_under_ties(seed, n, distinct, budget, scope, ties, normalisation) -> None:  # noqa: ANN001
    tokens = small(seed, n, distinct)
    kept = select(tokens, by(column("a")), budget, normalisation, scope, ties=ties).kept
    context, a = tokens.columns["context_id"], tokens.columns["a"]
    for group in [context >= 0] if scope == "global" else [context == c for c in np.unique(context)]:
        assert kept[group].sum() == math.ceil(budget * group.sum() - 1e-9)
        if (~kept & group).any():
            assert a[kept & group].min() >= a[~kept & group].max()


@given(NAMES, BUDGETS)
def test_ranks_say_what_every_budget_selects(name: str, budget: float) -> None:
    order = ranks(TOKENS, SELECTORS[name])
    assert sorted(order) == list(range(1, 61))
    assert (order <= counts_at(budget, np.array([60]))).tolist() == select(
        TOKENS, SELECTORS[name], budget
    ).kept.tolist()


@given(NAMES, st.integers(0, 99), st.integers(1, 60), st.integers(1, 60), st.lists(BUDGETS, min_size=1, max_size=5))
def test_several_budgets_at_once_select_what_each_does_alone(name, seed, n, distinct, budgets) -> None:  # noqa: ANN001
    for tokens, selector in ((TOKENS, SELECTORS[name]), (small(seed, n, distinct), by(column("a")))):
        for together, budget in zip(select_each(tokens, selector, budgets), budgets, strict=True):
            alone = select(tokens, selector, budget)
            assert (together.kept.tolist(), together.tied) == (alone.kept.tolist(), alone.tied)


def test_budgets_forgive_rounding() -> None:
    sizes = np.array([30, 100, 1, 1_000_000, 7])
    assert counts_at(0.1, sizes).tolist() == [3, 10, 1, 100_000, 1]
    assert counts_at(0.1 + 0.2, sizes).tolist() == [9, 30, 1, 300_000, 3]
    assert counts_at(0.07, sizes).tolist() == [3, 7, 1, 70_000, 1]
    assert counts_at(1 / 3, sizes).tolist() == [10, 34, 1, 333_334, 3]
    assert counts_at(1.0, sizes).tolist() == sizes.tolist()


@given(NAMES, st.sampled_from(["rank", "none"]))
def test_repeating_every_position_changes_no_score(name: str, normalisation: str) -> None:
    if name in ("iw_opd", "pw_opsd"):
        return  # of the place in the sequence: a repeated position is a longer sequence
    twice = rearranged(TOKENS, np.repeat(np.arange(60), 2)).under(normalisation)
    one, two = SELECTORS[name].scores(TOKENS.under(normalisation)), SELECTORS[name].scores(twice)
    np.testing.assert_array_equal(two[::2], two[1::2])
    np.testing.assert_array_equal(two[::2], one)


@given(BUDGETS, SCOPES, NORMALISATIONS, st.sampled_from([np.exp, np.cbrt, lambda x: 3 * x - 7]))
def test_a_monotone_transform_selects_the_same(budget, scope, normalisation, change) -> None:  # noqa: ANN001
    changed = Tokens(COLUMNS | {"forward_kl": change(COLUMNS["forward_kl"])}, seed=5)
    for part in (column, normed):
        one, other = (
            select(tokens, by(part("forward_kl")), budget, normalisation, scope).kept for tokens in (TOKENS, changed)
        )
        assert one.tolist() == other.tolist()


def test_clipped_values_are_ranked_unclipped() -> None:
    n = 200
    tokens = Tokens({"context_id": np.zeros(n, int), "position": np.arange(n), "a": np.arange(n) % 199 / 1.0})
    seen = []

    def watched(tokens: Tokens) -> np.ndarray:
        seen.append(tokens.normalisation)
        return tokens.normed("a")

    chosen = select(tokens, by(Score(watched, ("a",), "norm(a)")), 0.02)
    assert np.flatnonzero(chosen.kept).tolist() == [195, 196, 197, 198]
    assert chosen.tied == 0
    assert seen == ["quantile", "rank"]
    select(tokens, by(Score(watched, ("a",), "norm(a)")), 0.3)
    assert seen == ["quantile", "rank", "quantile"]  # no tie at this edge: ranks are not computed


def test_ties_by_rule() -> None:
    tokens = Tokens({"context_id": np.repeat([7, 3], 50), "position": np.tile(np.arange(50), 2), "a": np.ones(100)})
    early = select(tokens, by(column("a")), 0.1, ties="earliest")
    assert early.tied == 1
    assert sorted(tokens.columns["position"][early.kept]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    draws = {tuple(np.flatnonzero(select(Tokens(tokens.columns, seed=s), by(column("a")), 0.1).kept)) for s in range(9)}
    assert len(draws) == 9
    half = Tokens(tokens.columns | {"a": np.r_[np.full(6, 2.0), np.ones(94)]})
    assert select(half, by(column("a")), 0.1).tied == pytest.approx(0.4)
    assert select(half, by(column("a")), 0.06).tied == 0


def test_random_selection_is_uniform_and_independent_of_ties() -> None:
    n = 20_000
    tokens = Tokens({"context_id": np.arange(n) // 100, "position": np.arange(n) % 100})
    draws, ties = tokens.uniform("selectors/random"), tokens.uniform("ties")
    np.testing.assert_allclose(np.bincount((draws * 10).astype(int)) / n, 0.1, atol=0.01)
    assert abs(np.corrcoef(draws, ties)[0, 1]) < 0.02
    assert abs(np.corrcoef(draws, tokens.columns["position"])[0, 1]) < 0.02
    assert len(np.unique(draws)) == n


@given(st.integers(0, 99), st.integers(4, 60), st.integers(1, 12), BUDGETS, SCOPES)
def test_a_minimum_tops_up_with_the_best(seed: int, n: int, minimum: int, budget: float, scope: str) -> None:
    tokens = small(seed, n, 50)
    context, a = tokens.columns["context_id"], tokens.columns["a"]
    plain = select(tokens, by(column("a")), budget, scope=scope).kept
    topped = select(tokens, by(column("a")), budget, scope=scope, minimum=minimum)
    assert (topped.kept >= plain).all()
    assert topped.topped_up == topped.kept.sum() - plain.sum()
    for c in np.unique(context):
        own = context == c
        assert topped.kept[own].sum() == max(plain[own].sum(), min(minimum, own.sum()))
        if (own & ~topped.kept).any():
            assert a[own & topped.kept].min() >= a[own & ~topped.kept].max()


def test_what_cannot_be_selected_is_said_in_a_sentence() -> None:
    key = {"context_id": np.arange(3), "position": np.arange(3)}
    cases = [
        (lambda: Tokens({"position": np.arange(3)}), "lack the column context_id"),
        (lambda: Tokens(key | {"a": np.ones(4)}), "column a has 4 rows, where context_id has 3"),
        (lambda: Tokens({name: values[:0] for name, values in key.items()}), "no tokens to select from"),
        (lambda: Tokens(key, k=5), "K is 5: it must be one of 8, 16, 32"),
        (lambda: select(TOKENS, SELECTORS["tip"], 0.0), r"budget is 0.0: it must be a share of positions in \(0, 1\]"),
        (lambda: select(TOKENS, SELECTORS["tip"], float("nan")), "budget is nan"),
        (lambda: select(TOKENS, SELECTORS["tip"], 0.1, minimum=-1), "minimum is -1"),
        (lambda: select(TOKENS, SELECTORS["tip"], 0.1, "minmax"), "normalisation is 'minmax': .* quantile, rank, none"),  # type: ignore[arg-type]
        (lambda: select(TOKENS, SELECTORS["tip"], 0.1, scope="batch"), "scope is 'batch'"),  # type: ignore[arg-type]
        (lambda: select(TOKENS, SELECTORS["tip"], 0.1, ties="latest"), "ties is 'latest'"),  # type: ignore[arg-type]
    ]
    for build, message in cases:
        with pytest.raises(SettingsError, match=message):
            build()
    flat = Tokens(COLUMNS | {"compatibility_k16": np.ones(60)})
    with pytest.raises(EstimationError, match="column compatibility_k16 is 1 at both its 5% and its 95% quantile"):
        select(flat, SELECTORS["learnable"], 0.1)
    assert select(flat, SELECTORS["learnable"], 0.1, "rank").kept.sum() == 6
    with pytest.raises(EstimationError, match="column isolated_gain is unknown"):
        select(TOKENS, by(soft_or(normed("isolated_gain"), complement(normed("forward_kl")))), 0.1)
