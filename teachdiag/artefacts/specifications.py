"""The table of the specification curve, which analyze writes."""

from teachdiag.artefacts.columns import (
    CI,
    COUNTS,
    DOUBLE,
    FLAG,
    METHOD_OR_WHY,
    OUTCOME,
    PROBE_ID,
    TEXT,
    UNIT,
    UPDATE,
    K,
)
from teachdiag.tables import Column, Table

QUANTITIES = ("mean gain", "beta_L - beta_I", "{D^L, D^I} less raw KL", "C less raw KL")
IN_SPREADS = ("mean", "per unit of norm")  # measures in the outcome's unit, which differs from outcome to outcome

SPECIFICATIONS = Table(
    name="specifications",
    folder="analysis/",
    written_by="analyze",
    meaning="The primary numbers of each real step, and of a draw of each placebo, under every sensible choice; in a "
    "bank of more than 500,000 positions and 128 prompts, of a part of its prompts.",
    key=("probe_id", "quantity", "measure", "k", "outcome", "window", "control", "cuts", "trimming"),
    columns=(
        PROBE_ID,
        UPDATE,
        Column("quantity", TEXT, "", f"the number of a primary claim: {', '.join(map(repr, QUANTITIES))}"),
        Column(
            "measure",
            TEXT,
            "",
            "'mean'; 'per unit of norm' or 'standardised', of coefficients; 'rank correlation' or 'R2', of predictions",
        ),
        K,
        OUTCOME,
        Column("loss", TEXT, "", "loss of the real step; null where a student was trained elsewhere", nullable=True),
        Column("optimizer", TEXT, "", "its optimizer", nullable=True),
        Column("learning_rate", DOUBLE, "1", "its learning rate", nullable=True),
        Column(
            "window", TEXT, "", "response positions: 'all', 'first half', 'second half', or 'without the first three'"
        ),
        Column(
            "control",
            TEXT,
            "",
            "how regressions take entropies into account: 'none', 'linear', 'linear, H x D' or 'splines'; null where "
            "there is no regression",
            nullable=True,
        ),
        Column(
            "cuts",
            TEXT,
            "",
            "quantiles of normalised scores in each draw: 'redrawn' or 'fixed'; null where there is no regression",
            nullable=True,
        ),
        Column(
            "trimming",
            TEXT,
            "",
            "'none'; 'ten largest out': the positions at which the real step's gain is furthest from its mean; or "
            "'winsorised at 1%': the outcome clipped at its 1% and 99% quantiles",
        ),
        Column("headline", FLAG, "", "whether every choice is the primary claim's"),
        Column("estimate", DOUBLE, "see unit", "the number; null where it cannot be estimated", nullable=True),
        *CI,
        UNIT,
        Column(
            "outcome_spread",
            DOUBLE,
            "as outcome",
            "standard deviation of the outcome over these positions; null where there are none",
            nullable=True,
        ),
        METHOD_OR_WHY,
        *COUNTS,
    ),
)
