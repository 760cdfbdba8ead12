"""A user's selector that ties everything."""

import numpy as np

from teachdiag.selectors import Tokens


def flat(tokens: Tokens) -> np.ndarray:
    return np.zeros(len(tokens))


flat.columns = ("position",)  # type: ignore[attr-defined]
