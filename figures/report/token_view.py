"""The token view's data: contexts as tokens, each with its numbers and both models' candidates."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.artefacts import CONTEXTS, GAINS, PREDICTIONS, RANKED, TOKENS, VOCABULARY
from teachdiag.errors import ArtefactError
from teachdiag.figures.run_tables import RunTables
from teachdiag.formulas import stored_name
from teachdiag.selectors.budget import counts_at
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import ReportSettings
from teachdiag.signals import SHOWN, SIGNALS, added_signals, positions_of
from teachdiag.tables import Table

_CANDIDATES = 5
_GAINS = {"gain": "gain", "predicted_gain": "predicted gain"}  # what a card calls each, by its name in `scales`
_REGIONS = ["in_q3", "high_learnable", "high_incompatible"]
_SIDES = ("student", "teacher")
_SIDE_COLUMNS = [f"{side}_{what}" for side in _SIDES for what in ("topk_ids", "topk_logp", "logp")]
_KEY = ["context_id", "position"]


@dataclass(frozen=True)
class View:
    """What the page draws tokens from.

    `columns`: how each number is called, its unit, and the ends of its colour scale. `contexts`: tokens and numbers.
    `total`: contexts of the bank. `missing`: why there is no view, or ''.
    """

    columns: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    missing: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for the page."""
        return {"columns": self.columns, "contexts": self.contexts}


def token_view(tables: RunTables, settings: ReportSettings) -> View:
    """Gather the first contexts of the bank with everything a token shows.

    Args:
        tables: the run's analysis.
        settings: how many contexts, and which budget selectors are shown at.

    Raises:
        ArtefactError: a table is missing, or its positions are not the bank's.
    """
    run = tables.run
    if not (run / "vocabulary").exists():
        return View(missing="This run was captured without token texts: capture again to see its tokens.")
    bank = TOKENS.read(run / TOKENS.folder, ["context_id"])["context_id"]
    ids = list(map(int, bank.unique()))
    shown = ids[: settings.contexts]
    # Of several probes that have a quantity, the first one.
    scales = {row["quantity"]: row for row in reversed(tables.scales.to_dict("records"))}
    numbers = _numbers(scales)
    rows = _rows(run, scales, list(numbers), shown)
    n_taken = int(counts_at(settings.budget, np.array([len(bank)]))[0])
    words = VOCABULARY.read(run / "vocabulary")
    texts = _Texts(zip(map(int, words["token_id"]), words["text"], strict=True))
    prompts = CONTEXTS.read(run / "contexts", ["context_id", "prompt_token_ids"], {"context_id": shown})
    prompt_ids = prompts.set_index("context_id")["prompt_token_ids"]
    contexts = [
        {
            "id": context_id,
            "prompt": texts.of(prompt_ids[context_id]),
            "tokens": [_token(row, list(numbers), n_taken, texts) for row in positions.to_dict("records")],
        }
        for context_id, positions in rows.groupby("context_id")
    ]
    columns = [_column(heading, scales[name]) for name, heading in numbers.items()]
    budget = f"{100 * settings.budget:g}% of the bank"
    columns += [
        {"name": f"selected by {name}", "unit": budget, "kind": "selected", "low": 0, "high": 1} for name in RANKED
    ]
    return View(columns, contexts, len(ids))


class _Texts(dict[int, str]):
    """The text of every token id; ids beyond the vocabulary are shown as numbers."""

    def __missing__(self, token_id: int) -> str:
        return f"<{token_id}>"

    def of(self, token_ids: Iterable[int]) -> str:
        return "".join(self[int(token_id)] for token_id in token_ids)


def _numbers(scales: Mapping[str, Mapping[Hashable, Any]]) -> dict[str, str]:
    """Return the numbers that a card shows, those of signals of installed packages included, and what it calls them."""
    signals = [*(SIGNALS[name] for name in SHOWN), *added_signals().values()]
    named = {signal.name: signal.heading for signal in signals} | _GAINS
    return {name: text for name, text in named.items() if name in scales}


def _rows(
    run: Path, scales: Mapping[str, Mapping[Hashable, Any]], quantities: Sequence[str], ids: Sequence[int]
) -> pd.DataFrame:
    """Return what is shown of the positions of some contexts, side by side from every table."""
    positions = positions_of(run / "positions")
    there = {column.name for column in positions.columns}
    stored = {stored_name(name, K): name for name in quantities if stored_name(name, K) in there}
    parts = [(positions, "positions", [*_SIDE_COLUMNS, "token_id", *stored])]
    for name, table in (("gain", GAINS), ("predicted_gain", PREDICTIONS)):
        if name in scales:
            parts.append((table, f"{table.name}/{scales[name]['probe_id']}", [name]))
    rows = _read(TOKENS, run / TOKENS.folder, None, ids)
    for table, folder, columns in parts:
        part = _read(table, run / folder, [*_KEY, *columns], ids)
        if not part[_KEY].equals(rows[_KEY]):
            raise ArtefactError(
                f"{run / folder} holds other positions than were analysed: run `teachdiag analyze` again"
            )
        rows = rows.assign(**{name: part[name] for name in columns})
    return rows.rename(columns=stored)


def _read(table: Table, path: Path, columns: Sequence[str] | None, ids: Sequence[int]) -> pd.DataFrame:
    return table.read(path, columns, {"context_id": ids}).sort_values(_KEY, ignore_index=True)


def _column(name: str, scale: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Say how a column is called and coloured."""
    unit = "" if scale["unit"] == "1" else scale["unit"]
    return {"name": name, "unit": unit, **{key: scale[key] for key in ("kind", "low", "high")}}


def _token(row: Mapping[Hashable, Any], quantities: Sequence[str], n_taken: int, texts: _Texts) -> dict[str, Any]:
    """Return one token: text, numbers, regions, both models' candidates, and what each gave to it."""
    numbers = [_short(row[name]) for name in quantities]
    selected = [int(row[f"rank_{name}"] <= n_taken) for name in RANKED]
    student, teacher = (
        [
            [texts[int(token_id)], _short(math.exp(logp))]
            for token_id, logp in zip(row[f"{side}_topk_ids"], row[f"{side}_topk_logp"], strict=True)
        ][:_CANDIDATES]
        for side in _SIDES
    )
    return {
        "t": texts[int(row["token_id"])],
        "v": numbers + selected,
        "r": [int(row[name]) for name in _REGIONS],
        "s": student,
        "q": teacher,
        "p": [_short(math.exp(row[f"{side}_logp"])) for side in _SIDES],
    }


def _short(value: float) -> float | None:
    """Four significant digits: what a card shows, and a page can hold."""
    return None if math.isnan(value) else float(f"{value:.4g}")
