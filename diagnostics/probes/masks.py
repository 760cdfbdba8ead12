"""The cells of an intervention: draws of the update batch, and which of its positions each selection keeps."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from teachdiag.artefacts import ISOLATED
from teachdiag.diagnostics.models.alignment import KEY, Context
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup, rows_of
from teachdiag.errors import RunError, SettingsError
from teachdiag.formulas import stored_name
from teachdiag.runs import Stage, probe_names
from teachdiag.scores import q3_mask
from teachdiag.seeds import derive_seed
from teachdiag.selectors import SELECTORS, Kept, Selector, Tokens, counts_at, resolve_selector, select
from teachdiag.selectors.budget import check_rules
from teachdiag.selectors.catalogue import selectors_of
from teachdiag.selectors.tokens import FROM_PROBES
from teachdiag.settings import HEADLINE_K, ProbeSettings
from teachdiag.signals import positions_of

EVERYTHING, RANDOM_MASK = "all", "random_mask"
_KEYS = [name for name, _ in KEY]
_DESCRIBED = ("disagreement", "compatibility", "student_entropy", "position", "forward_kl")


@dataclass(frozen=True)
class Draw:
    """One update batch: its contexts by rising context_id, and the statistics of their positions, row by row."""

    contexts: list[Context]
    tokens: Tokens

    def kept(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Kept positions by context, from a mask of shape (positions,)."""
        ids, positions = self.tokens.stored("context_id"), self.tokens.stored("position")
        return {c.context_id: positions[rows & (ids == c.context_id)].astype(np.int64) for c in self.contexts}

    @cached_property
    def described(self) -> dict[str, np.ndarray]:
        """By what the composition of a selection is told, shape (positions,) each."""
        columns = {name: self.tokens.column(name) for name in _DESCRIBED}
        q3 = q3_mask(columns["student_entropy"], columns.pop("forward_kl"))[0]
        scores = {name: SELECTORS[name].scores(self.tokens) for name in ("learnable", "incompatible")}
        return columns | scores | {"q3": q3}


@dataclass(frozen=True)
class Chooser:
    """A selector with its rules: a name, the columns that it reads, and what it keeps of a batch at a budget.

    `choose` returns None where the selector knows fewer positions than the budget buys.
    """

    name: str
    columns: tuple[str, ...]
    choose: Callable[[Tokens, float], Kept | None]


@dataclass(frozen=True)
class Cell:
    """One selection from one update batch. `seed` numbers the draws of the batch, or of the mask."""

    selector: str
    budget: float
    seed: int
    draw: Draw
    selection: Kept

    @property
    def digest(self) -> str:
        """Of what is kept: results of another selection under the same name are not taken for this one's."""
        ids, positions = (self.draw.tokens.stored(name)[self.selection.kept] for name in _KEYS)
        return hashlib.sha256(np.stack([ids, positions]).astype(np.int64).tobytes()).hexdigest()

    def mean(self, column: str) -> float:
        """Mean of a column of the tokens over the kept positions, in its unit."""
        return float(self.draw.tokens.column(column)[self.selection.kept].mean())

    def facts(self) -> dict[str, Any]:
        """What the `interventions` table tells of the selection itself."""
        kept, tokens = self.selection.kept, self.draw.tokens
        means = {name: float(values[kept].mean()) for name, values in self.draw.described.items()}
        q3 = means.pop("q3")
        return {
            "selector": self.selector,
            "budget": self.budget,
            "seed": self.seed,
            "n_batch": len(kept),
            "n_kept": int(kept.sum()),
            "keep": float(kept.mean()),
            "topped_up": self.selection.topped_up,
            "tied": self.selection.tied,
            "kept_context_ids": tokens.stored("context_id")[kept],
            "kept_positions": tokens.stored("position")[kept],
            "q3_share": q3,
        } | {f"mean_{name}": mean for name, mean in means.items()}


def selector_cells(setup: ProbeSetup, inner_products: pa.Table) -> list[Cell]:
    """Every cell of the selector experiment: of each draw the unselective one first, then budget by budget.

    Args:
        setup: settings and contexts.
        inner_products: `fix_inner` and `bank_inner` of every position that may be selected, by (context_id, position).

    Raises:
        SettingsError: a selector is unknown, or its scores are no scores.
        RunError: the oracle is asked for by name, and the run has no isolated gains for it.
        EstimationError: a column cannot be normalised.
    """
    settings = setup.settings
    choosers = resolve_choosers(setup.run, settings)
    table = _statistics(setup, choosers, inner_products)
    cells = []
    for seed in range(settings.seeds):
        draw = _drawn(setup, seed, table)
        cells.append(Cell(EVERYTHING, 1.0, seed, draw, Kept(np.ones(len(draw.tokens), bool), 0, 0.0)))
        for budget in settings.budget_shares:
            for chooser in choosers if budget < 1 else ():
                chosen = chooser.choose(draw.tokens, budget)
                if chosen is None:
                    setup.reporter.say(f"{chooser.name} knows too few positions of draw {seed} for {budget:g} of it")
                else:
                    cells.append(Cell(chooser.name, budget, seed, draw, chosen))
    _refuse_without_cells(settings, choosers, cells)
    return cells


def _refuse_without_cells(settings: ProbeSettings, choosers: Sequence[Chooser], cells: Sequence[Cell]) -> None:
    """Refuse a selector that was asked for by name and never chooses: the probe would end without a word on it."""
    chosen = {cell.selector for cell in cells}
    idle = [chooser.name for chooser in choosers if chooser.name not in chosen]
    if settings.selector != "all" and idle and min(settings.budget_shares) < 1:
        raise SettingsError(
            f"selector {idle[0]} scores too few positions for any of --budgets {settings.budgets} (the others are "
            "NaN): leave it out, or ask for a smaller budget"
        )


def mask_cells(setup: ProbeSetup, inner_products: pa.Table) -> list[Cell]:
    """Random masks of one and the same update batch, all of one size."""
    tokens = Tokens.from_table(_statistics(setup, [], inner_products))
    draw = Draw(sorted(setup.update, key=lambda c: c.context_id), tokens)
    size = int(counts_at(setup.settings.mask_budget, np.array([len(tokens)]))[0])
    cells = []
    for seed in range(setup.settings.masks):
        rng = np.random.default_rng(derive_seed(setup.settings.seed, RANDOM_MASK, seed))
        kept = np.zeros(len(tokens), bool)
        kept[rng.choice(len(tokens), size, replace=False)] = True
        cells.append(Cell(RANDOM_MASK, setup.settings.mask_budget, seed, draw, Kept(kept, 0, 0.0)))
    return cells


def resolve_choosers(run: Path, settings: ProbeSettings) -> list[Chooser]:
    """Return the selectors that a probe compares, each with its rules.

    Raises:
        SettingsError: a selector is unknown, or a mask of the released code is given rules other than its own.
        RunError: the oracle is asked for by name, and the run has no isolated gains for it.
    """
    known = oracle_probe(run, settings) is not None
    if settings.selector == "all":
        columns = {c.name for c in positions_of(run / "positions").columns} | set(FROM_PROBES)
        selectors = selectors_of(columns, HEADLINE_K).values()
        return [_chooser(settings, selector) for selector in selectors if known or selector.name != "oracle"]
    choosers = named_choosers(settings, settings.selector)
    lost = [] if known else [chooser.name for chooser in choosers if "isolated_gain" in chooser.columns]
    if lost:
        raise RunError(
            f"the selector {lost[0]} needs the isolated gains of the whole update split of {run}: first run `teachdiag "
            f"probe --run {run} --kind isolated --sample-from update --sample 0` with the same --loss, --seed and "
            "--fix-contexts"
        )
    return choosers


def named_choosers(settings: ProbeSettings, names: str) -> list[Chooser]:
    """Return selectors by their names, comma-separated, each with the probe's rules.

    Raises:
        SettingsError: a selector is unknown, or a mask of the released code is given rules other than its own.
    """
    distinct = dict.fromkeys(name.strip() for name in names.split(","))
    return [_chooser(settings, resolve_selector(name)) for name in distinct]


def oracle_probe(run: Path, settings: ProbeSettings) -> str | None:
    """Name of the finished isolated probe that knows every position which may be selected, with the same L_fix."""
    asked = {"kind": "isolated", "sample_from": "update", "sample": 0, "match": "rate"}
    asked |= {name: getattr(settings, name) for name in ("loss", "jsd_beta", "seed", "fix_contexts")}
    for name in probe_names(run):
        recorded = Stage(run, f"probes/{name}").read()
        if recorded is not None and recorded["status"] == "complete" and asked.items() <= recorded["settings"].items():
            return name
    return None


def _chooser(settings: ProbeSettings, selector: Selector) -> Chooser:
    """A selector under the probe's rules."""
    rules = (settings.normalisation, settings.scope, settings.min_keep, settings.ties)
    check_rules(selector, *rules)

    def choose(tokens: Tokens, budget: float) -> Kept | None:
        if selector.mask is None:
            known = int((~np.isnan(selector.scores(tokens.under(settings.normalisation)))).sum())
            if known < int(counts_at(budget, np.array([len(tokens)]))[0]):
                return None
        return select(tokens, selector, budget, *rules)

    return Chooser(selector.name, selector.columns(HEADLINE_K), choose)


def _statistics(setup: ProbeSetup, choosers: Sequence[Chooser], inner_products: pa.Table) -> pa.Table:
    """Every column that the choosers and the description of what they keep need, by (context_id, position)."""
    added = {"fix_inner", "bank_inner", "isolated_gain"}
    needed = {name for c in choosers for name in c.columns} | {stored_name(name, HEADLINE_K) for name in _DESCRIBED}
    table = rows_of(setup.run, setup.update, sorted(needed - added - set(_KEYS))).sort_by(KEY)
    for name in ("fix_inner", "bank_inner"):
        table = table.append_column(name, inner_products[name])
    oracle = oracle_probe(setup.run, setup.settings) if "isolated_gain" in needed else None
    if oracle is None:
        return table
    gains = ISOLATED.read_arrow(setup.run / "isolated" / oracle, [*_KEYS, "fix_gain"])
    joined = table.select(_KEYS).join(gains, keys=_KEYS).sort_by(KEY)
    return table.append_column("isolated_gain", joined["fix_gain"])


def _drawn(setup: ProbeSetup, number: int, table: pa.Table) -> Draw:
    """Draw the contexts of an update batch without replacement: `update_contexts` of them, or half.

    Raises:
        EstimationError: D or C of the batch cannot be normalised; better now than after the first step.
    """
    pool = sorted(setup.update, key=lambda c: c.context_id)
    size = setup.settings.update_contexts or -(-len(pool) // 2)
    rng = np.random.default_rng(derive_seed(setup.settings.seed, "update batch", number))
    contexts = [pool[i] for i in sorted(rng.choice(len(pool), size, replace=False))]
    draw = draw_of(contexts, table, derive_seed(setup.settings.seed, "selection", number))
    draw.described  # noqa: B018 (cached)
    return draw


def draw_of(contexts: list[Context], table: pa.Table, seed: int) -> Draw:
    """Return an update batch, from a table of the statistics of more contexts, by (context_id, position).

    Args:
        contexts: by rising context_id.
        table: their positions' statistics, and others'.
        seed: of random scores and ties.
    """
    rows = pc.is_in(table["context_id"], pa.array([c.context_id for c in contexts]))
    return Draw(contexts, Tokens.from_table(table.filter(rows), HEADLINE_K, seed))
