"""Selectors: from statistics measured before an update to the positions that carry its loss.

`tokens` holds the statistics of competing positions, `published` scores of other papers, `selector` what a selector is,
`budget` what it buys, `released` the arithmetic of the code that came with the paper, `registry` the selectors by name,
`weighting` what a training run does with them.
"""

from teachdiag.selectors.budget import counts_at, select
from teachdiag.selectors.catalogue import SELECTORS, resolve_selector
from teachdiag.selectors.selector import Kept, Selector
from teachdiag.selectors.tokens import Tokens
from teachdiag.selectors.weighting import Selection

__all__ = [
    "SELECTORS",
    "Kept",
    "Selection",
    "Selector",
    "Tokens",
    "counts_at",
    "resolve_selector",
    "select",
]
