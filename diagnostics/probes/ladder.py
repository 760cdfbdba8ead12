"""The step ladder: how long a step may be before first order no longer explains what it gains.

The first step of AdamW or SGD is the learning rate times a direction that does not depend on it, with weight decay or
without. So theta0 + s (theta1 - theta0) is the step at s times the rate, and the rungs s = 1, 1/2, 1/4, ... cost
forward passes only. Let g(s) be a position's gain there. A quadratic term b s^2 beside the slope a s leaves about
(b s / a)^2 of the variance of g(s) unexplained, a quarter of that at half the length. Rungs are added until g(2s) is
2 g(s) up to a quarter of what a step may leave unexplained. There the slope is taken from g(2s), g(s) and g(-s), exact
for gains of third order: the odd part of g(s) is a s + c s^3, and g(2s) less four times the even part is
2 a s + 8 c s^3.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from teachdiag.diagnostics.probes.gains import explained
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.diagnostics.processes.collectives import on_first
from teachdiag.diagnostics.processes.group import processes
from teachdiag.errors import EstimationError
from teachdiag.notes import OBJECT, read_note, recall, write_note
from teachdiag.scores import Array
from teachdiag.settings import SHORT_ENOUGH

RUNGS = tuple(2.0**-k for k in range(11))  # shares of the nominal step
_SETTLED = (1 - SHORT_ENOUGH) / 4
_NOISE = 0.01  # share of a gain's variance that may be rounding where the slope is taken

_FACTS = {"longest": float | None, "rungs": [OBJECT]}


def climb(setup: ProbeSetup, before: str, again: str, taken: str) -> float:
    """Measure the ladder of a step, and move the student to the length that the settings ask for.

    In half precision too, all is measured in float32: the length of a step is no matter of rounding.

    Args:
        setup: the student at theta1; theta0 was scored in two layouts.
        before: the state of theta0 in the usual layout, in float32.
        again: that in another layout.
        taken: the state that the step is to be rescored into; a rung that is the same is copied there.

    Returns:
        The share of the nominal step at which the student is now.

    Raises:
        EstimationError: the settings ask for the longest step that is short enough, and there is none.
        ContextError: a step breaks the student.
    """
    note, folder = setup.scratch / "ladder.json", f"ladder-{processes().num_processes}"  # which decide last digits
    half, setup.student.half = setup.student.half, None
    direction = setup.theta0.displacement()
    facts = on_first(recall)(note, _FACTS)
    if facts is None:
        theta0 = setup.forward_kl(before).astype(np.float64)
        noise = float(np.square(theta0 - setup.forward_kl(again)).mean())

        def gain_at(share: float) -> Array:
            if share < 1:  # as taken, to the last digit, otherwise
                setup.theta0.displace(direction, share)
            setup.rescore_shards(f"{folder}/{share}", setup.batched, f"{share:g} of the step", listed=True)
            return np.asarray(theta0 - setup.forward_kl(f"{folder}/{share}"))

        facts = judged(*measured(gain_at, noise), noise, setup.settings.step_size)
        on_first(write_note)(facts, note)
    share = _wanted(facts, setup.settings.learning_rate == "auto")
    setup.theta0.displace(direction, share)
    setup.student.half = half
    rung = setup.scratch / folder / str(share)
    if half is None and on_first(rung.exists)():
        on_first(shutil.copytree)(rung, setup.scratch / taken, dirs_exist_ok=True)
    return share


def ladder_results(setup: ProbeSetup, share: float) -> dict[str, Any]:
    """Return what a probe's results say of its ladder, and of the step that was taken."""
    facts = read_note(setup.scratch / "ladder.json", _FACTS, "start the same command again")
    rung = next(rung for rung in facts["rungs"] if rung["share"] == share)
    return {"learning_rate": rung["learning_rate"], "short_enough": rung["short_enough"]} | facts


def measured(gain_at: Callable[[float], Array], noise: float) -> tuple[dict[float, Array], Array | None]:
    """Measure rungs from the longest down until they settle; then the gain of the last one backwards.

    Args:
        gain_at: measures the gain of every bank position at a share of the nominal step, nats.
        noise: mean square of what rounding alone changes in a position's gain, nats squared.

    Returns:
        The gains by share, and those at minus the last share: None where rounding, or the last rung, came first.
    """
    gains: dict[float, Array] = {}
    for share in RUNGS:
        gains[share] = gain_at(share)
        if 2 * share in gains:
            longer = gains[2 * share]
            left = 1 - explained(longer, 2 * gains[share]) - 5 * rounding(longer, noise)  # noise of g(2s) and of 2 g(s)
            if left <= _SETTLED and rounding(gains[share], noise) <= _NOISE:
                return gains, gain_at(-share)
        if rounding(gains[share], noise) > _NOISE:
            break
    return gains, None


def judged(gains: Mapping[float, Array], behind: Array | None, noise: float, rate: float) -> dict[str, Any]:
    """Say of each rung what first order explains of it.

    Where rungs did not settle there is no slope. One whose half was still clear of rounding is too long even so: had it
    been short enough, that half would have settled. Of the others nobody can tell.

    Returns:
        `rungs`, each with `share`, `learning_rate`, `mean_gain` [nats], `first_order_gain` (its mean, nats), `r2`,
        `noise` (share of the gain's variance that is rounding) and `short_enough`; `longest`: the largest learning rate
        that is short enough, or None.
    """
    last = min(gains)
    slope = None if behind is None else _slope(gains[2 * last], gains[last], behind, last)
    rungs = []
    for share, gain in gains.items():
        rung: dict[str, Any] = {"share": share, "learning_rate": rate * share, "mean_gain": float(gain.mean())}
        rung |= {"first_order_gain": None, "r2": None, "noise": rounding(gain, noise)}
        clear = share / 2 in gains and rounding(gains[share / 2], noise) <= _NOISE
        rung["short_enough"] = False if clear else None
        if slope is not None:
            r2 = explained(gain, share * slope)
            rung |= {"first_order_gain": float(share * slope.mean()), "r2": r2, "short_enough": r2 >= SHORT_ENOUGH}
        rungs.append(rung)
    longest = next((rung["learning_rate"] for rung in rungs if rung["short_enough"]), None)
    return {"longest": longest, "rungs": rungs}


def _slope(longer: Array, gain: Array, behind: Array, share: float) -> Array:
    """The derivative at 0, from the gains at twice a share, at the share, and at minus the share."""
    odd, even = (gain - behind) / 2, (gain + behind) / 2
    return np.asarray((4 * odd - (longer - 4 * even) / 2) / (3 * share))


def rounding(gain: Array, noise: float) -> float:
    """Share of the variance of a gain that rounding makes up; 1 where the gain does not vary at all."""
    return min(1.0, noise / max(float(gain.var()), 1e-30)) if gain.var() > 0 else 1.0


def _wanted(facts: Mapping[str, Any], auto: bool) -> float:
    rungs: Sequence[Mapping[str, Any]] = facts["rungs"]
    if not auto:
        return float(rungs[0]["share"])
    for rung in rungs:
        if rung["short_enough"]:
            return float(rung["share"])
    last = rungs[-1]
    why = "first order does not explain its gain"
    if last["noise"] > _NOISE:
        why = f"rounding makes up {last['noise']:.0%} of the variance of its gain"
    raise EstimationError(
        f"--learning-rate auto finds no step that is short enough: even at {last['learning_rate']:g} {why}; see that "
        "the teacher is another model than the student, or give the learning rate as a number"
    )
