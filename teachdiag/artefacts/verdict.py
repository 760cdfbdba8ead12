"""Tables of what is claimed of a step, which analyze writes."""

import pyarrow as pa

from teachdiag.artefacts.columns import CI, DOUBLE, FLAG, LONG, N_PROMPTS, OUTCOME, PROBE_ID, TEXT, UNIT, K
from teachdiag.tables import Column, Table

MARGIN = (
    Column("margin", DOUBLE, "as estimate", "the real step's number less the placebo's", nullable=True),
    Column("margin_low", DOUBLE, "as estimate", "lower 95% end, over draws and prompts", nullable=True),
    Column("margin_high", DOUBLE, "as estimate", "upper 95% end", nullable=True),
)

FINDINGS = Table(
    name="findings",
    folder="analysis/",
    written_by="analyze",
    meaning="The verdict, one claim a row: what holds, what does not, and what a placebo shows too.",
    key=("finding", "probe_id", "outcome", "k"),
    columns=(
        Column("finding", TEXT, "", "the claim, in a few words"),
        Column("probe_id", TEXT, "", "the real step that it was tested on"),
        OUTCOME,
        K,
        Column(
            "status",
            TEXT,
            "",
            "'holds' or 'reversed' (the interval leaves 0 out, and so do the differences from every placebo); "
            "'artefact' (not beyond a placebo that shows it too); 'unclear' (not told apart from another placebo); "
            "'not shown'; 'too long' (of the first claim: the step was, so that all others are 'not judged')",
        ),
        Column("estimate", DOUBLE, "see unit", "the number behind it"),
        *CI,
        UNIT,
        Column("primary", FLAG, "", "whether the claim is primary: judged without regard to how many others there are"),
        Column("p_value", DOUBLE, "1", "two-sided, of the number and of all its margins: the largest", nullable=True),
        Column("q_value", DOUBLE, "1", "Benjamini-Hochberg, over a step's secondary claims", nullable=True),
        Column("placebos", TEXT, "", "the same number for every placebo, with intervals"),
        Column("sentence", TEXT, "", "the finding in plain words"),
    ),
)

PRIMARY = Table(
    name="primary",
    folder="analysis/",
    written_by="analyze",
    meaning="The few claims that were fixed before any data were seen (K=16, on gain), beside the nearest placebo.",
    key=("probe_id", "claim"),
    columns=(
        Column("probe_id", TEXT, "", "the real step that it was tested on"),
        Column("claim", TEXT, "", "the claim, in a few words: `finding` of the findings"),
        Column("status", TEXT, "", "see findings"),
        Column("estimate", DOUBLE, "see unit", "the number behind it, asked to lie above 0"),
        *CI,
        UNIT,
        Column(
            "nearest_placebo", TEXT, "", "the placebo beyond which the number is told least; '' if none", nullable=True
        ),
        Column(
            "placebo_estimate",
            DOUBLE,
            "as estimate",
            "the same number for that placebo, mean of its draws",
            nullable=True,
        ),
        *MARGIN,
        Column("margin_error", DOUBLE, "as estimate", "standard error of the margin, over both", nullable=True),
        Column("placebo_error", DOUBLE, "as estimate", "its part that is due to the placebo's draws", nullable=True),
        Column("placebo_draws", LONG, "draws", "draws of that placebo", nullable=True),
        N_PROMPTS,
        Column("std_error", DOUBLE, "as estimate", "standard error of the estimate, over prompts", nullable=True),
        Column("noise_floor", DOUBLE, "as estimate", "size up to which the number counts as 0, by rounding alone"),
        Column(
            "detectable_from_0",
            DOUBLE,
            "as estimate",
            "smallest effect, on the estimate's side, that this many prompts tell from 0 with a power of 80%",
            nullable=True,
        ),
        Column(
            "detectable_from_placebo",
            DOUBLE,
            "as estimate",
            "smallest difference, on that side, that they tell from what the nearest placebo shows",
            nullable=True,
        ),
        Column(
            "prompts_needed",
            LONG,
            "prompts",
            "prompts that tell an effect and a margin as large as these from 0, with a power of 80% each; null where "
            "no number would: it is 0, or no larger than the placebo's, or more draws of that are needed",
            nullable=True,
        ),
        Column("sentence", TEXT, "", "the finding in plain words"),
    ),
)

PLACEBO_PANEL = Table(
    name="placebo_panel",
    folder="analysis/",
    written_by="analyze",
    meaning="Every headline statistic of a real step beside the draws of each placebo.",
    key=("probe_id", "statistic", "update"),
    columns=(
        PROBE_ID,
        Column("statistic", TEXT, "", "which number (K=16 where it has one): see docs/analysis.md"),
        UNIT,
        Column("update", TEXT, "", "the placebo"),
        Column("estimate", DOUBLE, "see unit", "the real step's number"),
        *CI,
        Column("draws", pa.list_(DOUBLE), "as estimate", "the placebo's number in each draw that has one"),
        Column("n_draws", LONG, "draws", "how many these are"),
        Column("n_undefined", LONG, "draws", "draws that leave the number undefined"),
        Column("draw_mean", DOUBLE, "as estimate", "mean of the draws", nullable=True),
        Column("draw_sd", DOUBLE, "as estimate", "their standard deviation (n - 1)", nullable=True),
        Column(
            "range_low",
            DOUBLE,
            "as estimate",
            "lower end of the 95% range for one more draw, on other prompts",
            nullable=True,
        ),
        Column("range_high", DOUBLE, "as estimate", "its upper end", nullable=True),
        *MARGIN,
        Column(
            "survives",
            FLAG,
            "",
            "whether the real number is beyond the placebo: the margin's interval lies on the number's own side of 0; "
            "null where it has none, and for 'shuffled_rollouts', which is no null",
            nullable=True,
        ),
        Column("sentence", TEXT, "", "the comparison in plain words"),
    ),
)
