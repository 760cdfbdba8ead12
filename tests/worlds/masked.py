"""Contexts in which tools and users said part of each response."""

from pathlib import Path

import numpy as np

from teachdiag.artefacts import CONTEXTS
from teachdiag.tables import write_parquet


def with_masks(contexts: Path, out: Path, seed: int = 0) -> Path:
    """Write the contexts of a run with a random mask over each response, but for every third, which has none."""
    rows, rng = CONTEXTS.read_arrow(contexts).to_pylist(), np.random.default_rng(seed)
    for row in rows:
        if row["context_id"] % 3:
            mask = rng.random(len(row["response_token_ids"])) < 0.6
            mask[rng.integers(len(mask))] = True  # at least one is the student's
            row["response_mask"] = mask.astype(int).tolist()
    write_parquet(CONTEXTS.build_rows(rows), out)
    return out
