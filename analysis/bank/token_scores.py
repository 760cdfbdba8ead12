"""What is shown of single tokens: their scores and selectors' order, and how far colours reach."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from teachdiag.analysis.bank.measurements import Bank, Step, load_aligned
from teachdiag.analysis.bank.normalised import Scores, in_q3
from teachdiag.artefacts import PREDICTIONS, RANKED, TOKENS
from teachdiag.formulas import stored_name
from teachdiag.scores import Array, Mask
from teachdiag.selectors import SELECTORS, Tokens
from teachdiag.selectors.budget import ranks
from teachdiag.settings import HEADLINE_K as K
from teachdiag.signals import SHOWN, SIGNALS

_HIGH = 0.9  # 'high' D^L or D^I: the upper tenth of the bank
_LOWEST = 0.02  # where the scale of C begins
_REACH = 0.98  # the outer 2% share the colour at the end of the scale


def token_table(bank: Bank, normalised: Scores) -> pa.Table:
    """Return the table `tokens`, one row a bank position."""
    learnable, incompatible = (normalised[name, K] for name in ("learnable", "incompatible"))
    return TOKENS.build(
        {
            "context_id": bank.positions["context_id"],
            "position": bank.positions["position"],
            "learnable": learnable,
            "incompatible": incompatible,
            "in_q3": in_q3(bank)[0],
            "high_learnable": _upper(learnable),
            "high_incompatible": _upper(incompatible),
            **{f"rank_{name}": _ranks(bank, name) for name in RANKED},
        }
    )


def scale_rows(
    run: Path, bank: Bank, normalised: Scores, steps: Sequence[Step], predicted: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of the table `scales` for what is shown of tokens.

    Args:
        run: the run directory.
        bank: its bank.
        normalised: its normalised scores.
        steps: real steps, whose gains are shown.
        predicted: probes of kind predicted, whose first-order gains are.

    Raises:
        ArtefactError: predictions are missing, or are not of this bank.
    """
    rows = []
    for signal in [*(SIGNALS[name] for name in SHOWN), *(signal for signal in bank.added if signal.column)]:
        column = stored_name(signal.name, K)
        values = bank.column(column) if column in bank.positions else normalised[signal.name, K]
        rows.append(scale_row(signal.name, "", signal.unit, values, diverging=signal.signed))
        if signal.name == "compatibility":  # nearly 1 almost everywhere
            rows[-1]["low"] = float(np.quantile(values, _LOWEST))
    for step in steps:
        rows.append(scale_row("gain", step.real.probe_id, "nats", step.real.column("gain"), diverging=True))
    for probe_id in predicted:
        folder = run / "predictions" / probe_id
        gains = load_aligned(PREDICTIONS, folder, ("predicted_gain",), bank)["predicted_gain"].astype(np.float64)
        rows.append(scale_row("predicted_gain", probe_id, "nats", gains, diverging=True))
    return rows


def scale_row(
    quantity: str, probe_id: str, unit: str, values: Array, *, diverging: bool = False, reach: float = _REACH
) -> dict[str, Any]:
    """Return one row of the table `scales`: from 0 to the `reach` quantile, or to both sides of 0."""
    high = float(np.quantile(np.abs(values) if diverging else values, reach))
    return {
        "quantity": quantity,
        "probe_id": probe_id,
        "unit": unit,
        "kind": "diverging" if diverging else "sequential",
        "low": -high if diverging else 0.0,
        "high": high,
        "median_size": float(np.median(np.abs(values))),
    }


def _upper(values: Array) -> Mask:
    return values >= np.quantile(values, _HIGH)


def _ranks(bank: Bank, name: str) -> npt.NDArray[np.int32]:
    """Return each position's rank in a selector's order, shape (N,), from 1."""
    selector = SELECTORS[name]
    columns = {column: bank.positions[column] for column in selector.columns(K)}
    return ranks(Tokens(columns, K), selector).astype(np.int32)
