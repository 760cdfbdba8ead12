"""The bank's best-scored positions at exact budgets: what they gained, selector beside selector (paper Table 8).

Nothing was trained on a selection here: all positions went through the same update, and a selector only says which of
them to look at. What a selector does as a mask of the loss is the selector probe's question.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from teachdiag.analysis.bootstrap import Resampling, resampled_means
from teachdiag.analysis.frame import Bank, Mask, Outcome
from teachdiag.analysis.ranking import has_k, scored
from teachdiag.analysis.scaling import Scores, in_q3
from teachdiag.selectors import SELECTORS, Tokens, select
from teachdiag.settings import HEADLINE_K, SUPPORT_SIZES

BUDGETS = (0.01, 0.03, 0.05, 0.1)
RANDOM = "random"
_DESCRIBED = ("student_entropy", "disagreement", "compatibility", "learnable", "incompatible")


class _Taken(NamedTuple):
    """Some of the bank's positions, `kept` of shape (N,), by one selector at one K and budget."""

    selector: str
    k: int | None
    budget: float
    kept: Mask
    tied: float


def top_rows(
    groups: Sequence[Sequence[Outcome]], bank: Bank, tokens: Tokens, scores: Scores, resampling: Resampling
) -> list[dict[str, Any]]:
    """Return the rows of the top_n table.

    Args:
        groups: outcomes, those of one group defined over the same positions.
        bank: the bank.
        tokens: its token statistics at every K, in the same order.
        scores: its normalised scores.
        resampling: gives the draws, which re-weight prompts; the selection is that of the full bank in all of them.
    """
    weights, q3 = resampling.weights("top_n"), in_q3(bank.positions)[0]
    rows: list[dict[str, Any]] = []
    for taken in _selections(tokens):
        facts = _facts(taken, q3, scores)
        what = "mean of all positions, which random ones expect" if taken.selector == RANDOM else "mean of the taken"
        for outcomes in groups:
            defined = taken.kept & outcomes[0].rows
            if not defined.any():
                continue
            values = np.column_stack([outcome.values for outcome in outcomes])[taken.kept[outcomes[0].rows]]
            samples = resampled_means(values, bank.prompts[defined], weights)
            counts = {"n_positions": int(defined.sum()), "n_prompts": len(np.unique(bank.prompts[defined]))}
            counts["n_dropped"] = int(taken.kept.sum()) - counts["n_positions"]
            found = resampling.columns(
                samples, [counts["n_prompts"]] * len(outcomes), f"{what}; selection fixed", "take none of them"
            )
            rows += [
                {"probe_id": outcome.probe_id, "update": outcome.update, "outcome": outcome.name, "unit": outcome.unit}
                | columns
                | {"gain_per_keep": columns["estimate"] / facts["share_taken"]}
                | facts
                | counts
                for outcome, columns in zip(outcomes, found, strict=True)
            ]
    return rows


def _selections(tokens: Tokens) -> Iterator[_Taken]:
    """Yield every selector's positions, at each K that it depends on; random ones stand for all."""
    for budget in BUDGETS:
        yield _Taken(RANDOM, None, budget, np.ones(len(tokens), bool), 0.0)
        for name in scored():
            for k in SUPPORT_SIZES if has_k(name) else (None,):
                chosen = select(replace(tokens, k=k or HEADLINE_K), SELECTORS[name], budget)
                yield _Taken(name, k, budget, chosen.kept, chosen.tied)


def _facts(taken: _Taken, q3: Mask, scores: Scores) -> dict[str, Any]:
    """Say which positions these are; D and C at the selector's K, or the headline K where it has none."""
    k = taken.k or HEADLINE_K
    columns = {name: scores[(name, k) if (name, k) in scores else (name, None)] for name in _DESCRIBED}
    share = taken.budget if taken.selector == RANDOM else float(taken.kept.mean())
    return {
        "selector": taken.selector,
        "k": taken.k,
        "budget": taken.budget,
        "share_taken": share,
        "q3_share": float(q3[taken.kept].mean()),
        **{f"mean_{name}": float(values[taken.kept].mean()) for name, values in columns.items()},
        "tied": taken.tied,
    }
