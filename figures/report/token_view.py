"""The token view's data: contexts as tokens, each with its numbers and both models' candidates."""

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.artefacts import CANDIDATES, CONTEXTS, GAINS, GRADES, POSITIONS, PREDICTIONS, RANKED, TOKENS, VOCABULARY
from teachdiag.errors import ArtefactError
from teachdiag.figures.report.characters import Texts, joined
from teachdiag.figures.run_tables import RunTables
from teachdiag.formulas import stored_name
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import ReportSettings
from teachdiag.signals import SHOWN, SIGNALS, added_signals, positions_of, signal_named
from teachdiag.tables import Table

_REGIONS = ("in_q3", "high_learnable", "high_incompatible")
_SIDES = ("student", "teacher")
_SIDE_COLUMNS = [f"{side}_{what}" for side in _SIDES for what in ("topk_ids", "topk_logp", "logp")]
_AFTER_COLUMNS = ["student_topk_ids_after", "student_topk_logp_after", "student_logp_after"]
_KEY = ["context_id", "position"]
_AFTER = "forward_kl_after"
_TITLE = 160  # characters of a context's title
_KL = "KL(teacher || student)"
_UNSCORED = "Grey text in italics was read as context, and is not scored."

Row = Mapping[Hashable, Any]


@dataclass(frozen=True)
class View:
    """What the page draws tokens from.

    `data`: as its script reads it. `contexts`: how many of them. `shown`: which, as a sentence. `note`: how text is
    written that is not scored, and characters that are not known, or ''. `missing`: why there is no view, or ''.
    """

    data: dict[str, Any] = field(default_factory=dict)
    contexts: int = 0
    shown: str = ""
    note: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Number:
    """A number of every token: what it is called, how it is coloured, when it was measured, and where it lies."""

    heading: str
    scale: Row
    said: str
    table: Table
    folder: str
    column: str


def token_view(runs: Mapping[str, RunTables], settings: ReportSettings, context_ids: Sequence[int] = ()) -> View:
    """Gather contexts of one run, or of several side by side, with everything that a token shows.

    Args:
        runs: their analyses, by name.
        settings: how many contexts, and at which budget selectors begin.
        context_ids: the contexts; by default as many as the settings say, spread evenly over the bank.

    Raises:
        ArtefactError: a table is missing, its positions are not the bank's, or a context is not there.
    """
    lacking = [name for name, tables in runs.items() if not (tables.run / "vocabulary").exists()]
    if lacking:
        return View(missing=f"{', '.join(lacking)}: captured without token texts. Capture again to see tokens.")
    banks = [_Bank(name, tables) for name, tables in runs.items()]
    rows, shown = _chosen(banks, settings.contexts, context_ids)
    columns = _columns(banks)
    contexts = [bank.contexts([row[i] for row in rows], list(columns)) for i, bank in enumerate(banks)]
    data = {
        "runs": [{"name": bank.name, "positions": bank.positions, "step": bank.step} for bank in banks],
        "columns": list(columns.values()),
        "selectors": [{"key": name, "name": signal_named(name).heading} for name in RANKED],
        "budget": settings.budget,
        "rows": [[contexts[i][context_id] for i, context_id in enumerate(row)] for row in rows],
    }
    unscored = any(
        "u" in token for part in contexts for context in part.values() if context for token in context["tokens"]
    )
    note = " ".join(filter(None, (_UNSCORED * unscored, _unknown_parts(banks))))
    return View(data, len(rows), shown, note)


class _Bank:
    """What the view reads of one run."""

    def __init__(self, name: str, tables: RunTables) -> None:
        self.name = name
        self.run = tables.run
        # Of several probes that have a quantity, the first one.
        self._scales = {row["quantity"]: row for row in reversed(tables.scales.to_dict("records"))}
        bank = TOKENS.read(self.run / TOKENS.folder, ["context_id"])["context_id"]
        self.positions, self.ids = len(bank), list(map(int, bank.unique()))
        self.step = str(self._scales["gain"]["probe_id"]) if "gain" in self._scales else ""

    @cached_property
    def texts(self) -> Texts:
        """The text of every token id."""
        words = VOCABULARY.read(self.run / "vocabulary", ["token_id", "text", "part"])
        ids = [int(token_id) for token_id in words["token_id"]]
        parts = {token_id: part for token_id, part in zip(ids, words["part"], strict=True) if part is not None}
        return Texts(dict(zip(ids, words["text"], strict=True)), parts)

    @cached_property
    def prompts(self) -> Mapping[int, Sequence[int]]:
        """The token ids of every context's prompt."""
        return self._ids("prompt_token_ids", self.ids)

    def _ids(self, column: str, context_ids: Sequence[int]) -> dict[int, list[int]]:
        table = CONTEXTS.read(self.run / "contexts", ["context_id", column], {"context_id": context_ids})
        return {int(row["context_id"]): list(row[column]) for row in table.to_dict("records")}

    def prompt(self, context_id: int) -> str:
        """Return the text of a context's prompt."""
        return self.texts.together(self.prompts[context_id])

    @cached_property
    def _template(self) -> tuple[int, int]:
        """How many characters every prompt of the bank begins and ends with, up to whole words."""
        prompts = [self.prompt(context_id) for context_id in self.ids]
        head = re.sub(r"\w+\Z", "", _beginning(prompts))
        tail = re.sub(r"^\w*[.?!]?", "", _beginning([prompt[::-1] for prompt in prompts])[::-1])
        return len(head), len(tail)

    def title(self, context_id: int) -> str:
        """Return the end of what a context's prompt says that not every prompt says."""
        prompt = self.prompt(context_id)
        head, tail = self._template
        text = prompt[head : max(len(prompt) - tail, head)].strip() or prompt
        return text if len(text) <= _TITLE else f"…{text[-_TITLE:]}"

    @cached_property
    def grades(self) -> Mapping[int, str]:
        """The grade of every context of the bank; none where responses were not graded."""
        if not (self.run / GRADES.folder).exists():
            return {}
        table = GRADES.read(self.run / GRADES.folder, ["context_id", "grade"], {"context_id": self.ids})
        return dict(zip(map(int, table["context_id"]), table["grade"], strict=True))

    @cached_property
    def numbers(self) -> dict[str, Number]:
        """The numbers of a token, those of signals of installed packages included."""
        scales, step = self._scales, self.step
        there = {column.name for column in positions_of(self.run / "positions").columns}
        numbers = {}
        for signal in [*(SIGNALS[name] for name in SHOWN), *added_signals().values()]:
            stored = stored_name(signal.name, K)
            table, column = (POSITIONS, stored) if stored in there else (TOKENS, signal.name)
            if signal.name in scales:
                said = f"{signal.heading}: at theta0, before any update."
                numbers[signal.name] = Number(signal.heading, scales[signal.name], said, table, table.folder, column)
        if step:
            folder, took = f"gains/{step}", f"the step {step}"
            said = f"Gain: how much {took} took off {_KL} here; above 0 the student came closer to the teacher."
            numbers["gain"] = Number("gain", scales["gain"], said, GAINS, folder, "gain")
            said = f"{_KL} after {took}, in the colours of raw KL, which is the same before it."
            numbers[_AFTER] = Number("KL after the step", scales["forward_kl"], said, GAINS, folder, _AFTER)
        if "predicted_gain" in scales:
            probe = scales["predicted_gain"]["probe_id"]
            said = f"Predicted gain: to first order, from theta0, of the step of {probe}."
            numbers["predicted_gain"] = Number(
                "predicted gain", scales["predicted_gain"], said, PREDICTIONS, f"predictions/{probe}", "predicted_gain"
            )
        return numbers

    def contexts(self, ids: Sequence[int | None], quantities: Sequence[str]) -> dict[int | None, dict[str, Any] | None]:
        """Return some contexts by id, and nothing for None."""
        wanted = [context_id for context_id in ids if context_id is not None]
        contexts: dict[int | None, dict[str, Any] | None] = {None: None}
        responses = self._ids("response_token_ids", wanted)
        for context_id, frame in self._rows(wanted).groupby("context_id"):
            rows = frame.to_dict("records")
            shown = self.texts.each(responses[int(str(context_id))][: int(rows[-1]["position"]) + 1])
            tokens, before = [], 0
            for row in rows:
                tokens.append(self._token(row, shown, before, quantities))
                before = int(row["position"]) + 1
            contexts[int(str(context_id))] = {
                "id": context_id,
                "title": self.title(int(str(context_id))),
                "prompt": self.prompt(int(str(context_id))),
                "grade": self.grades.get(int(str(context_id))),
                "tokens": tokens,
            }
        return contexts

    def _rows(self, ids: Sequence[int]) -> pd.DataFrame:
        """Return what is shown of the positions of some contexts, side by side from every table."""
        rows = _read(TOKENS, self.run / TOKENS.folder, None, ids)
        positions = positions_of(self.run / "positions")
        wanted: dict[str, tuple[Table, dict[str, str]]] = {"positions": (positions, {})}
        for name, number in self.numbers.items():
            if number.table is not TOKENS:
                table = positions if number.table is POSITIONS else number.table
                wanted.setdefault(number.folder.rstrip("/"), (table, {}))[1][number.column] = name
        for folder, (table, named) in wanted.items():
            further = [*_SIDE_COLUMNS, "token_id"] if table is positions else []
            further += table.present(self.run / folder, _AFTER_COLUMNS) if table is GAINS else []
            part = _read(table, self.run / folder, [*_KEY, *further, *named], ids)
            if not part[_KEY].equals(rows[_KEY]):
                raise ArtefactError(
                    f"{self.run / folder} holds other positions than were analysed: run `teachdiag analyze` again"
                )
            rows = rows.assign(**{named.get(column, column): part[column] for column in (*further, *named)})
        return rows

    def _token(self, row: Row, shown: Sequence[str], before: int, quantities: Sequence[str]) -> dict[str, Any]:
        """Return one token: text, numbers, ranks, regions, the models' candidates, and what each gave to it.

        And, from position `before` on, what stands in front of it and was read as context alone.
        """
        position = int(row["position"])
        token: dict[str, Any] = {"u": text} if (text := joined(shown[before:position])) else {}
        token |= {
            "n": position,
            "t": shown[position],
            "v": [_short(row[name]) if name in row else None for name in quantities],
            "k": [int(row[f"rank_{name}"]) for name in RANKED],
            "r": [int(row[name]) for name in _REGIONS],
            "s": self._candidates(row["student_topk_ids"], row["student_topk_logp"]),
            "q": self._candidates(row["teacher_topk_ids"], row["teacher_topk_logp"]),
            "p": [_short(math.exp(row[f"{side}_logp"])) for side in _SIDES],
        }
        if "student_logp_after" in row:
            ids, logp, of_token = (row[column] for column in _AFTER_COLUMNS)
            token |= {"a": self._candidates(ids, logp), "p": [*token["p"], _short(math.exp(of_token))]}
        return token

    def _candidates(self, ids: Iterable[int], logp: Iterable[float]) -> list[tuple[str, float | None]]:
        """Return the likeliest tokens and their probabilities."""
        listed = list(zip(ids, logp, strict=True))[:CANDIDATES]
        return [(self.texts.one(int(token_id)), _short(math.exp(value))) for token_id, value in listed]


def _chosen(banks: Sequence[_Bank], limit: int, context_ids: Sequence[int]) -> tuple[list[tuple[int | None, ...]], str]:
    """Return rows of contexts, one of each bank or None, and which they are as a sentence."""
    if context_ids:
        absent = [context_id for context_id in context_ids if context_id not in banks[0].ids]
        if absent:
            raise ArtefactError(f"the bank has no context {absent[0]}: its context_id are {_ends(banks[0].ids)}")
        return [(context_id,) * len(banks) for context_id in context_ids], ""
    first, *others = banks
    same = [i for i in first.ids if all(first.prompt(i) == b.prompt(i) if i in b.prompts else False for b in others)]
    if same:
        ids = _spread(same, limit)
        of = "have the same prompts, and stand side by side" if others else "are shown"
        return [(i,) * len(banks) for i in ids], f"{_some(ids, same)} contexts {of}."
    samples = [_spread(bank.ids, limit) for bank in banks]
    longest = max(map(len, samples))
    rows = [tuple(s[i] if i < len(s) else None for s in samples) for i in range(longest)]
    said = "; ".join(f"{b.name}: {_some(ids, b.ids)}" for b, ids in zip(banks, samples, strict=True))
    return rows, f"The runs have other prompts: each shows contexts of its own ({said})."


def _unknown_parts(banks: Iterable[_Bank]) -> str:
    """Say whose parts of characters cannot be joined, or nothing."""
    names = [bank.name for bank in banks if not VOCABULARY.present(bank.run / "vocabulary", ["part"])]
    said = "Parts of characters are shown as the tokenizer calls them: an older capture did not keep their bytes"
    return f"{said} ({', '.join(names)})." if names else ""


def _beginning(texts: Sequence[str]) -> str:
    """Return what all of some texts begin with."""
    first, last = min(texts), max(texts)  # what they share, all that lie between share too
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def _spread(ids: Sequence[int], limit: int) -> list[int]:
    """Return at most so many of some ids, evenly spread over them."""
    count = min(limit, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]


def _some(shown: Sequence[int], ids: Sequence[int]) -> str:
    return f"All {len(ids)}" if len(shown) == len(ids) else f"{len(shown)} of {len(ids)}, evenly spread,"


def _ends(ids: Sequence[int]) -> str:
    return f"{min(ids)} to {max(ids)}"


def _columns(banks: Iterable[_Bank]) -> dict[str, dict[str, Any]]:
    """Return how each number is called and coloured, by its name: on one scale for all runs."""
    columns: dict[str, dict[str, Any]] = {}
    for bank in banks:
        for name, number in bank.numbers.items():
            unit = "" if number.scale["unit"] == "1" else number.scale["unit"]
            new = {"key": name, "name": number.heading, "unit": unit, "kind": number.scale["kind"], "said": number.said}
            column = columns.setdefault(name, new | {end: number.scale[end] for end in ("low", "high")})
            column |= {
                "low": min(column["low"], number.scale["low"]),
                "high": max(column["high"], number.scale["high"]),
            }
    return columns


def _read(table: Table, path: Path, columns: Sequence[str] | None, ids: Sequence[int]) -> pd.DataFrame:
    return table.read(path, columns, {"context_id": ids}).sort_values(_KEY, ignore_index=True)


def _short(value: float) -> float | None:
    """Four significant digits: what a card shows, and a page can hold."""
    return None if math.isnan(value) else float(f"{value:.4g}")
