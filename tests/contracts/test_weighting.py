"""What a training run does with selectors: budgets, warm-up, soft weights, and what cannot choose while training.

The truth: budgets and weights worked by hand, and what selection keeps outside training.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teachdiag.errors import SettingsError
from teachdiag.selectors import SELECTORS, Selection, Tokens, select


def _columns(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "context_id": np.sort(rng.integers(0, 5, n)),
        "position": np.arange(n),
        "forward_kl": rng.lognormal(size=n),
        "disagreement_k16": rng.lognormal(size=n),
        "compatibility_k16": rng.uniform(size=n),
    }


@given(n=st.integers(20, 200), budget=st.floats(0.01, 1.0), seed=st.integers(0, 50))
@settings(max_examples=40)
def test_exactly_the_budget_is_kept_and_it_is_what_select_keeps(n: int, budget: float, seed: int) -> None:
    columns = _columns(n, seed)
    found = Selection("learnable", budget=budget).weigh(columns)
    assert found.kept.sum() == max(1, int(np.ceil(budget * n * (1 - 1e-12))))
    assert (found.weights == found.kept).all()
    if budget < 1:
        assert (select(Tokens(columns), SELECTORS["learnable"], budget).kept == found.kept).all()


@given(n=st.integers(20, 200), budget=st.floats(0.01, 0.99), selector=st.sampled_from(["learnable", "prefix"]))
@settings(max_examples=40)
def test_soft_weights_follow_the_score_and_have_the_budgets_total(n: int, budget: float, selector: str) -> None:
    columns = _columns(n)
    found = Selection(selector, budget=budget, soft=True).weigh(columns)
    assert found.weights.sum() == pytest.approx(np.ceil(budget * n * (1 - 1e-12)))
    assert (found.weights >= 0).all()
    scores = SELECTORS[selector].scores(Tokens(columns))
    assert (np.diff(found.weights[np.argsort(scores)]) >= -1e-12).all()


def test_equal_scores_weigh_the_same() -> None:
    columns = _columns(40) | {"forward_kl": np.zeros(40)}
    assert Selection("forward_kl", budget=0.25, soft=True).weigh(columns).weights == pytest.approx(np.full(40, 0.25))


def test_the_budget_falls_over_the_warm_up() -> None:
    selection = Selection("forward_kl", budget=0.2, warmup=4)
    assert [selection.budget_at(step) for step in range(6)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert selection.weigh(_columns(50), step=0).kept.all()
    assert selection.weigh(_columns(50), step=9).kept.sum() == 10


def test_full_keeps_all_and_reads_nothing() -> None:
    selection = Selection("full")
    assert selection.columns == ()
    assert selection.weigh({"context_id": np.zeros(7, int)}).weights.tolist() == [1.0] * 7


def test_random_choices_change_with_the_step_and_the_seed_alone() -> None:
    columns = _columns(100)

    def kept(step: int, seed: int) -> list[bool]:
        return Selection("random", budget=0.3, seed=seed).weigh(columns, step).kept.tolist()

    assert kept(3, 0) == kept(3, 0)
    assert kept(3, 0) != kept(4, 0)
    assert kept(3, 0) != kept(3, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.0}, "the budget is 0.0: it must be a share"),
        ({"warmup": -1}, "the warm-up is -1"),
        ({"selector": "oracle"}, "selector oracle reads isolated_gain, which only a probe measures"),
        ({"selector": "learnabel"}, "no selector 'learnabel'"),
    ],
)
def test_what_cannot_select_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Selection(**arguments)
