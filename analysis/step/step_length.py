"""Was a step short enough for claims about first-order signals to be judged on it? From the ladder of its probe."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from teachdiag.analysis.bank.measurements import Record
from teachdiag.settings import SHORT_ENOUGH, kind_reads

_NEEDED = f"{SHORT_ENOUGH:.0%}"


def learning_rate(record: Record) -> str:
    """Return the learning rate of a probe's steps: what its ladder found, where that was asked for."""
    rate = record.results.get("ladder", {}).get("learning_rate", record.settings["learning_rate"])
    return rate if isinstance(rate, str) else f"{rate:g}"


def update_facts(record: Record) -> dict[str, Any]:
    """Return loss, optimizer and learning rate of a probe's steps, in columns; None where the kind takes no step."""
    settings = record.settings
    facts = {name: settings[name] if kind_reads(record.kind, name) else None for name in ("loss", "optimizer")}
    rate = learning_rate(record) if kind_reads(record.kind, "learning_rate") else "auto"
    return facts | {"learning_rate": None if rate == "auto" else float(rate)}


def length_text(record: Record) -> str:
    """Say how much of a step's gain is first order; nothing of a probe that measured no ladder."""
    ladder = record.results.get("ladder")
    if ladder is None:
        return ""
    rung = _taken(ladder)
    if rung["r2"] is None:
        known = rung["short_enough"] is None
        answer = f"cannot be told: rounding makes up {rung['noise']:.0%} of that" if known else "is none"
        return f" What first order explains of the variance of its gain {answer}."
    longest = ", the longest such step of its ladder" if record.settings["learning_rate"] == "auto" else ""
    return f" First order explains {_share(rung['r2'])} of the variance of its gain{longest}."


TOO_LONG, REVERSED = "too long", "reversed"  # statuses of a step on which nothing is judged


def obstacle(record: Record, mean_gain: str, harmed: bool, *, clearly: bool = True) -> tuple[str, str] | None:
    """Say why nothing can be judged on a step, which was too long, and the rate to use.

    Args:
        record: a probe that takes steps.
        mean_gain: its mean gain, as text.
        harmed: whether that is below 0, beyond its interval and the noise floor.
        clearly: whether it is so at 99% too; if not, the sentence says what seems to be.

    Returns:
        `TOO_LONG`, or `REVERSED` where no shorter step would help, and a sentence; None of a step that can be judged.
    """
    ladder, steps = record.results.get("ladder"), record.settings.get("steps", 1)
    at, effect = f"learning rate {learning_rate(record)}", f"mean gain {mean_gain} nats"
    if ladder is not None and ladder["short_enough"] is False:
        r2 = _taken(ladder)["r2"]
        return TOO_LONG, (
            f"The step was too long to judge teachability on it: at {at} first order explains "
            f"{'none' if r2 is None else _share(r2)} of the variance of the gain ({_NEEDED} are needed; {effect}): "
            f"{_longest(ladder)}."
        )
    if not harmed or not kind_reads(record.kind, "learning_rate"):
        return None
    if not clearly:
        effect += ", below 0 at 95% but not at 99%"
    was, takes = ("was", "takes") if clearly else ("seems", "seems to take")
    too_long = f"The step {was} too long: at {at} it {takes} the student away from the teacher ({effect}"
    if ladder is None:
        shorter = "probe again with `--learning-rate auto`"
        if steps > 1:
            shorter = f"take fewer of the {steps} steps, or shorter ones, or a single one with `--learning-rate auto`"
        return TOO_LONG, f"{too_long}): {shorter}."
    rung = _taken(ladder)
    first = rung["first_order_gain"]
    if first is not None and first <= 0:
        return REVERSED, (
            f"The step {takes} the student away from the teacher ({effect}), and no shorter one along it would help: "
            f"first order alone foresees {first:.3g} nats. Teachability is not judged on it."
        )
    foreseen = "" if first is None else f", where first order alone foresees {first:.3g}"
    return TOO_LONG, f"{too_long}{foreseen}): use `--learning-rate {_helping(rung):g}`."


def ladder_table(record: Record) -> pd.DataFrame:
    """Return the rungs of a step's ladder as text; no rows where none was measured."""
    rungs = record.results.get("ladder", {}).get("rungs", [])
    verdicts = {True: "yes", False: "no", None: "cannot tell"}
    return pd.DataFrame(
        {
            "share of the step": f"{rung['share']:g}",
            "learning rate": f"{rung['learning_rate']:g}",
            "mean gain [nats]": f"{rung['mean_gain']:.3g}",
            "to first order": "" if rung["first_order_gain"] is None else f"{rung['first_order_gain']:.3g}",
            "R2 of first order": "" if rung["r2"] is None else f"{rung['r2']:.4f}",
            "rounding's share of the variance": f"{rung['noise']:.2g}",
            "short enough": verdicts[rung["short_enough"]],
        }
        for rung in rungs
    )


def _taken(ladder: Mapping[str, Any]) -> Mapping[str, Any]:
    rung: Mapping[str, Any] = next(r for r in ladder["rungs"] if r["learning_rate"] == ladder["learning_rate"])
    return rung


def _share(r2: float) -> str:
    return f"{r2:.1%}" if r2 > 0 else "none"


def _longest(ladder: Mapping[str, Any]) -> str:
    if ladder["longest"] is None:
        return f"no step down to {ladder['rungs'][-1]['learning_rate']:g} is short enough"
    return f"use `--learning-rate {ladder['longest']:g}`, the longest of its ladder that is short enough"


def _helping(rung: Mapping[str, Any]) -> float:
    """The rate at which slope and curvature, told from first order and the gain, foresee most; a half-power below it.

    Let f s be the first-order gain at s of the step's length and f s - (f - g) s^2 the gain: it is largest at
    f / (2 (f - g)).
    """
    first, gain, rate = rung["first_order_gain"], rung["mean_gain"], float(rung["learning_rate"])
    if first is None:
        return rate / 2
    return rate * 2.0 ** math.floor(math.log2(first / (2 * (first - gain))))
