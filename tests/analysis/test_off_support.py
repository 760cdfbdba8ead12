"""The KL split at the student's support: against sums over whole distributions, and a case worked by hand."""

import numpy as np
import pandas as pd
import pytest
from slow import kl, softmax, top

from tools.off_support import off_support_rows, split_kl


def lists(p: np.ndarray, q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = top(p, k)
    return np.log(p[ids]), np.log(q[ids])


@pytest.mark.parametrize("k", [1, 2, 8, 32])
def test_the_parts_are_those_of_the_chain_rule(k: int) -> None:
    """Of the whole distributions: kl of the two masses, and the KLs of what is renormalised inside and outside."""
    rng = np.random.default_rng(k)
    pairs = [(softmax(rng.normal(size=60) * 2), softmax(rng.normal(size=60) * 2)) for _ in range(5)]
    student, teacher = (np.array(part) for part in zip(*(lists(p, q, k) for p, q in pairs), strict=True))
    whole = np.array([kl(q, p) for p, q in pairs])
    mass, inside = split_kl(student, teacher, whole)
    for index, (p, q) in enumerate(pairs):
        inner = np.isin(np.arange(60), top(p, k))
        c, held = q[inner].sum(), p[inner].sum()
        between = kl(np.array([c, 1 - c]), np.array([held, 1 - held]))
        outside = between + (1 - c) * kl(q[~inner] / (1 - c), p[~inner] / (1 - held))
        assert mass[index] == pytest.approx(c, abs=1e-12)
        assert inside[index] == pytest.approx(c * kl(q[inner] / c, p[inner] / held), abs=1e-12)
        assert whole[index] - inside[index] == pytest.approx(outside, abs=1e-12)


def test_by_hand() -> None:
    """At K=2 of p = (1/2, 1/4, 1/8, 1/8): q = (1/4, 1/2, 1/8, 1/8) differs inside, (1/2, 0, 1/2, 0) outside alone.

    At K=1 nothing can be moved inside.
    """
    p = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])
    inside, outside = np.array([1 / 4, 1 / 2, 1 / 8, 1 / 8]), np.array([1 / 3, 1 / 6, 1 / 2, 1e-300])
    whole = np.array([kl(inside, p), kl(outside, p)])
    ids = np.log(np.array([p[:2], p[:2]])), np.log(np.array([inside[:2], outside[:2]]))
    mass, part = split_kl(*ids, whole)
    assert mass == pytest.approx([3 / 4, 1 / 2])
    assert part == pytest.approx([np.log(2) / 4, 0.0], abs=1e-12)
    assert split_kl(ids[0][:, :1], ids[1][:, :1], whole)[1] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert split_kl(ids[0], np.full((2, 2), -np.inf), whole)[0] == pytest.approx([0.0, 0.0])


def test_shares_are_of_all_positions_and_of_all_nats() -> None:
    """Twenty positions on which the teacher agrees, and twenty on which it leaves the student's first id."""
    student, agreeing, leaving = ([first, *[0.01] * 31] for first in (0.6, 0.6, 0.2))
    positions = pd.DataFrame(
        {
            "student_topk_logp": [np.log(student)] * 40,
            "teacher_logp_at_student_topk": [np.log(agreeing)] * 20 + [np.log(leaving)] * 20,
            "forward_kl": [0.25] * 20 + [0.75] * 20,
        }
    )
    first, *_, last = off_support_rows(positions)
    assert (first["K"], last["K"]) == (1, 32)
    assert first["mean C"] == pytest.approx(0.4)
    assert (first["1 - C >= 0.1"], first["1 - C >= 0.5"]) == (1.0, 0.5)
    assert first["KL off support"] == pytest.approx(1.0)
    assert first["KL called incompatible"] == pytest.approx(0.75)
    assert first["rank corr. of 1 - C and KL"] == pytest.approx(1.0)
    assert last["KL off support"] < 1.0
