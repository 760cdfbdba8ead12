"""Inside Q3, what is gained where support is high less what is gained where it is low (paper Table 1 and Table 6).

Q3 lies between two medians of the bank, and the arms are the outer thirds of a support score inside it. Each bootstrap
draw finds its own medians and thirds, as another bank would, unless the cuts are to be fixed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bootstrap import (
    MIN_PROMPTS,
    Array,
    Codes,
    Interval,
    Resampling,
    intervals,
    ratio,
    resampled_means,
)
from teachdiag.analysis.cuts import interpolate, redrawn_quantiles
from teachdiag.analysis.frame import PROXIES, Bank, Mask, Outcome
from teachdiag.analysis.multiplicity import bootstrap_p
from teachdiag.analysis.scaling import Key, in_q3
from teachdiag.settings import HEADLINE_K, SUPPORT_SIZES

THIRDS = (1 / 3, 2 / 3)
_BLOCK = 2_000_000  # weights of positions that exist at the same time


class Arms(NamedTuple):
    """The outer thirds of a score inside Q3, on the full sample. `q3`, `high`, `low`: shape (n,)."""

    q3: Mask
    high: Mask
    low: Mask

    @property
    def note(self) -> str:
        """Why there is nothing to compare, or an empty text."""
        if not self.q3.any():
            return "Q3 holds no position that has this outcome"
        both = int((self.high & self.low).sum())
        return (
            f"the thirds share {both} of {int(self.q3.sum())} positions: the score is tied at its cuts" if both else ""
        )


class Sizes(NamedTuple):
    """How many positions a contrast rests on: columns of the contrasts table."""

    n_high: int
    n_low: int
    n_unmatched: int
    n_positions: int
    n_prompts: int


def support_scores(bank: Bank) -> dict[Key, Array]:
    """Return the support scores that are audited: C at every K, its proxies at the headline K."""
    keys = [("compatibility", k) for k in SUPPORT_SIZES] + [(name, HEADLINE_K) for name in PROXIES]
    return {(name, k): bank.positions[f"{name}_k{k}"].to_numpy(np.float64) for name, k in keys}


def contrast_rows(
    outcomes: Sequence[Outcome], bank: Bank, resampling: Resampling, *, redraw: bool
) -> list[dict[str, Any]]:
    """Return the rows of the contrasts table, by thirds, of outcomes that are defined over the same positions.

    Args:
        outcomes: with equal `rows`.
        bank: the bank they are of.
        resampling: gives the draws.
        redraw: whether medians and thirds are estimated anew in every draw.
    """
    rows = outcomes[0].rows
    values = np.column_stack([outcome.values for outcome in outcomes])
    prompts = bank.prompts[rows]
    weights = resampling.weights("contrast")
    q3 = in_q3(bank.positions)[0]
    inside = _Inside.of(bank, weights) if redraw else None
    cuts = "medians and thirds redrawn" if redraw else "medians and thirds fixed"
    method = resampling.method(f"upper less lower third of the score inside Q3; {cuts}")
    found: list[dict[str, Any]] = []
    seen: dict[bytes, str] = {}
    for key, score in support_scores(bank).items():
        arms = cut_thirds(q3[rows], score[rows])
        note = arms.note or _twin(arms, key, seen)
        n_prompts = len(np.unique(prompts[arms.q3]))
        sizes = Sizes(int(arms.high.sum()), int(arms.low.sum()), 0, int(arms.q3.sum()), n_prompts)
        if not arms.note and n_prompts < MIN_PROMPTS:
            note = f"Q3 lies in only {n_prompts} prompts: no interval"
        if arms.note:
            drawn = [Interval(np.nan, np.nan, np.nan)] * len(outcomes)
        else:
            taken = weights if n_prompts >= MIN_PROMPTS else weights[:1]
            if inside is None:
                samples = fixed_gaps(values, arms.high, arms.low, prompts, taken)
            else:
                samples = redrawn_gaps(values, score[rows], prompts, inside.at(rows), taken, arms)
            drawn = intervals(samples) if len(taken) > 1 else [Interval(float(x), np.nan, np.nan) for x in samples[0]]
        found += [
            contrast_row(outcome, key, "thirds", interval, sizes, method, note)
            for outcome, interval in zip(outcomes, drawn, strict=True)
        ]
    return found


def cut_thirds(q3: Mask, score: Array) -> Arms:
    """Cut a score inside Q3 at its 1/3 and 2/3 quantiles; what equals a cut belongs to that arm.

    Args:
        q3: shape (n,).
        score: shape (n,).
    """
    if not q3.any():
        return Arms(q3, q3, q3)
    low, high = np.quantile(score[q3], THIRDS)
    return Arms(q3, q3 & (score >= high), q3 & (score <= low))


def fixed_gaps(values: Array, high: Mask, low: Mask, prompts: Codes, weights: Array) -> Array:
    """Return the mean over one set of positions less that over another in every draw, neither of which draws move.

    Args:
        values: shape (n, m); only the two sets are read.
        high: shape (n,).
        low: shape (n,).
        prompts: shape (n,).
        weights: shape (draws, prompts).

    Returns:
        Shape (draws, m); NaN where a draw leaves a set empty.
    """
    upper, lower = (resampled_means(values[arm], prompts[arm], weights) for arm in (high, low))
    return upper - lower


class _Inside(NamedTuple):
    """Which positions may lie in Q3, and where its medians are in every draw.

    `entropy`, `kl`: shape (n,), nats. `medians`: shape (draws, 2).
    """

    entropy: Array
    kl: Array
    medians: Array

    @classmethod
    def of(cls, bank: Bank, weights: Array) -> "_Inside":
        raw = [bank.positions[name].to_numpy(np.float64) for name in ("student_entropy", "forward_kl")]
        medians = [redrawn_quantiles(values, bank.prompts, weights, (0.5,)) for values in raw]
        return cls(raw[0], raw[1], np.column_stack(medians))

    def at(self, rows: Mask) -> "_Inside":
        return _Inside(self.entropy[rows], self.kl[rows], self.medians)


def redrawn_gaps(values: Array, score: Array, prompts: Codes, inside: _Inside, weights: Array, arms: Arms) -> Array:
    """Return the contrast in every draw, with the medians of that draw, and its thirds of the score inside its Q3.

    Only positions that are in Q3 in some draw are looked at, in the order of their score, a block of draws at a time.
    Thirds are type-7 quantiles of the resampled positions, as np.quantile gives them. Shapes as in `fixed_gaps`.
    """
    candidates = np.flatnonzero(
        (inside.entropy <= inside.medians[:, 0].max()) & (inside.kl >= inside.medians[:, 1].min())
    )
    candidates = candidates[np.argsort(score[candidates], kind="stable")]
    own, y, entropy, kl = score[candidates], values[candidates], inside.entropy[candidates], inside.kl[candidates]
    gaps = np.empty((len(weights), values.shape[1]))
    step = max(1, _BLOCK // max(1, len(candidates)))
    for start in range(0, len(weights), step):
        draws = slice(start, start + step)
        medians = inside.medians[draws]
        counted = weights[draws][:, prompts[candidates]]
        counted = counted * ((entropy <= medians[:, :1]) & (kl >= medians[:, 1:]))
        low, high = _thirds(own, counted)
        gaps[draws] = _arm_mean(y, counted * (own >= high)) - _arm_mean(y, counted * (own <= low))
    gaps[0] = fixed_gaps(values, arms.high, arms.low, prompts, weights[:1])[
        0
    ]  # to the last digit that of the full sample
    return gaps


def _thirds(ordered: Array, counted: Array) -> list[Array]:
    """Quantiles at 1/3 and 2/3 of rising values, each counted so many times in every draw: shape (draws, 1) each."""
    below = counted.cumsum(axis=1)
    cuts = []
    for p in THIRDS:
        place = p * np.maximum(below[:, -1] - 1, 0)
        lower, upper = (
            ordered[np.minimum((below <= (np.floor(place) + more)[:, None]).sum(axis=1), len(ordered) - 1)]
            for more in (0, 1)
        )
        upper = np.where(np.floor(place) + 1 < below[:, -1], upper, lower)
        cuts.append(interpolate(lower, upper, place - np.floor(place))[:, None])
    return cuts


def _arm_mean(values: Array, weights: Array) -> Array:
    """Weighted means, (n, m) and (draws, n) to (draws, m); NaN where nothing is weighed."""
    return ratio(weights @ values, weights.sum(axis=1)[:, None])


def _twin(arms: Arms, key: Key, seen: dict[bytes, str]) -> str:
    """Say which earlier score has the same arms: a proxy that orders alike adds nothing."""
    name = f"{key[0]} (K={key[1]})"
    earlier = seen.setdefault(arms.high.tobytes() + arms.low.tobytes(), name)
    return "" if earlier == name else f"the same arms as {earlier}"


def contrast_row(
    outcome: Outcome, key: Key, design: str, interval: Interval, sizes: Sizes, method: str, note: str
) -> dict[str, Any]:
    """Return one row of the contrasts table; an interval whose estimate is NaN leaves the number out."""
    known = not np.isnan(interval.estimate)
    return {
        "probe_id": outcome.probe_id,
        "update": outcome.update,
        "outcome": outcome.name,
        "score": key[0],
        "k": key[1],
        "design": design,
        "unit": outcome.unit,
        **(interval.columns() if known else {"estimate": None, "ci_low": None, "ci_high": None}),
        "p_value": bootstrap_p(interval.draws) if interval.draws is not None else None,
        **sizes._asdict(),
        "method": method,
        "note": note,
    }
