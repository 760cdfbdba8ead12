"""The data dictionary: every table of a run directory, with each column's type, unit and meaning.

`python -m teachdiag.artefacts` prints the page `docs/artefacts.md`, which is made from nothing else.
"""

from typing import TYPE_CHECKING

from teachdiag.artefacts.columns import CANDIDATES, TOP
from teachdiag.artefacts.contrasts import (
    BALANCE,
    BUCKETS,
    BY_GRADE,
    CONTRASTS,
    GRADE_NAMES,
    RIGHT_LESS_WRONG,
    SAME_PROMPT,
    TOP_N,
)
from teachdiag.artefacts.estimated import (
    DECILES,
    EFFICIENCY,
    ESTIMATES,
    INFERENCE,
    MIN_CELL,
    RANKED,
    SATURATION,
    SCALES,
    SELECTION,
    SURFACES,
    TOKENS,
)
from teachdiag.artefacts.measured import (
    BOUNDS,
    BROUGHT,
    CONTEXTS,
    GAINS,
    GRADES,
    IMPORTED,
    INNER_PRODUCTS,
    INTERVENTION_GAINS,
    INTERVENTIONS,
    ISOLATED,
    MASKED_GAINS,
    MASKED_STEPS,
    POSITIONS,
    PREDICTIONS,
    RECORDED,
    VOCABULARY,
)
from teachdiag.artefacts.monitored import CANARY_POSITIONS, MONITOR, TIMELINE
from teachdiag.artefacts.released import RELEASED_BANK
from teachdiag.artefacts.specifications import IN_SPREADS, QUANTITIES, SPECIFICATIONS
from teachdiag.artefacts.teachers import TEACHER_CURVES, TEACHER_TOKENS, TEACHERS
from teachdiag.artefacts.trained import EVAL_SCORES, PROBE_VERSUS_TRAINING, TRAIN_STEPS, TRAINING
from teachdiag.artefacts.verdict import FINDINGS, PLACEBO_PANEL, PRIMARY
from teachdiag.markdown import markdown_table
from teachdiag.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BALANCE",
    "BOUNDS",
    "BROUGHT",
    "BUCKETS",
    "BY_GRADE",
    "CANARY_POSITIONS",
    "CANDIDATES",
    "CONTEXTS",
    "CONTRASTS",
    "DECILES",
    "EFFICIENCY",
    "ESTIMATES",
    "EVAL_SCORES",
    "FINDINGS",
    "GAINS",
    "GRADES",
    "GRADE_NAMES",
    "IMPORTED",
    "INFERENCE",
    "INNER_PRODUCTS",
    "INTERVENTIONS",
    "INTERVENTION_GAINS",
    "IN_SPREADS",
    "ISOLATED",
    "MASKED_GAINS",
    "MASKED_STEPS",
    "MIN_CELL",
    "MONITOR",
    "PLACEBO_PANEL",
    "POSITIONS",
    "PREDICTIONS",
    "PRIMARY",
    "PROBE_VERSUS_TRAINING",
    "QUANTITIES",
    "RANKED",
    "RECORDED",
    "RELEASED_BANK",
    "RIGHT_LESS_WRONG",
    "SAME_PROMPT",
    "SATURATION",
    "SCALES",
    "SELECTION",
    "SPECIFICATIONS",
    "SURFACES",
    "TABLES",
    "TEACHERS",
    "TEACHER_CURVES",
    "TEACHER_TOKENS",
    "TIMELINE",
    "TOKENS",
    "TOP",
    "TOP_N",
    "TRAINING",
    "TRAIN_STEPS",
    "VOCABULARY",
    "data_dictionary",
    "probes_by_step",
]

TABLES = (
    CONTEXTS,
    GRADES,
    VOCABULARY,
    POSITIONS,
    GAINS,
    ISOLATED,
    PREDICTIONS,
    INTERVENTIONS,
    INTERVENTION_GAINS,
    INNER_PRODUCTS,
    MASKED_STEPS,
    MASKED_GAINS,
    TRAIN_STEPS,
    EVAL_SCORES,
    ESTIMATES,
    INFERENCE,
    CONTRASTS,
    BALANCE,
    TOP_N,
    BUCKETS,
    BY_GRADE,
    DECILES,
    SURFACES,
    TOKENS,
    SCALES,
    SATURATION,
    FINDINGS,
    PRIMARY,
    SPECIFICATIONS,
    SELECTION,
    EFFICIENCY,
    PLACEBO_PANEL,
    TRAINING,
    PROBE_VERSUS_TRAINING,
    RELEASED_BANK,
    MONITOR,
    CANARY_POSITIONS,
    TIMELINE,
    TEACHERS,
    TEACHER_CURVES,
    TEACHER_TOKENS,
)


def probes_by_step(estimates: "pd.DataFrame") -> dict[str, dict[str, str]]:
    """Return the real steps in a table of estimates, each with its probe_ids by update: its own, then its placebos'."""
    of_steps = estimates[estimates["analysis"] == "mean"]  # which only steps and their placebos have
    probes = of_steps[["probe_id", "update"]].drop_duplicates()
    steps: dict[str, dict[str, str]] = {}
    for probe_id, update in probes.itertuples(index=False):
        steps.setdefault(probe_id.removesuffix(f".{update}"), {})[update] = probe_id
    return steps


def data_dictionary() -> str:
    """Return `docs/artefacts.md`: every table and column, made from the schemas above."""
    import pandas as pd

    parts = ["# Artefacts\n", _PREAMBLE]
    for t in TABLES:
        parts.append(f"\n## `{t.name}`\n\n{t.meaning}\n\nIn `{t.folder}`, written by `{_writer(t)}`; ")
        kinds = [str(c.type) + ", nullable" * c.nullable + ", optional" * c.optional for c in t.columns]
        columns = pd.DataFrame(
            {
                "column": [f"`{c.name}`" for c in t.columns],
                "type": kinds,
                "unit": [c.unit for c in t.columns],
                "meaning": [c.meaning for c in t.columns],
            }
        )
        parts.append(f"one row for each ({', '.join(t.key)}).\n\n{markdown_table(columns)}\n")
    return "".join(parts)


def _writer(table: Table) -> str:
    """What is called: a command, or a class."""
    return table.written_by if "." in table.written_by else f"teachdiag {table.written_by}"


_PREAMBLE = """
A run directory holds Parquet tables, and one JSON for each stage that says how they were made: resolved settings,
versions, digests of models and data, device. A table is complete when its stage's JSON says so. Until then a shard
counts once it has its final name and, beside it, its checksum (`.sha256`). Each table reads as a whole, shards or not:

```python
import pandas as pd

positions = pd.read_parquet("runs/demo/positions")
gains = pd.read_parquet("runs/demo/gains")  # every probe and placebo, told apart by `probe_id` and `update`
bank = gains.merge(positions, on=["context_id", "position", "prompt_id"])
```

`teachdiag.open_run` reads them by name, and refuses what is unfinished:

```python
import teachdiag

run = teachdiag.open_run("runs/demo")
run.positions  # and so every table below
bank = run.bank()  # positions of the bank, and what the first real step gained there
```

Units and meanings also lie in the Parquet field metadata (`pyarrow.parquet.read_schema(file).field(name).metadata`).
Entropies and divergences are in nats; a unit of 1 is a pure number. Columns are never null unless marked so, nor absent
unless marked optional: those need more of the teacher than one behind an engine or an address may give, or stand in
place of what it did not give, or came with a later version than the capture.

| file | what |
| --- | --- |
| `capture.json`, `probes/<probe_id>.json`, `analyze.json` | how each stage was run, and its summary |
| `events.jsonl` | when each stage began and ended, and how long it took |
| `contexts/`, `positions/` | the tables of capture, in shards |
| `grades/`, `grade.json` | grades of the responses, of `capture --grade`, and how they were made |
| `gains/`, `isolated/`, `predictions/`, `interventions/`, `intervention_gains/` | the tables of probe, by probe |
| `inner_products/`, `masked_steps/`, `masked_gains/` | those of kind efficiency |
| `teacher_states/` | the teacher's hidden states, which probes share: N x width x 4 bytes; may be deleted |
| `tokens/` | the bank's positions with their scores, from analyze |
| `analysis/*.parquet`, `analysis/*.csv` | the tables of analyze |
| `figures/*.png`, `*.svg`, `*.pdf`, `figures/dark/*.svg` | every figure, 3.3 or 7.2 inches wide; for dark pages |
| `figures/captions.json`, `captions.md` | what each figure asks, its caption, and what is seen on it |
| `report.html` | everything on one page, tokens included |
| `tables/*.md`, `*.csv`, `*.parquet` | tables by the paper's numbers, with captions |
| `summary.md` | the verdict and its tables, for people |
| `analysis/summary.json` | the same as data, from which the report is laid out |
| `comparison/`, beside the run | what several runs show: `teachers*` are of `teachdiag compare-teachers` |
"""
