"""The best-scored positions at exact budgets, against sorting by hand, and under ties."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from contrast_worlds import Case, drawn_rows, found, percentiles, plant_case

from teachdiag.analysis.bank.normalised import in_q3
from teachdiag.analysis.step.rank_correlations import load_tokens
from teachdiag.analysis.step.top_n import BUDGETS, top_rows
from teachdiag.selectors import Tokens
from teachdiag.settings import SUPPORT_SIZES


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Tokens]:
    run = Path(tmp_path_factory.mktemp("top") / "run")
    return plant_case(run), load_tokens(run, "bank", SUPPORT_SIZES)


@pytest.fixture(scope="module")
def rows(world: tuple[Case, Tokens]) -> list[dict[str, Any]]:
    case, tokens = world
    groups = [lambda: [case.gain], lambda: [case.relative]]
    return top_rows(groups, case.bank, tokens.columns, case.scores, case.resampling())


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("selector", "k", "column"), [("forward_kl", None, "forward_kl"), ("compatibility", 8, "compatibility_k8")]
)
def test_means_are_those_of_the_best_by_hand(
    world: tuple[Case, Tokens], rows: list[dict[str, Any]], budget: float, selector: str, k: int | None, column: str
) -> None:
    case, _ = world
    n = len(case.bank.prompts)
    best = np.argsort(-case.column(column), kind="stable")[: int(np.ceil(budget * n - 1e-9))]
    row = found(rows, outcome="gain", selector=selector, k=k, budget=budget)
    assert row["n_positions"] == len(best)
    assert row["share_taken"] == len(best) / n
    if len(np.unique(case.column(column)[best])) == len(best):  # no tie among the best, so that there is one answer
        assert row["tied"] == 0
        inside, y = np.isin(np.arange(n), best), case.gain.values
        drawn = [
            y[again][inside[again]].mean()
            for again in drawn_rows(case.resampling().weights("top_n"), case.bank.prompts)
        ]
        assert [row["estimate"], row["ci_low"], row["ci_high"]] == pytest.approx(
            [drawn[0], *percentiles(drawn, case.bank.n_prompts)]
        )
        assert row["gain_per_keep"] == pytest.approx(drawn[0] / (len(best) / n))
        assert row["q3_share"] == in_q3(case.bank)[0][best].mean()
        assert row["mean_incompatible"] == pytest.approx(case.scores["incompatible", k or 16][best].mean())


def test_random_is_what_chance_expects(world: tuple[Case, Tokens], rows: list[dict[str, Any]]) -> None:
    case, _ = world
    whole = [found(rows, outcome="gain", selector="random", budget=budget) for budget in BUDGETS]
    y = case.gain.values
    drawn = [y[again].mean() for again in drawn_rows(case.resampling().weights("top_n"), case.bank.prompts)]
    for row in whole:
        assert [row["estimate"], row["ci_low"], row["ci_high"]] == pytest.approx(
            [drawn[0], *percentiles(drawn, case.bank.n_prompts)]
        )
        assert row["gain_per_keep"] == pytest.approx(y.mean() / row["budget"])
        assert (row["tied"], row["k"]) == (0, None)


def test_each_selector_stands_once_for_every_k_that_it_depends_on(rows: list[dict[str, Any]]) -> None:
    table = pd.DataFrame(rows)
    sizes = table.groupby("selector")["k"].agg(lambda k: tuple(sorted(k.dropna().unique())))
    assert sizes["learnable"] == sizes["tip"] == sizes["pgt"] == SUPPORT_SIZES
    assert sizes["entropy"] == sizes["prefix"] == sizes["random"] == ()
    assert not table.duplicated(["outcome", "selector", "k", "budget"]).any()
    assert {"oracle", "predicted"} & set(table["selector"]) == set()


def test_undefined_outcomes_are_counted_and_left_out(world: tuple[Case, Tokens], rows: list[dict[str, Any]]) -> None:
    """Entropy takes positions of small KL too, which have no relative gain."""
    case, _ = world
    row = found(rows, outcome="gain_relative", selector="entropy", budget=0.1)
    n = len(case.bank.prompts)
    best = np.argsort(-case.column("student_entropy"), kind="stable")[: int(np.ceil(0.1 * n))]
    y = np.full(n, np.nan)
    y[case.relative.rows] = case.relative.values
    assert row["n_dropped"] == np.isnan(y[best]).sum() > 0
    assert row["n_positions"] + row["n_dropped"] == len(best)
    assert row["estimate"] == pytest.approx(np.nanmean(y[best]))
    assert row["unit"] == "1"


def test_a_tied_score_still_takes_exactly_the_budget(world: tuple[Case, Tokens]) -> None:
    case, tokens = world
    n = len(tokens)
    level = np.where(np.arange(n) % 2, 1.0, 0.5).astype(np.float32)
    tied = replace(tokens, columns={**tokens.columns, "forward_kl": level})
    for budget in BUDGETS:
        row = found(
            top_rows([lambda: [case.gain]], case.bank, tied.columns, case.scores, case.resampling()),
            selector="forward_kl",
            budget=budget,
        )
        assert row["n_positions"] == int(np.ceil(budget * n - 1e-9))
        assert row["tied"] == 1


def test_positions_of_few_prompts_have_no_interval(world: tuple[Case, Tokens]) -> None:
    case, tokens = world
    score = np.where(case.bank.prompts < 3, 1 + tokens.column("forward_kl"), tokens.column("forward_kl") / 1e3)
    few = replace(tokens, columns={**tokens.columns, "forward_kl": score})
    rows = top_rows([lambda: [case.gain]], case.bank, few.columns, case.scores, case.resampling())
    row = found(rows, selector="forward_kl", budget=0.05)
    assert row["n_prompts"] == 3
    assert (row["ci_low"], row["ci_high"]) == (None, None)
    assert "no interval from 3 prompts, where 8 are needed" in row["method"]
