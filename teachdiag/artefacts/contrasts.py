"""Tables of the paper's contrasts, which analyze writes."""

from teachdiag.artefacts.columns import (
    CI,
    COUNTS,
    DOUBLE,
    INT,
    LONG,
    METHOD,
    METHOD_OR_WHY,
    OF_AN_OUTCOME,
    P_VALUES,
    PROBE_ID,
    SCORE,
    TEXT,
    UNIT,
    UPDATE,
    K,
)
from teachdiag.artefacts.specifications import QUANTITIES
from teachdiag.tables import Column, Table

CONTRASTS = Table(
    name="contrasts",
    folder="analysis/",
    written_by="analyze",
    meaning="Inside Q3, mean outcome where support is high less that where it is low: by thirds, and by matched pairs.",
    key=("probe_id", "outcome", "score", "k", "design"),
    columns=(
        *OF_AN_OUTCOME,
        Column("score", TEXT, "", "the support score that is cut"),
        K,
        Column(
            "design",
            TEXT,
            "",
            "'thirds': upper less lower third of the score; 'matched': pairs of one prompt, a low one used any number "
            "of times; 'matched once': a low one used at most once",
        ),
        UNIT,
        Column("estimate", DOUBLE, "see unit", "the contrast; null where the note says why", nullable=True),
        *CI,
        *P_VALUES,
        Column("n_high", LONG, "positions", "positions on the high side, or pairs"),
        Column("n_low", LONG, "positions", "positions on the low side, or pairs"),
        Column("n_unmatched", LONG, "positions", "high positions without a partner within the caliper; 0 for thirds"),
        *COUNTS,
        METHOD,
        Column(
            "note",
            TEXT,
            "",
            "what keeps the number from being read plainly: ties, equal arms, or too little; '' if none",
        ),
    ),
)

BALANCE = Table(
    name="balance",
    folder="analysis/",
    written_by="analyze",
    meaning="Covariates on the two sides of the matched contrasts, before and after matching.",
    key=("score", "k", "design", "covariate"),
    columns=(
        Column("score", TEXT, "", "the support score that is cut"),
        K,
        Column("design", TEXT, "", "'matched' or 'matched once'"),
        Column("covariate", TEXT, "", "what was matched on"),
        Column("before", DOUBLE, "1", "mean of the high less that of the low positions, in SD inside Q3"),
        Column("after", DOUBLE, "1", "mean difference within pairs, in the same; null without pairs", nullable=True),
        Column("n_pairs", LONG, "pairs", "pairs within the caliper"),
    ),
)

TOP_N = Table(
    name="top_n",
    folder="analysis/",
    written_by="analyze",
    meaning="The bank's positions with the highest scores, exactly ceil(budget N): their gain, and what they are.",
    key=("probe_id", "outcome", "selector", "k", "budget"),
    columns=(
        *OF_AN_OUTCOME,
        Column("selector", TEXT, "", "score by which positions are ranked: see docs/selectors.md"),
        K,
        Column("budget", DOUBLE, "1", "share of the bank that was asked for"),
        UNIT,
        Column("estimate", DOUBLE, "see unit", "mean outcome of the taken positions; of all for 'random'"),
        *CI,
        Column("share_taken", DOUBLE, "1", "ceil(budget N) / N"),
        Column("gain_per_keep", DOUBLE, "as estimate", "estimate / share_taken"),
        Column("q3_share", DOUBLE, "1", "share of the taken that lies in Q3"),
        *(
            Column(f"mean_{name}", DOUBLE, "1", f"mean {what} of the taken")
            for name, what in (
                ("student_entropy", "norm(student entropy)"),
                ("disagreement", "norm(D) (K=16 where k is null)"),
                ("compatibility", "norm(C)"),
                ("learnable", "D^L"),
                ("incompatible", "D^I"),
            )
        ),
        Column("tied", DOUBLE, "1", "share of the places that only the tie rule decided"),
        *COUNTS,
        Column("n_dropped", LONG, "positions", "taken positions left out: the outcome is under the noise floor"),
        METHOD_OR_WHY,
    ),
)

BUCKETS = Table(
    name="buckets",
    folder="analysis/",
    written_by="analyze",
    meaning="Outcome by quarter of a score, residual by tenth of a score, and outcome by response position.",
    key=("probe_id", "outcome", "region", "score", "k", "statistic", "bucket"),
    columns=(
        *OF_AN_OUTCOME,
        Column("region", TEXT, "", "'all' positions, or 'q3'"),
        SCORE,
        K,
        Column("bucket", INT, "1", "from 1, lowest scores first; equal scores share a bucket, so there may be fewer"),
        Column("score_low", DOUBLE, "as score", "lowest score in the bucket"),
        Column("score_high", DOUBLE, "as score", "highest score in the bucket"),
        Column("statistic", TEXT, "", "'mean', 'median', 'trimmed mean', 'residual mean', or 'share of total'"),
        UNIT,
        Column("estimate", DOUBLE, "see unit", "the statistic"),
        *CI,
        *COUNTS,
        METHOD_OR_WHY,
    ),
)

GRADE_NAMES = ("right", "wrong", "unparseable")
RIGHT_LESS_WRONG, SAME_PROMPT = "right - wrong", "right - wrong, same prompt"

BY_GRADE = Table(
    name="by_grade",
    folder="analysis/",
    written_by="analyze",
    meaning="The bank, and the primary numbers of each real step and of a draw of each placebo, in the responses of "
    "one grade, and in right responses less wrong ones. No rows where the run has no grades.",
    key=("probe_id", "quantity", "group"),
    columns=(
        PROBE_ID,
        Column("update", TEXT, "", f"{UPDATE.meaning}; '' where a number is of the bank alone"),
        Column(
            "quantity",
            TEXT,
            "",
            "mean over positions of 'forward_kl', 'disagreement', 'compatibility', 'learnable' or 'incompatible'; or "
            f"the number of a primary claim: {', '.join(map(repr, QUANTITIES))}",
        ),
        K,
        Column(
            "group",
            TEXT,
            "",
            f"grade of the responses; '{RIGHT_LESS_WRONG}'; or '{SAME_PROMPT}': the mean, over prompts that have both, "
            "of the difference within the prompt",
        ),
        UNIT,
        Column("estimate", DOUBLE, "see unit", "the number; null where the method says why", nullable=True),
        *CI,
        METHOD_OR_WHY,
        Column("n_responses", LONG, "responses", "graded responses of the bank behind the number"),
        *COUNTS,
    ),
)
