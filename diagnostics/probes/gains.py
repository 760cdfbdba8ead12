"""Gains in all four forms, from a bank scored before and after an update: pure array functions."""

import numpy as np
import pyarrow as pa

from teachdiag.settings import NOISE_SAFETY


def gain_columns(
    before: pa.Table, after: pa.Table, noise: np.ndarray, floor: float
) -> dict[str, pa.Array | np.ndarray]:
    """The gain columns of the `gains` table.

    Args:
        before: `forward_kl` and `reverse_kl` of N positions at theta0, float32, nats.
        after: the same at theta1, in the same order.
        noise: |gain| of each position when theta0 itself is rescored in another layout, shape (N,), nats.
        floor: the 99th percentile of `noise` over the bank, nats.

    Returns:
        One array a column, float32; `gain_relative` and `gain_log` are null where rounding could make them up.
    """
    forward_0, forward_1 = _values(before, "forward_kl"), _values(after, "forward_kl")
    reverse_0, reverse_1 = _values(before, "reverse_kl"), _values(after, "reverse_kl")
    threshold = NOISE_SAFETY * np.maximum(noise, floor)
    measurable = (forward_0 >= threshold) & (forward_0 > 0)
    both = measurable & (forward_1 >= threshold) & (forward_1 > 0)
    gain = forward_0 - forward_1
    with np.errstate(divide="ignore", invalid="ignore"):  # the masked entries only
        relative, logarithmic = gain / forward_0, np.log(forward_0 / forward_1)
    return {
        "forward_kl_before": forward_0,
        "forward_kl_after": forward_1,
        "reverse_kl_before": reverse_0,
        "reverse_kl_after": reverse_1,
        "gain": gain,
        "gain_reverse": reverse_0 - reverse_1,
        "gain_relative": pa.array(relative, mask=~measurable),
        "gain_log": pa.array(logarithmic, mask=~both),
        "noise_floor": noise,
    }


def explained(gain: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the variance of a measured gain that a prediction explains, without fitting anything."""
    centred = gain - gain.mean(dtype=np.float64)
    return 1 - float(np.square(gain - predicted).sum() / max(np.square(centred).sum(), 1e-30))


def _values(table: pa.Table, name: str) -> np.ndarray:
    values: np.ndarray = table[name].to_numpy()
    return values
