"""Selection: from scores to exactly as many positions as the budget buys."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import get_args

import numpy as np

from teachdiag.errors import SettingsError
from teachdiag.scores import Array, Codes, Mask
from teachdiag.selectors.selector import Kept, Selector
from teachdiag.selectors.tokens import Tokens
from teachdiag.settings import Normalisation, Scope, Ties

_CHOICES = {"normalisation": get_args(Normalisation), "scope": get_args(Scope), "ties": get_args(Ties)}
Key = Callable[[], Array]  # a score of shape (N,), computed when it is first needed; no NaN


def select(
    tokens: Tokens,
    selector: Selector,
    budget: float,
    normalisation: Normalisation = "quantile",
    scope: Scope = "global",
    minimum: int = 0,
    ties: Ties = "random",
) -> Kept:
    """Keep the best-scored positions: exactly ceil(budget N) of all N, or ceil(budget R) of each context's R.

    Normalisation, medians and maxima inside a score are over all N positions whatever the scope. Positions that the
    quantile clip made equal are ranked by the same formula under rank normalisation, which orders every column like its
    unclipped values and stays within (0, 1), where products keep their meaning; only then by the tie rule. The order of
    rows changes nothing.

    Args:
        tokens: the positions that compete.
        selector: gives their scores; NaN ranks last.
        budget: share of positions to keep, in (0, 1].
        normalisation: how the scores' columns are normalised.
        scope: 'global': positions of all contexts compete; 'sequence': those of each context among themselves.
        minimum: positions that every context keeps at least (all of them, if it has fewer), beyond the budget; 0 is
            off.
        ties: 'random': by seed, context and position; 'earliest': smaller positions first.

    Raises:
        SettingsError: an argument is impossible, a column is missing, or the scores are no scores.
        EstimationError: a column cannot be normalised.
    """
    _check(budget, minimum, normalisation=normalisation, scope=scope, ties=ties)
    if selector.mask:
        check_rules(selector, normalisation, scope, minimum, ties)
        return selector.mask(tokens, budget)
    keys = _ranking(tokens, selector, normalisation, ties)
    ties_from = len(keys) - _TIE_KEYS[ties]
    competing = np.zeros(len(tokens), np.int64) if scope == "global" else context_codes(tokens)
    kept, tied = best(competing, counts_at(budget, np.bincount(competing)), keys, ties_from)
    topped_up = top_up(kept, context_codes(tokens), minimum, keys) if minimum else 0
    return Kept(kept, topped_up, tied)


def check_rules(selector: Selector, normalisation: Normalisation, scope: Scope, minimum: int, ties: Ties) -> None:
    """Refuse rules for a mask that has its own.

    Raises:
        SettingsError: any differs from the default.
    """
    if selector.mask and (normalisation, scope, minimum, ties) != ("quantile", "global", 0, "random"):
        raise SettingsError(
            f"{selector.name} has its own rules: leave normalisation, scope, the minimum per sequence and ties as they "
            "are (--normalisation, --scope, --min-keep and --ties)"
        )


def select_each(tokens: Tokens, selector: Selector, budgets: Sequence[float]) -> list[Kept]:
    """Like `select` under its default rules at several budgets, with scores computed once."""
    keys = _ranking(tokens, selector, "quantile", "random")
    scores, size = keys[0](), np.array([len(tokens)])
    counts = np.concatenate([counts_at(budget, size) for budget in budgets])
    lowest, next_lower = _edges_between(scores, counts)
    chosen = []
    for count, edge, below in zip(counts, lowest, next_lower, strict=True):
        if below < edge:  # no ties across the edge
            kept, tied = scores >= edge, 0.0
        else:
            everywhere = np.zeros(len(tokens), np.int64)
            kept, tied = best(everywhere, np.array([count]), keys, len(keys) - _TIE_KEYS["random"])
        chosen.append(Kept(kept, 0, tied))
    return chosen


def _edges_between(scores: Array, counts: Codes) -> tuple[Array, Array]:
    """Return the smallest of the best so many scores, and the largest of the others; minus infinity without others."""
    rising = np.append(-np.inf, scores)
    rising.sort()
    return rising[-counts], rising[-counts - 1]


def ranks(tokens: Tokens, selector: Selector) -> Codes:
    """Rank positions in the order in which `select` takes them under its default rules, shape (N,), from 1.

    At any budget, it takes those up to `counts_at` of that budget.
    """
    first, *others = _ranking(tokens, selector, "quantile", "random")
    scores = first()
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    runs = np.append(0, np.cumsum(ordered[1:] != ordered[:-1]))  # of equal scores
    tied = np.flatnonzero(np.bincount(runs)[runs] > 1)
    if len(tied):
        rows = order[tied]
        order[tied] = rows[np.lexsort([*(-key()[rows] for key in reversed(others)), runs[tied]])]
    ranks = np.empty(len(tokens), np.int64)
    ranks[order] = np.arange(1, len(tokens) + 1)
    return ranks


def counts_at(budget: float, sizes: Codes) -> Codes:
    """Return ceil(budget * size) for each group size, at least 1; shape (groups,).

    A product that only rounding lifts above a whole number counts as that number: 0.1 of 30 is 3.
    """
    counts: Codes = np.maximum(np.ceil(budget * sizes * (1 - 1e-12)), 1).astype(np.int64)
    return counts


def best(groups: Codes, wanted: Codes, keys: Sequence[Key], ties_from: int) -> tuple[Mask, float]:
    """Take the best `wanted[g]` rows of every group g.

    Args:
        groups: group of each row from 0, shape (N,); -1 does not compete.
        wanted: rows to take, at most the group's size; shape (groups,).
        keys: scores by falling importance. A later one is computed only if rows equal in all earlier ones straddle an
            edge; what is equal in all of them is taken in the order of rows.
        ties_from: index of the first key that is a tie rule and no score.

    Returns:
        The rows taken, shape (N,), and the share of places that tie rules decided.
    """
    taken = np.zeros(len(groups), bool)
    rows, left, tied = np.flatnonzero(groups >= 0), wanted.copy(), 0
    by_row: Key = lambda: -np.arange(len(groups), dtype=np.float64)  # noqa: E731
    for number, key in enumerate((*keys, by_row)):
        if not len(rows):
            break
        if number == ties_from:
            tied = int(left.sum())
        codes, values = groups[rows], key()[rows]
        edge = _edges(codes, values, left)
        above, level = values > edge[codes], values == edge[codes]
        left -= np.bincount(codes[above], minlength=len(left))
        fitting = np.bincount(codes[level], minlength=len(left)) == left
        taken[rows[above | (level & fitting[codes])]] = True
        left[fitting] = 0
        rows = rows[level & ~fitting[codes]]
    return taken, tied / max(int(wanted.sum()), 1)


def top_up(kept: Mask, contexts: Codes, minimum: int, keys: Sequence[Key]) -> int:
    """Add to `kept` the best of what each context with fewer than `minimum` has left; return how many were added."""
    have, size = np.bincount(contexts[kept], minlength=contexts.max() + 1), np.bincount(contexts)
    lacking = np.maximum(np.minimum(minimum, size) - have, 0)
    added, _ = best(np.where(kept | (lacking[contexts] == 0), -1, contexts), lacking, keys, len(keys))
    kept |= added
    return int(added.sum())


def context_codes(tokens: Tokens) -> Codes:
    """Number the contexts from 0, shape (N,)."""
    return np.unique(tokens.stored("context_id"), return_inverse=True)[1]


_TIE_KEYS: dict[Ties, int] = {"random": 1, "earliest": 2}


def _ranking(tokens: Tokens, selector: Selector, normalisation: Normalisation, ties: Ties) -> list[Key]:
    """Return the keys by which positions are ranked; the last `_TIE_KEYS[ties]` of them are the tie rule."""
    readings: list[Normalisation] = ["quantile", "rank"] if normalisation == "quantile" else [normalisation]
    keys: list[Key] = [_score_key(tokens.under(reading), selector) for reading in readings]
    if ties == "earliest":
        keys.append(lambda: -tokens.column("position"))
    return [cache(key) for key in (*keys, lambda: tokens.uniform("ties"))]


def _score_key(tokens: Tokens, selector: Selector) -> Key:
    return lambda: np.nan_to_num(known_scores(tokens, selector), nan=-np.inf)


def known_scores(tokens: Tokens, selector: Selector) -> Array:
    """Return a selector's scores, shape (N,).

    Raises:
        SettingsError: they are no scores, or none of them is known: a choice by the tie rule alone is not the
            selector's.
    """
    scores = selector.scores(tokens)
    if np.isnan(scores).all():
        raise SettingsError(f"selector {selector.name} scored none of {len(tokens)} positions: every score is NaN")
    return scores


def _edges(codes: Codes, values: Array, wanted: Codes) -> Array:
    """Return the `wanted[g]`-th largest value of every group, shape (groups,); infinity where none is wanted."""
    if len(wanted) == 1:
        index = len(values) - int(wanted[0])
        return np.partition(values, index)[index : index + 1] if wanted[0] else np.array([np.inf])
    order = np.lexsort((values, codes))
    ends = np.cumsum(np.bincount(codes, minlength=len(wanted)))
    return np.where(wanted > 0, values[order[np.maximum(ends - wanted, 0).clip(max=len(order) - 1)]], np.inf)


def _check(budget: float, minimum: int, **choices: str) -> None:
    if not 0 < budget <= 1:
        raise SettingsError(f"the budget is {budget}: it must be a share of positions in (0, 1]")
    if minimum < 0:
        raise SettingsError(f"the minimum is {minimum}: it must be a number of positions, 0 for none")
    for name, value in choices.items():
        if value not in _CHOICES[name]:
            raise SettingsError(f"{name} is {value!r}: it must be one of {', '.join(_CHOICES[name])}")
