"""Does the real step's number exceed a placebo's? One rule, over draws of the placebo and over prompts together.

A number is beyond a placebo if the 95% interval of the paired difference excludes 0 on the number's side. The question
is whether the real step could be one more draw of that placebo, on other prompts. The variance of the difference is
therefore that of the bootstrap over prompts, paired, plus s^2 (1 + 1/D): s^2 that of the D draws' own numbers, 1/D for
their mean. Of few draws s^2 is poorly known: the interval is that of a t distribution whose degrees of freedom are
Satterthwaite's (1946), D - 1 where draws make up all of the variance, and ever more the less they make up. Draws differ
by the chance of these prompts too, which the bootstrap counts once more: the variance is rather too large than too
small. Of a single draw nothing is known of others, and the interval is that of prompts alone.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, t

from teachdiag.analysis.bank.measurements import Step
from teachdiag.analysis.resampling.bootstrap import intervals
from teachdiag.analysis.resampling.multiplicity import bootstrap_p
from teachdiag.scores import Array

_TERM = ("analysis", "outcome", "k", "term")
_TAIL = 0.975


def beyond(analysis: str) -> str:
    """Return the name of the analysis that holds the real step's number less a placebo's."""
    return f"{analysis}_beyond_placebo"


def draw_variance(by_draw: Sequence[float]) -> float:
    """Return by how much one more draw varies about the mean of a placebo's draws; 0 of a single one.

    Args:
        by_draw: the placebo's number in each of its draws.
    """
    count = len(by_draw)
    return float(np.var(by_draw, ddof=1)) * (1 + 1 / count) if count > 1 else 0.0


def one_more_draw(samples: Array, by_draw: Sequence[float]) -> Array:
    """Widen bootstrap samples by what draws of a placebo differ by, as they would be for one more of its draws.

    Args:
        samples: over prompts, shape (1 + draws,), the estimate first: the mean of a placebo's draws, or the real step's
            number less that mean.
        by_draw: the placebo's number in each of its draws.

    Returns:
        Shape (1 + draws,), about the same estimate.
    """
    over_draws, over_prompts = draw_variance(by_draw), float(np.var(samples[1:]))
    if not (over_draws > 0 and over_prompts > 0):  # draws that are one, or undefined
        return samples
    total = over_draws + over_prompts
    freedom = (len(by_draw) - 1) * (total / over_draws) ** 2
    factor = np.sqrt(total / over_prompts) * t.ppf(_TAIL, freedom) / norm.ppf(_TAIL)
    widened: Array = samples[0] + factor * (samples - samples[0])
    return widened


def pool_draws(rows: Iterable[dict[str, Any]], key: Sequence[str] = ("probe_id", *_TERM)) -> list[dict[str, Any]]:
    """Make one row of the rows that a placebo's draws have of the same number: their mean, as one more draw would be.

    Args:
        rows: with the bootstrap's samples under `draws`, those of a placebo's draws after one another.
        key: the columns that tell numbers apart.

    Returns:
        The rows in order. A pooled one has the mean's samples over prompts alone under `draws`, and every draw's own
        number under `by_draw`.
    """
    groups: dict[Hashable, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in key), []).append(row)
    return [_pooled(group) for group in groups.values()]


def _pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    if len(rows) == 1 or any(row["draws"] is None for row in rows):
        return {"placebo_error": None, **first}
    samples = np.mean([row["draws"] for row in rows], axis=0)
    by_draw = [float(row["draws"][0]) for row in rows]
    widened = one_more_draw(samples, by_draw)
    tested = {"p_value": bootstrap_p(widened)} if "p_value" in first else {}
    method = f"mean of {len(rows)} draws, the interval that of one more; {first['method']}"
    return (
        first
        | _columns(samples, by_draw, first["n_prompts"])
        | tested
        | {"draws": samples, "by_draw": by_draw, "std_error": None, "method": method}
    )


def beyond_rows(
    rows: Sequence[dict[str, Any]], steps: Sequence[Step], analyses: Collection[str]
) -> list[dict[str, Any]]:
    """Return the real step's number less each placebo's, under the placebo's probe_id.

    Two intervals of which one holds 0 and the other does not say little about their difference: this is it. Both sides
    were computed with the same weights, so the samples are paired.

    Args:
        rows: estimates with their samples, those of draws pooled.
        steps: real steps and their placebos.
        analyses: those for which differences are wanted.
    """
    by_key = {(row["probe_id"], *_term(row)): row for row in rows if row["analysis"] in analyses}
    pairs = [
        (row, by_key[placebo_id, *_term(row)])
        for step in steps
        for row in rows
        if row["probe_id"] == step.real.probe_id and row["analysis"] in analyses
        for placebo_id in step.placebo_ids.values()
        if (placebo_id, *_term(row)) in by_key
    ]
    return [_margin(*pair) for pair in pairs if all(row["draws"] is not None for row in pair)]  # None: no interval


def _margin(real: dict[str, Any], placebo: dict[str, Any]) -> dict[str, Any]:
    samples = real["draws"] - placebo["draws"]
    return (
        placebo
        | _columns(samples, placebo.get("by_draw", [placebo["estimate"]]), placebo["n_prompts"])
        | {"analysis": beyond(placebo["analysis"]), "draws": samples, "std_error": None}
        | {"method": f"real step less this placebo, paired; {placebo['method']}"}
    )


def _columns(samples: Array, by_draw: Sequence[float], n_prompts: int) -> dict[str, float | None]:
    """Return estimate, interval and errors of a number whose bootstrap over prompts and draws are given."""
    (interval,) = intervals(one_more_draw(samples, by_draw)[:, None], n_prompts)
    over_draws = draw_variance(by_draw)
    errors = {
        "draw_error": float(np.sqrt(np.var(samples[1:], ddof=1) + over_draws)) if interval.known else None,
        "placebo_error": float(np.sqrt(over_draws)) if len(by_draw) > 1 and interval.known else None,
    }
    return interval.columns() | errors


def _term(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _TERM)
