"""The bank's best-scored positions at exact budgets: what they gained, selector beside selector (paper Table 8).

Nothing was trained on a selection here: all positions went through the same update, and a selector only says which of
them to look at. What a selector does as a mask of the loss is the selector probe's question.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from teachdiag.analysis.bootstrap import Resampling, intervals, resampled_means
from teachdiag.analysis.frame import Bank, Mask, Outcome
from teachdiag.analysis.scaling import Scores, in_q3
from teachdiag.selectors import SELECTORS, Selection, Tokens, select
from teachdiag.settings import HEADLINE_K as K

BUDGETS = (0.01, 0.03, 0.05, 0.1)
RANDOM = "random"
_UNKNOWN = ("predicted", "oracle")  # need other probes
_DESCRIBED = ("student_entropy", "disagreement", "compatibility", "learnable", "incompatible")


def top_rows(
    outcomes: Sequence[Outcome], bank: Bank, tokens: Tokens, scores: Scores, resampling: Resampling
) -> list[dict[str, Any]]:
    """Return the rows of the top_n table.

    Args:
        outcomes: gains that are defined at every position.
        bank: the bank.
        tokens: its token statistics, in the same order.
        scores: its normalised scores.
        resampling: gives the draws, which re-weight prompts; the selection is that of the full bank in all of them.
    """
    values = np.column_stack([outcome.values for outcome in outcomes])
    weights = resampling.weights("top_n")
    q3 = in_q3(bank.positions)[0]
    facts = {name: scores[(name, K) if (name, K) in scores else (name, None)] for name in _DESCRIBED}
    rows: list[dict[str, Any]] = []
    for budget in BUDGETS:
        for name, taken, tied in _selections(tokens, budget):
            means = resampled_means(values[taken], bank.prompts[taken], weights)
            shared = {"selector": name, "budget": budget, "tied": tied, "q3_share": float(q3[taken].mean())}
            shared |= {f"mean_{fact}": float(column[taken].mean()) for fact, column in facts.items()}
            shared |= {"n_positions": int(taken.sum()), "n_prompts": len(np.unique(bank.prompts[taken]))}
            what = "mean gain of all positions, what random ones expect" if name == RANDOM else "mean gain of the taken"
            keep = float(taken.mean()) if name != RANDOM else budget
            rows += [
                {"probe_id": outcome.probe_id, "update": outcome.update, **interval.columns()}
                | {"gain_per_keep": interval.estimate / keep, "method": resampling.method(f"{what}; selection fixed")}
                | shared
                for outcome, interval in zip(outcomes, intervals(means), strict=True)
            ]
    return rows


def _selections(tokens: Tokens, budget: float) -> list[tuple[str, Mask, float]]:
    """Every selector's positions, and the share of them that ties decided; random ones stand for all."""
    found: list[tuple[str, Mask, float]] = []
    for name, selector in SELECTORS.items():
        if name == RANDOM:
            found.append((name, np.ones(len(tokens), bool), 0.0))
        elif name not in _UNKNOWN:
            chosen: Selection = select(tokens, selector, budget)
            found.append((name, chosen.kept, chosen.tied))
    return found
