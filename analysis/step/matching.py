"""Matched contrasts inside Q3: high and low support compared within a prompt, between positions that are alike.

The paper's matched gap pairs each high position with its nearest low one whatever the distance. Here covariates are
scaled, a caliper refuses poor partners, low positions are used any number of times or once, and balance is reported.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.bank.normalised import Key, Scores, in_q3
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling, intervals, resampled_means
from teachdiag.analysis.step.support_contrast import Sizes, contrast_row, support_scores
from teachdiag.scores import Array, Codes, Mask

Design = Literal["matched", "matched once"]
DESIGNS: tuple[Design, ...] = ("matched", "matched once")
COVARIATES = ("student_entropy", "disagreement", "position")
# Partners differ by no more than this in any covariate, in its standard deviations inside Q3. A caliper of 0.6 takes
# out about nine tenths of a covariate's bias (Cochran and Rubin 1973); narrower ones leave few pairs.
CALIPER = 0.6
UNBALANCED = 0.25  # SD: pairs that differ by more on average no longer compare like with like (Rubin 2001)


_USED = {"matched": "any number of times", "matched once": "at most once"}
_METHOD = (
    f"above less at or below the prompt's median of the score inside Q3, nearest in {', '.join(COVARIATES)}, caliper "
    f"{CALIPER:g} SD in each, low positions used {{}}"
)


class Pairs(NamedTuple):
    """Matched positions, as rows: `high` and `low`, shape (pairs,) each; `n_unmatched`: high ones without a partner."""

    high: Codes
    low: Codes
    n_unmatched: int


def match_pairs(sides: Array, covariates: Array, prompts: Codes, design: Design, caliper: float = CALIPER) -> Pairs:
    """Pair high with low positions of the same prompt.

    Args:
        sides: shape (n,): 1 is high, 0 is low, NaN takes no part.
        covariates: shape (n, c), scaled to unit spread.
        prompts: shape (n,).
        design: 'matched' gives every high position its nearest low one, the earlier row if two are as near; 'matched
            once' uses each low position at most once, so that as many pairs as possible stand within the caliper and
            their distances sum to the least.
        caliper: largest difference of a pair in any covariate.
    """
    matched: list[tuple[Codes, Codes]] = []
    n_high = 0
    for rows in _by_prompt(np.flatnonzero(~np.isnan(sides)), prompts):
        high, low = rows[sides[rows] == 1], rows[sides[rows] == 0]
        n_high += len(high)
        if len(high) and len(low):
            distances = cdist(covariates[high], covariates[low])
            distances[cdist(covariates[high], covariates[low], "chebyshev") > caliper] = np.inf
            rows_and_columns = _nearest(distances) if design == "matched" else _assigned(distances)
            near = np.isfinite(distances[rows_and_columns])
            matched.append((high[rows_and_columns[0][near]], low[rows_and_columns[1][near]]))
    if not matched:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), n_high)
    matched_high, matched_low = (np.concatenate(part) for part in zip(*matched, strict=True))
    return Pairs(matched_high, matched_low, n_high - len(matched_high))


def split_by_prompt(score: Array, inside: Mask, prompts: Codes) -> Array:
    """Split the marked positions of each prompt at their median score: 1 above it, 0 at or below, NaN elsewhere."""
    sides = np.full(len(score), np.nan)
    for rows in _by_prompt(np.flatnonzero(inside), prompts):
        sides[rows] = score[rows] > np.median(score[rows])
    return sides


def matched_rows(
    outcomes: Sequence[Outcome], bank: Bank, scores: Scores, resampling: Resampling
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the contrasts table by matching, and those of the balance table where all of Q3 is matched.

    Args:
        outcomes: defined over the same positions.
        bank: the bank they are of.
        scores: normalised scores of the whole bank.
        resampling: gives the draws, which re-weight the pairs of whole prompts.
    """
    first = outcomes[0]
    everywhere = in_q3(bank)[0]
    q3, prompts = first.of(everywhere), first.prompts
    values = np.column_stack([outcome.values for outcome in outcomes])
    weights = resampling.weights("matching")
    contrasts: list[dict[str, Any]] = []
    balance: list[dict[str, Any]] = []
    for key, score in support_scores(bank).items():
        sides = split_by_prompt(first.of(score), q3, prompts)
        covariates = _scaled_covariates(scores, first, q3, key)
        for design in DESIGNS:
            pairs = match_pairs(sides, covariates, prompts, design)
            drawn, missing = _gaps(values, pairs, prompts, weights)
            note = "; ".join(filter(None, (missing, _imbalance(covariates, pairs))))
            n_pairs, n_prompts = len(pairs.high), len(np.unique(prompts[pairs.high]))
            sizes = Sizes(n_pairs, len(np.unique(pairs.low)), pairs.n_unmatched, n_pairs + pairs.n_unmatched, n_prompts)
            method = resampling.method(_METHOD.format(_USED[design]))
            contrasts += [
                contrast_row(outcome, key, design, interval, sizes, method, note)
                for outcome, interval in zip(outcomes, drawn, strict=True)
            ]
            if first.rows[everywhere].all():
                balance += _balance(sides, covariates, pairs, key, design)
    return contrasts, balance


def _nearest(distances: Array) -> tuple[Codes, Codes]:
    return np.arange(len(distances)), distances.argmin(axis=1)


def _assigned(distances: Array) -> tuple[Codes, Codes]:
    """Assign pairs so that as many as possible lie within the caliper, at the least total distance."""
    within = np.isfinite(distances)
    beyond = 1.0 + distances[within].sum()  # one pair within the caliper is worth more than all distances together
    high, low = linear_sum_assignment(np.where(within, distances, beyond))
    return high, low


def _by_prompt(rows: Codes, prompts: Codes) -> Iterator[Codes]:
    """Yield the rows of each prompt, in order."""
    order = rows[np.argsort(prompts[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(prompts[order], prepend=-1))
    yield from np.split(order, starts[1:])


def _scaled_covariates(scores: Scores, first: Outcome, q3: Mask, key: Key) -> Array:
    keys: tuple[Key, ...] = (("student_entropy", None), ("disagreement", key[1]), ("position", None))
    columns = np.column_stack([first.of(scores[covariate]) for covariate in keys])
    spread = columns[q3].std(axis=0) if q3.any() else np.ones(len(keys))
    return columns / np.where(spread > 0, spread, 1.0)


def _gaps(values: Array, pairs: Pairs, prompts: Codes, weights: Array) -> tuple[list[Interval], str]:
    """Mean difference within pairs for every outcome, and why it, or its interval, is missing."""
    if not len(pairs.high):
        return [Interval(np.nan, np.nan, np.nan)] * values.shape[1], "no pair lies within the caliper"
    apart = values[pairs.high] - values[pairs.low]
    owners = prompts[pairs.high]
    samples = resampled_means(apart, owners, weights)
    n_prompts = len(np.unique(owners))
    if n_prompts < MIN_PROMPTS:
        note = f"no interval: pairs lie in only {n_prompts} prompts, and {MIN_PROMPTS} are needed"
        return [Interval(float(x), np.nan, np.nan) for x in samples[0]], note
    undefined = int(np.isnan(samples).any(axis=1).sum())
    note = f"no interval: {undefined} of {len(samples) - 1} draws hold no pair" if undefined else ""
    return intervals(samples, weights.shape[1]), note


def _imbalance(covariates: Array, pairs: Pairs) -> str:
    """Name the covariates that matching has left too far apart."""
    if not len(pairs.high):
        return ""
    after = (covariates[pairs.high] - covariates[pairs.low]).mean(axis=0)
    apart = [f"{name} {x:+.2f} SD" for name, x in zip(COVARIATES, after, strict=True) if abs(x) > UNBALANCED]
    return f"pairs still differ in {', '.join(apart)} on average" if apart else ""


def _balance(sides: Array, covariates: Array, pairs: Pairs, key: Key, design: Design) -> list[dict[str, Any]]:
    before = covariates[sides == 1].mean(axis=0) - covariates[sides == 0].mean(axis=0) if (sides == 1).any() else None
    after = (covariates[pairs.high] - covariates[pairs.low]).mean(axis=0) if len(pairs.high) else None
    if before is None:
        return []
    return [
        {"score": key[0], "k": key[1], "design": design, "covariate": name}
        | {"before": float(before[index]), "after": None if after is None else float(after[index])}
        | {"n_pairs": len(pairs.high)}
        for index, name in enumerate(COVARIATES)
    ]
