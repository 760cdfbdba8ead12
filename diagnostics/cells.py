"""The cells of an intervention: draws of the update batch, and which of its positions each selection keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from teachdiag.artefacts import ISOLATED, POSITIONS
from teachdiag.diagnostics.alignment import Context
from teachdiag.diagnostics.workbench import KEY, Workbench, rows_of
from teachdiag.errors import RunError
from teachdiag.runs import Stage
from teachdiag.scores import q3_mask
from teachdiag.seeds import derive_seed
from teachdiag.selectors import SELECTORS, Selection, Selector, Tokens, places, resolve_selector, select, stored_name
from teachdiag.selectors.released import select_released, with_live_statistics
from teachdiag.settings import HEADLINE_K, ProbeSettings

EVERYTHING, RANDOM_MASK = "all", "random_mask"
_RELEASED = "released:"  # names a mask of the released code
_DESCRIBED = ("disagreement", "compatibility", "student_entropy", "position", "forward_kl")


@dataclass(frozen=True)
class Draw:
    """One update batch: its contexts by rising context_id, and the statistics of their positions, row by row."""

    number: int
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
    choose: Callable[[Tokens, float], Selection | None]


@dataclass(frozen=True)
class Cell:
    """One selection from one draw."""

    selector: str
    budget: float
    draw: Draw
    selection: Selection

    @property
    def place(self) -> str:
        """Where its results lie in the scratch folder, without ending."""
        return f"cells/{self.draw.number:04d}-{self.budget:g}-{self.selector.replace(':', '.')}"

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
            "seed": self.draw.number,
            "n_batch": len(kept),
            "n_kept": int(kept.sum()),
            "keep": float(kept.mean()),
            "topped_up": self.selection.topped_up,
            "tied": self.selection.tied,
            "kept_context_ids": tokens.stored("context_id")[kept],
            "kept_positions": tokens.stored("position")[kept],
            "q3_share": q3,
        } | {f"mean_{name}": mean for name, mean in means.items()}


def selector_cells(bench: Workbench, inner_products: pa.Table) -> list[Cell]:
    """Every cell of the selector experiment: of each draw the unselective one first, then budget by budget.

    Args:
        bench: settings and contexts.
        inner_products: `fix_inner` and `bank_inner` of every position that may be selected, by (context_id, position).

    Raises:
        SettingsError: a selector is unknown, or its scores are no scores.
        RunError: the oracle is asked for by name, and the run has no isolated gains for it.
        EstimationError: a column cannot be normalised.
    """
    settings = bench.settings
    oracle = isolated_gains(bench)
    choosers = _choosers(bench, oracle is not None)
    table = _statistics(bench, choosers, inner_products, oracle)
    cells = []
    for number in range(settings.seeds):
        draw = _drawn(bench, number, table)
        cells.append(Cell(EVERYTHING, 1.0, draw, Selection(np.ones(len(draw.tokens), bool), 0, 0.0)))
        for budget in settings.budget_shares:
            for chooser in choosers if budget < 1 else ():
                chosen = chooser.choose(draw.tokens, budget)
                if chosen is None:
                    bench.reporter.say(f"{chooser.name} knows too few positions of draw {number} for {budget:g} of it")
                else:
                    cells.append(Cell(chooser.name, budget, draw, chosen))
    return cells


def mask_cells(bench: Workbench, inner_products: pa.Table) -> list[Cell]:
    """Random masks of one and the same update batch, all of one size; `number` of the draw is that of the mask."""
    tokens = Tokens.from_table(_statistics(bench, [], inner_products, None))
    contexts = sorted(bench.update, key=lambda c: c.context_id)
    size = int(places(bench.settings.mask_budget, np.array([len(tokens)]))[0])
    cells = []
    for number in range(bench.settings.masks):
        rng = np.random.default_rng(derive_seed(bench.settings.seed, RANDOM_MASK, number))
        kept = np.zeros(len(tokens), bool)
        kept[rng.choice(len(tokens), size, replace=False)] = True
        draw = Draw(number, contexts, tokens)
        cells.append(Cell(RANDOM_MASK, bench.settings.mask_budget, draw, Selection(kept, 0, 0.0)))
    return cells


def isolated_gains(bench: Workbench) -> pa.Table | None:
    """What is known of the gain on L_fix of isolated steps in the update split: the fullest isolated probe of the run.

    Returns:
        `context_id`, `position` and `isolated_gain` (nats), or None if the run has no such probe with this loss.
    """
    best: pa.Table | None = None
    for note in sorted((bench.run / "probes").glob("*.json")):
        stage = Stage(bench.run, f"probes/{note.stem}")
        found = stage.read()
        asked = {"kind": "isolated", "sample_from": "update", "loss": bench.settings.loss}
        if found is None or found["status"] != "complete" or not asked.items() <= found["settings"].items():
            continue
        table = ISOLATED.read_arrow(bench.run / "isolated" / note.stem, [*_KEYS, "fix_gain"])
        if best is None or table.num_rows > best.num_rows:
            best = table.rename_columns([*_KEYS, "isolated_gain"])
    return best


_KEYS = ["context_id", "position"]


def _choosers(bench: Workbench, oracle: bool) -> list[Chooser]:
    settings = bench.settings
    if settings.selector == "all":
        return [_chooser(settings, s) for s in SELECTORS.values() if oracle or s.name != "oracle"]
    names = list(dict.fromkeys(name.strip() for name in settings.selector.split(",")))
    if "oracle" in names and not oracle:
        raise RunError(
            f"the selector oracle needs isolated gains in the update split of {bench.run}: run `teachdiag probe --run "
            f"{bench.run} --kind isolated --sample-from update` with the same --loss first"
        )
    return [
        _released(name) if name.startswith(_RELEASED) else _chooser(settings, resolve_selector(name)) for name in names
    ]


def _chooser(settings: ProbeSettings, selector: Selector) -> Chooser:
    """A selector under the probe's rules."""
    rules = (settings.normalisation, settings.scope, settings.min_keep, settings.ties)

    def choose(tokens: Tokens, budget: float) -> Selection | None:
        known = int((~np.isnan(selector.scores(tokens))).sum())
        wanted = int(places(budget, np.array([len(tokens)]))[0])
        return None if known < wanted else select(tokens, selector, budget, *rules)

    return Chooser(selector.name, selector.columns(HEADLINE_K), choose)


def _released(name: str) -> Chooser:
    """A mask of the released code, with its own rules."""
    method = name.removeprefix(_RELEASED)
    lists = tuple(c.name for c in POSITIONS.columns if "topk" in c.name)
    return Chooser(name, lists, lambda tokens, budget: select_released(with_live_statistics(tokens), method, budget))


def _statistics(
    bench: Workbench, choosers: Sequence[Chooser], inner_products: pa.Table, oracle: pa.Table | None
) -> pa.Table:
    """Every column that the choosers and the description of what they keep need, by (context_id, position)."""
    k = HEADLINE_K
    added = {"fix_inner", "bank_inner", "isolated_gain"}
    needed = {name for c in choosers for name in c.columns} | {stored_name(name, k) for name in _DESCRIBED}
    table = rows_of(bench.run, bench.update, sorted(needed - added - set(_KEYS))).sort_by(KEY)
    for name in ("fix_inner", "bank_inner"):
        table = table.append_column(name, inner_products[name])
    if oracle is None:
        return table
    joined = table.select(_KEYS).join(oracle, keys=_KEYS).sort_by(KEY)  # unknown gains come out null
    return table.append_column("isolated_gain", pc.fill_null(joined["isolated_gain"], np.nan))


def _drawn(bench: Workbench, number: int, table: pa.Table) -> Draw:
    """Draw the contexts of an update batch without replacement: `update_contexts` of them, or half."""
    pool = sorted(bench.update, key=lambda c: c.context_id)
    size = bench.settings.update_contexts or -(-len(pool) // 2)
    rng = np.random.default_rng(derive_seed(bench.settings.seed, "update batch", number))
    contexts = [pool[i] for i in sorted(rng.choice(len(pool), size, replace=False))]
    rows = pc.is_in(table["context_id"], pa.array([c.context_id for c in contexts]))
    seed = derive_seed(bench.settings.seed, "selection", number)
    return Draw(number, contexts, Tokens.from_table(table.filter(rows), HEADLINE_K, seed))
