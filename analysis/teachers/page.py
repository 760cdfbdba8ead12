"""The comparison of teachers for people: what it says in sentences, what a terminal shows of it, and the page."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.lookup import row_interval
from teachdiag.analysis.efficiency.kept_means import ORACLE
from teachdiag.analysis.efficiency.rows import SHARE
from teachdiag.analysis.kinds.kind import grid
from teachdiag.analysis.resampling.bootstrap import shown
from teachdiag.analysis.teachers.gains import GAIN, GAIN_SHARE, PREDICTED_MOST, SUCCESS, SUCCESS_MOST, SUCCESS_SHUFFLED
from teachdiag.analysis.teachers.measures import LEARNABLE, MOST_LEARNABLE, RAW_KL
from teachdiag.analysis.text.text_tables import readable
from teachdiag.artefacts.teachers import COMMON, OWN
from teachdiag.markdown import bullets, markdown_table
from teachdiag.settings import HEADLINE_SELECTORS, MATCHES, headline_budget

Row = Mapping[str, Any]
_SHORT = (
    *(RAW_KL, "C", LEARNABLE, MOST_LEARNABLE, GAIN, GAIN_SHARE),
    *(PREDICTED_MOST, SUCCESS, SUCCESS_SHUFFLED, SUCCESS_MOST),
)
_BY = {OWN: "own KL", COMMON: "common"}
_DIFFERENCE = ("difference", "difference_low", "difference_high")
_VERDICTS = {1: "more than", -1: "less than", 0: "neither clearly more nor clearly less than"}
_YARDSTICKS = (
    "Differences are from the first run's teacher, on the same tokens; intervals are of 95%. Measured by its own KL "
    "each teacher has a yardstick of its own: a nat off one is not a nat off another. What is common is measured alike "
    "for all."
)


def verdict(rows: Sequence[Row]) -> list[str]:
    """Say which teacher a step would learn more from: by success, which all share, and by each one's own KL."""
    by_measure = {
        name: [row for row in rows if row["measure"] == name] for name in (SUCCESS, SUCCESS_SHUFFLED, GAIN, GAIN_SHARE)
    }
    sentences = []
    if success := by_measure[SUCCESS]:
        told = [
            f"a step towards {row['run']} adds {_VERDICTS[less.side() if less.known else 0]} one towards "
            f"{success[0]['run']} (difference {less}; with grades dealt to other answers {_less(placebo)})"
            for row, placebo in zip(success[1:], by_measure[SUCCESS_SHUFFLED][1:], strict=True)
            for less in (row_interval(row, _DIFFERENCE),)
        ]
        sentences.append(f"By success, the yardstick that all share, at equal learning rate {'; '.join(told)}.")
    if gains := by_measure[GAIN]:
        told = [
            f"{row_interval(share)} of the KL to {row['run']} ({row['estimate']:.3g} nats)"
            for row, share in zip(gains, by_measure[GAIN_SHARE], strict=True)
        ]
        sentences.append(
            f"One step takes off {', '.join(told)}: each by its own yardstick, so that this does not say which "
            "teacher makes the student better."
        )
    return sentences


def shown_curves(curves: Sequence[Row]) -> list[Row]:
    """Return what a few selectors keep at one budget and equal step length."""
    at_norm = [row for row in curves if row["statistic"] == SHARE and row["match"] == "norm"]
    if not at_norm:
        return []
    budget, followed = headline_budget(row["budget"] for row in at_norm), set(HEADLINE_SELECTORS) - {ORACLE}
    return [row for row in at_norm if row["budget"] == budget and row["selector"] in followed]


def terminal_parts(summary: Mapping[str, Any]) -> list[Grid | str]:
    """Return what a terminal shows of a comparison: a line a measure, all of them where the bank alone is compared.

    Of a second run that is its number and the difference from the first; of more runs the differences alone, which fit.
    """
    rows = [row for row in summary["rows"] if row["measure"] in _SHORT or not summary["probes"]]
    first, *others = dict.fromkeys(row["run"] for row in rows)
    cell = _cell if len(others) == 1 else _difference
    lines = [
        [_measure(of_number[0]), _BY[of_number[0]["yardstick"]], *map(cell, of_number)] for of_number in _by_run(rows)
    ]
    lines += [
        [f"kept, {_kept(of_number[0])}", _BY[OWN], *map(cell, of_number)] for of_number in _by_run(summary["curves"])
    ]
    beside = [f"{others[0]} (less {first})"] if len(others) == 1 else [f"{run} less {first}" for run in others]
    title = f"Teachers: {summary['population']}"
    return [grid(title, ("measure", "by", first, *beside), lines), *summary["sentences"]]


def page(rows: Sequence[Row], curves: Sequence[Row], sentences: Sequence[str], population: str) -> str:
    """Return the page: sentences, every measure, and what the headline's selectors keep at every budget."""
    table = pd.DataFrame(
        [
            {"measure": _measure(row), "by": _BY[row["yardstick"]], "run": row["run"], "teacher": row["teacher"]}
            | {"estimate": str(row_interval(row)), "less that of the first": _less(row)}
            for row in rows
        ]
    )
    parts = ["# Teachers of one bank", bullets(sentences), f"{population}. {_YARDSTICKS}", markdown_table(table)]
    for match, how in MATCHES.items():
        shares = [row for row in curves if row["statistic"] == SHARE and row["match"] == match]
        if shares:
            parts += [f"Share of the whole batch's gain that is kept, to first order, {how}:", _share_table(shares)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _share_table(shares: Sequence[Row]) -> str:
    """Return a line for each selector and run, and one for each difference, a column a budget."""
    lines = []
    for selector in HEADLINE_SELECTORS:
        of_selector = [row for row in shares if row["selector"] == selector]
        for run in dict.fromkeys(row["run"] for row in of_selector):
            of_run = [row for row in of_selector if row["run"] == run]
            lines.append(
                {"selector": readable(selector), "run": run} | {_percent(r): str(row_interval(r)) for r in of_run}
            )
            if of_run[0]["difference"] is not None:
                less = {_percent(row): _less(row) for row in of_run}
                lines.append({"selector": readable(selector), "run": f"{run}, less the first"} | less)
    return markdown_table(pd.DataFrame(lines))


def _by_run(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield the rows of one number, a run each; the first run's has no difference."""
    starts = [index for index, row in enumerate(rows) if row["difference"] is None]
    for start, end in pairwise([*starts, len(rows)]):
        yield rows[start:end]


def _measure(row: Row) -> str:
    return f"{row['measure']} [nats]" if row["unit"] == "nats" else str(row["measure"])


def _kept(row: Row) -> str:
    return f"{_percent(row)} by {readable(row['selector'])}"


def _percent(row: Row) -> str:
    return f"{100 * row['budget']:g}%"


def _cell(row: Row) -> str:
    return _difference(row) if row["difference"] is None else f"{shown(row['estimate'])} ({_difference(row)})"


def _difference(row: Row) -> str:
    """The difference from the first run; of that run the number itself."""
    return str(row_interval(row) if row["difference"] is None else row_interval(row, _DIFFERENCE))


def _less(row: Row) -> str:
    return "" if row["difference"] is None else _difference(row)
