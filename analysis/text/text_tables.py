"""Estimates as text, and tables of text for the terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from teachdiag.analysis.bank.normalised import label
from teachdiag.settings import EMBEDDED
from teachdiag.signals import BASE, BASE_LABEL


def rich_table(title: str, table: pd.DataFrame) -> Table:
    """Return a table of text for the terminal, intervals under their estimates."""
    shown = Table(title=title)
    for index, heading in enumerate(table.columns):
        shown.add_column(escape(heading.replace(": ", ":\n")), no_wrap=index < 2, overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*(escape(cell.replace(" [", "\n[")) for cell in row))
    return shown


def aligned(table: pd.DataFrame, widths: Sequence[int]) -> list[str]:
    """Return a table of text as lines, cells wrapped inside columns of these widths, a blank between them."""
    lines = []
    for row in [tuple(table.columns), *table.itertuples(index=False)]:
        cells = [textwrap.wrap(str(cell), width) or [""] for cell, width in zip(row, widths, strict=True)]
        height = max(map(len, cells))
        columns = [cell + [""] * (height - len(cell)) for cell in cells]
        lines += [
            " ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
            for parts in zip(*columns, strict=True)
        ]
    return lines


def model_name(name: str) -> str:
    """Return what to call a model in a sentence."""
    return "SmolLM2-135M-Instruct (embedded)" if name == EMBEDDED else f"`{name}`"


def altered(pinned: Mapping[str, Any]) -> str:
    """Return what to say of a model behind its name, by what a stage recorded: layers that it lacks, its adapter."""
    dropped, adapter = pinned.get("dropped_layers"), pinned.get("adapter")
    without = f" without decoder layer {', '.join(map(str, dropped))} (0-based)" if dropped else ""
    return without + (f" with the adapter `{adapter['name']}`" if adapter else "")


def named(row: pd.Series) -> str:
    """Return the predictor that a row is about, with its K where it has one; reads term and k."""
    return label((readable(str(row["term"])), None if pd.isna(row["k"]) else int(row["k"])))


def readable(name: str) -> str:
    """Return the name of a predictor for people."""
    return BASE_LABEL if name == BASE else name


def capitalised(text: str) -> str:
    """Return a text with its first letter large, and all others as they are."""
    return text[:1].upper() + text[1:]
