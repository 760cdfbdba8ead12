"""How well each predictor ranks positions: Spearman correlations under sampling weights, with prompt-cluster intervals.

Predictors are the scores of the registered selectors and teacher entropy, all known before any update.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from scipy.stats import rankdata

from teachdiag.analysis.bank.measurements import Outcome
from teachdiag.analysis.bank.normalised import Key
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling, intervals, prompt_sums, ratio
from teachdiag.errors import ArtefactError
from teachdiag.scores import Array, Codes
from teachdiag.selectors import Selector, Tokens
from teachdiag.selectors.catalogue import selectors_of
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import BASE, positions_of, versus_base

PREDICTED = "predicted"  # the predictor that is <grad L_fix, grad l_t>; no table of token statistics holds it
_LEFT_OUT = ("random", "oracle", PREDICTED)
_FURTHER = ("teacher_entropy",)
_NO_SPREAD = 1e-12  # of the largest variance that ranks can have: less is rounding


@dataclass(frozen=True)
class Sample:
    """Positions at which one probe measured its outcomes.

    Attributes:
        probe_id: the probe.
        update: what the estimates table calls its update: the kind of the probe.
        outcomes: shape (n,) each, by name.
        stands_for: shape (n,), how many positions of the split each stands for: its inverse draw rate.
        prompts: shape (n,), the prompt of each, below `n_prompts`.
        n_prompts: prompts that are resampled.
        resampling: seed and number of draws.
    """

    probe_id: str
    update: str
    outcomes: Mapping[str, Array]
    stands_for: Array
    prompts: Codes
    n_prompts: int
    resampling: Resampling

    def counts(self, statistic: str) -> Array:
        """Return how often each prompt counts in each draw, shape (1 + draws, n_prompts), row 0 all ones.

        Row 0 alone where the positions lie in too few prompts for an interval.
        """
        if self._n_sampled < MIN_PROMPTS:
            return np.ones((1, self.n_prompts))
        return replace(self.resampling, n_prompts=self.n_prompts).weights(statistic)

    def totals(self, columns: Array, counts: Array) -> Array:
        """Sum columns of shape (n, m), weighted, over the positions of every draw: shape (1 + draws, m)."""
        return counts @ prompt_sums(columns * self.stands_for[:, None], self.prompts, self.n_prompts)

    def row(
        self, analysis: str, outcome: str, term: str, unit: str, interval: Interval, what: str, k: int | None = None
    ) -> dict[str, Any]:
        """Return one row of the estimates table; `what` says how the number was made."""
        return self.outcome(outcome).row(analysis, term, k, unit, interval, self._method(what))

    def outcome(self, name: str) -> Outcome:
        """Return one outcome in the form that other estimates take; it is defined at every sampled position."""
        everywhere = np.ones(len(self.prompts), bool)
        return Outcome(self.probe_id, self.update, name, everywhere, self.outcomes[name], self.prompts)

    def _method(self, what: str) -> str:
        if self._n_sampled < MIN_PROMPTS:
            return f"{what}; no interval from {self._n_sampled} prompts, where {MIN_PROMPTS} are needed"
        return self.resampling.method(what)

    @property
    def _n_sampled(self) -> int:
        return len(np.unique(self.prompts))


def load_tokens(run: Path, split: str, sizes: Sequence[int] = (HEADLINE_K,)) -> Tokens:
    """Read the token statistics of one split, in the order of (context_id, position), for quantile scores.

    Args:
        run: the run directory.
        split: 'bank' or 'update'.
        sizes: support sizes that are read; the tokens are given at the first.

    Raises:
        ArtefactError: the table is missing, or the split holds no position.
    """
    folder = run / "positions"
    schema = positions_of(folder)
    selectors = scored({column.name for column in schema.columns})
    names = {name for s in selectors.values() for k in sizes for name in s.columns(k)} | {*_FURTHER, "split"}
    table = schema.read_arrow(folder, sorted(names))
    table = table.filter(pc.equal(table["split"], split)).drop_columns(["split"])
    if not table.num_rows:
        raise ArtefactError(f"{folder} holds no position of the {split}: run `teachdiag capture` again")
    return Tokens.from_table(table.sort_by([("context_id", "ascending"), ("position", "ascending")]), sizes[0])


def scored(columns: Container[str], k: int = HEADLINE_K) -> dict[str, Selector]:
    """Return the selectors whose scores are known before any update, from no other probe, and from these columns."""
    return {name: s for name, s in selectors_of(columns, k).items() if name not in _LEFT_OUT}


def predictor_scores(tokens: Tokens) -> dict[Key, Array]:
    """Return what ranks positions before any update, each of shape (N,): selectors' scores, and teacher entropy.

    Quantiles and medians are over the positions given. `random` predicts nothing, `oracle` is an outcome, and
    `predicted` is added by whoever has it.

    Raises:
        EstimationError: a column cannot be normalised.
    """
    selectors = scored(tokens.columns, tokens.k)
    scores = {(name, tokens.k if s.score.has_k else None): s.scores(tokens) for name, s in selectors.items()}
    return scores | {(name, None): tokens.column(name) for name in _FURTHER}


def spearman(x: Array, y: Array) -> float:
    """Return Spearman's correlation of two columns of shape (n,); NaN where one has no spread, or an unknown."""
    a, b = rankdata(x), rankdata(y)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def weighted_spearman(observed: Array, scores: Array, weights: Array, prompts: Codes, counts: Array) -> Array:
    """Return Spearman's correlation of every outcome with every score in every draw, ranks made anew in each.

    Ranks are mid-ranks: the weight of all smaller values and half that of the equal ones. With whole weights, this is
    the correlation of a table in which every row stands as often as its weight says.

    Args:
        observed: shape (n, o).
        scores: shape (n, m).
        weights: shape (n,), how many positions each row stands for.
        prompts: shape (n,).
        counts: shape (draws, prompts), how often each prompt counts.

    Returns:
        Shape (draws, o, m); NaN where a draw leaves an outcome or a score without spread.
    """
    columns = np.vstack([observed.T, scores.T])
    order = np.argsort(columns, axis=1)
    below, up_to = (_places(columns, order, side) for side in ("left", "right"))
    n_outcomes = observed.shape[1]
    heaped = np.zeros((len(columns), columns.shape[1] + 1))  # weight of the first rows in order
    correlations = np.empty((len(counts), n_outcomes, scores.shape[1]))
    for draw, count in enumerate(counts):
        counted = weights * count[prompts]
        np.cumsum(counted[order], axis=1, out=heaped[:, 1:])
        ranks = np.take_along_axis(heaped, below, axis=1) + np.take_along_axis(heaped, up_to, axis=1)
        correlations[draw] = _correlations(ranks, counted, n_outcomes)
    return correlations


def spearman_rows(
    sample: Sample,
    scores: Mapping[Key, Array],
    analysis: str,
    outcomes: Sequence[str],
    same: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return each outcome's rank correlation with every predictor, and by how much it differs from raw KL's.

    Args:
        sample: the measured positions.
        scores: each of shape (n,).
        analysis: name of the correlations; their differences from raw KL's end in `_difference`.
        outcomes: names of the outcomes.
        same: predictors that are an outcome itself, by outcome: no row tells of these.
    """
    observed = np.column_stack([sample.outcomes[name] for name in outcomes])
    keys = list(scores)
    columns = np.column_stack([scores[key] for key in keys])
    drawn = weighted_spearman(observed, columns, sample.stands_for, sample.prompts, sample.counts("ranks"))
    rows = []
    for number, outcome in enumerate(outcomes):
        alone = drawn[:, number]
        for key, interval in zip(keys, found_intervals(alone), strict=True):
            if key[0] != same.get(outcome):
                rows.append(_spearman_row(sample, analysis, outcome, key, interval))
        beside = found_intervals(alone - alone[:, keys.index((BASE, None))][:, None])
        for key, interval in zip(keys, beside, strict=True):
            if key[0] not in (BASE, same.get(outcome)):
                term = (versus_base(key[0]), key[1])
                rows.append(_spearman_row(sample, f"{analysis}_difference", outcome, term, interval))
    return [row for row in rows if not np.isnan(row["estimate"])]


def found_intervals(samples: Array) -> list[Interval]:
    """Turn samples of shape (1 + draws, m) into m intervals; without draws, into estimates without interval."""
    if len(samples) > 1:
        return intervals(samples)
    return [Interval(float(estimate), np.nan, np.nan) for estimate in samples[0]]


def _spearman_row(sample: Sample, analysis: str, outcome: str, key: Key, interval: Interval) -> dict[str, Any]:
    name, k = key
    return sample.row(analysis, outcome, name, "1", interval, "weighted Spearman, ranks made anew in each draw", k)


def _places(columns: Array, order: Codes, side: str) -> Codes:
    """Return how many values of its own row of columns are smaller than each, or ('right') not larger."""
    ordered = np.take_along_axis(columns, order, axis=1)
    pairs = zip(ordered, columns, strict=True)
    return np.stack([np.searchsorted(row, values, "left" if side == "left" else "right") for row, values in pairs])


def _correlations(ranks: Array, weights: Array, n_outcomes: int) -> Array:
    """Return Pearson's weighted correlation of the first rows with the others: (c, n) to (outcomes, c - outcomes)."""
    total = weights.sum()
    centred = ranks - (ranks @ weights / total)[:, None] if total else ranks * 0
    weighted = centred * weights
    squares = np.einsum("ij,ij->i", centred, weighted)
    spread = np.where(squares > _NO_SPREAD * total**3, np.sqrt(squares), 0.0)
    return ratio(weighted[:n_outcomes] @ centred[n_outcomes:].T, np.outer(spread[:n_outcomes], spread[n_outcomes:]))
