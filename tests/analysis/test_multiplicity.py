"""p-values from draws by hand, and false discovery rates against the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teachdiag.analysis.resampling.multiplicity import add_q_values, bootstrap_p


def test_p_values_by_hand() -> None:
    assert bootstrap_p(np.array([1.0, 1, 2, -1, 3])) == pytest.approx(0.5)
    assert bootstrap_p(np.array([1.0, 1, 2, 1, 3])) == pytest.approx(1 / 5)
    assert bootstrap_p(np.array([0.0, 0, 0, 0])) == 1
    assert bootstrap_p(np.array([1.0, np.nan, 2])) is None


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12))
def test_q_values_are_those_of_the_definition(p_values: list[float]) -> None:
    rows = [{"p_value": p, "family": "a"} for p in p_values] + [{"p_value": None, "family": "a"}]
    rows += [{"p_value": 0.5, "family": "b"}]
    add_q_values(rows, ("family",))
    order = np.argsort(p_values)
    expected, least = np.empty(len(p_values)), 1.0
    for rank in range(len(p_values), 0, -1):
        least = min(least, p_values[order[rank - 1]] * len(p_values) / rank)
        expected[order[rank - 1]] = least
    np.testing.assert_allclose([row["q_value"] for row in rows[: len(p_values)]], expected, rtol=1e-12)
    assert rows[-2]["q_value"] is None
    assert rows[-1]["q_value"] == 0.5
