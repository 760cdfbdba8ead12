"""The prompt-cluster bootstrap, from sufficient statistics of each prompt.

Positions of one prompt share a rollout, so prompts are what is resampled. A statistic that depends on sums over
positions needs only each prompt's sums: a draw is a weighted total of them, and a thousand draws are one matrix
product. Row 0 of every weight matrix holds ones, so the estimate and its draws come from the same code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, t

from teachdiag.errors import EstimationError
from teachdiag.scores import Array, Codes
from teachdiag.seeds import derive_seed

CLEAR = 0.01  # two-sided level of what is stated outright, where a false statement would change what is done
MIN_PROMPTS = 8  # with fewer clusters, percentile intervals are far too short to be shown

_BLOCK = 8192  # rows, filled up to whole prompts


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval; the ends are NaN where some draw leaves the statistic undefined.

    `draws`: shape (1 + draws,), the estimate and what each draw gave, for paired differences; None where not kept.
    `std_error`: standard error of the estimate, in its unit; None where it is not known.
    """

    estimate: float
    low: float
    high: float
    draws: Array | None = field(default=None, compare=False, repr=False)
    std_error: float | None = field(default=None, compare=False, repr=False)

    def side(self, beyond: float = 0.0) -> int:
        """Return 1 if the interval lies above `beyond`, -1 if it lies below `-beyond`, else 0."""
        return int(self.low > beyond) - int(self.high < -beyond)

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not np.isnan(self.low)

    def columns(self) -> dict[str, float | None]:
        """Return the columns `estimate`, `ci_low`, `ci_high` and, of tables that have it, `draw_error` of a row."""
        ends = (self.low, self.high) if self.known else (None, None)
        return {"estimate": self.estimate, "ci_low": ends[0], "ci_high": ends[1], "draw_error": self.std_error}

    def __str__(self) -> str:
        if not self.known:
            return shown(self.estimate)
        return f"{shown(self.estimate)} [{shown(self.low)}, {shown(self.high)}]"


def shown(value: float) -> str:
    """Write a number with three significant digits, or with as many as tell it from 1."""
    return next((text for digits in (3, 4, 6) if (text := f"{value:.{digits}g}") != "1"), "1")


@dataclass(frozen=True)
class Resampling:
    """How prompts are resampled. One statistic name has one set of draws, whatever is computed from it."""

    seed: int
    draws: int
    n_prompts: int

    def __post_init__(self) -> None:
        """Refuse banks that are too small.

        Raises:
            EstimationError: there are fewer than `MIN_PROMPTS` prompts.
        """
        if self.n_prompts < MIN_PROMPTS:
            raise EstimationError(
                f"the bank has {self.n_prompts} prompts and intervals need at least {MIN_PROMPTS}: "
                "capture again with a larger --bank-prompts"
            )

    @lru_cache(maxsize=2)  # noqa: B019 (a few matrices are kept, for the statistics that are being computed)
    def weights(self, statistic: str) -> Array:
        """Return how often each prompt counts in each draw: shape (1 + draws, prompts), row 0 all ones.

        The real step, its placebos and both sides of a difference use the same weights: their draws are paired.
        """
        rng = np.random.default_rng(derive_seed(self.seed, "bootstrap", statistic))
        counts = rng.multinomial(self.n_prompts, np.full(self.n_prompts, 1 / self.n_prompts), size=self.draws)
        return np.vstack([np.ones(self.n_prompts), counts])

    def columns(self, samples: Array, n_prompts: Sequence[int], what: str, undefined: str) -> list[dict[str, Any]]:
        """Return `estimate`, `ci_low`, `ci_high` and `method` of m estimates; `method` says why one has no interval.

        Args:
            samples: shape (1 + draws, m), the estimates first.
            n_prompts: prompts behind each, shape (m,): below `MIN_PROMPTS` there is no interval.
            what: the statistic.
            undefined: what a draw does that leaves it undefined, as a verb phrase.
        """
        rows = []
        for interval, count in zip(intervals(samples, self.n_prompts), n_prompts, strict=True):
            if count < MIN_PROMPTS:
                shown = Interval(interval.estimate, np.nan, np.nan)
                method = f"{what}; no interval from {count} prompts, where {MIN_PROMPTS} are needed"
            else:
                shown = interval
                method = self.method(what) if shown.known else f"{what}; no interval: some draws {undefined}"
            rows.append(shown.columns() | {"method": method})
        return rows

    def method(self, what: str) -> str:
        """Return the text of an estimate's `method` column."""
        return f"{what}; prompt-cluster bootstrap, {self.draws} draws, expanded percentile"


def prompt_sums(values: Array, prompts: Codes, n_prompts: int) -> Array:
    """Sum each column within each prompt: (positions, m) to (prompts, m). Prompts without positions get zeros."""
    return np.column_stack([np.bincount(prompts, column, n_prompts) for column in values.T])


class Block(NamedTuple):
    """Rows of some prompts, all of each.

    `prompts`: shape (p,). `rows`: shape (r,), one prompt after the other. `cuts`: where among these each prompt but the
    first begins.
    """

    prompts: Codes
    rows: Codes
    cuts: Codes

    def products(self, columns: Array) -> Array:
        """Return the cross-products of each prompt, (r, q) to (p, q, q)."""
        return np.stack([rows.T @ rows for rows in np.split(columns, self.cuts)])


def prompt_blocks(prompts: Codes) -> Iterator[Block]:
    """Go through n rows, whose prompts are given, in blocks small enough for the many columns of a design."""
    order = np.argsort(prompts, kind="stable")
    starts = np.flatnonzero(np.diff(prompts[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    for numbers in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(starts // _BLOCK)) + 1):
        rows = order[starts[numbers[0]] : ends[numbers[-1]]]
        yield Block(prompts[order[starts[numbers]]], rows, starts[numbers[1:]] - starts[numbers[0]])


def evenly_spaced(n: int, most: int) -> Codes:
    """Return the most of n numbers from 0 that may be taken, evenly spaced: the same part each time."""
    return np.arange(n) if n <= most else np.arange(most) * n // most


def resampled_means(values: Array, prompts: Codes, weights: Array) -> Array:
    """Return the mean of each column in every draw: (n, m) values to (draws, m); NaN where a draw holds none."""
    sums = prompt_sums(np.column_stack([np.ones(len(values)), values]), prompts, weights.shape[1])
    totals = weights @ sums
    return ratio(totals[:, 1:], totals[:, :1])


def intervals(samples: Array, n_prompts: int | None = None) -> list[Interval]:
    """Turn samples of shape (1 + draws, m), row 0 the estimate, into m 95% percentile intervals.

    Args:
        samples: of the bootstrap.
        n_prompts: how many prompts were drawn: the bootstrap's variance falls short by (n - 1) / n, and is an estimate
            itself, so that the expanded percentile interval goes further out, by sqrt(n / (n - 1)) t / z of n - 1
            degrees of freedom (Hesterberg 2015, doi:10.1080/00031305.2015.1089789). None takes 2.5% to 97.5%.
    """
    low, high = np.percentile(samples[1:], _percentiles(n_prompts), axis=0)
    errors = np.std(samples[1:], axis=0, ddof=1)
    return [
        Interval(float(column[0]), float(lo), float(hi), column, None if np.isnan(error) else float(error))
        for column, lo, hi, error in zip(samples.T, low, high, errors, strict=True)
    ]


@cache
def _percentiles(n_prompts: int | None) -> tuple[float, float]:
    if n_prompts is None:
        return 2.5, 97.5
    reach = np.sqrt(n_prompts / (n_prompts - 1)) * t.ppf(0.975, n_prompts - 1)
    tail = 100 * float(norm.cdf(-reach))
    return tail, 100 - tail


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, with NaN where the denominator is 0: a draw that holds nothing to average."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = numerator / denominator
    return np.where(denominator == 0, np.nan, quotient)


def variance(n: Array, total: Array, squares: Array) -> Array:
    """Population variance from sums; 0 where rounding is all that is left of it."""
    mean_square = ratio(squares, n)
    centred = mean_square - ratio(total, n) ** 2
    return np.where(centred > 1e-12 * mean_square, centred, 0.0)
