"""What training on selected positions gave, for people: from the tables of a run, whichever way it falls."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from teachdiag.analysis.bank.lookup import row_interval
from teachdiag.analysis.text.text_tables import altered
from teachdiag.artefacts import PROBE_VERSUS_TRAINING, TRAINING
from teachdiag.markdown import bullets, markdown_table
from teachdiag.notes import recall
from teachdiag.runs import Stage
from teachdiag.settings import headline_budget

CONTENDER = "learnable"  # TA-OPD's score, the claim under test
_AGAINST = ("full", "random")
_VERDICTS = {1: "is right more often than", -1: "is right less often than", 0: "cannot be told from"}


def training_block(run: Path) -> str:
    """Return what a sweep gave: sentences, accuracy by arm and budget, and the probe's ranking beside it.

    Raises:
        ArtefactError: the training has not been analysed.
    """
    rows = TRAINING.read(TRAINING.file(run))
    parts = [_told(run, rows), bullets(training_sentences(rows)), markdown_table(accuracy_table(rows))]
    compared = PROBE_VERSUS_TRAINING.file(run)
    if compared.exists():
        both = PROBE_VERSUS_TRAINING.read(compared)
        parts += ["**Does the selector that one step ranks first also train best?**", bullets(probe_sentences(both))]
        parts.append(markdown_table(probe_table(both, headline_budget(both["budget"].dropna()))))
    return "\n\n".join(parts)


def training_sentences(rows: pd.DataFrame) -> list[str]:
    """Say at each budget how TA-OPD's score does against full OPD and random positions, and who leads."""
    right = rows[rows["measure"] == "mean@k"]
    sentences = []
    for budget in np.sort(right["budget"].dropna().unique()):
        at_budget = right[right["budget"] == budget]
        contender = at_budget[(at_budget["arm"] == CONTENDER) & at_budget["against"].isin(_AGAINST)]
        if len(contender):
            verdicts = [
                f"{_VERDICTS[row_interval(row).side()]} {_NAMES[row['against']]} (difference {row_interval(row)}, "
                f"q = {row['q_value']:.2g})"
                for _, row in contender.iterrows()
            ]
            sentences.append(f"At {budget:.0%} of the positions, `{CONTENDER}` (TA-OPD) {', and '.join(verdicts)}.")
        ranked = at_budget[at_budget["against"] == ""].sort_values("estimate", ascending=False)
        if len(ranked) > 2:
            ranks = {arm: number for number, arm in enumerate(ranked["arm"], start=1)}
            leader = ranked.iloc[0]
            behind = [arm for arm in (CONTENDER, "random") if ranks.get(arm, 1) > 1]
            others = ", ".join(f"`{arm}` is number {ranks[arm]}" for arm in behind)
            sentences.append(
                f"Best of {len(ranked)} at {budget:.0%} (the best of many flatters itself): `{leader['arm']}` with "
                f"{row_interval(leader)}{'; ' + others if others else ''}."
            )
    notes = rows[rows["note"] != ""].drop_duplicates(["arm", "budget", "note"])
    sentences += [f"`{row['arm']}` at {row['budget']:g}: {row['note']}." for _, row in notes.iterrows()]
    return sentences


def accuracy_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of right answers of every arm, a column a budget, best at the headline budget first."""
    levels = rows[(rows["measure"] == "mean@k") & (rows["against"] == "")]
    trained = levels[levels["budget"].notna()]
    budgets = [float(b) for b in np.sort(trained["budget"].unique())]
    at_headline = trained[trained["budget"] == headline_budget(rows["budget"].dropna())]
    order = at_headline.sort_values("estimate", ascending=False)["arm"].tolist()
    table = [
        {"positions": str(arm)} | {f"{b:.0%}": _cell(trained, str(arm), b) for b in budgets}
        for arm in [*order, *(arm for arm in trained["arm"].unique() if arm not in order)]
    ]
    untrained = levels[levels["budget"].isna()]
    blank = dict.fromkeys((f"{b:.0%}" for b in budgets[:-1]), "")
    table += [
        {"positions": f"{row['arm']} (not trained here)"} | blank | {f"{budgets[-1]:.0%}": str(row_interval(row))}
        for _, row in untrained.iterrows()
    ]
    return pd.DataFrame(table)


def probe_table(both: pd.DataFrame, budget: float) -> pd.DataFrame:
    """The probe's gains and the training's right answers at one budget, as the probe ranks them."""
    here = both[both["budget"] == budget].sort_values("gain", ascending=False)
    return pd.DataFrame(
        {
            "selector": here["arm"],
            "probe: mean gain [nats]": [_between(row, "gain") for _, row in here.iterrows()],
            "probe: rank": [f"{rank:g}" for rank in here["gain_rank"]],
            "training: right": [_between(row, "right") for _, row in here.iterrows()],
            "training: rank": [f"{rank:g}" for rank in here["right_rank"]],
        }
    )


def probe_sentences(both: pd.DataFrame) -> list[str]:
    """Say at each budget whether the probe's first is the training's, and how both rankings agree."""
    sentences = []
    for budget, at_budget in both.groupby("budget", sort=True):
        if len(at_budget) > 2:
            first = at_budget.sort_values("gain", ascending=False).iloc[0]
            best = at_budget.sort_values("right", ascending=False).iloc[0]
            agrees = "it trains best too" if first["arm"] == best["arm"] else f"`{best['arm']}` trains best"
            correlation = first["rank_correlation"]
            rank = "" if pd.isna(correlation) else f"; Spearman {correlation:.2f} over {len(at_budget)} selectors"
            sentences.append(
                f"At {budget:.0%}: one step gains most on `{first['arm']}`, which is number {first['right_rank']:g} "
                f"after training; {agrees}{rank}."
            )
    return sentences


def _told(run: Path, rows: pd.DataFrame) -> str:
    """Say what was trained, and how it was judged."""
    note = Stage(run, "train").record("inputs.student.dropped_layers", "inputs.teacher.dropped_layers", "inputs.cells")
    settings, inputs = note["settings"], note["inputs"]
    student, teacher = (_named(settings[side]) + altered(inputs[side]) for side in ("student", "teacher"))

    def used(name: str) -> str:
        """What the cells were trained with, which a sweep may vary."""
        return " or ".join(dict.fromkeys(str(cell.get(name, settings[name])) for cell in inputs["cells"].values()))

    levels = rows[(rows["measure"] == "mean@k") & rows["budget"].notna()]
    row = levels.iloc[0]
    return (
        f"Student: {student}. Teacher: {teacher}. {used('steps')} "
        f"AdamW steps, learning rate {used('learning_rate')}, {used('batch')} rollouts a step, mean {used('loss')} "
        f"over the kept positions; {levels['n_seeds'].max()} training seeds, paired. Judged by "
        f"{row['n_samples']} answers to each of {row['n_prompts']} held-out `{row['benchmark']}` problems at "
        f"temperature {settings['eval_temperature']:g}: shares of right answers, with 95% intervals from a bootstrap "
        "over training seeds x prompts."
    )


def _named(model: str) -> str:
    """A model's name, and how it did greedily when it was taught, where it is one of the testbed's."""
    facts = recall(Path(model) / "taught.json", {"right": float, "held_out": int, ...: Any})
    if facts is None:
        return model
    return f"{model}, right on {facts['right']:.1%} of {facts['held_out']} held-out problems greedily"


def _cell(rows: pd.DataFrame, arm: str, budget: float) -> str:
    cell = rows[(rows["arm"] == arm) & (rows["budget"] == budget)]
    return str(row_interval(cell.iloc[0])) if len(cell) else ""


def _between(row: pd.Series, name: str) -> str:
    ends = pd.Series({"estimate": row[name], "ci_low": row[f"{name}_ci_low"], "ci_high": row[f"{name}_ci_high"]})
    return str(row_interval(ends))


_NAMES = {"full": "full OPD", "random": "random positions"}
