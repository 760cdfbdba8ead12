"""The data dictionary: every table of a run directory, with each column's type, unit and meaning.

`python -m teachdiag.artefacts` prints the page `docs/artefacts.md`, which is made from nothing else.
"""

import pandas as pd
import pyarrow as pa

from teachdiag.settings import SUPPORT_SIZES
from teachdiag.tables import Column, Table

TOP = max(SUPPORT_SIZES)  # length of the stored top-K lists
_INT, _LONG, _REAL, _TEXT = pa.int32(), pa.int64(), pa.float32(), pa.string()
_IDS, _TOP_IDS, _TOP_LOGP = pa.list_(_INT), pa.list_(_INT, TOP), pa.list_(_REAL, TOP)
_DOUBLE = pa.float64()


def _per_support(name: str, meaning: str, unit: str = "1") -> tuple[Column, ...]:
    return tuple(Column(f"{name}_k{k}", _REAL, unit, meaning.format(k=k)) for k in SUPPORT_SIZES)


_CONTEXT_ID = Column("context_id", _LONG, "1", "number of the context in the run, from 0")
_POSITION = Column("position", _INT, "tokens", "response position t, 0-based: the distribution that predicts y_t")
_PROMPT_ID = Column("prompt_id", _TEXT, "", "source and content hash of the prompt: the cluster of every interval")
_SPLIT = Column("split", _TEXT, "", "'bank': where gains are measured; 'update': the batch of the optimizer step")
_PROBE_ID = Column(
    "probe_id", _TEXT, "", "name of the probe; a placebo's is <probe>.<update>; '' where a number is of the bank alone"
)
_UPDATE = Column(
    "update",
    _TEXT,
    "",
    "'one_step' is the real step; placebos are 'theta0' (no step, other batch layout), 'shuffled_teacher' and "
    "'random_direction'",
)
_OUTCOME = Column("outcome", _TEXT, "", "the gain that is explained: gain, gain_reverse, gain_relative or gain_log")
_K = Column("k", _INT, "tokens", "support size; null where the quantity does not depend on it", nullable=True)
_N_POSITIONS = Column("n_positions", _LONG, "positions", "positions behind the number")
_N_PROMPTS = Column("n_prompts", _LONG, "prompts", "prompts (clusters) behind the number")
_CI = (
    Column("ci_low", _DOUBLE, "as estimate", "lower end of the 95% interval", nullable=True),
    Column("ci_high", _DOUBLE, "as estimate", "upper end of the 95% interval", nullable=True),
)

CONTEXTS = Table(
    name="contexts",
    place="contexts/",
    written_by="capture",
    meaning="Frozen rollouts: prompts, and responses sampled from the student at theta0.",
    key=("context_id",),
    columns=(
        _CONTEXT_ID,
        _PROMPT_ID,
        _SPLIT,
        Column("source_row", _LONG, "1", "row of the prompt in its source file; null if unknown", nullable=True),
        Column("prompt_token_ids", _IDS, "token ids", "the student's prompt, chat template included"),
        Column("teacher_prompt_token_ids", _IDS, "token ids", "the teacher's prompt; differs if privileged"),
        Column("response_token_ids", _IDS, "token ids", "the response, end-of-text token included where sampled"),
        Column("finish_reason", _TEXT, "", "'stop': end-of-text was sampled; 'length': cut at max_new_tokens"),
        Column("sampling_seed", _LONG, "1", "seed of this rollout's own random stream; null if unknown", nullable=True),
    ),
)

POSITIONS = Table(
    name="positions",
    place="positions/",
    written_by="capture",
    meaning="Both models' next-token distributions at every kept response position, at theta0. p is the student, q "
    "the teacher, both at temperature 1 over the shared vocabulary; S and T are their top-K ids, U = S | T.",
    key=("context_id", "position"),
    columns=(
        _CONTEXT_ID,
        _POSITION,
        _PROMPT_ID,
        _SPLIT,
        Column("token_id", _INT, "token id", "the realised token y_t"),
        Column("pos_norm", _REAL, "1", "t / max(R-1, 1), R = kept positions of the context"),
        Column("student_entropy", _REAL, "nats", "H(p), full vocabulary"),
        Column("teacher_entropy", _REAL, "nats", "H(q), full vocabulary"),
        Column("forward_kl", _REAL, "nats", "KL(q || p), full vocabulary: 'raw KL'"),
        Column("reverse_kl", _REAL, "nats", "KL(p || q), full vocabulary: the OPD token loss (paper Eq. 6)"),
        Column("jsd", _REAL, "nats", "Jensen-Shannon divergence, full vocabulary"),
        Column("student_logp", _REAL, "nats", "log p(y_t)"),
        Column("teacher_logp", _REAL, "nats", "log q(y_t)"),
        Column("student_topk_ids", _TOP_IDS, "token ids", f"the student's top {TOP} ids, by falling probability"),
        Column("student_topk_logp", _TOP_LOGP, "nats", "log p at student_topk_ids"),
        Column("teacher_logp_at_student_topk", _TOP_LOGP, "nats", "log q at student_topk_ids, from the full softmax"),
        Column("teacher_topk_ids", _TOP_IDS, "token ids", f"the teacher's top {TOP} ids, by falling probability"),
        Column("teacher_topk_logp", _TOP_LOGP, "nats", "log q at teacher_topk_ids"),
        Column("student_logp_at_teacher_topk", _TOP_LOGP, "nats", "log p at teacher_topk_ids, from the full softmax"),
        *_per_support("disagreement", "D (K={k}): KL(q || p) with both renormalised on U (paper Eq. 3)", "nats"),
        *_per_support("compatibility", "C (K={k}): the teacher's mass on S, exact (paper Eq. 4)"),
        *_per_support("compatibility_bound", "lower bound of C (K={k}): the teacher's mass on S & T (paper Eq. 17)"),
        *_per_support("bhattacharyya", "sum of sqrt(p q) (K={k}), both renormalised on U (the paper's CBC)"),
        *_per_support("overlap", "|S & T| / K (K={k})"),
        *_per_support("jaccard", "|S & T| / |S | T| (K={k})"),
        *_per_support("teacher_top1_in_support", "1 where the teacher's first choice is in S (K={k}), else 0"),
        Column("logit_alignment", _REAL, "nats", "A = sum_v (p_v - q_v) p_v (log p_v/q_v - KL(p || q))"),
        Column("forward_logit_energy", _REAL, "1", "sum_v (p_v - q_v)^2"),
        Column("hidden_norm_sq", _REAL, "1", "squared norm of the student's hidden state that feeds the LM head"),
    ),
)

GAINS = Table(
    name="gains",
    place="gains/<probe_id>/",
    written_by="probe",
    meaning="The bank's positions before and after one update, against the same teacher. 'Before' is theta0, rescored "
    "by the probe in the same batches as 'after', so that an update of nothing gains exactly 0.",
    key=("probe_id", "context_id", "position"),
    columns=(
        _PROBE_ID,
        _UPDATE,
        Column("placebo_of", _TEXT, "", "the probe that this is a placebo of; null for the real step", nullable=True),
        Column("update_on", _TEXT, "", "'update': the step saw held-out prompts; 'bank': these very contexts"),
        Column("loss", _TEXT, "", "OPD loss of the step"),
        _CONTEXT_ID,
        _POSITION,
        _PROMPT_ID,
        Column("forward_kl_before", _REAL, "nats", "KL(q || p) at theta0"),
        Column("forward_kl_after", _REAL, "nats", "KL(q || p) at theta1"),
        Column("reverse_kl_before", _REAL, "nats", "KL(p || q) at theta0"),
        Column("reverse_kl_after", _REAL, "nats", "KL(p || q) at theta1"),
        Column("gain", _REAL, "nats", "forward_kl_before - forward_kl_after (paper Eq. 1): the default outcome"),
        Column("gain_reverse", _REAL, "nats", "reverse_kl_before - reverse_kl_after"),
        Column(
            "gain_relative",
            _REAL,
            "1",
            "gain / forward_kl_before (the release's outcome); null where forward_kl_before is under 10 noise floors",
            nullable=True,
        ),
        Column(
            "gain_log",
            _REAL,
            "1",
            "log(forward_kl_before / forward_kl_after); null where either KL is under 10 noise floors",
            nullable=True,
        ),
        Column(
            "noise_floor",
            _REAL,
            "nats",
            "|gain| here when theta0 itself is rescored in another batch layout (and in float32, for half-precision "
            "models). 'Under 10 noise floors' compares with the larger of this and its 99th percentile over the bank",
        ),
    ),
)

ESTIMATES = Table(
    name="estimates",
    place="analysis/",
    written_by="analyze",
    meaning="Every number of the analysis, one a row, with its interval; real steps and placebos side by side.",
    key=("analysis", "term", "outcome", "k", "probe_id"),
    columns=(
        Column("analysis", _TEXT, "", "which estimate: see docs/analysis.md"),
        _PROBE_ID,
        _UPDATE,
        _OUTCOME,
        _K,
        Column("term", _TEXT, "", "coefficient, predictor set, or difference of two"),
        Column("unit", _TEXT, "", "unit of the estimate"),
        Column("estimate", _DOUBLE, "see unit", "point estimate"),
        *_CI,
        Column(
            "std_error",
            _DOUBLE,
            "as estimate",
            "statsmodels' cluster-robust (CRV1) error; takes the spread of outcome and predictors as known",
            nullable=True,
        ),
        Column("method", _TEXT, "", "how estimate and interval were made"),
        _N_POSITIONS,
        _N_PROMPTS,
        Column("n_dropped", _LONG, "positions", "positions of the bank left out: the outcome is under the noise floor"),
    ),
)

DECILES = Table(
    name="deciles",
    place="analysis/",
    written_by="analyze",
    meaning="Mean outcome by decile of each score, with prompt-cluster bootstrap intervals.",
    key=("probe_id", "outcome", "score", "k", "decile"),
    columns=(
        _PROBE_ID,
        _UPDATE,
        _OUTCOME,
        Column("score", _TEXT, "", "score whose deciles are formed, at theta0"),
        _K,
        Column("decile", _INT, "1", "1 (lowest) to 10; ties share a decile, so saturated scores have fewer"),
        Column("score_mean", _DOUBLE, "as score", "mean score in the decile"),
        Column("estimate", _DOUBLE, "as outcome", "mean outcome in the decile"),
        *_CI,
        _N_POSITIONS,
        _N_PROMPTS,
    ),
)

SURFACES = Table(
    name="surfaces",
    place="analysis/",
    written_by="analyze",
    meaning="Means over a grid of two percentile-binned quantities at theta0: what the map figures draw.",
    key=("surface", "probe_id", "k", "x_bin", "y_bin"),
    columns=(
        Column("surface", _TEXT, "", "which map: see docs/analysis.md"),
        Column("probe_id", _TEXT, "", "probe whose gain is averaged; null if the map needs none", nullable=True),
        _K,
        Column("x", _TEXT, "", "quantity along x"),
        Column("y", _TEXT, "", "quantity along y"),
        Column("x_bin", _INT, "1", "bin along x, from 0"),
        Column("y_bin", _INT, "1", "bin along y, from 0"),
        Column("x_low", _DOUBLE, "as x", "lower edge"),
        Column("x_high", _DOUBLE, "as x", "upper edge"),
        Column("y_low", _DOUBLE, "as y", "lower edge"),
        Column("y_high", _DOUBLE, "as y", "upper edge"),
        Column("value", _DOUBLE, "see surface", "mean in the cell"),
        _N_POSITIONS,
    ),
)

SATURATION = Table(
    name="saturation",
    place="analysis/",
    written_by="analyze",
    meaning="How much of each normalised score is decided by clipping and ties rather than by the score.",
    key=("score", "k"),
    columns=(
        Column("score", _TEXT, "", "normalised score"),
        _K,
        Column("q05", _DOUBLE, "as raw score", "5% quantile that maps to 0; null for combined scores", nullable=True),
        Column("q95", _DOUBLE, "as raw score", "95% quantile that maps to 1; null for combined scores", nullable=True),
        Column("share_at_lowest", _DOUBLE, "1", "share of positions at the score's lowest value"),
        Column("share_at_highest", _DOUBLE, "1", "share of positions at the score's highest value"),
        *(
            Column(f"tied_at_{b:02d}pct", _DOUBLE, "1", f"share of a {b}% budget that a tie at its edge decides")
            for b in (1, 3, 5, 10, 30)
        ),
        _N_POSITIONS,
    ),
)

FINDINGS = Table(
    name="findings",
    place="analysis/",
    written_by="analyze",
    meaning="The verdict, one claim a row: what holds, what does not, and what a placebo shows too.",
    key=("finding", "probe_id", "outcome", "k"),
    columns=(
        Column("finding", _TEXT, "", "the claim, in a few words"),
        Column("probe_id", _TEXT, "", "the real step that it was tested on"),
        _OUTCOME,
        _K,
        Column(
            "status",
            _TEXT,
            "",
            "'holds' or 'reversed' (the interval leaves 0 out, and so do the differences from every placebo); "
            "'artefact' (not beyond a placebo that shows it too); 'unclear' (not told apart from another placebo); "
            "'not shown'",
        ),
        Column("estimate", _DOUBLE, "see unit", "the number behind it"),
        *_CI,
        Column("unit", _TEXT, "", "unit of the estimate"),
        Column("placebos", _TEXT, "", "the same number for every placebo, with intervals"),
        Column("sentence", _TEXT, "", "the finding in plain words"),
    ),
)

TABLES = (CONTEXTS, POSITIONS, GAINS, ESTIMATES, DECILES, SURFACES, SATURATION, FINDINGS)


def probes_by_step(estimates: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return the real steps in a table of estimates, each with its probe_ids by update: its own, then its placebos'."""
    probes = estimates.loc[estimates["probe_id"] != "", ["probe_id", "update"]].drop_duplicates()
    steps: dict[str, dict[str, str]] = {}
    for probe_id, update in probes.itertuples(index=False):
        steps.setdefault(probe_id.removesuffix(f".{update}"), {})[update] = probe_id
    return steps


def data_dictionary() -> str:
    """Return `docs/artefacts.md`: every table and column, made from the schemas above."""
    parts = ["# Artefacts\n", _PREAMBLE]
    for t in TABLES:
        parts.append(f"\n## `{t.name}`\n\n{t.meaning}\n\nIn `{t.place}`, written by `teachdiag {t.written_by}`; ")
        parts.append(
            f"one row for each ({', '.join(t.key)}).\n\n| column | type | unit | meaning |\n| --- | --- | --- | --- |\n"
        )
        for c in t.columns:
            unit, kind = c.unit.replace("|", "\\|"), str(c.type) + (", nullable" if c.nullable else "")
            parts.append(f"| `{c.name}` | {kind} | {unit} | {c.meaning.replace('|', chr(92) + '|')} |\n")
    return "".join(parts)


_PREAMBLE = """
A run directory holds Parquet tables, and one JSON for each stage that says how they were made: resolved settings,
versions, digests of models and data, device. A table is complete when its stage's JSON says so; a shard is complete
when it has its final name. Each table reads as a whole, shards or not:

```python
import pandas as pd

positions = pd.read_parquet("runs/demo/positions")
gains = pd.read_parquet("runs/demo/gains")  # every probe and placebo, told apart by `probe_id` and `update`
bank = gains.merge(positions, on=["context_id", "position", "prompt_id"])
```

Units and meanings also lie in the Parquet field metadata (`pyarrow.parquet.read_schema(file).field(name).metadata`).
Entropies and divergences are in nats; a unit of 1 is a pure number. Columns are never null unless marked so.

| file | what |
| --- | --- |
| `capture.json`, `probes/<probe_id>.json`, `analyze.json` | how each stage was run, and its summary |
| `events.jsonl` | when each stage began and ended, and how long it took |
| `contexts/`, `positions/`, `gains/` | the tables of the first two stages, in shards |
| `analysis/*.parquet`, `analysis/*.csv` | the tables of the third |
| `figures/*.png`, `figures/*.svg` | every figure |
| `summary.md` | the verdict and its tables, for people |
"""

if __name__ == "__main__":
    print(data_dictionary(), end="")
