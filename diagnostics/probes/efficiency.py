"""Kind efficiency: what a step on every single loss term gains on the bank, to first order, and masked steps beside it.

The bank's prompts are dealt into blocks. Slopes along the gradient of each block's mean KL (forward, or reverse where
that is the outcome) give the inner product of that gradient with the gradient of every loss term at once, for the true
teacher and for shuffled rows. The gain of any selection at equal learning rate is a mean of these; at equal length of
the step, the norms of the masked gradients are needed too, which are measured on some real update batches. Some of
these steps are really taken.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from teachdiag.artefacts import INNER_PRODUCTS, MASKED_GAINS, MASKED_STEPS
from teachdiag.diagnostics.models.alignment import KEY, Context
from teachdiag.diagnostics.probes.derivatives import Term
from teachdiag.diagnostics.probes.masked_gradients import BankGradient, Measured, measured, random_norms, state
from teachdiag.diagnostics.probes.masks import EVERYTHING, Cell, Chooser, Draw, draw_of, named_choosers
from teachdiag.diagnostics.probes.measurement import Measurement
from teachdiag.diagnostics.probes.predicted import slopes_along
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup, rows_of
from teachdiag.diagnostics.probes.shuffles import refuse_unshufflable
from teachdiag.diagnostics.probes.steps import shuffled_teacher
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.errors import RunError, SettingsError
from teachdiag.seeds import derive_seed
from teachdiag.selectors import Kept, counts_at, resolve_selector
from teachdiag.selectors.tokens import FROM_PROBES
from teachdiag.settings import HEADLINE_K, ProbeSettings
from teachdiag.tables import write_table

RANDOM, ORACLE_SCORE = "random", "isolated_gain"  # what the oracle ranks by: here the inner product with the bank
BATCH_CONTEXTS = 16  # of an update batch, where none are asked for
_THETA0 = "theta0"
_TOLERATED = 0.05  # of an error to first order, relative to the whole batch's gain
_REAL_BUDGET = 0.03  # below it too few positions carry a step for it to be short
_KEYS = [name for name, _ in KEY]


class Efficiency(Measurement):
    """What each selector keeps of the gain of a whole update batch; no context is set aside for L_fix."""

    fix_apart = False

    def check(self, run: Path, bank: list[Context], update: list[Context]) -> None:
        """Refuse selectors that cannot choose here, and contexts that cannot be shuffled or dealt into blocks.

        Raises:
            SettingsError: a selector is unknown, or reads what only other kinds of probe measure.
            EstimationError: one prompt holds more than half of the update positions.
            RunError: there are fewer prompts than blocks.
        """
        named = [self.settings.norm_selectors] + [self.settings.selector] * (self.settings.selector != "all")
        for name in ",".join(named).split(","):
            lacking = set(resolve_selector(name.strip()).columns(HEADLINE_K)) & (set(FROM_PROBES) - {ORACLE_SCORE})
            if lacking:
                raise SettingsError(
                    f"selector {name.strip()} reads {', '.join(sorted(lacking))}, which --kind efficiency does not "
                    "measure: 'oracle' ranks by the inner product with the whole bank"
                )
        refuse_unshufflable(update)
        prompts = len({c.prompt_id for c in bank[: self.settings.bank_contexts or None]})
        if prompts < self.settings.blocks:
            raise RunError(
                f"{run} has {prompts} bank prompts to deal into --blocks {self.settings.blocks}: ask for fewer"
            )

    def batch(self, contexts: list[Context]) -> list[Context]:
        """Return all contexts: the loss terms of all are looked at, and batches are drawn from them."""
        return contexts

    def measure(self, setup: ProbeSetup) -> dict[str, Any]:
        """Measure inner products and masked gradients, take some of the steps, and write the three tables."""
        setup.student.half = None  # in half precision, rounding exceeds a difference quotient
        setup.rescore_shards(_THETA0, setup.batched, "theta0")
        compared = on_first(setup.compare_with_capture)(pa.concat_tables(setup.shards(_THETA0)))
        bank = BankGradient(setup, deal_blocks(setup.bank, self.settings.blocks, self.settings.seed))
        products, derivatives = _inner_products(setup, bank)
        on_first(_write_products)(setup, bank, products)
        table = _statistics(setup, bank.mean([product["inner"].to_numpy() for product in products]))
        draws = [_drawn(setup, number, table) for number in range(self.settings.norm_batches)]
        cells = [cell for number, draw in enumerate(draws) for cell in _cells(setup, number, draw)]
        measurement = measured(setup, bank, cells, chosen_steps(cells, self.settings.real_steps))
        rows = [*_drawn_rows(setup, cells, measurement), *_random_rows(setup, cells, measurement)]
        setup.theta0.verify()
        on_first(_write_steps)(setup, bank, cells, rows, measurement.taken)
        results = compared | {
            "blocks": bank.facts,
            "derivatives": derivatives,
            "first_order_error": first_order_error(rows),
            "step": measurement.step,
            "masked": _summary(rows),
        }
        doubts = [*compared.get("doubts", []), *_doubts(results["first_order_error"], measurement.step)]
        return results | ({"doubts": doubts} if doubts else {})


def deal_blocks(contexts: Sequence[Context], count: int, seed: int) -> list[list[Context]]:
    """Deal whole prompts at random into blocks of as many prompts as possible alike."""
    prompts = sorted({c.prompt_id for c in contexts})
    dealt = np.random.default_rng(derive_seed(seed, "blocks")).permutation(prompts)
    return [[c for c in contexts if c.prompt_id in part] for part in map(set, np.array_split(dealt, count))]


def _inner_products(setup: ProbeSetup, bank: BankGradient) -> tuple[list[pa.Table], dict[str, float | None]]:
    """Return, a block each, the inner products of every loss term, `inner` and `inner_shuffled`; and how.

    The step of the differences is chosen on the first block, and has its length on all.
    """
    loss = position_loss(setup.settings.loss, setup.settings.as_dict())
    terms = {"inner": Term(loss, setup.teacher), "inner_shuffled": Term(loss, shuffled_teacher(setup, 0))}
    tables, facts = [], list[dict[str, float | None]]()
    for number in range(len(bank.blocks)):
        length = facts[0]["difference_length"] if facts else None
        table, how = slopes_along(setup, f"block-{number}", partial(bank.of, number), setup.update, terms, length)
        tables.append(table)
        facts.append(how)
    return tables, facts[0]


def _write_products(setup: ProbeSetup, bank: BankGradient, products: Sequence[pa.Table]) -> None:
    prompts = {c.context_id: c.prompt_id for c in setup.update}
    blocks = []
    for number, (table, positions) in enumerate(zip(products, bank.positions, strict=True)):
        n = table.num_rows
        columns = {name: table[name] for name in table.column_names} | {
            "probe_id": [setup.probe_id] * n,
            "loss": [setup.settings.loss] * n,
            "prompt_id": [prompts[i] for i in table["context_id"].to_pylist()],
            "block": np.full(n, number),
            "block_positions": np.full(n, positions),
        }
        blocks.append(INNER_PRODUCTS.build(columns))
    write_table(pa.concat_tables(blocks), setup.run / "inner_products" / setup.probe_id)


def _statistics(setup: ProbeSetup, with_bank: np.ndarray) -> pa.Table:
    """Every column that the selectors need, by (context_id, position), and what the oracle ranks by."""
    needed = {name for chooser in _choosers(setup.settings) for name in chooser.columns} - {*_KEYS, ORACLE_SCORE}
    table = rows_of(setup.run, setup.update, sorted(needed)).sort_by(KEY)
    return table.append_column(ORACLE_SCORE, pa.array(with_bank))


def _choosers(settings: ProbeSettings) -> list[Chooser]:
    """Selectors of which masks are made: random positions need none under SGD."""
    choosers = named_choosers(settings, settings.norm_selectors)
    return [c for c in choosers if c.name != RANDOM or settings.optimizer != "sgd"]


def _drawn(setup: ProbeSetup, number: int, table: pa.Table) -> Draw:
    """An update batch: its contexts are those of no other one as long as there are enough."""
    pool = sorted(setup.update, key=lambda c: c.context_id)
    size = setup.settings.update_contexts or min(BATCH_CONTEXTS, -(-len(pool) // 2))
    order = np.random.default_rng(derive_seed(setup.settings.seed, "update batches")).permutation(len(pool))
    chosen = sorted(order[(number * size + np.arange(size)) % len(pool)])
    return draw_of([pool[i] for i in chosen], table, derive_seed(setup.settings.seed, "selection", number))


def _cells(setup: ProbeSetup, number: int, draw: Draw) -> list[Cell]:
    """The unselective cell of an update batch, and then every selector's at every budget whose norm is measured."""
    cells = [Cell(EVERYTHING, 1.0, number, draw, Kept(np.ones(len(draw.tokens), bool), 0, 0.0))]
    for budget in setup.settings.norm_shares:
        for chooser in _choosers(setup.settings) if budget < 1 else ():
            chosen = chooser.choose(draw.tokens, budget)
            if chosen is None:
                setup.reporter.say(f"{chooser.name} knows too few positions of batch {number} for {budget:g} of it")
            else:
                cells.append(Cell(chooser.name, budget, number, draw, chosen))
    return cells


def chosen_steps(cells: Sequence[Cell], count: int) -> list[int]:
    """Choose whose steps are really taken: of the first batch the unselective one, and where first order differs most.

    Budgets are taken by the range of the selectors' gains to first order, at equal learning rate, the widest first; of
    each the selectors with the largest and the smallest. Below a budget of 3% too few positions carry a step.

    Returns:
        Numbers of the cells, ascending; none where `count` is 0.
    """
    gains: dict[float, list[tuple[float, int]]] = {}
    for number, cell in enumerate(cells):
        if cell.seed == cells[0].seed and cell.selector != EVERYTHING and cell.budget >= _REAL_BUDGET:
            gains.setdefault(cell.budget, []).append((cell.mean(ORACLE_SCORE), number))
    widest = sorted(gains.values(), key=lambda of_budget: min(of_budget)[0] - max(of_budget)[0])
    extremes = [number for of_budget in widest for number in dict.fromkeys((max(of_budget)[1], min(of_budget)[1]))]
    return sorted([0, *extremes[:count]]) if count else []


def _drawn_rows(setup: ProbeSetup, cells: Sequence[Cell], measurement: Measured) -> list[dict[str, Any]]:
    """Rows of `masked_steps`: cells whose mask is known."""
    rows = []
    kl = setup.settings.outcome_kl
    before = setup.kl_in(_THETA0, kl).astype(np.float64) if measurement.taken else None
    for number, (cell, gradient) in enumerate(zip(cells, measurement.gradients, strict=True)):
        linear = setup.settings.optimizer == "sgd"
        row = _row(setup, cell, cell.selector, cell.budget, int(cell.selection.kept.sum())) | {
            "gradient_norm": gradient.norm,
            "direction_norm": gradient.direction_norm,
            "first_order": cell.mean(ORACLE_SCORE) if linear else gradient.first_order,
            "exact_first_order": gradient.first_order,
        }
        if before is not None and number in measurement.taken:
            row["learning_rate"] = measurement.step["length"] / gradient.direction_norm
            row["update_norm"] = measurement.step["length"]
            row["real_gain"] = float((before - setup.kl_in(state(number), kl)).mean())
        rows.append(row)
    return rows


def _random_rows(setup: ProbeSetup, cells: Sequence[Cell], measurement: Measured) -> list[dict[str, Any]]:
    """Rows of random positions under SGD, each over all masks of its size; none where their norm is not asked for."""
    asked = RANDOM in {c.name for c in named_choosers(setup.settings, setup.settings.norm_selectors)}
    if not asked or setup.settings.optimizer != "sgd":
        return []
    budgets, rows = [b for b in setup.settings.norm_shares if b < 1], []
    for cell, whole in zip(cells, measurement.gradients, strict=True):
        if cell.selector == EVERYTHING:
            sizes = [int(counts_at(budget, np.array([len(cell.draw.tokens)]))[0]) for budget in budgets]
            for budget, size, norm in zip(budgets, sizes, random_norms(setup, cell, whole.norm, sizes), strict=True):
                facts = {"gradient_norm": norm, "direction_norm": norm, "first_order": cell.mean(ORACLE_SCORE)}
                rows.append(_row(setup, cell, RANDOM, budget, size) | facts)
    return rows


def _row(setup: ProbeSetup, cell: Cell, selector: str, budget: float, kept: int) -> dict[str, Any]:
    return {
        "probe_id": setup.probe_id,
        "selector": selector,
        "budget": budget,
        "batch": cell.seed,
        "loss": setup.settings.loss,
        "optimizer": setup.settings.optimizer,
        "context_ids": [c.context_id for c in cell.draw.contexts],
        "n_batch": len(cell.draw.tokens),
        "n_kept": kept,
    } | dict.fromkeys(("exact_first_order", "learning_rate", "update_norm", "real_gain"))


def _write_steps(
    setup: ProbeSetup, bank: BankGradient, cells: Sequence[Cell], rows: Sequence[dict[str, Any]], taken: Sequence[int]
) -> None:
    """Write `masked_steps`, and the gain of every prompt after the steps that were taken."""
    write_table(MASKED_STEPS.build_rows(rows), setup.run / "masked_steps" / setup.probe_id)
    block = {c.prompt_id: number for number, contexts in enumerate(bank.blocks) for c in contexts}
    prompts = {c.context_id: c.prompt_id for c in setup.bank}
    before = pa.concat_tables(setup.shards(_THETA0)).sort_by(KEY)
    gains, kl = [], setup.settings.outcome_kl
    for number in taken:
        gain = before[kl].to_numpy().astype(np.float64) - setup.kl_in(state(number), kl)
        frame = pd.DataFrame({"prompt_id": [prompts[i] for i in before["context_id"].to_pylist()], "gain": gain})
        means = frame.groupby("prompt_id")["gain"].agg(["size", "mean"])
        cell = cells[number]
        common = {"probe_id": setup.probe_id, "selector": cell.selector, "budget": cell.budget, "batch": cell.seed}
        for prompt, n, mean in means.itertuples():
            gains.append(common | {"prompt_id": prompt, "block": block[prompt], "n_positions": n, "gain": mean})
    write_table(MASKED_GAINS.build_rows(gains), setup.run / "masked_gains" / setup.probe_id)


def first_order_error(rows: Sequence[Mapping[str, Any]]) -> float:
    """Largest error of a cell's gain to first order, as its products with blocks give it, over that of 'all'.

    The truth is the product of its own gradient with the bank's.
    """
    scale = {row["batch"]: abs(row["exact_first_order"]) for row in rows if row["selector"] == EVERYTHING}
    known = [row for row in rows if row["exact_first_order"] is not None]
    errors = [abs(r["first_order"] - r["exact_first_order"]) / max(scale[r["batch"]], 1e-30) for r in known]
    return float(max(errors))


def _doubts(error: float, step: Mapping[str, Any]) -> list[str]:
    """Sentences on derivatives that are off, and on real steps that could not be taken."""
    sentences = []
    if error > _TOLERATED:
        sentences.append(
            f"First-order gains are off by up to {error:.0%} of the whole batch's: use --method central, or jvp."
        )
    if step["trials"] and step["learning_rate"] is None:
        last = step["trials"][-1]
        sentences.append(
            f"No real step was taken: at learning rate {last['learning_rate']:.3g}, {last['curvature']:.1%} of the "
            f"mean gain is curvature and {last['rounding']:.1%} rounding; give a --learning-rate to take them anyway."
        )
    return sentences


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Share of the whole batch's gain that each selector keeps at each budget, at both matches, mean over batches."""
    whole = {row["batch"]: row for row in rows if row["selector"] == EVERYTHING}
    groups: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for row in rows:
        rate = row["first_order"] / whole[row["batch"]]["first_order"]
        norm = rate * whole[row["batch"]]["direction_norm"] / row["direction_norm"]
        groups.setdefault((row["selector"], row["budget"]), []).append((rate, norm))
    return [
        {"selector": selector, "budget": budget}
        | dict(zip(("rate", "norm"), np.mean(shares, axis=0).tolist(), strict=True))
        for (selector, budget), shares in groups.items()
    ]
