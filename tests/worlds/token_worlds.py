"""Sixty positions of a small vocabulary, measured by the slow definitions: the tokens that selectors are tested on."""

import numpy as np
import slow

from teachdiag.formulas import Score
from teachdiag.selectors.catalogue import Selector
from teachdiag.selectors.tokens import Tokens

VOCABULARY = 60
RNG = np.random.default_rng(3)


def by(score: Score) -> Selector:
    return Selector("own", score, "test")


def worlds(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student and teacher logits, shape (n, V), and realised tokens: some likely, some in neither list."""
    student = rng.normal(0, 2, (n, VOCABULARY))
    teacher = student + rng.normal(0, rng.uniform(0.05, 2, (n, 1)), (n, VOCABULARY))
    return student, teacher, rng.integers(0, VOCABULARY, n)


def measured(student: np.ndarray, teacher: np.ndarray, token: np.ndarray, rng: np.random.Generator) -> dict:
    """The table `positions` of these worlds from the slow definitions, float64, rows in no order."""
    rows = []
    for s, t, y in zip(student, teacher, token, strict=True):
        p, q = slow.softmax(s), slow.softmax(t)
        ids, others = slow.top(p, 32), slow.top(q, 32)
        rows.append(
            slow.position_columns(s, t, int(y))
            | {"token_id": y, "hidden_norm_sq": 1 + rng.random(), "fix_inner": rng.normal()}
            | {
                "student_topk_ids": ids,
                "student_topk_logp": np.log(p[ids]),
                "teacher_logp_at_student_topk": np.log(q[ids]),
            }
            | {"teacher_topk_ids": others, "teacher_topk_logp": np.log(q[others])}
            | {"student_logp_at_teacher_topk": np.log(p[others])}
        )
    n = len(rows)
    place = rng.permutation(n)
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    unknown = rng.random(n) < 0.3
    columns["isolated_gain"] = np.where(unknown, np.nan, rng.normal(0, 1, n))
    return columns | {"context_id": place // 10, "position": place % 10}


STUDENT, TEACHER, TOKEN = worlds(60, RNG)
COLUMNS = measured(STUDENT, TEACHER, TOKEN, RNG)
TOKENS = Tokens(COLUMNS, seed=5)


def rearranged(tokens: Tokens, rows: np.ndarray) -> Tokens:
    return Tokens({name: values[rows] for name, values in tokens.columns.items()}, tokens.k, tokens.seed)


def small(seed: int, n: int, distinct: int) -> Tokens:
    """Columns of few different values, so that everything ties."""
    rng = np.random.default_rng(seed)
    return Tokens(
        {"context_id": np.arange(n) % 4, "position": np.arange(n) // 4, "a": rng.integers(0, distinct, n) / 8},
        seed=seed,
    )
