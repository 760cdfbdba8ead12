"""Tables that capture and probe write."""

import pyarrow as pa

from teachdiag.artefacts.columns import (
    BUDGET,
    CANDIDATES,
    CELL,
    CONTEXT_ID,
    DOUBLE,
    IDS,
    INT,
    KL_BEFORE,
    LONG,
    LOSS,
    MASK,
    OF_A_LOSS_TERM,
    POSITION,
    PROBE_ID,
    PROMPT_ID,
    REAL,
    REALS,
    SPLIT,
    TEXT,
    TOP,
    TOP_IDS,
    TOP_LOGP,
    UPDATE,
)
from teachdiag.settings import SHRINKS, SUPPORT_SIZES
from teachdiag.tables import Column, Table


def _per_support(name: str, meaning: str, unit: str = "1", *, optional: bool = False) -> tuple[Column, ...]:
    return tuple(Column(f"{name}_k{k}", REAL, unit, meaning.format(k=k), optional=optional) for k in SUPPORT_SIZES)


BOUNDS = tuple(  # there where C and D are not
    column
    for name, symbol, unit in (("compatibility", "C", "1"), ("disagreement", "D", "nats"))
    for side, which in (("low", "least"), ("high", "largest"))
    for column in _per_support(
        f"{name}_{side}",
        f"{which} {symbol} (K={{k}}) that agrees with the teacher's top {TOP} ids, where no more is known",
        unit,
        optional=True,
    )
)

IMPORTED = "imported"  # key of a contexts file's metadata: how it was imported, as JSON
RECORDED = {"recorded_logp": "student_logp", "recorded_entropy": "student_entropy"}  # of contexts, and of positions
BROUGHT = ("response_mask", *RECORDED)  # columns of contexts that are null where capture samples them itself

CONTEXTS = Table(
    name="contexts",
    folder="contexts/",
    written_by="capture",
    meaning="Frozen rollouts: prompts, and responses sampled from the student at theta0.",
    key=("context_id",),
    columns=(
        CONTEXT_ID,
        PROMPT_ID,
        SPLIT,
        Column("source_row", LONG, "1", "row of the prompt in its source file; null if unknown", nullable=True),
        Column("prompt_token_ids", IDS, "token ids", "the student's prompt, chat template included"),
        Column("teacher_prompt_token_ids", IDS, "token ids", "the teacher's prompt; differs if privileged"),
        Column("response_token_ids", IDS, "token ids", "the response, end-of-text token included where sampled"),
        Column(
            "response_mask",
            MASK,
            "1",
            "1 where the student wrote the token; 0 where tools or users did: read as context, never scored. null: the "
            "student wrote all of them",
            nullable=True,
        ),
        Column(
            "finish_reason",
            TEXT,
            "",
            "'stop': end-of-text was sampled; 'length': cut at max_new_tokens; 'unknown': imported, and its file does "
            "not tell",
        ),
        Column("sampling_seed", LONG, "1", "seed of this rollout's own random stream; null if unknown", nullable=True),
        Column(
            "recorded_logp",
            REALS,
            "nats",
            "log p(y_t) of every response token, by the program that it came from; null if unknown",
            nullable=True,
        ),
        Column("recorded_entropy", REALS, "nats", "H(p), likewise", nullable=True),
    ),
)

GRADES = Table(
    name="grades",
    folder="grades/",
    written_by="capture --grade",
    meaning="Whether each response is right, judged by the answer of its prompt. 'Unparseable' is no kind of wrong: no "
    "answer was found. Of a response that did not end by itself only what it states as its answer counts; one that was "
    "cut before is 'unparseable' with finish_reason 'length', and nobody knows what it would have said.",
    key=("context_id",),
    columns=(
        CONTEXT_ID,
        PROMPT_ID,
        SPLIT,
        Column("finish_reason", TEXT, "", "that of `contexts`: only after 'stop' did the response end by itself"),
        Column("grade", TEXT, "", "'right', 'wrong' or 'unparseable'"),
        Column("answer", TEXT, "", "the answer as the response has it; null where it is unparseable", nullable=True),
        Column("reference", TEXT, "", "the right answer, as the prompts' source has it"),
    ),
)

VOCABULARY = Table(
    name="vocabulary",
    folder="vocabulary/",
    written_by="capture",
    meaning="The text of every token id, for reading contexts and candidates without a tokenizer.",
    key=("token_id",),
    columns=(
        Column("token_id", INT, "token id", "id in the shared vocabulary"),
        Column("text", TEXT, "", "what it decodes to alone; the tokenizer's own name where that is no text"),
        Column(
            "part",
            pa.binary(),
            "bytes",
            "the bytes of a token that is a part of a UTF-8 character; null of any other",
            nullable=True,
            optional=True,
        ),
    ),
)

POSITIONS = Table(
    name="positions",
    folder="positions/",
    written_by="capture",
    meaning="Both models' next-token distributions at every kept response position, at theta0. p is the student, q "
    "the teacher, both at temperature 1 over the shared vocabulary; S and T are their top-K ids, U = S | T.",
    key=("context_id", "position"),
    columns=(
        CONTEXT_ID,
        POSITION,
        PROMPT_ID,
        SPLIT,
        Column("token_id", INT, "token id", "the realised token y_t"),
        Column("pos_norm", REAL, "1", "t / max(R-1, 1), R = response tokens up to the last that may be kept"),
        Column(
            "weight",
            REAL,
            "tokens",
            "the student's tokens that this position stands for, where positions were drawn: 1 / probability of being "
            "drawn; absent where they were not",
            nullable=True,
            optional=True,
        ),
        Column("student_entropy", REAL, "nats", "H(p), full vocabulary"),
        Column("teacher_entropy", REAL, "nats", "H(q), full vocabulary", optional=True),
        Column("forward_kl", REAL, "nats", "KL(q || p), full vocabulary: 'raw KL'", optional=True),
        Column(
            "reverse_kl", REAL, "nats", "KL(p || q), full vocabulary: the OPD token loss (paper Eq. 6)", optional=True
        ),
        Column("jsd", REAL, "nats", "Jensen-Shannon divergence, full vocabulary", optional=True),
        Column("student_logp", REAL, "nats", "log p(y_t)"),
        Column("teacher_logp", REAL, "nats", "log q(y_t)"),
        Column("student_topk_ids", TOP_IDS, "token ids", f"the student's top {TOP} ids, by falling probability"),
        Column("student_topk_logp", TOP_LOGP, "nats", "log p at student_topk_ids"),
        Column(
            "teacher_logp_at_student_topk",
            TOP_LOGP,
            "nats",
            "log q at student_topk_ids, from the full softmax",
            optional=True,
        ),
        Column("teacher_topk_ids", TOP_IDS, "token ids", f"the teacher's top {TOP} ids, by falling probability"),
        Column("teacher_topk_logp", TOP_LOGP, "nats", "log q at teacher_topk_ids"),
        Column("student_logp_at_teacher_topk", TOP_LOGP, "nats", "log p at teacher_topk_ids, from the full softmax"),
        *_per_support(
            "disagreement", "D (K={k}): KL(q || p) with both renormalised on U (paper Eq. 3)", "nats", optional=True
        ),
        *_per_support("compatibility", "C (K={k}): the teacher's mass on S, exact (paper Eq. 4)", optional=True),
        *_per_support("compatibility_bound", "lower bound of C (K={k}): the teacher's mass on S & T (paper Eq. 17)"),
        *BOUNDS,
        *_per_support(
            "bhattacharyya", "sum of sqrt(p q) (K={k}), both renormalised on U (the paper's CBC)", optional=True
        ),
        *_per_support("overlap", "|S & T| / K (K={k})"),
        *_per_support("jaccard", "|S & T| / |S | T| (K={k})"),
        *_per_support("teacher_top1_in_support", "1 where the teacher's first choice is in S (K={k}), else 0"),
        Column(
            "tail_mass", REAL, "1", f"the teacher's mass outside S | T at K={TOP}: what no list tells", optional=True
        ),
        Column("logit_alignment", REAL, "nats", "A = sum_v (p_v - q_v) p_v (log p_v/q_v - KL(p || q))", optional=True),
        Column("forward_logit_energy", REAL, "1", "sum_v (p_v - q_v)^2", optional=True),
        Column("hidden_norm_sq", REAL, "1", "squared norm of the student's hidden state that feeds the LM head"),
    ),
)

GAINS = Table(
    name="gains",
    folder="gains/<probe_id>/",
    written_by="probe",
    meaning="The bank's positions before and after one update, against the same teacher. 'Before' is theta0, rescored "
    "by the probe in the same batches as 'after', so that an update of nothing gains exactly 0.",
    key=("probe_id", "draw", "context_id", "position"),
    columns=(
        PROBE_ID,
        UPDATE,
        Column("draw", INT, "1", "number of the placebo's draw, from 0; 0 for the real step"),
        Column("placebo_of", TEXT, "", "the probe that this is a placebo of; null for the real step", nullable=True),
        Column("update_on", TEXT, "", "'update': the step saw held-out prompts; 'bank': these very contexts"),
        LOSS,
        CONTEXT_ID,
        POSITION,
        PROMPT_ID,
        KL_BEFORE,
        Column("forward_kl_after", REAL, "nats", "KL(q || p) at theta1"),
        Column("reverse_kl_before", REAL, "nats", "KL(p || q) at theta0"),
        Column("reverse_kl_after", REAL, "nats", "KL(p || q) at theta1"),
        Column("gain", REAL, "nats", "forward_kl_before - forward_kl_after (paper Eq. 1): the default outcome"),
        Column("gain_reverse", REAL, "nats", "reverse_kl_before - reverse_kl_after"),
        Column(
            "gain_relative",
            REAL,
            "1",
            "gain / forward_kl_before (the release's outcome); null where forward_kl_before is under 10 noise floors",
            nullable=True,
        ),
        Column(
            "gain_log",
            REAL,
            "1",
            "log(forward_kl_before / forward_kl_after); null where either KL is under 10 noise floors",
            nullable=True,
        ),
        Column(
            "noise_floor",
            REAL,
            "nats",
            "|gain| here when theta0 itself is rescored in another batch layout (and in float32, for half-precision "
            "models). 'Under 10 noise floors' compares with the larger of this and its 99th percentile over the bank",
        ),
        *(
            Column(name, type_, unit, f"{meaning} at theta1; null for placebos", nullable=True, optional=True)
            for name, type_, unit, meaning in (
                ("student_topk_ids_after", IDS, "token ids", f"the student's top {CANDIDATES} ids"),
                ("student_topk_logp_after", pa.list_(REAL), "nats", "log p of these ids"),
                ("student_logp_after", REAL, "nats", "log p(y_t)"),
            )
        ),
    ),
)

ISOLATED = Table(
    name="isolated",
    folder="isolated/<probe_id>/",
    written_by="probe --kind isolated",
    meaning="One SGD step at a time, from theta0, on the loss l_t of a single position. L_fix is the mean forward KL "
    "of a fixed sample of contexts of other prompts, set aside from the update split (paper Eq. 2).",
    key=("probe_id", "context_id", "position"),
    columns=(
        *OF_A_LOSS_TERM,
        Column("stratum", INT, "1", "stratum of the draw: 3 * decile of forward KL + third of C (K=16), from 0"),
        Column("weight", DOUBLE, "positions", "positions of the split that this one stands for: its inverse draw rate"),
        Column("step_size", DOUBLE, "1", "eta of this step: one for all, or that which gives all one update norm"),
        Column("gradient_norm_sq", REAL, "1", "squared norm of grad l_t"),
        KL_BEFORE,
        Column("forward_kl_after", REAL, "nats", "KL(q || p) at the same position after the step"),
        Column("gain", REAL, "nats", "forward_kl_before - forward_kl_after, at the position whose loss was stepped on"),
        Column("own_inner", REAL, "nats", "<grad KL(q || p)_t, grad l_t>, from the KL at theta0 -+ eta grad l_t"),
        Column("own_remainder", REAL, "nats", "gain - eta own_inner"),
        Column("fix_before", DOUBLE, "nats", "L_fix at theta0"),
        Column("fix_gain", DOUBLE, "nats", "L_fix at theta0 - L_fix after the step"),
        Column("fix_inner", REAL, "nats", "<grad L_fix, grad l_t>: the drop of L_fix per unit of eta, to first order"),
        Column("fix_remainder", DOUBLE, "nats", "fix_gain - eta fix_inner: what paper Eq. 2 bounds by beta eta^2"),
    ),
)

PREDICTIONS = Table(
    name="predictions",
    folder="predictions/<probe_id>/",
    written_by="probe --kind predicted, selectors, lds",
    meaning="First-order predictions for every position, from directional derivatives at theta0. In a probe of kind "
    "predicted the positions are the bank's; in the others, those of the update split, whose loss terms are selected.",
    key=("probe_id", "context_id", "position"),
    columns=(
        *OF_A_LOSS_TERM,
        Column("fix_inner", REAL, "nats", "<grad L_fix, grad l_t> for the loss term l_t of this position"),
        Column(
            "bank_inner",
            REAL,
            "nats",
            "<grad L_bank, grad l_t>, with L_bank the mean forward KL of the rescored bank contexts; null for kind "
            "predicted",
            nullable=True,
        ),
        Column(
            "predicted_gain",
            REAL,
            "nats",
            "first-order gain here of the whole step of the probe's update batch; null for the other kinds",
            nullable=True,
        ),
        *(
            Column(name, REAL, "1", f"{meaning}; null for the other kinds, and without grades", True, True)
            for name, meaning in (
                (
                    "success_inner",
                    "<grad L_success, grad l_t>, L_success the outcome loss of the update batch's rollouts",
                ),
                ("success_inner_shuffled", "the same after grades were dealt to other rollouts: a placebo"),
            )
        ),
        *(
            Column(
                f"gain_at_{round(1 / shrink)}",
                REAL,
                "nats",
                f"measured gain of the step divided by {round(1 / shrink)}; null for the other kinds",
                nullable=True,
            )
            for shrink in SHRINKS
        ),
    ),
)

INTERVENTIONS = Table(
    name="interventions",
    folder="interventions/<probe_id>/",
    written_by="probe --kind selectors, lds",
    meaning="Steps whose loss was restricted to selected positions of the update batch, one cell a row: what was kept, "
    "and what the step gained on the rescored bank. Composition means are over the kept positions, at theta0, K=16.",
    key=("probe_id", "selector", "budget", "seed", "match"),
    columns=(
        PROBE_ID,
        LOSS,
        *CELL,
        Column("n_batch", INT, "positions", "positions of the update batch"),
        Column("n_kept", INT, "positions", "kept positions, topped-up ones included"),
        Column("keep", DOUBLE, "1", "n_kept / n_batch: the actual budget"),
        Column("topped_up", INT, "positions", "positions kept beyond the budget by --min-keep"),
        Column("tied", DOUBLE, "1", "share of the budget that the tie rule decided"),
        Column("kept_context_ids", pa.list_(LONG), "1", "contexts of the kept positions"),
        Column("kept_positions", pa.list_(INT), "tokens", "their positions, in the same order"),
        Column("q3_share", DOUBLE, "1", "share of the kept positions inside Q3 of the update batch"),
        *(
            Column(f"mean_{name}", DOUBLE, unit, f"mean {what} of the kept positions")
            for name, unit, what in (
                ("disagreement", "nats", "D"),
                ("compatibility", "1", "C"),
                ("learnable", "1", "D^L (normalised over the update batch)"),
                ("incompatible", "1", "D^I (normalised over the update batch)"),
                ("student_entropy", "nats", "student entropy"),
                ("position", "tokens", "response position"),
            )
        ),
        Column("step_loss", REAL, "nats", "mean loss over the kept positions at theta0"),
        Column("gradient_norm", REAL, "1", "norm of its gradient, before clipping"),
        Column("update_norm", REAL, "1", "Euclidean norm of theta1 - theta0"),
        Column("mean_gain", DOUBLE, "nats", "mean gain over the rescored bank: the real KL reduction"),
        Column("gain_q3", DOUBLE, "nats", "mean gain inside Q3 of the rescored bank"),
        Column(
            "first_order_gain",
            DOUBLE,
            "nats",
            "the same mean gain to first order, for an SGD step without clipping of this update_norm along the masked "
            "gradient: learning rate * mean bank_inner of the kept, times the scaling to the norm",
        ),
    ),
)

INTERVENTION_GAINS = Table(
    name="intervention_gains",
    folder="intervention_gains/<probe_id>/",
    written_by="probe --kind selectors",
    meaning="Gain of every rescored bank position in every cell of the selector experiment.",
    key=("probe_id", "selector", "budget", "seed", "match", "context_id", "position"),
    columns=(
        PROBE_ID,
        *CELL,
        CONTEXT_ID,
        POSITION,
        PROMPT_ID,
        KL_BEFORE,
        Column("gain", REAL, "nats", "forward KL at theta0 less that after the cell's step"),
    ),
)

INNER_PRODUCTS = Table(
    name="inner_products",
    folder="inner_products/<probe_id>/",
    written_by="probe --kind efficiency",
    meaning="What a step on one loss term l_t of the update split gains, to first order, on each block of the bank's "
    "prompts. A block's L_b is the mean forward KL of its positions (reverse with --outcome gain_reverse), so that "
    "the whole bank's inner product is the mean over blocks, weighted by `block_positions`.",
    key=("probe_id", "context_id", "position", "block"),
    columns=(
        PROBE_ID,
        LOSS,
        CONTEXT_ID,
        POSITION,
        PROMPT_ID,
        Column("block", INT, "1", "number of the block, from 0; every prompt of the bank lies in one"),
        Column("block_positions", INT, "positions", "bank positions of the block"),
        Column("inner", REAL, "nats", "<grad L_b, grad l_t>: the drop of L_b per unit of learning rate under SGD"),
        Column(
            "inner_shuffled",
            REAL,
            "nats",
            "the same for l_t under a teacher's row of another prompt, dealt as the placebo 'shuffled_teacher' deals",
        ),
    ),
)

_OF_A_MASKED_STEP = (
    PROBE_ID,
    Column("selector", TEXT, "", "which positions were kept: see docs/selectors.md; 'all' is the whole batch"),
    BUDGET,
    Column("batch", INT, "1", "number of the update batch, from 0, the same for every selector"),
)

MASKED_STEPS = Table(
    name="masked_steps",
    folder="masked_steps/<probe_id>/",
    written_by="probe --kind efficiency",
    meaning="Gradients of the mean loss over what a selector keeps of real update batches, one cell a row, and the "
    "steps that were really taken along some of them, each as long as that of 'all'. With SGD, 'random' is no draw: "
    "its norm is the root mean square over all masks of its size.",
    key=("probe_id", "selector", "budget", "batch"),
    columns=(
        *_OF_A_MASKED_STEP,
        LOSS,
        Column("optimizer", TEXT, "", "whose first step first_order and direction_norm are of: 'sgd' or 'adamw'"),
        Column("context_ids", pa.list_(LONG), "1", "contexts of the batch"),
        Column("n_batch", INT, "positions", "positions of the batch"),
        Column("n_kept", INT, "positions", "kept positions"),
        Column("gradient_norm", DOUBLE, "1", "norm of the gradient of the mean loss over the kept"),
        Column(
            "direction_norm",
            DOUBLE,
            "1",
            "norm of a step of learning rate 1: the gradient's for SGD; for AdamW's first step that of g / (|g| + eps)",
        ),
        Column(
            "first_order",
            DOUBLE,
            "nats",
            "what a step of learning rate 1 gains on the bank to first order: for SGD the mean of `inner` over the "
            "kept, for AdamW, whose step is not linear in what is kept, exact_first_order",
        ),
        Column(
            "exact_first_order",
            DOUBLE,
            "nats",
            "the same as the product of step and gradient of the bank's mean KL; null for 'random', which is no draw",
            nullable=True,
        ),
        Column("learning_rate", DOUBLE, "1", "of the step that was taken; null where none was", nullable=True),
        Column("update_norm", DOUBLE, "1", "its Euclidean length; null where none was taken", nullable=True),
        Column("real_gain", DOUBLE, "nats", "mean gain of the bank; null where no step was taken", nullable=True),
    ),
)

MASKED_GAINS = Table(
    name="masked_gains",
    folder="masked_gains/<probe_id>/",
    written_by="probe --kind efficiency",
    meaning="What each step of `masked_steps` that was taken gained on every prompt of the bank.",
    key=("probe_id", "selector", "budget", "batch", "prompt_id"),
    columns=(
        *_OF_A_MASKED_STEP,
        PROMPT_ID,
        Column("block", INT, "1", "the prompt's block in `inner_products`"),
        Column("n_positions", INT, "positions", "bank positions of the prompt"),
        Column("gain", DOUBLE, "nats", "mean over them of the KL of --outcome at theta0 less that after the step"),
    ),
)
