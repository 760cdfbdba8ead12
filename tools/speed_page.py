"""`make speed`: put what `make bench` measured, beside limit and goal of every piece of work, into docs/speed.md.

Nothing is measured here: numbers are the last ones in `benchmarks/history/`, a column a machine.
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from teachdiag.markdown import markdown_table
from teachdiag.tables import read_parquet
from tools.readme_result import ROOT, put

PAGE, HISTORY = ROOT / "docs/speed.md", ROOT / "benchmarks/history"
NOT_MEASURED = "not measured"


class Goal(NamedTuple):
    """A piece of work, what it is measured beside, and the goal; and the row of `make bench` that measures it.

    `column`: `ratio` or `measured`; `number`: among the part's rows of that name.
    """

    work: str
    beside: str
    goal: str
    part: str
    row: str
    column: str = "ratio"
    number: int = 0


_TRAINING = "a step of ours on 5% of the positions, selection and all"
_ANALYSIS = "whole analysis of 57,600 positions, 4 updates"
_LARGE = "analysis of 10,000,000 positions, 2 updates"
GOALS = (
    Goal(
        "exact scoring of both models, float32, files and all",
        "two bare forward passes",
        "1.00",
        "scoring",
        "exact scoring of the same batches, float32",
    ),
    Goal(
        "the same in bfloat16",
        "two bare bfloat16 passes",
        "1.15",
        "scoring",
        "exact scoring of the same batches, bfloat16",
    ),
    Goal(
        "LM heads and every statistic",
        "the two bare head products",
        "2.0",
        "heads",
        "heads and every statistic of capture",
    ),
    Goal(
        "the same, with top lists, C and alignment",
        "TRL's kernel for KL both ways, JSD and entropy",
        "below 1",
        "heads",
        "heads and every statistic, beside TRL's few",
    ),
    Goal("a training step on 5% of the tokens, without rollouts", "TRL's own step", "0.8", "training", _TRAINING),
    Goal("its peak memory", "that of TRL's", "0.7", "training", "  peak memory of one with ours"),
    Goal(
        "first-order gains of every position",
        "a bare student pass",
        "2.3",
        "probes",
        "first-order predictions by central differences, step chosen",
    ),
    Goal(
        "an isolated step at its own context",
        "forward, backward and forward over the prefix",
        "1.1",
        "probes",
        "isolated step, gain and inner products at its own context",
    ),
    Goal(
        "memory of an SGD step and a rung of its ladder",
        "float32 copies of the student",
        "3",
        "adapters",
        "SGD step and a rung of it, --train all (100.0% of the weights), in copies of the student",
    ),
    Goal(
        "memory of an AdamW step and a rung of its ladder",
        "float32 copies of the student",
        "4",
        "adapters",
        "AdamW step and a rung of it, --train all (100.0% of the weights), in copies of the student",
    ),
    Goal(
        "analysis of 57,600 positions, one step and three placebos",
        "seconds",
        "5 s",
        "estimates",
        _ANALYSIS,
        "measured",
    ),
    Goal("its peak memory", "", "400 MB", "estimates", "  peak memory", "measured", 1),
    Goal("analysis of ten million positions", "minutes", "8 min (480 s)", "large", _LARGE, "measured"),
    Goal("its peak memory", "", "4 GB", "large", "  peak memory", "measured", 1),
    Goal(
        "figures, tables and report of the demo",
        "seconds",
        "10 s",
        "commands",
        "every figure, table and the report of a run of the demo's size",
        "measured",
    ),
    Goal(
        "first line of a command",
        "CPU seconds",
        "0.6 s",
        "commands",
        "first line of `teachdiag --help`, CPU",
        "measured",
    ),
    Goal("a refusal", "CPU seconds", "0.6 s", "commands", "a setting that is refused, CPU", "measured"),
    Goal("what `Monitor` adds to 25 steps of training", "these steps", "0.03", "monitoring", "both, of 25 steps"),
)
LONG = "long", "longest"  # the parts of `make bench` that go into a table of their own


def main() -> None:
    """Replace the tables of the page."""
    put(PAGE, "speed", markdown_table(speed_table(HISTORY)))
    put(PAGE, "long", markdown_table(last_table(HISTORY, *LONG)))


def speed_table(history: Path) -> pd.DataFrame:
    """Return every goal with what was measured last, in a column for each machine.

    Args:
        history: folder of a folder a machine, of a Parquet file a part.
    """
    table = pd.DataFrame({"work": [g.work for g in GOALS], "beside": [g.beside for g in GOALS]})
    table["goal"] = [g.goal for g in GOALS]
    for machine in _machines(history):
        table[_title(machine)] = [_last(machine, goal) for goal in GOALS]
    return table


def last_table(history: Path, *parts: str) -> pd.DataFrame:
    """Return what some parts measured last, a row each, in a column for each machine that has measured one of them."""
    rows = {_title(machine): pd.concat([_rows(machine, part) for part in parts]) for machine in _machines(history)}
    columns = {title: found.set_index("what")["measured"] for title, found in rows.items() if len(found)}
    columns = {title: values[~values.index.duplicated(keep="last")] for title, values in columns.items()}
    works = dict.fromkeys(work for values in columns.values() for work in values.index)
    return pd.DataFrame(columns, index=pd.Index(works, name="work")).reset_index().fillna(NOT_MEASURED)


def _machines(history: Path) -> list[Path]:
    return sorted(path for path in history.iterdir() if path.is_dir())


def _title(machine: Path) -> str:
    return machine.name.replace("-", " ")


def _rows(machine: Path, part: str) -> pd.DataFrame:
    file = machine / f"{part}.parquet"
    return read_parquet(file).to_pandas() if file.exists() else pd.DataFrame(columns=["what", "number"])


def _last(machine: Path, goal: Goal) -> str:
    rows = _rows(machine, goal.part)
    rows = rows[(rows["what"] == goal.row) & (rows["number"] == goal.number)]
    return str(rows[goal.column].iloc[-1]) if len(rows) else NOT_MEASURED


if __name__ == "__main__":
    main()
