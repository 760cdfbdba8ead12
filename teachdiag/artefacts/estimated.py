"""Tables that analyze writes."""

from teachdiag.artefacts.columns import (
    CI,
    CONTEXT_ID,
    COUNTS,
    DOUBLE,
    DRAW_ERROR,
    FLAG,
    INT,
    LONG,
    METHOD,
    N_POSITIONS,
    OF_AN_OUTCOME,
    P_VALUES,
    POSITION,
    PROBE_ID,
    TEXT,
    UNIT,
    K,
)
from teachdiag.tables import Column, Table

MIN_CELL = 5  # positions: cells of a map that hold fewer are not drawn

ESTIMATES = Table(
    name="estimates",
    folder="analysis/",
    written_by="analyze",
    meaning="Every number of the analysis, one a row, with its interval; real steps and placebos side by side.",
    key=("analysis", "term", "outcome", "k", "probe_id"),
    columns=(
        Column("analysis", TEXT, "", "which estimate: see docs/analysis.md"),
        *OF_AN_OUTCOME,
        K,
        Column("term", TEXT, "", "coefficient, predictor set, or difference of two"),
        UNIT,
        Column("estimate", DOUBLE, "see unit", "point estimate"),
        *CI,
        Column(
            "std_error",
            DOUBLE,
            "as estimate",
            "statsmodels' cluster-robust (CRV1) error; takes the spread of outcome and predictors as known",
            nullable=True,
        ),
        DRAW_ERROR,
        Column("placebo_error", DOUBLE, "as estimate", "its part that draws of a placebo make up", nullable=True),
        METHOD,
        *COUNTS,
        Column("n_dropped", LONG, "positions", "positions of the bank left out: the outcome is under the noise floor"),
    ),
)

INFERENCE = Table(
    name="inference",
    folder="analysis/",
    written_by="analyze",
    meaning="Cluster-robust errors and p-values of beta_L, beta_I and their gap, all variables z-scored.",
    key=("probe_id", "outcome", "k", "model", "term"),
    columns=(
        *OF_AN_OUTCOME,
        K,
        Column("model", TEXT, "", "which regression: see docs/analysis.md"),
        Column("term", TEXT, "", "coefficient, or difference of two"),
        Column("estimate", DOUBLE, "1", "standardised coefficient"),
        Column("crv1_error", DOUBLE, "1", "standard error clustered by prompt (CRV1)", nullable=True),
        Column("crv3_error", DOUBLE, "1", "the same by the cluster jackknife (CRV3)", nullable=True),
        Column(
            "two_way_error",
            DOUBLE,
            "1",
            "the same clustered by prompt and by token id; null where that variance is not positive",
            nullable=True,
        ),
        Column("crv3_p", DOUBLE, "1", "two-sided p-value, CRV3, t with prompts - 1 degrees of freedom", nullable=True),
        Column(
            "wild_p",
            DOUBLE,
            "1",
            "two-sided p-value of the wild cluster bootstrap; null with 40 prompts or more, where it is not needed",
            nullable=True,
        ),
        *COUNTS,
        Column("n_tokens", LONG, "1", "distinct token ids"),
    ),
)

DECILES = Table(
    name="deciles",
    folder="analysis/",
    written_by="analyze",
    meaning="Mean outcome by decile of each score, with prompt-cluster bootstrap intervals.",
    key=("probe_id", "outcome", "score", "k", "decile"),
    columns=(
        *OF_AN_OUTCOME,
        Column("score", TEXT, "", "score whose deciles are formed, at theta0"),
        K,
        Column("decile", INT, "1", "1 (lowest) to 10; ties share a decile, so saturated scores have fewer"),
        Column("score_mean", DOUBLE, "as score", "mean score in the decile"),
        Column("estimate", DOUBLE, "as outcome", "mean outcome in the decile"),
        *CI,
        *COUNTS,
    ),
)

SURFACES = Table(
    name="surfaces",
    folder="analysis/",
    written_by="analyze",
    meaning="Means over a grid of two percentile-binned quantities at theta0: what the map figures draw.",
    key=("surface", "probe_id", "k", "x_bin", "y_bin"),
    columns=(
        Column("surface", TEXT, "", "which map: see docs/analysis.md"),
        Column("probe_id", TEXT, "", "probe whose gain is averaged; null if the map needs none", nullable=True),
        K,
        Column("x", TEXT, "", "quantity along x"),
        Column("y", TEXT, "", "quantity along y"),
        Column("x_bin", INT, "1", "bin along x, from 0"),
        Column("y_bin", INT, "1", "bin along y, from 0"),
        Column("x_low", DOUBLE, "as x", "lower edge"),
        Column("x_high", DOUBLE, "as x", "upper edge"),
        Column("y_low", DOUBLE, "as y", "lower edge"),
        Column("y_high", DOUBLE, "as y", "upper edge"),
        Column("value", DOUBLE, "see surface", "mean in the cell"),
        N_POSITIONS,
    ),
)

RANKED = ("learnable", "forward_kl", "entropy", "tip", "incompatible", "logit_alignment")  # selectors
TOKENS = Table(
    name="tokens",
    folder="tokens/",
    written_by="analyze",
    meaning="Scores of every bank position at theta0 (K=16), and the order in which selectors take them.",
    key=("context_id", "position"),
    columns=(
        CONTEXT_ID,
        POSITION,
        Column("learnable", DOUBLE, "1", "D^L, normalised over the bank"),
        Column("incompatible", DOUBLE, "1", "D^I, normalised over the bank"),
        Column("in_q3", FLAG, "", "whether it lies in Q3"),
        Column("high_learnable", FLAG, "", "whether D^L is at or above its 90% quantile over the bank"),
        Column("high_incompatible", FLAG, "", "whether D^I is"),
        *(
            Column(
                f"rank_{name}",
                INT,
                "1",
                f"place in the order in which `{name}` takes the bank's N positions, from 1: those up to "
                "max(ceil(budget N), 1) are selected",
            )
            for name in RANKED
        ),
    ),
)

SCALES = Table(
    name="scales",
    folder="analysis/",
    written_by="analyze",
    meaning="How quantities that are drawn in colour are spread over the bank: the ends of their colour scales.",
    key=("quantity", "probe_id"),
    columns=(
        Column("quantity", TEXT, "", "a signal at theta0 (K=16), 'gain', 'predicted_gain', or a map: see surfaces"),
        PROBE_ID,
        Column("unit", TEXT, "", "unit of the quantity"),
        Column("kind", TEXT, "", "'sequential', or 'diverging': to both sides of 0"),
        Column(
            "low",
            DOUBLE,
            "see unit",
            "lower end: 0; of C its 2% quantile; of diverging ones the upper end's negative",
        ),
        Column(
            "high",
            DOUBLE,
            "see unit",
            "upper end: 98% quantile, of diverging ones that of the size; of maps 95% over the drawn cells",
        ),
        Column("median_size", DOUBLE, "see unit", "median of the absolute values"),
    ),
)

SATURATION = Table(
    name="saturation",
    folder="analysis/",
    written_by="analyze",
    meaning="What the clip of each normalised score would leave to ties, and what selectors here leave to chance.",
    key=("score", "k"),
    columns=(
        Column("score", TEXT, "", "normalised score"),
        K,
        Column("q05", DOUBLE, "as raw score", "5% quantile that maps to 0; null for combined scores", nullable=True),
        Column("q95", DOUBLE, "as raw score", "95% quantile that maps to 1; null for combined scores", nullable=True),
        Column("share_at_lowest", DOUBLE, "1", "share of positions at the score's lowest value"),
        Column("share_at_highest", DOUBLE, "1", "share of positions at the score's highest value"),
        *(
            Column(
                f"tied_by_clip_at_{b:02d}pct",
                DOUBLE,
                "1",
                f"share of a {b}% budget that ties would decide if positions were ordered by the clipped score alone",
            )
            for b in (1, 3, 5, 10, 30)
        ),
        *(
            Column(
                f"left_to_chance_at_{b:02d}pct",
                DOUBLE,
                "1",
                f"share of a {b}% budget that a selector leaves to its tie rule, having ordered what the clip ties by "
                "unclipped values",
            )
            for b in (1, 3, 5, 10, 30)
        ),
        N_POSITIONS,
    ),
)

SELECTION = Table(
    name="selection",
    folder="analysis/",
    written_by="analyze",
    meaning="The selector experiment: each statistic of each selector at each budget, mean over update seeds.",
    key=("probe_id", "selector", "budget", "match", "statistic"),
    columns=(
        PROBE_ID,
        Column("selector", TEXT, "", "which positions were kept; 'all' is the whole batch"),
        Column("budget", DOUBLE, "1", "share of the update batch that was asked for"),
        Column("match", TEXT, "", "'rate': same learning rate; 'norm': the update norm of the unselective step"),
        Column("statistic", TEXT, "", "which number: see docs/analysis.md"),
        UNIT,
        Column("estimate", DOUBLE, "see unit", "mean over update seeds"),
        *CI,
        *P_VALUES,
        METHOD,
        Column("n_seeds", LONG, "1", "update batches behind the number"),
        Column("n_positions", LONG, "positions", "positions behind the number: of the bank, or of an update batch"),
        Column("n_prompts", LONG, "prompts", "prompts of the rescored bank"),
        Column("n_dropped", LONG, "positions", "positions left out: their KL is under ten noise floors"),
    ),
)

EFFICIENCY = Table(
    name="efficiency",
    folder="analysis/",
    written_by="analyze",
    meaning="Share of the whole batch's held-out gain that a step keeps on the positions that a selector chose, to "
    "first order, and beside it what real steps kept. Shares stand here where the whole batch's gain is clearly told "
    "from 0 (one-sided 0.5%).",
    key=("probe_id", "selector", "budget", "match", "statistic"),
    columns=(
        PROBE_ID,
        Column("selector", TEXT, "", "which positions were kept: see docs/selectors.md; 'all' is the whole batch"),
        Column("budget", DOUBLE, "1", "share of the update batch that is kept"),
        Column("match", TEXT, "", "'rate': equal learning rate, mean over the kept; 'norm': equal length of the step"),
        Column("outcome", TEXT, "", "what counts as gain on the bank: gain or gain_reverse"),
        Column(
            "statistic",
            TEXT,
            "",
            "'share' of the whole batch's gain; 'share_vs_base' and 'share_vs_random': less that of raw KL, of random "
            "positions; 'share_shuffled': a placebo's, of the same positions under shuffled teacher rows, over the "
            "gain under the true ones; 'share_vs_shuffled': less that; 'share_adamw': with AdamW's first step; of "
            "'all' alone: 'gain' and 'gain_shuffled', of a step of learning rate 1",
        ),
        UNIT,
        Column("estimate", DOUBLE, "see unit", "the statistic"),
        *CI,
        DRAW_ERROR,
        METHOD,
        Column("n_contexts", LONG, "contexts", "update contexts behind the number"),
        Column("n_prompts", LONG, "prompts", "prompts of the bank behind it"),
        Column("n_blocks", LONG, "1", "blocks that these prompts were dealt into"),
        Column("norm_error", DOUBLE, "1", "relative standard error of the ratio of norms, over batches", nullable=True),
        Column("real_share", DOUBLE, "1", "the share that real steps kept; null where none was taken", nullable=True),
        Column("real_low", DOUBLE, "1", "lower end of its 95% interval", nullable=True),
        Column("real_high", DOUBLE, "1", "its upper end", nullable=True),
        Column("real_first_order", DOUBLE, "1", "the share of the same update batches to first order", nullable=True),
    ),
)
