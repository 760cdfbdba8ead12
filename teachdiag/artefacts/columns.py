"""Columns that several tables share, and the Arrow types of columns."""

import pyarrow as pa

from teachdiag.settings import SUPPORT_SIZES
from teachdiag.tables import Column

TOP = max(SUPPORT_SIZES)  # length of the stored top-K lists
INT, LONG, REAL, TEXT, FLAG = pa.int32(), pa.int64(), pa.float32(), pa.string(), pa.bool_()
IDS, TOP_IDS, TOP_LOGP = pa.list_(INT), pa.list_(INT, TOP), pa.list_(REAL, TOP)
MASK, REALS = pa.list_(pa.int8()), pa.list_(REAL)  # a mask is of 0 and 1
CANDIDATES = 5  # ids of the student after a step that are stored, for reading
DOUBLE = pa.float64()


CONTEXT_ID = Column("context_id", LONG, "1", "number of the context in the run, from 0")
POSITION = Column("position", INT, "tokens", "response position t, 0-based: the distribution that predicts y_t")
PROMPT_ID = Column("prompt_id", TEXT, "", "source and content hash of the prompt: the cluster of every interval")
SPLIT = Column("split", TEXT, "", "'bank': where gains are measured; 'update': the batch of the optimizer step")
PROBE_ID = Column(
    "probe_id", TEXT, "", "name of the probe; a placebo's is <probe>.<update>; '' where a number is of the bank alone"
)
UPDATE = Column(
    "update",
    TEXT,
    "",
    "the real one is 'one_step', 'multi_step' or 'checkpoint'; placebos, scaled to its update norm, are 'theta0' (no "
    "step, other batch layout), 'shuffled_teacher' (rows of other contexts of similar teacher entropy), "
    "'shuffled_rollouts' (responses dealt to other prompts) and 'random_direction'",
)
LOSS = Column("loss", TEXT, "", "OPD loss of the step")
KL_BEFORE = Column("forward_kl_before", REAL, "nats", "KL(q || p) at theta0")
OUTCOME = Column("outcome", TEXT, "", "the gain that is explained: gain, gain_reverse, gain_relative or gain_log")
K = Column("k", INT, "tokens", "support size; null where the quantity does not depend on it", nullable=True)
N_POSITIONS = Column("n_positions", LONG, "positions", "positions behind the number")
N_PROMPTS = Column("n_prompts", LONG, "prompts", "prompts (clusters) behind the number")
CI = (
    Column("ci_low", DOUBLE, "as estimate", "lower end of the 95% interval", nullable=True),
    Column("ci_high", DOUBLE, "as estimate", "upper end of the 95% interval", nullable=True),
)
DRAW_ERROR = Column("draw_error", DOUBLE, "as estimate", "standard deviation of the bootstrap draws", nullable=True)
P_VALUES = (
    Column("p_value", DOUBLE, "1", "two-sided, from the bootstrap draws; null where nothing is tested", nullable=True),
    Column("q_value", DOUBLE, "1", "Benjamini-Hochberg, over the family that docs/analysis.md names", nullable=True),
)

SELECTOR = Column("selector", TEXT, "", "which positions were kept: see docs/selectors.md; 'random_mask' in kind lds")
BUDGET = Column("budget", DOUBLE, "1", "share of the update batch that was asked for")
SEED = Column("seed", INT, "1", "draw of the update batch (kind lds: of the mask), the same for every selector")
MATCH = Column(
    "match", TEXT, "", "'rate': step at the probe's learning rate; 'norm': scaled to the norm of the unselective step"
)

UNIT = Column("unit", TEXT, "", "unit of the estimate")
SCORE = Column("score", TEXT, "", "score at theta0")
METHOD = Column("method", TEXT, "", "how estimate and interval were made")
METHOD_OR_WHY = Column("method", TEXT, "", "how estimate and interval were made, or why there is no interval")
OF_AN_OUTCOME = (PROBE_ID, UPDATE, OUTCOME)
COUNTS = (N_POSITIONS, N_PROMPTS)
OF_A_LOSS_TERM = (PROBE_ID, LOSS, CONTEXT_ID, POSITION, PROMPT_ID, SPLIT)
CELL = (SELECTOR, BUDGET, SEED, MATCH)
