"""What a reader sees first: headline, primary claims, what selectors keep, caveats, and the next command."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.analysis.bank.lookup import lookup, row_dicts, row_interval
from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.kinds.kind import Results
from teachdiag.analysis.report.caveats import changing_caveats
from teachdiag.analysis.report.headline import Headline, headline, update_name
from teachdiag.analysis.resampling.bootstrap import Interval, shown
from teachdiag.analysis.step.claims import PRIMARY_CLAIMS
from teachdiag.analysis.text.text_tables import aligned, capitalised
from teachdiag.glossary import GAINS, STATUSES
from teachdiag.markdown import markdown_table
from teachdiag.settings import HEADLINE_BUDGETS, HEADLINE_SELECTORS, KINDS
from teachdiag.signals import BASE, BASE_LABEL
from teachdiag.tables import rows_where

WIDTH = 80  # of a terminal, in characters
_CLAIM_WIDTHS = (26, 25, 17, 9)  # of the columns of primary claims
_SHORT = {claim.finding: claim.short for claim in PRIMARY_CLAIMS}
_MOST = "oracle ranks by the gain itself: a ceiling at equal learning rate, not here."


@dataclass(frozen=True)
class FrontPage:
    """The first page of a run.

    `primary` and `efficiency` are tables of text, by probe; `gains` says in words what the latter count as gain;
    `caveats` is one line.
    """

    headline: Headline
    primary: Mapping[str, pd.DataFrame]
    efficiency: Mapping[str, pd.DataFrame]
    gains: Mapping[str, str]
    legend: str
    caveats: str
    run: Path

    def terminal(self) -> list[str]:
        """Return it as lines of at most `WIDTH` characters."""
        lines = [*_wrapped(" ".join(self.headline.sentences)), *self._next(), ""]
        for probe_id, table in self.primary.items():
            lines += [f"Primary claims, {probe_id} (K=16)", *aligned(table, _CLAIM_WIDTHS)]
        lines += [*_wrapped(self.legend), ""] if self.primary else []
        for probe_id, table in self.efficiency.items():
            widths = [max(map(len, (name, *table[name]))) for name in table]
            lines += [
                *_wrapped(f"Share of the whole batch's {self.gains[probe_id]} at equal step length, {probe_id}"),
                *aligned(table, widths),
                _MOST,
            ]
        lines += _wrapped(f"Caveats: {self.caveats}") if self.caveats else []
        return [*lines, f"More: {self.run}/summary.md, and figures/, tables/ and analysis/ beside it."]

    def markdown(self) -> list[str]:
        """Return it as paragraphs of Markdown."""
        parts = [" ".join(self.headline.sentences), *self.next_step()]
        for probe_id, table in self.primary.items():
            parts += [f"Primary claims, `{probe_id}` (K=16):", markdown_table(table)]
        parts += [self.legend] if self.primary else []
        for probe_id, table in self.efficiency.items():
            title = f"Share of the whole batch's {self.gains[probe_id]} at equal step length, `{probe_id}`:"
            parts += [title, markdown_table(table)]
        return [*parts, f"Caveats: {self.caveats}"] if self.caveats else parts

    def next_step(self) -> list[str]:
        """Return what to do, in words and as a command where there is one, as paragraphs of Markdown."""
        command = [f"```\n{self.headline.command}\n```"] if self.headline.command else []
        return [f"**{self.headline.action}.**", *command]

    def as_dict(self) -> dict[str, Any]:
        """Return the headline and the caveats as plain values."""
        return self.headline.as_dict() | {"caveats": self.caveats}

    def laid_out(self) -> dict[str, Any]:
        """Return all of it as plain values, for whoever lays it out."""
        return self.as_dict() | {
            "primary": [_plain(probe_id, table) for probe_id, table in self.primary.items()],
            "legend": self.legend,
            "efficiency": [
                _plain(probe_id, table) | {"gain": self.gains[probe_id]} for probe_id, table in self.efficiency.items()
            ],
            "ceiling": _MOST if self.efficiency else "",
        }

    def _next(self) -> list[str]:
        command = [f"  {self.headline.command}"] if self.headline.command else []  # whole, to be copied
        return [*_wrapped(f"Next: {self.headline.action}."), *command]


def first_page(run: Path, capture: Mapping[str, Any], records: Sequence[Record], results: Results) -> FrontPage:
    """Return the first page of an analysed run.

    Args:
        run: the run directory.
        capture: the note of its capture.
        records: its finished probes.
        results: the tables of its analysis.
    """
    updates = {record.probe_id: update_name(record) for record in records if KINDS[record.kind].step}
    said = headline(results.primary, results.efficiency, run, capture["settings"], updates)
    return front_page(said, results.primary, results.efficiency, changing_caveats(run, capture, records, results), run)


def front_page(
    said: Headline, primary: pd.DataFrame, efficiency: pd.DataFrame, caveats: Sequence[str], run: Path
) -> FrontPage:
    """Put the first page together.

    Args:
        said: the run's headline.
        primary: the table of primary claims.
        efficiency: the table of what selectors keep.
        caveats: what changes how the page is read, each in a few words.
        run: the run directory.
    """
    statuses = dict.fromkeys(primary["status"])
    legend = "; ".join(f"{status}: {meaning}" for status, meaning in STATUSES.items() if status in statuses)
    shares = {str(probe): efficiency_table(rows) for probe, rows in efficiency.groupby("probe_id", sort=False)}
    outcomes = zip(efficiency["probe_id"], efficiency["outcome"], strict=True)
    return FrontPage(
        said,
        {str(probe): primary_table(rows) for probe, rows in primary.groupby("probe_id", sort=False)},
        {probe: table for probe, table in shares.items() if len(table)},
        {str(probe): GAINS[outcome] for probe, outcome in outcomes},
        f"{capitalised(legend)}." if legend else "",
        f"{'; '.join(caveats)}." if caveats else "",
        run,
    )


def primary_table(primary: pd.DataFrame) -> pd.DataFrame:
    """Return claim, number, nearest placebo and verdict of one step as text."""
    return pd.DataFrame(
        [
            {
                "claim": _SHORT[row["claim"]] + (" [nats]" if row["unit"] == "nats" else ""),
                "this pair": str(row_interval(row)),
                "nearest placebo": "none run"
                if pd.isna(row["nearest_placebo"])
                else f"{row['nearest_placebo']} {shown(row['placebo_estimate'])}",
                "verdict": row["status"],
            }
            for row in row_dicts(primary)
        ]
    )


def efficiency_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the share that five selectors keep at four budgets, at equal step length, as text to two decimals."""
    shares = rows_where(rows, match="norm", statistic="share")
    known = [name for name in HEADLINE_SELECTORS if (shares["selector"] == name).any()]
    budgets = [budget for budget in HEADLINE_BUDGETS if (shares["budget"] == budget).any()]
    return pd.DataFrame(
        [
            {"selector": BASE_LABEL if name == BASE else name}
            | {f"{budget:.0%}": _cell(lookup(shares, selector=name, budget=budget)) for budget in budgets}
            for name in known
        ]
    )


def _plain(probe_id: str, table: pd.DataFrame) -> dict[str, Any]:
    return {"probe_id": probe_id, "columns": list(table.columns), "rows": table.to_numpy().tolist()}


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    ends = f" [{_short(interval.low)},{_short(interval.high)}]" if interval.known else ""
    return f"{interval.estimate:.2f}{ends}"


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
