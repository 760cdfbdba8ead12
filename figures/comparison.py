"""Several runs beside one another: the paper's robustness table (Table 1, Figure 5A), and one specification curve."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from teachdiag.errors import ArtefactError
from teachdiag.figures.plots.forest import draw_forest, shades
from teachdiag.figures.plots.specification_curve import curves_figure
from teachdiag.figures.printed_tables import Printed, write_printed
from teachdiag.figures.run_tables import load_tables, steps_of
from teachdiag.figures.style import REAL, add_caption, blank_figure, save, theme
from teachdiag.runs import Stage, bank_prompts, teacher_prompt
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.tables import rows_where

_PAIR = ("student", "teacher", "without_layers", "teacher_prompt", "prompts")
_UPDATE = ("kind", "optimizer", "learning_rate", "loss", "update_on", "steps")
_DESIGNS = {"thirds": "upper less lower third", "matched": "matched pairs"}


def compare_runs(runs: Sequence[Path]) -> list[Path]:
    """Write what several analysed runs show into `comparison/` beside the first, as tables and figures.

    Raises:
        ArtefactError: a run has not been analysed, or none has a real step.
    """
    rows = pd.concat([_rows(run) for run in runs], ignore_index=True)
    if rows.empty:
        raise ArtefactError(f"none of {', '.join(map(str, runs))} has a real step: run `teachdiag probe` in one first")
    folder = runs[0].parent / "comparison"
    differing = [name for name in (*_PAIR, *_UPDATE) if len(rows[name].unique()) > 1]
    what = f"Inside Q3, mean {OUTCOME} (nats) where C is high less where it is low, run by run."
    if differing:
        what += f" The runs differ in {', '.join(name.replace('_', ' ') for name in differing)}."
    printed = Printed("comparison", "Table 1, Figures 3C and 5A", what, rows)
    population = "Banks: " + "; ".join(f"{run.name}: {load_tables(run).population}" for run in runs)
    files = write_printed(folder, printed, population)
    with theme():
        files += save(_figure(rows, what), folder, "comparison")
        return files + save(curves_figure(_specifications(runs), population), folder, "specification_curve")


def _specifications(runs: Sequence[Path]) -> pd.DataFrame:
    """The specifications of all runs' real steps and placebos, with their run, and their probe where a run has many."""
    tables = []
    for run in runs:
        steps = steps_of(load_tables(run))
        for step in steps:
            probe = step.probe_id if len(steps) > 1 else None
            tables.append(step.own_specifications.assign(run=run.name, probe=probe))
    return pd.concat(tables, ignore_index=True)


def _rows(run: Path) -> pd.DataFrame:
    """The contrasts of a run's real steps, with what tells the run from others."""
    capture = Stage(run, "capture").record("inputs.student.dropped_layers")
    pair = {name: capture["settings"][name] for name in ("student", "teacher")}
    pair["without_layers"] = ", ".join(map(str, capture["inputs"]["student"]["dropped_layers"]))
    pair |= {"teacher_prompt": teacher_prompt(capture), "prompts": bank_prompts(capture)}
    tables = load_tables(run)
    contrasts = []
    for step in steps_of(tables):
        note = Stage(run, f"probes/{step.probe_id}").record()
        ladder: dict[str, Any] = note["results"].get("ladder", {})
        settings: dict[str, Any] = note["settings"] | {n: v for n, v in ladder.items() if n == "learning_rate"}
        rows = rows_where(tables.contrasts, probe_id=step.probe_id, outcome=OUTCOME, score="compatibility")
        rows = rows[rows["design"].isin(_DESIGNS)]
        facts = {name: pair[name] for name in _PAIR} | {name: settings.get(name, "") for name in _UPDATE}
        columns = ["k", "design", "estimate", "ci_low", "ci_high", "n_high", "n_low", "n_positions", "n_prompts"]
        table = rows[[*columns, "note", "method"]].assign(run=run.name, probe_id=step.probe_id, **facts)
        contrasts.append(table[["run", "probe_id", *facts, *columns, "note", "method"]])
    return pd.concat(contrasts, ignore_index=True) if contrasts else pd.DataFrame()


def _figure(rows: pd.DataFrame, what: str) -> Figure:
    labels = list(dict.fromkeys(rows["run"]))
    figure = blank_figure(1.3 + 0.45 * len(labels))
    panels = figure.subplots(1, len(_DESIGNS), sharey=True)
    sizes = sorted(rows["k"].unique(), key=lambda k: (k != K, k))  # the headline K first
    colours = [REAL, *shades(len(sizes) - 1)]
    for ax, (design, title) in zip(panels, _DESIGNS.items(), strict=True):
        of_design = rows_where(rows, design=design).dropna(subset="estimate")
        series = [
            (f"K={k:g}", colour, of_design[of_design["k"] == k].set_index("run"))
            for k, colour in zip(sizes, colours, strict=True)
        ]
        draw_forest(ax, labels, series)
        ax.set_title(title)
        ax.set_xlabel("difference of mean gain [nats]")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(sizes))
    add_caption(figure, f"{what} 95% intervals: prompt-cluster bootstrap; counts and methods in the table.")
    return figure
