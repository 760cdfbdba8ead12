"""What `teachdiag.Monitor` writes while somebody's trainer runs."""

import pyarrow as pa

from teachdiag.artefacts.columns import BUDGET, COUNTS, DOUBLE, INT, LONG, TEXT
from teachdiag.artefacts.measured import POSITIONS
from teachdiag.tables import Column, Table

SATURATED = 1 - 1e-4  # teacher's mass on the student's top K from which C is called saturated
CANARY, LIVE = "canary", "live"  # what is scored: contexts that never change, and the batch that is trained on


def _mean(name: str, unit: str, what: str, optional: bool = False) -> Column:
    return Column(name, DOUBLE, unit, what, nullable=True, optional=optional)


MONITOR = Table(
    name="monitor",
    folder="monitor/",
    written_by="teachdiag.Monitor",
    meaning="What was seen of a training from outside, at every step that was looked at. Means are over positions; a "
    "statistic that could not be had, or is not finite, is null.",
    key=("step", "population"),
    columns=(
        Column("step", INT, "1", "optimizer steps taken; 0 is the student before training"),
        Column("population", TEXT, "", "'canary': contexts that never change; 'live': the batch of this step"),
        Column("n_positions", LONG, "positions", "positions behind the means"),
        Column("n_contexts", LONG, "contexts", "sequences that they are from"),
        _mean("forward_kl", "nats", "KL(teacher || student)"),
        _mean("reverse_kl", "nats", "KL(student || teacher)"),
        _mean("log_ratio", "nats", "log p(y) - log q(y) at the tokens y; of live ones an estimate of reverse_kl"),
        _mean("shared_mass", "1", "min(1, q(y)/p(y)) at the tokens y; of live ones an estimate of the sum of "
              "min(p, q), which is 1 less the total variation distance", optional=True),
        _mean("disagreement", "nats", "D at K = 16"),
        _mean("compatibility", "1", "C at K = 16"),
        _mean("learnable", "1", "D^L at K = 16, by the scales of the canary's first step"),
        _mean("incompatible", "1", "D^I at K = 16, by the same scales"),
        _mean("saturated", "1", "share of positions where C at K = 16 is above 0.9999"),
        _mean("overlap", "1", "share of the student's top 16 that are in the teacher's"),
        _mean("student_entropy", "nats", "H(p)"),
        _mean("teacher_entropy", "nats", "H(q)"),
        _mean("end_of_text", "1", "the student's mass on tokens that end a text"),
        _mean("teacher_end_of_text", "1", "the teacher's"),
        _mean("head_gain", "nats", "squared norm of the hidden state times logit_alignment: what a gradient step of "
              "the LM head alone on each position's reverse KL gains there, to first order, per unit of learning rate"),
        _mean("length", "tokens", "tokens of the student's own in a sequence; of live ones"),
        _mean("gain", "nats", "forward KL at the first step that was looked at, less now; of the canary"),
        _mean("gain_error", "nats", "standard error of it, over contexts"),
        _mean("update_norm", "1", "length of the last optimizer step, from four million weights if there are more"),
        Column("alarms", TEXT, "", "names of what looks wrong, comma-separated; '' if nothing does"),
        Column("seconds", DOUBLE, "s", "what looking took"),
    ),
)  # fmt: skip

CANARY_POSITIONS = Table(
    name="canary",
    folder="canary/",
    written_by="teachdiag.Monitor",
    meaning="The canary's positions at every step that was looked at, with the columns of `positions`: what a selector "
    "would keep there can be computed for each step.",
    key=("step", *POSITIONS.key),
    columns=(Column("step", pa.int32(), "1", "optimizer steps taken"), *POSITIONS.columns),
)


def _interval(name: str) -> tuple[Column, ...]:
    return tuple(
        Column(f"{name}_ci_{end}", DOUBLE, "1", f"{words} end of its 95% interval, over prompts", nullable=True)
        for end, words in (("low", "lower"), ("high", "upper"))
    )


TIMELINE = Table(
    name="timeline",
    folder="analysis/",
    written_by="timeline",
    meaning="What is left of a monitored training's signal at each look at the canary, and whether selectors still "
    "keep the positions that they kept at the first look.",
    key=("step", "selector"),
    columns=(
        Column("step", INT, "1", "optimizer steps taken"),
        Column("selector", TEXT, "", "whose mask is followed; 'all' is every position"),
        Column("budget", BUDGET.type, "1", "share of the canary's positions that the mask keeps"),
        Column("overlap", DOUBLE, "1", "share of the first look's mask that the same selector keeps at this one; null "
               "for 'all', and where the selector's scores are not defined", nullable=True),
        *_interval("overlap"),
        Column("left", DOUBLE, "1", "forward KL at the positions of the first look's mask, as a share of what it was"),
        *_interval("left"),
        *COUNTS,
    ),
)  # fmt: skip
