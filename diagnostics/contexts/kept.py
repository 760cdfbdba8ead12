"""Which positions of a response are kept: all, the first of them, or a draw, in which each stands for several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from teachdiag.seeds import derive_seed
from teachdiag.settings import CaptureSettings
from teachdiag.settings.base import PositionsFrom


class Kept(NamedTuple):
    """Of one response: its tokens up to the last that may be kept, the kept positions, and what each stands for.

    `positions` is None where all tokens are kept, `weights` where every position stands for itself alone.
    """

    response: tuple[int, ...]
    positions: tuple[int, ...] | None
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Positions:
    """How many positions of each response are kept, and which: `--positions` and `--positions-from`."""

    count: int
    chosen: PositionsFrom
    seed: int = 0

    @classmethod
    def of(cls, settings: CaptureSettings) -> "Positions":
        """Those of a capture: all, without a draw, where no response that it samples can be longer."""
        none_longer = not settings.contexts and settings.max_new_tokens <= settings.positions
        return cls(settings.positions, "all" if none_longer else settings.positions_from, settings.seed)

    def keep(self, context_id: int, response: Sequence[int], mask: Sequence[int] | None = None) -> Kept:
        """Choose among the tokens of a response that are the student's, all of them without a mask.

        A draw depends on the seed and the context alone.
        """
        students = np.arange(len(response)) if mask is None else np.flatnonzero(mask)
        if self.chosen == "first":
            students = students[: self.count]
        reached = tuple(response[: students[-1] + 1] if len(students) else response)
        whole = None if mask is None else tuple(students.tolist())
        if self.chosen in ("first", "all"):
            return Kept(reached, whole)
        if len(students) <= self.count:
            return Kept(reached, whole, (1.0,) * len(students))
        rng = np.random.default_rng(derive_seed(self.seed, "positions", context_id))
        drawn, weights = draw(len(students), self.count, rng, spread=self.chosen == "spread")
        return Kept(reached, tuple(students[drawn].tolist()), tuple(weights.tolist()))


def draw(n: int, count: int, rng: np.random.Generator, *, spread: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw some of n places without replacement, all alike, or as evenly as possible over the logarithm of the place.

    For `spread`, places are cut into strata of equal length in log(place + 1), about one a doubling, which share the
    draw out evenly; short ones are taken whole. The weight of a drawn place is the inverse of the probability that it
    is drawn, so that weighted sums are unbiased for sums over all places (Horvitz and Thompson 1952).

    Args:
        n: places.
        count: how many to draw, from 1 to n.
        rng: what draws.
        spread: over the logarithm of the place.

    Returns:
        The places, ascending, shape (count,), int64; their weights, shape (count,), float64, whose sum is n.
    """
    strata = min(count, n.bit_length()) if spread else 1
    edges = np.unique(np.rint(np.geomspace(1, n + 1, strata + 1)).astype(np.int64)) - 1
    sizes = np.diff(edges)
    taken = allotted(sizes, count)
    parts = [rng.choice(size, k, replace=False) + edge for size, k, edge in zip(sizes, taken, edges, strict=False)]
    return np.sort(np.concatenate(parts)), np.repeat(sizes / taken, taken)


def allotted(sizes: np.ndarray, sample: int) -> np.ndarray:
    """Share a sample out over strata evenly: one more to each in turn, as long as it holds more."""
    taken = np.zeros_like(sizes)
    while (left := sample - int(taken.sum())) > 0:
        open_strata = np.flatnonzero(taken < sizes)
        share = max(left // len(open_strata), 1)
        for stratum in open_strata[:left]:
            taken[stratum] = min(taken[stratum] + share, sizes[stratum])
    return taken
