"""Tables that compare-teachers writes, beside the first of the runs that it compares."""

from teachdiag.artefacts.columns import (
    BUDGET,
    CI,
    CONTEXT_ID,
    COUNTS,
    DOUBLE,
    FLAG,
    INT,
    LONG,
    METHOD_OR_WHY,
    POSITION,
    PROMPT_ID,
    TEXT,
    UNIT,
)
from teachdiag.tables import Column, Table

OWN, COMMON = "own", "common"  # yardsticks

_RUN = (
    Column("run", TEXT, "", "the run, which has one teacher: its folder's name, or its path where two have one name"),
    Column("teacher", TEXT, "", "that teacher, as the run was captured with it"),
)
_YARDSTICK = Column(
    "yardstick",
    TEXT,
    "",
    "what the number is measured by: 'own', the KL to the run's own teacher, which is another one for each; 'common', "
    "the success of graded answers, or what probabilities say of given tokens: the same for all",
)
_DIFFERENCE = (
    Column(
        "difference", DOUBLE, "as estimate", "less that of the first run, paired; null for the first", nullable=True
    ),
    Column("difference_low", DOUBLE, "as estimate", "lower end of its 95% interval", nullable=True),
    Column("difference_high", DOUBLE, "as estimate", "its upper end", nullable=True),
)

TEACHERS = Table(
    name="teachers",
    folder="comparison/",
    written_by="compare-teachers",
    meaning="What each teacher of one bank measures: at theta0, and, where the runs were probed alike, what a step "
    "towards it gains.",
    key=("measure", "run"),
    columns=(
        Column("measure", TEXT, "", "which number: see docs/analysis.md"),
        *_RUN,
        UNIT,
        _YARDSTICK,
        Column("estimate", DOUBLE, "see unit", "the number, over the bank"),
        *CI,
        *_DIFFERENCE,
        METHOD_OR_WHY,
        *COUNTS,
    ),
)

TEACHER_CURVES = Table(
    name="teacher_curves",
    folder="comparison/",
    written_by="compare-teachers",
    meaning="What each selector keeps of the whole batch's gain under each teacher of one bank, to first order: the "
    "shares of `efficiency`, and their differences in the same draws of update batches and of the bank.",
    key=("selector", "budget", "match", "statistic", "run"),
    columns=(
        Column("selector", TEXT, "", "which positions were kept: see docs/selectors.md; 'all' is the whole batch"),
        BUDGET,
        Column("match", TEXT, "", "'rate': equal learning rate; 'norm': equal length of the step"),
        Column("statistic", TEXT, "", "'share' of the whole batch's gain; of 'all' alone 'gain', of a step of rate 1"),
        *_RUN,
        UNIT,
        Column("estimate", DOUBLE, "see unit", "the statistic, by the run's own yardstick"),
        *CI,
        *_DIFFERENCE,
        METHOD_OR_WHY,
        Column("n_contexts", LONG, "contexts", "update contexts behind the number"),
        Column("n_prompts", LONG, "prompts", "prompts of the bank behind it"),
        Column("n_blocks", LONG, "1", "blocks that these prompts were dealt into"),
    ),
)


def _most(name: str) -> Column:
    return Column(f"{name}_most", FLAG, "", f"whether no other teacher has more {name} here; null without", True)


TEACHER_TOKENS = Table(
    name="teacher_tokens",
    folder="comparison/",
    written_by="compare-teachers",
    meaning="Every bank position under every teacher: which has most to teach there.",
    key=("context_id", "position", "run"),
    columns=(
        CONTEXT_ID,
        POSITION,
        PROMPT_ID,
        Column("token_id", INT, "token id", "the realised token y_t"),
        _RUN[0],
        Column("learnable", DOUBLE, "nats", "D C (K=16); null where a run has bounds of these alone", nullable=True),
        _most("learnable"),
        Column(
            "predicted_gain",
            DOUBLE,
            "nats",
            "first-order gain here of a step on the update batch, by the teacher's own KL; null without probes",
            nullable=True,
        ),
        _most("predicted_gain"),
        Column(
            "success_inner",
            DOUBLE,
            "1",
            "what an SGD step of rate 1 on this position's loss adds to the expected grade; null without grades",
            nullable=True,
        ),
        _most("success_inner"),
    ),
)
