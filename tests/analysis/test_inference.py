"""Cluster-robust errors and p-values against statsmodels, explicit refits, and loops over whole resamples."""

from itertools import product

import numpy as np
import pytest
import statsmodels.api as sm
from contrast_worlds import moments
from scipy.stats import kstest, t
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from teachdiag.analysis.bank.measurements import Outcome
from teachdiag.analysis.resampling.bootstrap import Resampling
from teachdiag.analysis.step.design import MODELS, make_sample
from teachdiag.analysis.step.inference import (
    FEW_PROMPTS,
    crv1,
    crv3,
    inference_rows,
    model_of,
    two_way,
    wild_p_value,
)

RNG = np.random.default_rng(8)
N, GROUPS = 240, 12
PROMPTS = np.sort(RNG.integers(0, GROUPS, N))
TOKENS = RNG.integers(0, 30, N)
X = RNG.normal(size=(N, 3)) + RNG.normal(size=(GROUPS, 3))[PROMPTS]
Y = X @ [0.4, 0.0, -0.2] + RNG.normal(size=GROUPS)[PROMPTS] + RNG.normal(size=N) * (1 + X[:, 0] ** 2)
DESIGN = sm.add_constant(X)
MODEL = model_of(moments(np.column_stack([X, Y]), PROMPTS, GROUPS + 2), [0, 1, 2, 3])  # two prompts have no position


def test_crv1_is_that_of_statsmodels() -> None:
    reference = sm.OLS(Y, DESIGN).fit(cov_type="cluster", cov_kwds={"groups": PROMPTS})
    np.testing.assert_allclose(MODEL.coefficients, reference.params, rtol=1e-9)
    np.testing.assert_allclose(crv1(MODEL), reference.cov_params(), rtol=1e-9)


def test_crv3_is_that_of_refits_without_each_prompt() -> None:
    refits = [sm.OLS(Y[g != PROMPTS], DESIGN[g != PROMPTS]).fit().params for g in range(GROUPS)]
    apart = np.array(refits) - sm.OLS(Y, DESIGN).fit().params
    np.testing.assert_allclose(crv3(MODEL), (GROUPS - 1) / GROUPS * apart.T @ apart, rtol=1e-8)


def test_two_way_errors_are_those_of_statsmodels() -> None:
    fitted = sm.OLS(Y, DESIGN).fit()
    both = cov_cluster_2groups(fitted, PROMPTS, TOKENS, use_correction=True)[0]
    columns = np.column_stack([X, Y])
    order = RNG.permutation(N)  # prompts need not stand together
    (mine,) = two_way([MODEL], [[0, 1, 2, 3]], lambda rows: columns[order][rows], PROMPTS[order], TOKENS[order])
    np.testing.assert_allclose(mine, both, rtol=1e-8)


def test_wild_p_value_is_that_of_a_loop_over_rows() -> None:
    contrast = np.array([0.0, 0.0, 1.0, 0.0])
    restricted = sm.OLS(Y, DESIGN[:, [0, 1, 3]]).fit()
    weights = np.random.default_rng(3).choice(np.r_[-np.sqrt([0.5, 1, 1.5]), np.sqrt([0.5, 1, 1.5])], (300, GROUPS))

    def statistic(y: np.ndarray) -> float:
        found = sm.OLS(y, DESIGN).fit(cov_type="cluster", cov_kwds={"groups": PROMPTS})
        return abs(found.params[2] / found.bse[2])

    real = statistic(Y)
    drawn = [statistic(restricted.fittedvalues + restricted.resid * w[PROMPTS]) for w in weights]
    expected = (1 + sum(value >= real for value in drawn)) / 301
    assert wild_p_value(MODEL, contrast, seed=3, draws=300) == pytest.approx(expected, abs=1e-12)


def test_wild_p_values_are_uniform_where_there_is_nothing() -> None:
    found = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(N, 2)) + rng.normal(size=(GROUPS, 2))[PROMPTS]
        y = x[:, 1] + rng.normal(size=GROUPS)[PROMPTS] + rng.standard_t(4, N)
        model = model_of(moments(np.column_stack([x, y]), PROMPTS, GROUPS), [0, 1, 2])
        found.append(wild_p_value(model, np.array([0.0, 1.0, 0.0]), seed, draws=199))
    assert kstest(found, "uniform").pvalue > 0.01
    assert 0.01 < np.mean(np.array(found) <= 0.05) < 0.12


@pytest.mark.parametrize("prompts", [FEW_PROMPTS - 1, FEW_PROMPTS])
def test_rows_of_the_table(prompts: int) -> None:
    rng = np.random.default_rng(1)
    n = prompts * 8
    groups, tokens = np.repeat(np.arange(prompts), 8), rng.integers(0, 40, n)
    outcome = Outcome("p", "one_step", "gain", np.ones(n, bool), rng.normal(size=n), groups)
    names = (("student_entropy", None), ("teacher_entropy", None), ("position", None))
    scores = {key: rng.uniform(size=n) for key in (*names, ("disagreement", 16), ("compatibility", 16))}
    sample = make_sample([outcome], scores, 16, prompts)
    columns = sample.scaled(np.arange(n))
    rows = inference_rows(sample, tokens, Resampling(0, 100, prompts))
    tested = [(model, term) for model, term in product(MODELS, ("learnable", "incompatible")) if term in MODELS[model]]
    assert [(r["model"], r["term"]) for r in rows if "-" not in r["term"]] == tested
    for row in rows:
        assert row["n_prompts"] == prompts
        assert (row["wild_p"] is not None) == (prompts < FEW_PROMPTS)
        assert row["crv3_p"] == pytest.approx(2 * t.sf(abs(row["estimate"]) / row["crv3_error"], prompts - 1))
    gap = next(r for r in rows if r["model"] == "nested" and "-" in r["term"])
    terms = MODELS["nested"]
    design = sm.add_constant(columns[:, [sample.predictors.index(term) for term in terms]])
    reference = sm.OLS(columns[:, -1], design).fit(cov_type="cluster", cov_kwds={"groups": groups})
    contrast = np.zeros(design.shape[1])
    contrast[[1 + terms.index("learnable"), 1 + terms.index("incompatible")]] = 1, -1
    assert gap["estimate"] == pytest.approx(contrast @ reference.params)
    assert gap["crv1_error"] == pytest.approx(reference.t_test(contrast).sd.item())
