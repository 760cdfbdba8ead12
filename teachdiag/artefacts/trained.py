"""Tables that training and evaluation write."""

import pyarrow as pa

from teachdiag.artefacts.columns import CI, DOUBLE, FLAG, INT, LONG, METHOD, P_VALUES, PROBE_ID, PROMPT_ID, TEXT
from teachdiag.tables import Column, Table

ARM = Column("arm", TEXT, "", "what is compared: a selector, an arm of a sweep, a model's name, or 'base' or 'teacher'")
ARM_BUDGET = Column(
    "budget", DOUBLE, "1", "share of positions that the arm keeps; 1 for full OPD; null for a model not trained here",
    nullable=True,
)  # fmt: skip
BENCHMARK = Column("benchmark", TEXT, "", "id of the manifest that the prompts are from")
TRAINING_SEED = Column("seed", INT, "1", "training seed; null for a model not trained here", nullable=True)
DESCRIBED = ("student_entropy", "forward_kl", "reverse_kl", "disagreement", "compatibility", "learnable")
_UNITS = dict.fromkeys(("compatibility", "learnable"), "1")


def _contrast(name: str) -> tuple[Column, ...]:
    unit, what = _UNITS.get(name, "nats"), name.replace("_", " ")
    return (
        Column(f"{name}_kept", DOUBLE, unit, f"mean {what} of the kept positions, before the step", nullable=True),
        Column(f"{name}_dropped", DOUBLE, unit, f"mean {what} of the others; null where none is", nullable=True),
    )


TRAIN_STEPS = Table(
    name="train_steps",
    folder="train_steps/",
    written_by="train",
    meaning="What each optimizer step of each run saw and did, over the global rollout batch. K is the run's.",
    key=("arm", "budget", "seed", "step"),
    columns=(
        ARM,
        ARM_BUDGET,
        TRAINING_SEED,
        Column("step", INT, "1", "optimizer step, from 1"),
        Column("loss", DOUBLE, "nats", "the loss that was stepped on, over the kept positions"),
        Column("keep", DOUBLE, "1", "share of positions kept"),
        Column("tied", DOUBLE, "1", "share of the budget's places that only the tie rule decided"),
        Column("topped_up", DOUBLE, "positions", "positions kept beyond the budget, for the minimum a sequence"),
        Column("sequences_touched", DOUBLE, "1", "share of sequences with a kept position"),
        Column("ends_kept", DOUBLE, "1", "share of end-of-text positions kept; null without any", nullable=True),
        Column("saturated", DOUBLE, "1", "share of positions where C is above 0.9999"),
        *(column for name in DESCRIBED for column in _contrast(name)),
        Column("gradient_norm", DOUBLE, "1", "Euclidean norm of the gradient, before clipping"),
        Column("update_norm", DOUBLE, "1", "length of the step in weight space; null under DeepSpeed", nullable=True),
        Column("learning_rate", DOUBLE, "1", "of the step"),
        Column("rollout_length", DOUBLE, "tokens", "mean length of the rollouts"),
        Column("rollouts_cut", DOUBLE, "1", "share of rollouts that were cut at max_new_tokens"),
    ),
)  # fmt: skip

EVAL_SCORES = Table(
    name="eval_scores",
    folder="eval_scores/",
    written_by="train` or `teachdiag evaluate",
    meaning="Every answer to every held-out prompt: right, wrong, or without an answer that can be read.",
    key=("arm", "budget", "seed", "benchmark", "prompt_id", "sample"),
    columns=(
        ARM,
        ARM_BUDGET,
        TRAINING_SEED,
        BENCHMARK,
        PROMPT_ID,
        Column("sample", INT, "1", "number of the answer to this prompt, from 0; equal numbers share random numbers"),
        Column("outcome", TEXT, "", "'right', 'wrong', or 'unparseable'"),
        Column("given_up", FLAG, "", "'unparseable' because judging took too long or broke down", optional=True),
        Column("answer_tokens", INT, "tokens", "length of the answer"),
        Column("finish_reason", TEXT, "", "'stop': end-of-text was sampled; 'length': cut"),
        Column("sampling_seed", pa.int64(), "1", "seed of this answer's own random stream"),
    ),
)

TRAINING = Table(
    name="training",
    folder="analysis/",
    written_by="train` or `teachdiag evaluate",
    meaning="How right each arm's students are on held-out prompts, and how much more than others, in pairs.",
    key=("benchmark", "arm", "budget", "measure", "against"),
    columns=(
        BENCHMARK,
        ARM,
        ARM_BUDGET,
        Column("measure", TEXT, "", "'mean@k': right answers; 'pass@1': right first ones; 'unparseable'; 'keep'"),
        Column("against", TEXT, "", "'': the share itself; else what is subtracted: 'full', 'random', 'base'"),
        Column("estimate", DOUBLE, "1", "share of answers (of positions for 'keep'), or difference of shares"),
        *CI,
        *P_VALUES,
        METHOD,
        Column("n_seeds", LONG, "1", "training seeds behind the number; 0 for a model not trained here"),
        Column("n_prompts", LONG, "prompts", "held-out prompts behind the number"),
        Column("n_samples", LONG, "answers", "answers to each prompt: the k of mean@k"),
        Column("note", TEXT, "", "what is odd about the answers; '' if nothing is"),
    ),
)  # fmt: skip

PROBE_VERSUS_TRAINING = Table(
    name="probe_versus_training",
    folder="analysis/",
    written_by="train",
    meaning="Selectors by what one step on their positions gained in the probe, and by what training on them gave.",
    key=("probe_id", "benchmark", "arm", "budget"),
    columns=(
        PROBE_ID,
        BENCHMARK,
        ARM,
        ARM_BUDGET,
        Column("gain", DOUBLE, "nats", "mean gain of the bank after one step on these positions, at equal norm"),
        Column("gain_ci_low", DOUBLE, "nats", "lower end of its 95% interval", nullable=True),
        Column("gain_ci_high", DOUBLE, "nats", "upper end of its 95% interval", nullable=True),
        Column("gain_rank", DOUBLE, "1", "rank among the arms of this budget, 1 gains most"),
        Column("right", DOUBLE, "1", "share of right answers after training"),
        Column("right_ci_low", DOUBLE, "1", "lower end of its 95% interval", nullable=True),
        Column("right_ci_high", DOUBLE, "1", "upper end of its 95% interval", nullable=True),
        Column("right_rank", DOUBLE, "1", "rank among the arms of this budget, 1 is right most often"),
        Column("rank_correlation", DOUBLE, "1", "Spearman, over the arms of this budget", nullable=True),
    ),
)  # fmt: skip
