"""Normalised scores and the audit of their ties, against numbers worked by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from teachdiag.analysis.bank.measurements import Bank
from teachdiag.analysis.bank.normalised import decided_by_tie, in_q3
from teachdiag.errors import EstimationError
from teachdiag.scores import norm, soft_or

_COLUMNS = arrays(np.float64, st.integers(3, 60), elements=st.floats(-1e3, 1e3, width=32))


def test_norm_by_hand() -> None:
    # 0..20: the 5% quantile sits at place 0.05 * 20 = 1, the 95% one at place 19; so (z - 1) / 18, clipped.
    z = np.arange(21.0)
    expected = np.clip((z - 1) / 18, 0, 1)
    np.testing.assert_allclose(norm(z, "z"), expected, rtol=0, atol=1e-15)
    # Type 7 interpolates: of 0..10 the quantiles are 0.5 and 9.5.
    np.testing.assert_allclose(norm(np.arange(11.0), "z")[[0, 1, 5, 10]], [0, 0.5 / 9, 0.5, 1], atol=1e-15)


@pytest.mark.parametrize("values", [np.ones(50), np.r_[np.ones(99), 0.0]])
def test_norm_names_a_column_without_spread(values: np.ndarray) -> None:
    with pytest.raises(EstimationError, match=r"column compatibility_k8 is 1 at both its 5% and its 95% quantile"):
        norm(values, "compatibility_k8")


@given(_COLUMNS, _COLUMNS)
def test_norm_is_a_share_and_the_decomposition_adds_up(d: np.ndarray, c: np.ndarray) -> None:
    size = min(len(d), len(c))
    scaled = []
    for z in (d[:size], c[:size]):
        if np.quantile(z, 0.05) == np.quantile(z, 0.95):
            with pytest.raises(EstimationError):
                norm(z, "z")
            return
        scaled.append(norm(z, "z"))
    disagreement, compatibility = scaled
    assert (disagreement >= 0).all()
    assert (disagreement <= 1).all()
    learnable, incompatible = disagreement * compatibility, disagreement * (1 - compatibility)
    np.testing.assert_allclose(learnable + incompatible, disagreement, atol=1e-15)
    either = soft_or(disagreement, compatibility)
    assert (either >= np.maximum(disagreement, compatibility) - 1e-15).all()
    assert (either <= 1 + 1e-15).all()


@pytest.mark.parametrize(
    ("values", "percent", "share"),
    [
        (np.arange(100.0), 10, 0.0),  # ten different values: nothing is left to chance
        (np.ones(100), 10, 1.0),  # all equal: every place is
        (np.r_[np.full(4, 9.0), np.full(20, 5.0), np.zeros(76)], 10, 0.6),  # 4 sure, 6 of 10 places among 20 equals
        (np.r_[np.full(4, 9.0), np.full(6, 5.0), np.zeros(90)], 10, 0.0),  # the tie fits exactly
        (np.r_[1.0, np.zeros(30)], 5, 0.5),  # ceil(1.55) = 2 places, one of them among 30 equals
    ],
)
def test_ties_by_hand(values: np.ndarray, percent: int, share: float) -> None:
    assert decided_by_tie(values, percent) == pytest.approx(share)
    assert decided_by_tie(values[::-1], percent) == pytest.approx(share)


def test_q3_is_low_entropy_and_high_kl() -> None:
    bank = pd.DataFrame({"student_entropy": [0.0, 1.0, 2.0, 3.0], "forward_kl": [5.0, 0.0, 4.0, 1.0]})
    inside, entropy, kl = in_q3(Bank(bank, np.zeros(4, np.int64), 1))
    assert (entropy, kl) == (1.5, 2.5)
    assert inside.tolist() == [True, False, False, False]
