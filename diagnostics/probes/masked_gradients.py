"""Gradients of the loss over what a selector keeps of an update batch: their norms, and steps along some of them.

Each costs a backward pass. For random positions no mask needs to be drawn under SGD: with g_j the n gradients of the
batch, the expected squared norm of the sum over a random k of them is

    k/n ((1 - (k-1)/(n-1)) sum_j |g_j|^2 + (k-1)/(n-1) |sum_j g_j|^2),

and sum_j |g_j|^2 is the expectation of |sum_j e_j g_j|^2 over random signs e_j (Hutchinson 1990), one backward pass.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.probes.masks import Cell
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.diagnostics.probes.theta0 import Direction, inner
from teachdiag.diagnostics.probes.updates import gradient, step_objective
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.errors import EstimationError
from teachdiag.notes import OBJECT, fields_schema, recall, write_note
from teachdiag.progress import Reporter
from teachdiag.seeds import derive_seed

_ADAMW_EPS = 1e-8  # torch's default, which the steps of other kinds have too
_CURVED = 0.02  # share of the unselective step's mean gain that may be curvature
_ROUNDED = 0.01  # and the share that may be rounding
_TRIALS = 8
_SHRINK = 16.0  # at most, from one trial to the next
_SAFETY = 0.8
_STEP = {"learning_rate": float | None, "length": float | None, "trials": [OBJECT]}


@dataclass(frozen=True)
class Gradient:
    """What is known of one masked gradient.

    Attributes:
        norm: of the gradient of the mean loss over the kept positions.
        direction_norm: of the first step at learning rate 1: the same for SGD, that of g / (|g| + eps) for AdamW.
        first_order: inner product of that step, downhill, with the gradient of the bank's mean KL, nats.
    """

    norm: float
    direction_norm: float
    first_order: float


@dataclass(frozen=True)
class Measured:
    """What `measured` found.

    Attributes:
        gradients: one a cell.
        step: how long the steps are that were taken, and how that was found: see `_short_step`.
        taken: numbers of the cells whose step was taken.
    """

    gradients: list[Gradient]
    step: dict[str, Any]
    taken: list[int]


class BankGradient:
    """The gradient of the bank's mean KL, made and summed block by block: two directions at a time."""

    def __init__(self, setup: ProbeSetup, blocks: Sequence[list[Context]]) -> None:
        """Take the contexts of each block, which are the bank's."""
        self.blocks = blocks
        self.positions = [sum(c.rows for c in block) for block in blocks]
        self._setup, self._sum, self._added = setup, list[torch.Tensor](), 0

    @property
    def facts(self) -> list[dict[str, int]]:
        """Prompts and positions of each block."""
        prompts = (len({c.prompt_id for c in block}) for block in self.blocks)
        return [{"prompts": n, "positions": size} for n, size in zip(prompts, self.positions, strict=True)]

    def of(self, number: int) -> Direction:
        """Gradient of a block's mean KL."""
        setup = self._setup
        objective = setup.mean_kl(self.blocks[number], setup.settings.outcome_kl)
        along = gradient(setup.student, objective, setup.settings, setup.reporter)
        if number == self._added:  # in their order only: no last digit hangs on where a killed probe went on
            share = self.positions[number] / sum(self.positions)
            if not self._sum:
                self._sum = [torch.zeros_like(part) for part in along]
            for total, part in zip(self._sum, along, strict=True):
                total.add_(part, alpha=share)
            self._added += 1
        return along

    def whole(self) -> Direction:
        """Gradient of the mean over all positions of the bank."""
        if self._added < len(self.blocks):
            self._sum, self._added = [], 0
            for number in range(len(self.blocks)):
                self.of(number)
        return self._sum

    def mean(self, by_block: Sequence[np.ndarray]) -> np.ndarray:
        """Mean over all positions of the bank, from one array a block of means over its own; float64."""
        weighted = [n * values.astype(np.float64) for n, values in zip(self.positions, by_block, strict=True)]
        mean: np.ndarray = np.sum(weighted, axis=0) / sum(self.positions)
        return mean


def measured(setup: ProbeSetup, bank: BankGradient, cells: Sequence[Cell], taken: Sequence[int]) -> Measured:
    """Measure the gradient of every cell, and rescore the bank after the steps that are taken.

    These are all as long as the step of the first cell, which is the unselective one.

    Args:
        setup: the student at theta0, where it is again afterwards.
        bank: the gradient of what the steps are to lower.
        cells: what is kept.
        taken: numbers of the cells whose step is taken, if a length is found that is short and clear of rounding.
    """
    first = cache(partial(_downhill, setup, bank, cells[0]))
    step = _short_step(setup, bank.blocks[0], first) if taken else {"learning_rate": None, "length": None, "trials": []}
    gradients = []
    for number, cell in enumerate(setup.reporter.track(cells, "Masked gradients")):
        downhill = partial(_downhill, setup, bank, cell) if number else first
        gradients.append(_gradient(setup, bank, number, cell, downhill, step["length"] if number in taken else None))
        first.cache_clear()
    return Measured(gradients, step, [number for number in taken if step["length"] is not None])


def state(number: int) -> str:
    """Return the state that the bank was rescored into after a cell's step."""
    return f"cells/after-{number}"


def _downhill(setup: ProbeSetup, bank: BankGradient, cell: Cell) -> tuple[float, Direction]:
    """Norm of a cell's gradient, and the gradient as the optimizer's first step of learning rate 1 follows it."""
    bank.whole()  # what this takes beside its sum is free again before another direction is made
    kept = cell.draw.kept(cell.selection.kept)
    objective = step_objective(cell.draw.contexts, setup.teacher, setup.settings, kept)
    direction = gradient(setup.student, objective, setup.settings, Reporter(quiet=True))
    norm = math.sqrt(inner(direction, direction))
    if not math.isfinite(norm) or norm == 0:
        raise EstimationError(
            f"the gradient over what {cell.selector} keeps of {cell.budget:.0%} of update batch {cell.seed} has norm "
            f"{norm:g}, so that there is no step along it: leave the selector out, or choose another --seed"
        )
    if setup.settings.optimizer == "adamw":
        for part in direction:
            part.div_(part.abs().add_(_ADAMW_EPS))
    return norm, direction


def _gradient(
    setup: ProbeSetup,
    bank: BankGradient,
    number: int,
    cell: Cell,
    downhill: Callable[[], tuple[float, Direction]],
    length: float | None,
) -> Gradient:
    """Measure a cell's gradient and rescore the bank after a step of a length, or read what an earlier process did."""
    note = setup.scratch / "cells" / f"{number}.json"
    done = on_first(recall)(note, fields_schema(Gradient) | {"kept": str, "length": float | None})
    same = done is not None and (done["kept"], done["length"]) == (cell.digest, length)
    if done and same and (length is None or on_first(setup.unscored)(state(number)) == []):
        return Gradient(**{entry.name: done[entry.name] for entry in fields(Gradient)})
    norm, direction = downhill()
    gradient = Gradient(norm, math.sqrt(inner(direction, direction)), inner(direction, bank.whole()))
    on_first(write_note)(asdict(gradient) | {"kept": cell.digest, "length": length}, note)
    if length is not None:
        setup.theta0.displace(direction, -length / gradient.direction_norm)
        setup.rescore_shards(state(number), setup.batched, f"{cell.selector} at {cell.budget:.0%}")
        setup.theta0.restore()
    return gradient


def _short_step(
    setup: ProbeSetup, contexts: Sequence[Context], downhill: Callable[[], tuple[float, Direction]]
) -> dict[str, Any]:
    """Find a length at which a step's mean gain on some bank contexts is of first order, or try the one asked for.

    The gains of steps forwards and backwards, g(s) and g(-s), tell the slope from the curvature: a s + c s^3 is half
    their difference, b s^2 half their sum. A quadratic term falls with the length, so that the next trial is known.

    Returns:
        `learning_rate` and `length` of the step, null where there is none of which less than 2% is curvature and less
        than 1% rounding; `trials`, each with `learning_rate`, `mean_gain` (nats), and both shares.
    """
    note = setup.scratch / "step.json"
    facts = on_first(recall)(note, _STEP)
    if facts is not None:
        return facts
    kl = setup.settings.outcome_kl
    theta0, again = (setup.bank_kl(lay(contexts), kl)[kl].to_numpy() for lay in (setup.batched, setup.relaid(0)))
    noise = float(np.sqrt(np.square(theta0 - again).mean(dtype=np.float64) / len(theta0)))
    direction = downhill()[1]

    def gain(scale: float) -> float:
        setup.theta0.displace(direction, -scale)
        after = setup.bank_kl(setup.batched(contexts), kl)[kl].to_numpy()
        setup.theta0.restore()
        return float((theta0.astype(np.float64) - after).mean())

    asked, rate, trials = setup.settings.learning_rate != "auto", setup.settings.step_size, list[dict[str, float]]()
    while len(trials) < _TRIALS:
        ahead, behind = gain(rate), gain(-rate)
        slope = max(abs(ahead - behind) / 2, 1e-30)
        trial = {"curvature": abs(ahead + behind) / 2 / slope, "rounding": noise / slope}
        trials.append({"learning_rate": rate, "mean_gain": ahead} | trial)
        fine = trial["curvature"] <= _CURVED and trial["rounding"] <= _ROUNDED
        if asked or fine or trial["rounding"] > _ROUNDED:
            break
        rate *= max(_SAFETY * _CURVED / trial["curvature"], 1 / _SHRINK)
    settled = asked or fine
    length = rate * math.sqrt(inner(direction, direction)) if settled else None
    facts = {"learning_rate": rate if settled else None, "length": length, "trials": trials}
    on_first(write_note)(facts, note)
    return facts


def random_norms(setup: ProbeSetup, cell: Cell, norm: float, sizes: Sequence[int]) -> list[float]:
    """Root mean square, over all masks of a size, of the norm of the mean gradient of what they keep.

    Args:
        setup: the student at theta0.
        cell: the unselective cell of the update batch.
        norm: of its gradient.
        sizes: of the masks, in positions.
    """
    total = len(cell.draw.tokens)
    squares = max(_sum_of_squares(setup, cell), total * norm**2)  # at least the squared norm of the sum, over n
    return [math.sqrt(_expected_square(squares, (total * norm) ** 2, total, size)) / size for size in sizes]


def _expected_square(squares: float, square_of_sum: float, total: int, size: int) -> float:
    """Expected squared norm of the sum of a random `size` of `total` vectors (the formula above)."""
    together = (size - 1) / max(total - 1, 1)
    return size / total * ((1 - together) * squares + together * square_of_sum)


def _sum_of_squares(setup: ProbeSetup, cell: Cell) -> float:
    """Sum over an update batch's positions of the squared norm of their own gradient, from one draw of signs."""
    note = setup.scratch / "cells" / f"squares-{cell.seed}.json"
    done = on_first(recall)(note, {"squares": float})
    if done is None:
        rng = np.random.default_rng(derive_seed(setup.settings.seed, "signs", cell.seed))
        signs = {c.context_id: rng.choice(np.array([-1, 1], np.int8), len(c.response)) for c in cell.draw.contexts}
        objective = replace(step_objective(cell.draw.contexts, setup.teacher, setup.settings), factors=signs)
        direction = gradient(setup.student, objective, setup.settings, Reporter(quiet=True))
        done = {"squares": inner(direction, direction) * objective.positions**2}
        on_first(write_note)(done, note)
    return float(done["squares"])
