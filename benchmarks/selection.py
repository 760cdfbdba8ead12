"""How long each selector takes over one million positions."""

import numpy as np
from workload import Row, best

from teachdiag.artefacts import POSITIONS
from teachdiag.selectors import SELECTORS, Tokens, select

N, LENGTH, BUDGET = 1_000_000, 200, 0.1


def selection_rows() -> list[Row]:
    """One row a selector."""
    tokens = _tokens()
    rows = []
    for name, selector in SELECTORS.items():
        seconds = best(lambda selector=selector: select(tokens, selector, BUDGET), repeats=1)
        rows.append((f"{name}, {N:,} positions", f"{seconds:.2f} s", "-"))
    return rows


def _tokens() -> Tokens:
    """Statistics of plausible shape; the lists overlap by half."""
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {
        "context_id": np.arange(N) // LENGTH,
        "position": np.arange(N) % LENGTH,
        "fix_inner": rng.normal(size=N),
        "isolated_gain": rng.normal(size=N),
    }
    for column in POSITIONS.columns:
        if column.name in columns or column.name in ("prompt_id", "split"):
            continue
        if "topk_ids" in column.name:
            start = rng.integers(0, 16, (N, 1), dtype=np.int32)
            columns[column.name] = start + np.arange(32, dtype=np.int32)
        elif "topk" in column.name:
            columns[column.name] = -np.sort(rng.exponential(4, (N, 32)).astype(np.float32), axis=1)
        elif column.name == "token_id":
            columns[column.name] = rng.integers(0, 64, N, dtype=np.int32)
        elif column.name.endswith("_logp"):
            columns[column.name] = -rng.exponential(2, N).astype(np.float32)
        else:
            columns[column.name] = rng.exponential(1, N).astype(np.float32)
    return Tokens(columns)
