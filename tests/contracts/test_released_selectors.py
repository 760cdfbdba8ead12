"""The released code's selection arithmetic, against plain loops and against what its authors report."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import slow
from hypothesis import given
from hypothesis import strategies as st
from token_worlds import COLUMNS

from teachdiag.errors import SettingsError
from teachdiag.seeds import derive_seed
from teachdiag.selectors import Selection, resolve_selector, select
from teachdiag.selectors.released import METHODS, select_released, with_live_statistics
from teachdiag.selectors.tokens import Tokens

CONTEXTS, LENGTH = 8, 64
LISTED = (
    *("context_id", "position", "student_topk_ids", "teacher_topk_ids", "student_topk_logp", "teacher_topk_logp"),
    "student_logp_at_teacher_topk",
)


def batch(seed: int, contexts: int = CONTEXTS, length: int = LENGTH, distinct: int = 0) -> Tokens:
    """Statistics that are independent and identically distributed; of few values where `distinct` is given."""
    rng = np.random.default_rng(seed)
    n = contexts * length
    statistics = rng.random((3, n)) if not distinct else rng.integers(0, distinct, (3, n)) / distinct
    names = ("live_entropy", "live_disagreement", "live_compatibility")
    place = {"context_id": np.repeat(np.arange(contexts), length), "position": np.tile(np.arange(length), contexts)}
    return Tokens(place | dict(zip(names, statistics, strict=True)), seed=seed)


def slow_norm(values: list[float]) -> list[float]:
    finite = sorted(v for v in values if math.isfinite(v))

    def quantile(share: float) -> float:
        place = share * (len(finite) - 1)
        low, high = math.floor(place), math.ceil(place)
        return finite[low] * (1 - (place - low)) + finite[high] * (place - low)

    if not finite or abs(quantile(0.95) - quantile(0.05)) < 1e-12:
        return [0.0] * len(values)
    low, high = quantile(0.05), quantile(0.95)
    return [min(1.0, max(0.0, (v - low) / (high - low))) if math.isfinite(v) else 0.0 for v in values]


Row = tuple[float, float, float, float]
SCORES: dict[str, Callable[[float, float, float, float], float]] = {
    "dlearn_high": lambda h, d, c, dc: d * c,
    "ca_softor": lambda h, d, c, dc: h + dc - h * dc,
    "entropy": lambda h, d, c, dc: h,
    "divergence": lambda h, d, c, dc: d,
    "tip": lambda h, d, c, dc: h + d - h * d,
    "compatibility": lambda h, d, c, dc: c,
    "dincompat_high": lambda h, d, c, dc: d * (1 - c),
    "q3": lambda h, d, c, dc: (1 - h) * dc,
    "q3_highc": lambda h, d, c, dc: c,
    "q3_lowc": lambda h, d, c, dc: c,
    "q3_dlearn_high": lambda h, d, c, dc: d * c,
    "q3_dlearn_low": lambda h, d, c, dc: d * c,
    "q3_dincompat_high": lambda h, d, c, dc: d * (1 - c),
}


def slow_rows(tokens: Tokens) -> list[Row]:
    h, d, c = (list(tokens.columns[f"live_{name}"]) for name in ("entropy", "disagreement", "compatibility"))
    product = [x * y for x, y in zip(d, c, strict=True)]
    return list(zip(*(slow_norm(values) for values in (h, d, c, product)), strict=True))


def slow_selection(tokens: Tokens, method: str, budget: float, minimum: int = 1) -> set[int]:
    """Sort, cut, top up."""
    rows, position = slow_rows(tokens), tokens.columns["position"]
    valid = list(range(len(rows)))
    n = max(1, math.ceil(budget * len(rows)))
    if method.startswith("q3"):
        h_middle, d_middle = (float(np.median([row[i] for row in rows])) for i in (0, 1))
        valid = [i for i in valid if rows[i][0] < h_middle and rows[i][1] >= d_middle]

    def ranked(candidates: list[int], score: str, falling: bool = True) -> list[int]:
        return sorted(candidates, key=lambda i: (SCORES[score](*rows[i]), -position[i]), reverse=falling)

    if method == "split_budget_ca":
        first = ranked(valid, "entropy")[: round(n / 2)]
        kept = set(first) | set(ranked([i for i in valid if i not in first], "q3")[: n - len(first)])
    else:
        kept = set(ranked(valid, method, falling=method not in ("q3_lowc", "q3_dlearn_low"))[:n])
    for context in np.unique(tokens.columns["context_id"]):
        own = [i for i in range(len(rows)) if tokens.columns["context_id"][i] == context]
        lacking = minimum - len(kept & set(own))
        kept |= set(ranked([i for i in own if i not in kept], "ca_softor")[: max(lacking, 0)])
    return kept


@given(
    st.sampled_from([m for m in METHODS if m != "random"]),
    st.integers(0, 999),
    st.sampled_from([0, 2, 5]),
    st.sampled_from([0.01, 0.05, 0.3, 0.9]),
    st.integers(0, 3),
)
def test_masks_are_the_plain_loops(method: str, seed: int, distinct: int, budget: float, minimum: int) -> None:
    tokens = batch(seed, contexts=4, length=12, distinct=distinct)
    chosen = select_released(tokens, method, budget, minimum)
    assert set(np.flatnonzero(chosen.kept)) == slow_selection(tokens, method, budget, minimum)


def test_actual_budgets_are_those_reported() -> None:
    # A sequence of 64 among 512 tokens has none of n iid places with probability C(448, n) / C(512, n), and is topped
    # up then. The paper's Table 10 reports an actual keep of 1.89, 3.35, 5.14 and 10.16%.
    batches = [batch(seed) for seed in range(300)]
    for budget, reported, simulated_elsewhere in (
        (0.01, 1.89, 1.89),
        (0.03, 3.35, 3.29),
        (0.05, 5.14, 5.18),
        (0.10, 10.16, 10.16),
    ):
        total = CONTEXTS * LENGTH
        n = math.ceil(budget * total)
        empty = math.comb(total - LENGTH, n) / math.comb(total, n)
        expected = 100 * (n + CONTEXTS * empty) / total
        assert expected == pytest.approx(reported, abs=0.05)
        assert expected == pytest.approx(simulated_elsewhere, abs=0.06)
        for method in ("dlearn_high", "random"):
            chosen = [select_released(tokens, method, budget) for tokens in batches]
            kept = np.array([100 * c.kept.mean() for c in chosen])
            assert kept.mean() == pytest.approx(expected, abs=0.04)
            assert all(c.kept.sum() == n + c.topped_up for c in chosen)


def test_top_ups_follow_ca_softor_whatever_the_method() -> None:
    tokens = batch(1)
    alone = select_released(tokens, "random", 0.01, minimum=0)
    topped = select_released(tokens, "random", 0.01)
    added = np.flatnonzero(topped.kept & ~alone.kept)
    rows = slow_rows(tokens)
    best = {
        max(range(c * LENGTH, (c + 1) * LENGTH), key=lambda i: SCORES["ca_softor"](*rows[i]))
        for c in range(CONTEXTS)
        if not alone.kept[c * LENGTH : (c + 1) * LENGTH].any()
    }
    assert alone.topped_up == 0
    assert set(added) == best
    assert topped.topped_up == len(best) > 0


def test_degenerate_batches() -> None:
    tokens = batch(2)
    flat = Tokens(tokens.columns | {"live_compatibility": np.ones(512)})
    chosen = select_released(flat, "compatibility", 0.05, minimum=0)
    assert chosen.tied == 1  # no spread: every score is 0, and the earliest positions win
    assert chosen.kept.sum() == 26
    assert tokens.columns["position"][chosen.kept].max() == 3
    wild = Tokens(
        tokens.columns | {"live_entropy": np.where(np.arange(512) < 9, np.nan, tokens.columns["live_entropy"])}
    )
    assert not select_released(wild, "entropy", 0.05, minimum=0).kept[:9].any()
    assert select_released(tokens, "q3_highc", 1.0).kept.all()
    scarce = Tokens(
        tokens.columns | {"live_entropy": np.r_[0.0, np.ones(511)], "live_disagreement": np.arange(512.0)[::-1].copy()}
    )
    assert select_released(scarce, "q3_highc", 0.05, minimum=0).kept.sum() == 0  # H_norm is flat: nothing is below
    hopeless = Tokens(tokens.columns | {"live_entropy": np.full(512, np.nan)})
    assert select_released(hopeless, "entropy", 0.05).kept.sum() >= 26
    for arguments, message in ((("ta_opd", 0.1), "has no mask 'ta_opd': choose from"), (("tip", 1.5), "budget is 1.5")):
        with pytest.raises(SettingsError, match=message):
            select_released(tokens, *arguments)


def test_our_columns_stand_in() -> None:
    tokens = batch(3)
    ours = {"live_entropy": "student_entropy", "live_disagreement": "disagreement_k8"}
    renamed = {ours.get(name, name): values for name, values in tokens.columns.items()}
    renamed["compatibility_bound_k8"] = renamed.pop("live_compatibility")
    one, other = select_released(tokens, "ca_softor", 0.1), select_released(Tokens(renamed, k=8), "ca_softor", 0.1)
    assert one.kept.tolist() == other.kept.tolist()


@pytest.mark.parametrize("k", [8, 16])
def test_live_statistics_from_two_lists(k: int) -> None:
    rng = np.random.default_rng(4)
    expected, columns = [], {name: [] for name in ("student_topk", "teacher_topk")}
    logs = {name: [] for name in ("student_topk_logp", "teacher_topk_logp", "student_logp_at_teacher_topk")}
    for _ in range(20):
        student = rng.normal(0, 2, 60)
        p, q = slow.softmax(student), slow.softmax(student + rng.normal(0, 1.5, 60))
        ids, others = slow.top(p, 32), slow.top(q, 32)
        columns["student_topk"].append(ids)
        columns["teacher_topk"].append(others)
        for name, values in zip(logs, (np.log(p[ids]), np.log(q[others]), np.log(p[others])), strict=True):
            logs[name].append(values)
        s, t = ids[:k], others[:k]
        a, b = {v: p[v] / sum(p[s]) for v in s}, {v: q[v] / sum(q[t]) for v in t}
        kl = 0.0
        for v in set(s) | set(t):
            from_teacher, from_student = max(b.get(v, 0.0), 1e-12), max(a.get(v, 0.0), 1e-12)
            kl += from_teacher * (math.log(from_teacher) - math.log(from_student))
        expected.append(
            (slow.entropy(np.array(list(a.values()))) / math.log(k), kl, sum(q[v] for v in set(s) & set(t)))
        )
    tokens = Tokens(
        {"context_id": np.zeros(20, int), "position": np.arange(20)}
        | {f"{name}_ids": np.array(ids) for name, ids in columns.items()}
        | {name: np.array(values) for name, values in logs.items()},
        k=k,
    )
    live = with_live_statistics(tokens)
    for i, name in enumerate(("live_entropy", "live_disagreement", "live_compatibility")):
        np.testing.assert_allclose(live.columns[name], [row[i] for row in expected], rtol=1e-10)
    assert select_released(live, "dlearn_high", 0.1).kept.sum() >= 2


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_is_resolved_by_name_wherever_a_selector_is(method: str) -> None:
    name, batches = f"released:{method}", {k: v for k, v in COLUMNS.items() if k in LISTED}
    selector = resolve_selector(name)
    assert set(selector.columns(8)) == set(batches)
    tokens = Tokens(batches, k=8, seed=derive_seed(3, "selection", 7))
    expected = select_released(with_live_statistics(tokens), method, 0.2)
    chosen = select(tokens, selector, 0.2)
    np.testing.assert_array_equal(chosen.kept, expected.kept)
    weights = Selection(name, 0.2, k=8, seed=3).weigh(batches, step=7)
    np.testing.assert_array_equal(weights.kept, expected.kept)
    assert (weights.topped_up, weights.tied) == (expected.topped_up, expected.tied)


def test_a_mask_keeps_its_own_rules() -> None:
    for rule in ({"normalisation": "rank"}, {"scope": "sequence"}, {"minimum": 2}, {"ties": "earliest"}):
        with pytest.raises(SettingsError, match=r"^released:tip has its own rules: leave normalisation, scope"):
            Selection("released:tip", **rule)
    with pytest.raises(SettingsError, match=r"^released:tip is a mask, with no scores for soft weights"):
        Selection("released:tip", soft=True)
    with pytest.raises(SettingsError, match=r"^the released code has no mask 'no': choose from dlearn_high, "):
        Selection("released:no")
    with pytest.raises(SettingsError, match=r"^released:tip is a mask, with no score"):
        resolve_selector("released:tip").scores(Tokens(COLUMNS))
