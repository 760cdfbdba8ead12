"""Selectors: from statistics measured before an update to the positions that carry its loss.

`tokens` holds the statistics of competing positions, `published` scores of other papers, `registry` the selectors by
name, `choice` the budget, `policy` what a training run does with them, `released` the arithmetic of the
code that came with the paper.
"""

from teachdiag.selectors.choice import Kept, places, select
from teachdiag.selectors.policy import Selection
from teachdiag.selectors.registry import SELECTORS, Selector, resolve_selector
from teachdiag.selectors.tokens import Tokens

__all__ = [
    "SELECTORS",
    "Kept",
    "Selection",
    "Selector",
    "Tokens",
    "places",
    "resolve_selector",
    "select",
]
