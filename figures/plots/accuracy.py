"""What training gave, as the paper lays it out: Tables 3, 4, 10, 11 and 12, and accuracy against budget."""

from pathlib import Path

import pandas as pd

from teachdiag.artefacts import PROBE_VERSUS_TRAINING, TRAINING
from teachdiag.figures.captions import Caption, write_captions
from teachdiag.figures.plots.budget_curve import draw_budgets, seen_at
from teachdiag.figures.printed_tables import Printed, write_printed
from teachdiag.figures.style import Picture, blank_figure, save, theme
from teachdiag.settings import headline_budget
from teachdiag.tables import rows_where

_LEADING = "mean@k"
_MAIN = ("base", "teacher", "full", "random", "entropy", "tip", "learnable", "learnable_entropy")  # Tables 3 and 4
_FURTHER = ("forward_kl", "compatibility", "q3", "q3_high_c")  # Table 12
_NUMBERS = [
    "estimate",
    "ci_low",
    "ci_high",
    "p_value",
    "q_value",
    "n_seeds",
    "n_prompts",
    "n_samples",
    "note",
    "method",
]


def publish_training(run: Path) -> list[Path]:
    """Print the tables of a run's training into `tables/`, and draw accuracy against budget into `figures/`.

    Raises:
        ArtefactError: the training has not been analysed.
    """
    rows = TRAINING.read(TRAINING.file(run))
    answered = rows.iloc[0]
    population = (
        f"Held-out prompts of {', '.join(rows['benchmark'].unique())}: {answered['n_prompts']}, with "
        f"{answered['n_samples']} answers each"
    )
    files = [file for printed in _printed(run, rows) for file in write_printed(run / "tables", printed, population)]
    if len(rows["budget"].dropna().unique()) > 1:
        with theme():
            picture = accuracy_figure(rows, population)
            files += save(picture, run / "figures", "accuracy")
        files += write_captions(run / "figures", {"accuracy": Caption.of(picture)})
    return files


def accuracy_figure(rows: pd.DataFrame, population: str) -> Picture:
    """Draw the share of right answers against the budget, one curve an arm, ending at full OPD."""
    levels = rows_where(rows, measure=_LEADING, against="")
    figure = blank_figure(2.9)
    ax = figure.subplots()
    trained = levels[levels["budget"].notna()].rename(columns={"arm": "selector"})
    draw_budgets(trained.replace({"selector": {"full": "all"}}), ax)
    base = levels[levels["arm"] == "base"]["estimate"]
    if len(base):
        ax.axhline(float(base.iloc[0]), color="0.3", linestyle=":", linewidth=1, label="base student")
    low, high = (
        trained["ci_low"].fillna(trained["estimate"]).min(),
        trained["ci_high"].fillna(trained["estimate"]).max(),
    )
    margin = 0.08 * (high - min(low, *base)) + 1e-3
    ax.set_ylim(min(low, *base) - margin, high + margin)
    ax.set_xlabel("share of positions that carry the loss")
    ax.set_ylabel("share of right answers")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    seeds = trained["n_seeds"].max()
    method = levels[levels["arm"] != "base"]["method"].iloc[-1]
    figure.ask("How many answers are right after training on a share of the positions?")
    figure.tell(
        f"{population}; {seeds} training seeds, paired across arms. 95% intervals: {method}.",
        f"{seen_at(trained.replace({'selector': {'full': 'all'}}), 'Share of right answers')}.",
    )
    return figure


def _printed(run: Path, rows: pd.DataFrame) -> list[Printed]:
    budgets = rows["budget"].dropna()
    headline = headline_budget(budgets) if len(budgets) else None
    at = rows[(rows["budget"] == headline) | rows["budget"].isna() | (rows["arm"] == "full")]
    right = rows["measure"] == _LEADING
    laid_out = [
        Printed(
            "training",
            "Tables 3 and 4",
            f"Right answers after training at a budget of {headline:g}, and differences in pairs."
            if headline
            else "Right answers.",
            _ranked(at[at["arm"].isin(_MAIN) | ~at["arm"].isin(_FURTHER)]),
        ),
        Printed(
            "training_budgets", "Tables 10 and 11", "Right answers and kept positions by budget.",
            rows[(right | (rows["measure"] == "keep")) & rows["budget"].notna()],
        ),
        Printed("training_ablations", "Table 12", "Further masks.", _ranked(at[at["arm"].isin(_FURTHER)])),
    ]  # fmt: skip
    columns = ["benchmark", "arm", "budget", "measure", "against", *_NUMBERS]
    shown = [Printed(p.name, p.paper, p.what, p.rows[columns]) for p in laid_out if len(p.rows)]
    compared = PROBE_VERSUS_TRAINING.file(run)
    if compared.exists():
        what = "What one step on a selector's positions gained in the probe (nats), beside what training on them gave."
        shown.append(Printed("probe_versus_training", "", what, PROBE_VERSUS_TRAINING.read(compared)))
    return shown


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Arms by their share of right answers, best first, each with its differences."""
    levels = rows_where(rows, measure=_LEADING, against="").set_index("arm")["estimate"]
    level = rows["arm"].map(levels[~levels.index.duplicated()])
    return rows.assign(level=level).sort_values(["level", "arm"], ascending=[False, True], kind="stable")
