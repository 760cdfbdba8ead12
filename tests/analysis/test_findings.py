"""Secondary claims and their false discoveries: p-values by hand, rates by statsmodels, what no longer holds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests

from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.step.claims import CLAIMS, PRIMARY_CLAIMS
from teachdiag.analysis.step.findings import finding_rows
from teachdiag.analysis.step.placebo_draws import beyond
from teachdiag.signals import BASE

RECORD = Record("step", "one_step", {"learning_rate": 1e-5, "steps": 1}, {})


def _estimates(z: dict[str, float], margin: float = 9.0) -> pd.DataFrame:
    """Numbers of so many standard errors for each analysis (2 elsewhere), and their margins over one placebo."""
    rows = []

    def add(probe_id: str, analysis: str, claim: Any, k: int | None, value: float) -> None:
        row = {"probe_id": probe_id, "analysis": analysis, "term": claim.term, "outcome": claim.outcome, "k": k}
        row |= {"estimate": value, "ci_low": value - 1.96, "ci_high": value + 1.96, "n_prompts": 64}
        rows.append(row | {"draw_error": 1.0, "placebo_error": None})

    for claim in CLAIMS:
        for k in (8, 16, 32) if claim.per_k else (None,):
            add("step", claim.analysis, claim, k, z.get(claim.analysis, 2.0))
            add("step.theta0", claim.analysis, claim, k, 0.0)
            add("step.theta0", beyond(claim.analysis), claim, k, margin)
            for rival in claim.rivals:
                add(
                    "step",
                    claim.level,
                    replace(claim, term=rival),
                    None if rival == BASE else k,
                    z.get(claim.level, 0.0),
                )
    floors = {"analysis": "noise_floor", "term": "bank", "outcome": "gain", "k": None, "estimate": 0.0, "n_prompts": 64}
    rows += [floors | {"probe_id": probe} for probe in ("step", "step.theta0")]
    return pd.DataFrame(rows)


def _found(z: dict[str, float], margin: float = 9.0) -> pd.DataFrame:
    return pd.DataFrame(finding_rows(_estimates(z, margin), RECORD, {"theta0": 2}))


def test_the_primary_claims_are_four_and_need_no_correction() -> None:
    found = _found({"mean": 2.0, "slope_decomposition": 2.0})
    primary = found[found["primary"]]
    assert len(primary) == len(PRIMARY_CLAIMS) == 4
    assert set(primary["k"].dropna()) == {16}
    assert primary["q_value"].isna().all()
    assert primary.set_index("finding")["status"]["the step helps"] == "holds"


def test_rates_are_benjamini_and_hochbergs_over_the_secondary_claims() -> None:
    z = {"standardized_decomposition": 5.0, "standardized_nested": 1.0, "q3_contrast": 3.2}
    found = _found(z)
    secondary = found[~found["primary"]]
    expected = multipletests(secondary["p_value"], method="fdr_bh")[1]
    np.testing.assert_allclose(secondary["q_value"].astype(float), expected)
    one = secondary[secondary["finding"] == "beta_L > beta_I (decomposition, standardised)"].iloc[0]
    assert one["p_value"] == pytest.approx(2 * norm.sf(5.0 * norm.ppf(0.975) / 1.96), rel=1e-9)


def test_a_claim_is_as_uncertain_as_its_least_certain_part() -> None:
    """Beyond 0 by five errors, beyond the placebo by 2.1: the latter decides."""
    found = _found({"standardized_decomposition": 5.0}, margin=2.1)
    one = found[found["finding"] == "beta_L > beta_I (decomposition, standardised)"].iloc[0]
    assert one["p_value"] == pytest.approx(2 * norm.sf(2.1 * norm.ppf(0.975) / 1.96), rel=1e-9)


def test_what_the_rate_does_not_allow_is_not_shown() -> None:
    """One small effect among many nulls: its interval leaves 0 out, and among so many that is no discovery."""
    quiet = {claim.analysis: 0.3 for claim in CLAIMS} | {"q3_contrast": 2.1}
    found = _found(quiet).set_index(["finding", "k"])
    row = found.loc[("high C beats low C inside Q3", 16)]
    assert row["ci_low"] > 0
    assert row["status"] == "not shown"
    assert "secondary claims its false discovery rate is " in row["sentence"]
    loud = _found(quiet | {"q3_contrast": 6.0}).set_index(["finding", "k"])
    assert loud.loc[("high C beats low C inside Q3", 16), "status"] == "holds"


def test_a_claim_on_the_wrong_side_says_what_it_means() -> None:
    found = _found({"cv_rank_difference": -5.0, "cv_r2": 9.0, "cv_rank": 9.0}, margin=-9.0)
    sentences = set(found["sentence"])
    assert not any("costs fit" in sentence for sentence in sentences)
    assert any(
        s.startswith("The opposite holds at K=16: C adds nothing to raw KL: with it, gain is predicted worse (")
        for s in sentences
    )


@pytest.mark.parametrize(("z", "sentence"), [(-3.0, "was too long: "), (-2.2, "seems too long: ")])
def test_harm_that_is_not_clear_only_seems_to_be(z: float, sentence: str) -> None:
    """Below 0 beyond 95% the step was too long, whatever else is found; what it does is stated beyond 99%."""
    helps = _found({"mean": z}).iloc[0]
    assert helps["status"] == "too long"
    assert sentence in helps["sentence"]
    assert ("at 95% but not at 99%" in helps["sentence"]) == (z > -norm.ppf(0.995))
