"""What looks wrong in a training, by name: pure functions of the rows of `monitor`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from teachdiag.artefacts.monitored import CANARY

Row = Mapping[str, Any]

CEILING = 0.9  # share of positions with a saturated C from which C tells nothing apart
DRIFT = 0.1  # by how much the teacher's mass on the student's candidates may fall
COLLAPSE = 0.3  # share of its first entropy below which a student's has collapsed
RUNAWAY = 2.0  # times their first length from which sequences run away
SAME = 1e-6  # nats: what rounding makes of the KL of two copies of one model
NOTHING_NEW = 0.05  # share of the first KL below which the teacher says nothing new
PATIENCE = 4  # looks after the first at which a loss may be without effect


def alarms(rows: Sequence[Row]) -> dict[str, str]:
    """Return what the last row looks wrong in, beside the first of its population: names, and a sentence each.

    Args:
        rows: of one population, by step.
    """
    first, now = rows[0], rows[-1]
    sentences = {name: check(first, now) for name, check in _CHECKS.items()}
    sentences["no effect"] = _no_effect(rows)
    return {name: sentence for name, sentence in sentences.items() if sentence}


def _not_finite(first: Row, now: Row) -> str:
    if now["forward_kl"] is None and first["forward_kl"] is not None:
        return "a KL is not finite: a model gives NaN or infinite logits, or masks an id that the other does not"
    if now["log_ratio"] is None and first["log_ratio"] is not None:
        return "a token's log-probability is not finite under one of the models"
    return ""


def _saturated(first: Row, now: Row) -> str:
    if (now["saturated"] or 0) > CEILING:
        return (
            f"C is at its ceiling at {now['saturated']:.0%} of the positions: it tells them no longer apart, and D^L "
            "orders them as D does"
        )
    return ""


def _off_support(first: Row, now: Row) -> str:
    if _known(first, now, "compatibility") and now["compatibility"] < first["compatibility"] - DRIFT:
        return (
            f"the teacher's mass on the student's top 16 fell from {first['compatibility']:.2f} to "
            f"{now['compatibility']:.2f}: the student writes what the teacher would not"
        )
    alone = first["compatibility"] is None and _known(first, now, "shared_mass")
    if alone and now["shared_mass"] < first["shared_mass"] - DRIFT:
        return (
            f"the mass that both models share fell from {first['shared_mass']:.2f} to {now['shared_mass']:.2f}, by the "
            "sampled tokens: the student writes what the teacher would not"
        )
    return ""


def _entropy(first: Row, now: Row) -> str:
    if _known(first, now, "student_entropy") and now["student_entropy"] < COLLAPSE * first["student_entropy"]:
        return f"the student's entropy fell from {first['student_entropy']:.3g} to {now['student_entropy']:.3g} nats"
    return ""


def _length(first: Row, now: Row) -> str:
    if _known(first, now, "length") and now["length"] > RUNAWAY * first["length"]:
        grown = f"responses grew from {first['length']:.0f} to {now['length']:.0f} tokens"
        if now["end_of_text"] is None or now["teacher_end_of_text"] is None:
            return grown
        return (
            f"{grown}; the student's mass on the end of the text is {now['end_of_text']:.2g}, the teacher's "
            f"{now['teacher_end_of_text']:.2g}"
        )
    return ""


def _nothing_new(first: Row, now: Row) -> str:
    if now["reverse_kl"] is not None and now["reverse_kl"] < SAME:
        return f"KL(student || teacher) is {now['reverse_kl']:.2g} nats: the teacher says what the student says"
    if _known(first, now, "reverse_kl") and now["reverse_kl"] < NOTHING_NEW * first["reverse_kl"]:
        return (
            f"KL(student || teacher) fell from {first['reverse_kl']:.3g} to {now['reverse_kl']:.3g} nats: there the "
            "teacher is no better than the student, as far as distributions tell"
        )
    return ""


def _no_effect(rows: Sequence[Row]) -> str:
    """Weights move, and the canary does not come nearer to the teacher."""
    first, now = rows[0], rows[-1]
    if now["population"] != CANARY or len(rows) <= PATIENCE or now["gain"] is None or now["gain_error"] is None:
        return ""
    if now["gain"] > 2 * now["gain_error"]:
        return ""
    risen = now["gain"] < -2 * now["gain_error"]
    trend = "has risen" if risen else "is not told from what it was"
    return (
        f"after {now['step'] - first['step']} steps KL(teacher || student) {trend} (fall {now['gain']:.3g}, standard "
        f"error {now['gain_error']:.2g} nats): does the loss teach? `teachdiag check-loss` says so"
    )


def _known(first: Row, now: Row, name: str) -> bool:
    return first[name] is not None and now[name] is not None


_CHECKS: dict[str, Callable[[Row, Row], str]] = {
    "not finite": _not_finite,
    "saturated C": _saturated,
    "off-support drift": _off_support,
    "entropy collapse": _entropy,
    "length runaway": _length,
    "teacher no better": _nothing_new,
}
