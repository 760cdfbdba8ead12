"""What a mask kept and what it dropped: the numbers that training logs at each step."""

from collections.abc import Collection, Mapping

import numpy as np

from teachdiag.artefacts.monitored import SATURATED
from teachdiag.artefacts.trained import DESCRIBED
from teachdiag.errors import EstimationError
from teachdiag.formulas import stored_name
from teachdiag.scores import Array
from teachdiag.selectors import Tokens, resolve_selector
from teachdiag.selectors.weighting import Weights

MEASURED = tuple(name for name in DESCRIBED if name != "learnable")  # columns; D^L is made of two of them


def facts_of(weights: Weights, columns: Mapping[str, np.ndarray], k: int, end_ids: Collection[int]) -> dict[str, float]:
    """Return one number a name, NaN where there is none; names and meanings are those of the table `train_steps`.

    Args:
        weights: what each of N positions of the global batch weighs.
        columns: shape (N,) each: `context_id`, `token_id`, and the measured columns at K.
        k: support size.
        end_ids: tokens that end a text. `empty` is the share of sequences made of nothing else.
    """
    kept, sequences = weights.kept, columns["context_id"]
    ends, lengths = np.isin(columns["token_id"], list(end_ids)), np.bincount(sequences)
    facts = {
        "keep": float(kept.mean()),
        "tied": weights.tied,
        "topped_up": float(weights.topped_up),
        "sequences_touched": len(np.unique(sequences[kept])) / len(lengths),
        "ends_kept": float(kept[ends].mean()) if ends.any() else np.nan,
        "saturated": float((columns[stored_name("compatibility", k)] >= SATURATED).mean()),
        "empty": float((np.bincount(sequences, ends) >= lengths).mean()),
    }
    described = {name: columns[stored_name(name, k)] for name in MEASURED} | {"learnable": _learnable(columns, k)}
    for name, values in described.items():
        facts[f"{name}_kept"] = float(values[kept].mean())
        facts[f"{name}_dropped"] = float(values[~kept].mean()) if not kept.all() else np.nan
    return facts


def _learnable(columns: Mapping[str, np.ndarray], k: int) -> Array:
    """D^L of the batch; NaN where D or C is constant, so that it is not defined."""
    try:
        return resolve_selector("learnable").scores(Tokens(columns, k, 0))
    except EstimationError:
        return np.full(len(columns["context_id"]), np.nan)
