"""Scores of every position at theta0: normalised, combined, and how much of them clipping and ties decide."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np

from teachdiag.analysis.bank.measurements import Bank, Outcome
from teachdiag.formulas import stored_name
from teachdiag.scores import Array, Codes, Mask, clip_to, q3_mask, quantile_range
from teachdiag.selectors import Selector, Tokens
from teachdiag.selectors.budget import select_each
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import COMPARED, NORMALISED, SATURATION, SIGNALS, Signal, at_each_k, with_role

Key = tuple[str, int | None]  # name of a score, and its support size K where it has one
Scores = Mapping[Key, Array]
Parts = Mapping[str, Array]  # what the normalised scores at one K are made of, by name
Ranges = Callable[[str], tuple[float, float]]  # stored column -> its 5% and 95% quantiles over the bank

BUDGETS = (1, 3, 5, 10, 30)  # percent of positions that a selector would keep
_PARTS = tuple(name for name in NORMALISED if len(SIGNALS[name].score.columns) == 1)


def label(key: Key) -> str:
    """Name a score, with its K where it has one."""
    name, k = key
    return name if k is None else f"{name} (K={k})"


class LazyScores(Mapping[Key, Array]):
    """Scores that are made each time they are asked for, so that a large bank does not hold all of them."""

    def __init__(self, makers: Mapping[Key, Callable[[], Array]]) -> None:
        """Take what makes each score."""
        self._makers = makers

    def __getitem__(self, key: Key) -> Array:
        """Make one score, shape (positions,)."""
        return self._makers[key]()

    def __iter__(self) -> Iterator[Key]:
        """Go through the keys."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Count the scores."""
        return len(self._makers)


def where_defined(scores: Scores, outcome: Outcome) -> Scores:
    """Return the same scores, at the positions where an outcome is defined."""
    return LazyScores({key: partial(lambda name: outcome.of(scores[name]), key) for key in scores})


class BankStatistics:
    """The bank's columns at one K, as scores read them: shape (positions,) each."""

    def __init__(self, bank: Bank, k: int | None, ranges: Ranges) -> None:
        """Take the bank, the support size, and the quantiles that scale a column."""
        self._bank, self._k, self._ranges = bank, k or HEADLINE_K, ranges

    def column(self, name: str) -> Array:
        """Return a column as measured."""
        return self._bank.column(stored_name(name, self._k))

    def normed(self, name: str) -> Array:
        """Return a column within [0, 1], between its 5% and 95% quantiles over the whole bank."""
        return clip_to(self.column(name), *self._ranges(stored_name(name, self._k)))


def normalised_scores(bank: Bank) -> Scores:
    """Return the scores that the regressions and selectors use, each of shape (positions,), within [0, 1].

    `learnable` D^L = norm(D) norm(C) and `incompatible` D^I = norm(D) (1 - norm(C)) share D between them. Quantiles
    are over the whole bank and from theta0 alone.

    Raises:
        EstimationError: a column cannot be normalised.
    """
    ranges, makers = _ranges(bank), {}
    for signal, k in at_each_k(SIGNALS[name] for name in NORMALISED):
        if signal.scaled:  # what cannot be normalised is refused at once
            ranges(stored_name(signal.name, k or HEADLINE_K))
        makers[signal.name, k] = partial(signal.normalised.values, BankStatistics(bank, k, ranges))
    return LazyScores(makers)


def key_at(name: str, k: int) -> Key:
    """Return the key of a signal, with K where it has one."""
    return name, k if SIGNALS[name].has_k else None


def parts_of(scores: Scores, k: int) -> Parts:
    """Return what every score at one K is made of, shape (positions,) each."""
    return {name: scores[key_at(name, k)] for name in _PARTS}


class _Normed(dict[str, Array]):
    """Parts as formulas of normalised columns read them."""

    def normed(self, name: str) -> Array:
        return self[name]

    def column(self, name: str) -> Array:
        raise KeyError(name)


def combined_score(parts: Parts, name: str) -> Array:
    """Return one score at the K of its parts."""
    return parts[name] if name in parts else SIGNALS[name].score.values(_Normed(parts))


def raw_scores(bank: Bank, normalised: Scores) -> Scores:
    """Return the scores whose predictive validity is compared, each of shape (positions,).

    Raw KL, C, D and alignments stay as measured; `learnable` and `incompatible` exist only as normalised scores.
    """
    ranges = _ranges(bank)
    return LazyScores(
        {
            (signal.name, k): partial(normalised.__getitem__, (signal.name, k))
            if (signal.name, k) in normalised and not signal.scaled
            else partial(signal.score.values, BankStatistics(bank, k, ranges))
            for signal, k in at_each_k(with_role("compared", COMPARED, bank.added))
        }
    )


def _ranges(bank: Bank) -> Ranges:
    return cache(lambda column: quantile_range(bank.column(column), column))


def in_q3(bank: Bank, rows: Codes | None = None) -> tuple[Mask, float, float]:
    """Return the Q3 mask and the medians that bound it: student entropy <= its median, forward KL >= its median.

    Args:
        bank: the bank.
        rows: of a part of it, whose own medians are meant; all of it by default.
    """
    entropy, kl = bank.column("student_entropy"), bank.column("forward_kl")
    return q3_mask(entropy, kl) if rows is None else q3_mask(entropy[rows], kl[rows])


def decided_by_tie(values: Array, percent: int) -> float:
    """Return the share of an exact budget of ceil(percent% of N) top scores that a tie at its edge decides.

    0 if the budget ends between two different values; 1 if every place goes to positions of the same score.
    """
    budget = -(-percent * len(values) // 100)
    edge = np.partition(values, -budget)[-budget]
    left = budget - int((values > edge).sum())
    return left / budget if int((values == edge).sum()) > left else 0.0


def saturated() -> list[tuple[Signal, int | None]]:
    """Return the normalised scores of the saturation table, a row each."""
    return at_each_k(SIGNALS[name] for name in SATURATION)


def saturation_row(bank: Bank, normalised: Scores, signal: Signal, k: int | None) -> dict[str, Any]:
    """Return the row of one of `saturated`."""
    values, column = normalised[signal.name, k], stored_name(signal.name, k or HEADLINE_K)
    low, high = quantile_range(bank.column(column), column) if signal.scaled else (None, None)
    return {
        "score": signal.name,
        "k": k,
        "q05": low,
        "q95": high,
        "share_at_lowest": float((values == values.min()).mean()),
        "share_at_highest": float((values == values.max()).mean()),
        **{f"tied_by_clip_at_{percent:02d}pct": decided_by_tie(values, percent) for percent in BUDGETS},
        **_left_to_chance(bank, signal, k or HEADLINE_K),
        "n_positions": len(values),
    }


def _left_to_chance(bank: Bank, signal: Signal, k: int) -> dict[str, float]:
    """Return the share of each budget that a selector by this score leaves to its tie rule."""
    selector = Selector(signal.name, signal.score, signal.source)
    tokens = Tokens({name: bank.positions[name] for name in selector.columns(k)}, k)
    chosen = select_each(tokens, selector, [percent / 100 for percent in BUDGETS])
    return {f"left_to_chance_at_{b:02d}pct": kept.tied for b, kept in zip(BUDGETS, chosen, strict=True)}
