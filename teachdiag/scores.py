"""Formulas on columns of token statistics that analysis and selectors share: scaling, ranking, combining, cutting."""

from typing import Any

import numpy as np
import numpy.typing as npt

from teachdiag.errors import EstimationError

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]  # whole numbers: groups, bins, ranks

_MANY = 1 << 20  # values from which on two sorts of 16 bits are faster than one of all
_CELLS, _TIED = 1 << 20, 1e-9  # of `near_places`: parts of the range, and the share of variance that ties may take


def quantile_range(values: Array, column: str) -> tuple[float, float]:
    """Return the 5% and 95% quantiles (linear interpolation between order statistics, type 7).

    Raises:
        EstimationError: they are equal, so that nothing is left to normalise.
    """
    low, high = np.quantile(values, [0.05, 0.95])
    if low == high:
        raise EstimationError(
            f"column {column} is {low:.6g} at both its 5% and its 95% quantile, so it cannot be normalised: "
            "capture another pair, or more and later positions"
        )
    return float(low), float(high)


def norm(values: Array, column: str) -> Array:
    """Scale to [0, 1]: clip((z - Q05) / (Q95 - Q05), 0, 1), quantiles over all the values given.

    Args:
        values: shape (positions,), any unit.
        column: the name that an error gives.

    Raises:
        EstimationError: the two quantiles are equal.
    """
    return clip_to(values, *quantile_range(values, column))


def clip_to(values: Array, low: float, high: float) -> Array:
    """Scale so that `low` becomes 0 and `high` becomes 1, and clip what lies beyond."""
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def mid_ranks(values: Array) -> Array:
    """Return each value's place among all, in (0, 1): (number below + half the number equal) / N. NaN stays NaN.

    Repeating every value changes none of them.

    Args:
        values: shape (N,), any unit.
    """
    shares = mid_places(values) / len(values)
    shares[np.isnan(values)] = np.nan
    return shares


def mid_places(values: Array) -> Array:
    """Return (number below) + (number equal) / 2 for each value, itself among the equals: its mid-rank less a half.

    Args:
        values: shape (N,), any unit.
    """
    order = _order(values)
    middle = np.empty(len(values))
    middle[order] = _middles(values[order])
    return middle


def _order(values: Array) -> Codes:
    """Return the places of the values from the smallest up; of many that are float32 numbers, by halves of their bits.

    Numpy sorts 16 bits by counting, which takes half the time; the sign decides whether bits rise with the numbers.
    """
    if len(values) < _MANY:
        return np.argsort(values)
    with np.errstate(over="ignore"):  # what is too large is no float32 number
        narrow = values.astype(np.float32)
    if not np.array_equal(narrow, values):
        return np.argsort(values)
    bits = narrow.view(np.int32)
    rising = np.where(bits < 0, ~bits, bits | np.int32(-(2**31))).view(np.uint32)
    order = np.argsort((rising & 0xFFFF).astype(np.uint16), kind="stable")
    return order[np.argsort((rising >> 16).astype(np.uint16)[order], kind="stable")]


def near_places(values: Array) -> Array:
    """Return mid-places where values count as equal that lie in the same millionth of their range.

    In a tenth of the time, for what is asked of many values at once. Where these crowd so that ties among them would
    take more than a billionth of the places' variance (sum of t^3 of n^3), as outliers and saturation make them, and in
    short columns, they are those of `mid_places`.

    Args:
        values: shape (N,), any unit; where some are not finite, it is `mid_places` too.
    """
    low, n = values.min(), len(values)
    width = (values.max() - low) / _CELLS
    if n < _CELLS // 4 or not 0 < width < np.inf:
        return mid_places(values)
    cells = np.minimum((values - low) / width, _CELLS - 1).astype(np.int32)
    counts = np.bincount(cells)
    if (counts.astype(np.float64) ** 3).sum() > _TIED * float(n) ** 3:
        return mid_places(values)
    places: Array = (counts.cumsum() - counts / 2)[cells]
    return places


def in_order(values: Array) -> tuple[Codes, Array]:
    """Return the places of each row's values from the smallest up, and their mid-places as `mid_places` has them.

    In a third of the time: places are written over the last bits of the values, which are then sorted by themselves. So
    values count as equal whose first bits are: of a million, those that agree to nine digits.

    Args:
        values: shape (..., N), finite, any unit.

    Returns:
        Shape (..., N) both.
    """
    n = values.shape[-1]
    last = (1 << n.bit_length()) - 1
    marked = (values + 0.0).view(np.int64) & ~last | np.arange(n)  # -0 is 0
    marked.view(np.float64).sort()
    return marked & last, _middles(marked & ~last)


def _middles(ordered: npt.NDArray[Any]) -> Array:
    """Return the middle of each value's run among the ordered ones of its row, in places from 0 to N: (..., N)."""
    n = ordered.shape[-1]
    edges = np.ones(ordered.shape, bool)  # before each run of equal values
    np.not_equal(ordered[..., 1:], ordered[..., :-1], out=edges[..., 1:])
    if edges.all():
        return np.broadcast_to(np.arange(n) + 0.5, ordered.shape)
    bounds = np.append(np.flatnonzero(edges), edges.size)
    middles = np.repeat((bounds[1:] + bounds[:-1]) / 2, np.diff(bounds)).reshape(-1, n)
    places: Array = middles - n * np.arange(len(middles))[:, None]
    return places.reshape(ordered.shape)


def quantile_bins(values: Array, n: int) -> Codes:
    """Cut into n bins of equal size, numbered from 0, shape (N,). Equal values share the bin of their mid-rank."""
    ordered, edges = np.sort(values), []
    for number in range(1, n):  # the first value whose mid-place reaches the edge
        value = ordered[number * len(values) // n]
        first, end = (int(np.searchsorted(ordered, value, side)) for side in ("left", "right"))
        if n * (first + end) / 2 / len(values) >= number:
            edges.append(value)
        elif end < len(values):
            edges.append(ordered[end])
    return np.searchsorted(edges, values, "right").astype(np.int64)


def soft_or(a: Array, b: Array) -> Array:
    """Combine two scores of [0, 1] so that either suffices: a + b - a b (arXiv 2605.26844, Eq. 16).

    Written so that it is exactly 1 where either is: rounding must not order what the formula ties.
    """
    return a + b * (1 - a)


def q3_mask(student_entropy: Array, forward_kl: Array) -> tuple[Mask, float, float]:
    """Return the mask of Q3 and the two medians that bound it, in nats: entropy <= its median, KL >= its median.

    Q3 is the confident student that is far from its teacher (arXiv 2604.14084; quadrants of arXiv 2605.26844).

    Args:
        student_entropy: H(p), shape (N,), nats.
        forward_kl: KL(q || p), shape (N,), nats.
    """
    entropy_median, kl_median = float(np.median(student_entropy)), float(np.median(forward_kl))
    return (student_entropy <= entropy_median) & (forward_kl >= kl_median), entropy_median, kl_median
