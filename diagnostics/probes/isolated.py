"""Kind isolated: from theta0 each time, one SGD step on the loss of a single position, and what that alone does.

The forward pass at theta0 is shared by all sampled positions of a context: each costs a backward pass through it, and
two forward passes over its own prefix, at theta0 - eta g and theta0 + eta g. The first gives the gain, both together
the first-order term, by central differences.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from teachdiag.artefacts import ISOLATED
from teachdiag.diagnostics.contexts.kept import allotted
from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.probes.measurement import Measurement
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup, rows_of
from teachdiag.diagnostics.probes.theta0 import Direction, inner
from teachdiag.diagnostics.probes.updates import gradient
from teachdiag.diagnostics.processes.collectives import joined, on_first
from teachdiag.diagnostics.processes.group import in_share
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.errors import EstimationError, SettingsError
from teachdiag.scores import quantile_bins
from teachdiag.seeds import derive_seed
from teachdiag.settings import HEADLINE_K, ProbeSettings
from teachdiag.tables import is_intact, shard_path, write_shard, write_table

_COMPARED = 4  # contexts whose theta0 is compared with capture's
_NOISE_DRAWS = 3  # layouts in which L_fix is measured at theta0
_STRATIFIED_BY = (("forward_kl", 10), (f"compatibility_k{HEADLINE_K}", 3))


class HeldOut(NamedTuple):
    """L_fix at theta0: its batches, its value in nats, and its gradient."""

    batches: list[Batch]
    value: float
    gradient: Direction


class Isolated(Measurement):
    """Steps on one position's loss at a time."""

    def check(self, run: Path, bank: list[Context], update: list[Context]) -> None:
        """Refuse a sample that cannot be drawn.

        Raises:
            EstimationError: too few or too many positions are asked for.
        """
        _drawn(run, self.settings, bank if self.settings.sample_from == "bank" else update)

    def measure(self, setup: ProbeSetup) -> dict[str, Any]:
        """Step on every sampled position's loss alone, and write the `isolated` table; return the probe's results."""
        setup.student.half = None  # in half precision, rounding exceeds what one position does
        contexts = setup.bank if setup.settings.sample_from == "bank" else setup.update
        drawn = _drawn(setup.run, setup.settings, contexts)
        by_context = {c.context_id: c for c in contexts}
        ids = drawn["context_id"].to_numpy()
        groups = [(by_context[i], drawn.filter(ids == i)) for i in dict.fromkeys(ids.tolist())]
        compared = on_first(setup.compare_with_capture)(_at_theta0(setup, [context for context, _ in groups]))
        held_out = hold_out(setup)
        with joined(), setup.reporter.bar("Isolated steps", total=drawn.num_rows) as advance:
            for index, (context, rows) in enumerate(groups):
                path = shard_path(setup.scratch / "steps", index)
                if in_share(index) and not is_intact(path):
                    write_shard(steps_in_context(setup, context, rows, held_out), path)
                advance(rows.num_rows)
        setup.theta0.verify()
        relaid = [mean_kl(setup, setup.relaid(draw)(setup.fix)) for draw in range(_NOISE_DRAWS)]
        results = on_first(_assemble)(setup, len(groups))
        return compared | results | {"fix_noise_floor": max(abs(held_out.value - value) for value in relaid)}


def _at_theta0(setup: ProbeSetup, contexts: list[Context]) -> pa.Table:
    """Rescore the first contexts that steps are taken in, enough to tell whether theta0 is what was captured."""
    return pa.concat_tables([setup.rescored(batch) for batch in setup.batched(contexts[:_COMPARED])])


def hold_out(setup: ProbeSetup) -> HeldOut:
    """Measure L_fix at theta0, and its gradient."""
    batches = setup.batched(setup.fix)
    along = gradient(setup.student, setup.mean_kl(setup.fix), setup.settings, setup.reporter)
    return HeldOut(batches, mean_kl(setup, batches), along)


def draw_positions(positions: pa.Table, sample: int, seed: int) -> pa.Table:
    """Draw positions, as evenly as possible over deciles of forward KL x thirds of C (K=16), without replacement.

    Args:
        positions: rows of the `positions` table.
        sample: how many to draw; 0 draws all.
        seed: of the draw.

    Returns:
        The drawn rows with `stratum` and `weight`, the inverse of the draw rate, so that weighted statistics are
        unbiased for all the positions given.

    Raises:
        EstimationError: there are fewer positions than asked for, or fewer asked for than there are strata.
    """
    n = positions.num_rows
    kl, c = (quantile_bins(positions[name].to_numpy().astype(np.float64), bins) for name, bins in _STRATIFIED_BY)
    stratum = kl * _STRATIFIED_BY[1][1] + c
    sizes = np.bincount(stratum)
    wanted, occupied = sample or n, int((sizes > 0).sum())
    if not occupied <= wanted <= n:
        raise EstimationError(
            f"--sample {sample} of {n} positions: it must be at least {occupied}, the strata of forward KL and C, and "
            f"at most {n}; 0 takes all"
        )
    rng = np.random.default_rng(seed)
    taken = allotted(sizes, wanted)
    rows = [rng.choice(np.flatnonzero(stratum == s), taken[s], replace=False) for s in np.flatnonzero(sizes)]
    chosen = np.sort(np.concatenate(rows))
    weight = (sizes / np.maximum(taken, 1))[stratum[chosen]]
    drawn = positions.take(chosen).append_column("stratum", pa.array(stratum[chosen]))
    return drawn.append_column("weight", pa.array(weight))


def _drawn(run: Path, settings: ProbeSettings, contexts: list[Context]) -> pa.Table:
    rows = rows_of(run, contexts, ["prompt_id", "split", *(name for name, _ in _STRATIFIED_BY)])
    return draw_positions(rows, settings.sample, derive_seed(settings.seed, "sample"))


def steps_in_context(setup: ProbeSetup, context: Context, rows: pa.Table, held_out: HeldOut) -> pa.Table:
    """Take one step for each drawn position of a context, all from the same forward pass at theta0.

    Args:
        setup: the student at theta0, where it is again afterwards.
        context: whose positions they are.
        rows: rows of `draw_positions`, all of this context.
        held_out: L_fix.

    Returns:
        Columns of the `isolated` table, remainders left out, and `noise`: what measuring from the prefix alone changes
        at theta0, nats, NaN but for the first.
    """
    measure = position_loss(setup.settings.loss, setup.settings.as_dict())
    drawn = rows["position"].to_pylist()
    reached = context.positions[context.positions <= max(drawn)]  # nothing behind the last drawn matters to any
    batch = Batch((context.keeping(reached),))
    states = batch.gather(setup.student.hidden(batch.input_ids("student", setup.student.device)), "student")
    taught = setup.teacher.at(setup.teacher.rows(batch), setup.student.device)
    tokens = torch.from_numpy(batch.tokens).long().to(setup.student.device)  # (rows,)
    before = setup.rescored(batch, hidden=states.detach())["forward_kl"].to_numpy()
    done: list[dict[str, float]] = []
    for position, row in zip(drawn, np.searchsorted(reached, drawn).tolist(), strict=True):
        at = slice(row, row + 1)
        with torch.no_grad():
            teacher_logits = setup.teacher.head(taught[at])
        loss = measure(setup.student.head(states[at]), teacher_logits, tokens[at]).sum()
        facts = {"forward_kl_before": float(before[row])} | _one_step(setup, context, position, loss, held_out)
        # What the layout of a prefix alone changes: one position a context is enough for a floor.
        facts["noise"] = abs(_kl_at(setup, context, position) - facts["forward_kl_before"]) if not done else math.nan
        done.append(facts)
    keys = {name: rows[name] for name in ("context_id", "position", "prompt_id", "split", "stratum", "weight")}
    return pa.table(keys | {name: [facts[name] for facts in done] for name in done[0]})


def _one_step(setup: ProbeSetup, context: Context, position: int, loss: Tensor, held_out: HeldOut) -> dict[str, float]:
    parameters = [p for _, p in setup.student.parameters()]
    along = list(torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True))
    norm_sq = inner(along, along)
    eta = _step_size(setup, norm_sq, context.context_id, position)
    setup.theta0.displace(along, -eta)
    stepped = _kl_at(setup, context, position)
    fixed = mean_kl(setup, held_out.batches)
    setup.theta0.displace(along, eta)
    mirrored = _kl_at(setup, context, position)
    setup.theta0.restore()
    return {
        "step_size": eta,
        "gradient_norm_sq": norm_sq,
        "forward_kl_after": stepped,
        "own_inner": (mirrored - stepped) / (2 * eta),
        "fix_before": held_out.value,
        "fix_gain": held_out.value - fixed,
        "fix_inner": inner(held_out.gradient, along),
    }


def _kl_at(setup: ProbeSetup, context: Context, position: int) -> float:
    """Forward KL at a position from a pass over its prefix alone, at the student's present weights, nats."""
    return float(setup.rescored(Batch((context.keeping([position]),)))["forward_kl"][0].as_py())


def _step_size(setup: ProbeSetup, norm_sq: float, context_id: int, position: int) -> float:
    """The learning rate itself, or what makes the learning rate the length of the step.

    Raises:
        SettingsError: the gradient is not finite, or is 0 where the step is to have a length.
    """
    matched = setup.settings.match == "norm"
    if not math.isfinite(norm_sq) or (matched and norm_sq == 0):
        raise SettingsError(
            f"the gradient of position {position} of context {context_id} has norm {math.sqrt(norm_sq):.3g}: capture "
            "with --dtype float32, or choose --match rate"
        )
    return setup.settings.step_size / math.sqrt(norm_sq) if matched else setup.settings.step_size


def mean_kl(setup: ProbeSetup, batches: Sequence[Batch]) -> float:
    """Mean forward KL over the positions of some batches at the student's present weights, nats, in float64."""
    values = [setup.rescored(batch)["forward_kl"].to_numpy() for batch in batches]
    return float(np.concatenate(values).mean(dtype=np.float64))


def _assemble(setup: ProbeSetup, contexts: int) -> dict[str, Any]:
    steps = pa.concat_tables(setup.shards("steps", contexts))
    value = {name: steps[name].to_numpy() for name in steps.column_names}
    noise = value.pop("noise")
    gain = value["forward_kl_before"] - value["forward_kl_after"]
    columns = {name: steps[name] for name in value} | {
        "probe_id": [setup.probe_id] * len(gain),
        "loss": [setup.settings.loss] * len(gain),
        "gain": gain,
        "own_remainder": gain - value["step_size"] * value["own_inner"],
        "fix_remainder": value["fix_gain"] - value["step_size"] * value["fix_inner"],
    }
    write_table(ISOLATED.build(columns), setup.run / "isolated" / setup.probe_id)
    weight = value["weight"]
    return {
        "steps": len(gain),
        "noise_floor": float(np.nanquantile(noise, 0.99)),
        "mean_gain": float(np.average(gain, weights=weight)),
        "mean_fix_gain": float(np.average(value["fix_gain"], weights=weight)),
        "share_gaining": float(np.average(gain > 0, weights=weight)),
        "share_helping_others": float(np.average(value["fix_gain"] > 0, weights=weight)),
        "fix_contexts": sorted(c.context_id for c in setup.fix),
        "fix_kl": float(value["fix_before"][0]),
    }
