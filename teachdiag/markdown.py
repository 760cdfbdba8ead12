"""Markdown: tables and lists, as every page and summary has them.

Pandas' own writer needs a further package, and pads cells so that one longer word changes every line of a page.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def markdown_table(table: "pd.DataFrame") -> str:
    """Return a table of text; a bar inside a cell is escaped."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join(_line(row) for row in rows)


def bullets(sentences: Sequence[str]) -> str:
    """Return sentences as a list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def folded(title: str, text: str) -> str:
    """Return text behind a title that opens it."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
