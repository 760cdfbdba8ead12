"""Scores of every position at theta0: normalised, combined, and how much of them clipping and ties decide."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.analysis.bootstrap import Array
from teachdiag.scores import norm, q3_mask, quantile_range, soft_or
from teachdiag.settings import SUPPORT_SIZES

Key = tuple[str, int | None]  # name of a score, and its support size K where it has one
Scores = Mapping[Key, Array]

BUDGETS = (1, 3, 5, 10, 30)  # percent of positions that a selector would keep
_PER_SUPPORT = ("disagreement", "compatibility")
_COMBINED = ("learnable", "incompatible", "tip", "learnable_entropy")


def label(key: Key) -> str:
    """Name a score, with its K where it has one."""
    name, k = key
    return name if k is None else f"{name} (K={k})"


def normalised_scores(bank: pd.DataFrame) -> dict[Key, Array]:
    """Return the scores that the regressions and selectors use, each of shape (positions,), within [0, 1].

    `learnable` D^L = norm(D) norm(C) and `incompatible` D^I = norm(D) (1 - norm(C)) share D between them. Quantiles
    are over the whole bank and from theta0 alone.

    Raises:
        EstimationError: a column cannot be normalised.
    """
    h, teacher = (norm(_raw(bank, name), name) for name in ("student_entropy", "teacher_entropy"))
    scores: dict[Key, Array] = {}
    for k in SUPPORT_SIZES:
        d, c = (norm(_raw(bank, name), name) for name in (f"disagreement_k{k}", f"compatibility_k{k}"))
        scores |= combined_scores(h, teacher, _raw(bank, "pos_norm"), d, c, k)
    return scores


def combined_scores(h: Array, teacher: Array, position: Array, d: Array, c: Array, k: int) -> dict[Key, Array]:
    """Return every score at one K from the normalised entropies, D and C, and the position: shape (positions,) each."""
    learnable = d * c
    return {
        ("student_entropy", None): h,
        ("teacher_entropy", None): teacher,
        ("position", None): position,
        ("disagreement", k): d,
        ("compatibility", k): c,
        ("entropy_x_disagreement", k): h * d,
        ("learnable", k): learnable,
        ("incompatible", k): d * (1 - c),
        ("tip", k): soft_or(h, d),
        ("learnable_entropy", k): soft_or(h, learnable),
    }


def raw_scores(bank: pd.DataFrame, normalised: Scores) -> dict[Key, Array]:
    """Return the scores whose predictive validity is compared, each of shape (positions,).

    Raw KL, C, D and alignments stay as measured; `learnable` and `incompatible` exist only as normalised scores.
    """
    alignment = _raw(bank, "logit_alignment")
    scores: dict[Key, Array] = {
        ("forward_kl", None): _raw(bank, "forward_kl"),
        ("logit_alignment", None): alignment,
        ("hidden x logit_alignment", None): _raw(bank, "hidden_norm_sq") * alignment,
    }
    for k in SUPPORT_SIZES:
        scores |= {(name, k): _raw(bank, f"{name}_k{k}") for name in _PER_SUPPORT}
        scores |= {(name, k): normalised[name, k] for name in ("learnable", "incompatible")}
    return scores


def in_q3(bank: pd.DataFrame) -> tuple[np.ndarray, float, float]:
    """Return the Q3 mask and the medians that bound it: student entropy <= its median, forward KL >= its median."""
    return q3_mask(_raw(bank, "student_entropy"), _raw(bank, "forward_kl"))


def saturation_rows(bank: pd.DataFrame, normalised: Scores) -> list[dict[str, Any]]:
    """Return the rows of the saturation table: one a normalised score."""
    rows = [_saturation_row(bank, normalised, name, None, name) for name in ("student_entropy", "teacher_entropy")]
    for k in SUPPORT_SIZES:
        rows += [_saturation_row(bank, normalised, name, k, f"{name}_k{k}") for name in _PER_SUPPORT]
        rows += [_saturation_row(bank, normalised, name, k, None) for name in _COMBINED]
    return rows


def decided_by_tie(values: Array, percent: int) -> float:
    """Return the share of an exact budget of ceil(percent% of N) top scores that a tie at its edge decides.

    0 if the budget ends between two different values; 1 if every place goes to positions of the same score.
    """
    budget = -(-percent * len(values) // 100)
    edge = np.partition(values, -budget)[-budget]
    places = budget - int((values > edge).sum())
    return places / budget if int((values == edge).sum()) > places else 0.0


def _saturation_row(
    bank: pd.DataFrame, normalised: Scores, name: str, k: int | None, column: str | None
) -> dict[str, Any]:
    values = normalised[name, k]
    low, high = (None, None) if column is None else quantile_range(_raw(bank, column), column)
    return {
        "score": name,
        "k": k,
        "q05": low,
        "q95": high,
        "share_at_lowest": float((values == values.min()).mean()),
        "share_at_highest": float((values == values.max()).mean()),
        **{f"tied_at_{percent:02d}pct": decided_by_tie(values, percent) for percent in BUDGETS},
        "n_positions": len(values),
    }


def _raw(bank: pd.DataFrame, column: str) -> Array:
    return bank[column].to_numpy(np.float64)
