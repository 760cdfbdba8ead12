"""The bank's best-scored positions at exact budgets: what they gained, selector beside selector (paper Table 8).

Nothing was trained on a selection here: all positions went through the same update, and a selector only says which of
them to look at. What a selector does as a mask of the loss is the selector probe's question.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.analysis.bank.normalised import Scores, in_q3, key_at
from teachdiag.analysis.resampling.bootstrap import Resampling, resampled_means
from teachdiag.analysis.step.rank_correlations import scored
from teachdiag.scores import Mask
from teachdiag.selectors import Selector, Tokens
from teachdiag.selectors.budget import select_each
from teachdiag.settings import HEADLINE_K, SUPPORT_SIZES
from teachdiag.signals import COMPOSITION

BUDGETS = (0.01, 0.03, 0.05, 0.1)
RANDOM = "random"


class _Taken(NamedTuple):
    """Some of the bank's positions, `kept` of shape (N,), by one selector at one K and budget."""

    selector: str
    k: int | None
    budget: float
    kept: Mask
    tied: float


def top_rows(
    groups: Sequence[Callable[[], Sequence[Outcome]]],
    bank: Bank,
    columns: Mapping[str, npt.NDArray[Any]],
    scores: Scores,
    resampling: Resampling,
) -> list[dict[str, Any]]:
    """Return the rows of the top_n table.

    Args:
        groups: make outcomes when they are needed, those of one group defined over the same positions.
        bank: the bank.
        columns: its token statistics at every K, in the same order.
        scores: its normalised scores.
        resampling: gives the draws, which re-weight prompts; the selection is that of the full bank in all of them.
    """
    q3 = in_q3(bank)[0]
    # A bit a position, since there are hundreds; and what they are made of, one score at a time.
    selections = [(np.packbits(t.kept), _facts(t, q3)) for t in _selections(columns, bank)]
    for name, k in product(COMPOSITION, SUPPORT_SIZES):
        described = scores[key_at(name, k)]
        for bits, facts in selections:
            if (facts["k"] or HEADLINE_K) == k:
                facts[f"mean_{name}"] = float(described[_unpacked(bits, bank)].mean())
    rows: list[list[dict[str, Any]]] = [[] for _ in selections]
    for outcomes in (make() for make in groups):
        for of_selection, (bits, facts) in zip(rows, selections, strict=True):
            kept = _unpacked(bits, bank)
            if (kept & outcomes[0].rows).any():
                of_selection += _taken_rows(outcomes, kept, facts, resampling)
    return [row for of_selection in rows for row in of_selection]


def _unpacked(bits: npt.NDArray[np.uint8], bank: Bank) -> Mask:
    return np.unpackbits(bits, count=len(bank)).view(np.bool_)


def _taken_rows(
    outcomes: Sequence[Outcome], kept: Mask, facts: dict[str, Any], resampling: Resampling
) -> list[dict[str, Any]]:
    """Return what some outcomes gained at the positions of one selection."""
    inside = outcomes[0].of(kept)
    prompts, values = outcomes[0].prompts[inside], np.column_stack([outcome.values[inside] for outcome in outcomes])
    samples = resampled_means(values, prompts, resampling.weights("top_n"))
    n_prompts = int(np.count_nonzero(np.bincount(prompts)))
    counts = {"n_positions": len(prompts), "n_prompts": n_prompts, "n_dropped": int(kept.sum()) - len(prompts)}
    random = facts["selector"] == RANDOM
    what = "mean of all positions, which random ones expect" if random else "mean of the taken"
    estimates = resampling.columns(
        samples, [n_prompts] * len(outcomes), f"{what}; selection fixed", "take none of them"
    )
    return [
        {"probe_id": outcome.probe_id, "update": outcome.update, "outcome": outcome.name, "unit": outcome.unit}
        | columns
        | {"gain_per_keep": columns["estimate"] / facts["share_taken"]}
        | facts
        | counts
        for outcome, columns in zip(outcomes, estimates, strict=True)
    ]


def _selections(columns: Mapping[str, npt.NDArray[Any]], bank: Bank) -> Iterator[_Taken]:
    """Yield every selector's positions, at each K that it depends on; random ones stand for all.

    Top-K lists of a large bank fit into no memory: selectors that read them are left out.
    """
    for budget in BUDGETS:
        yield _Taken(RANDOM, None, budget, np.ones(len(bank), bool), 0.0)
    for k, (name, selector) in product((None, *SUPPORT_SIZES), scored(columns).items()):
        if selector.score.has_k == (k is None) or (bank.large and _reads_lists(selector)):
            continue
        read = {column: columns[column] for column in selector.columns(k or HEADLINE_K)}
        chosen = select_each(Tokens(read, k or HEADLINE_K), selector, BUDGETS)
        yield from (
            _Taken(name, k, b, selection.kept, selection.tied) for b, selection in zip(BUDGETS, chosen, strict=True)
        )


def _reads_lists(selector: Selector) -> bool:
    return any(column.endswith(("_topk_ids", "_topk_logp")) for column in selector.score.columns)


def _facts(taken: _Taken, q3: Mask) -> dict[str, Any]:
    """Say which positions these are."""
    share = taken.budget if taken.selector == RANDOM else float(taken.kept.mean())
    return {
        "selector": taken.selector,
        "k": taken.k,
        "budget": taken.budget,
        "share_taken": share,
        "q3_share": float(q3[taken.kept].mean()),
        "tied": taken.tied,
    }
