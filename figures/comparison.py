"""Several runs beside one another: the paper's claims, its robustness table (Table 1, Figure 5A), one curve of all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from teachdiag.errors import ArtefactError
from teachdiag.figures.captions import Caption, write_captions
from teachdiag.figures.paper_claims import answers, long_table, wide_table
from teachdiag.figures.plots.forest import draw_forest, key
from teachdiag.figures.plots.specification_curve import curves_figure
from teachdiag.figures.printed_tables import Printed, write_printed
from teachdiag.figures.run_tables import RunTables, load_tables, steps_of
from teachdiag.figures.seen import listed
from teachdiag.figures.style import REAL, Picture, blank_figure, save, theme
from teachdiag.plots import PLOTS
from teachdiag.runs import Stage, bank_prompts, teacher_prompt
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.tables import rows_where, write_parquet_and_csv, write_text

CLAIMS = "claims"
_PAIR = ("student", "teacher", "without_layers", "adapters", "teacher_prompt", "prompts")
_UPDATE = ("kind", "optimizer", "learning_rate", "loss", "update_on", "steps")
_DESIGNS = {"thirds": "upper less lower third", "matched": "matched pairs"}


def compare_runs(runs: Sequence[Path]) -> list[Path]:
    """Write what several analysed runs show into `comparison/` beside the first, as tables and figures.

    Raises:
        ArtefactError: a run has not been analysed, or none has a real step.
    """
    names = [run.name for run in runs]
    loaded = {str(run) if names.count(run.name) > 1 else run.name: load_tables(run) for run in runs}
    rows = pd.concat([_rows(name, tables) for name, tables in loaded.items()], ignore_index=True)
    if rows.empty:
        raise ArtefactError(f"none of {', '.join(map(str, runs))} has a real step: run `teachdiag probe` in one first")
    folder = runs[0].parent / "comparison"
    differing = [name for name in (*_PAIR, *_UPDATE) if len(rows[name].unique()) > 1]
    what = f"Inside Q3, mean {OUTCOME} (nats) where C is high less where it is low, run by run."
    if differing:
        what += f" The runs differ in {', '.join(name.replace('_', ' ') for name in differing)}."
    printed = Printed("comparison", "Table 1, Figures 3C and 5A", what, rows)
    population = "Banks: " + "; ".join(f"{name}: {tables.population}" for name, tables in loaded.items())
    files = write_printed(folder, printed, population) + _write_claims(loaded, folder, population)
    captions = {}
    with theme():
        drawn = {"comparison": _figure(rows, what), "specification_curve": _curves(loaded)}
        for name, picture in drawn.items():
            files += save(picture, folder, name)
            captions[name] = Caption.of(picture)
    return files + write_captions(folder, captions)


def _write_claims(loaded: Mapping[str, RunTables], folder: Path, population: str) -> list[Path]:
    """Write the paper's claims over all runs: a row an answer as data, and a row a claim as Markdown."""
    given = answers(loaded)
    page = folder / f"{CLAIMS}.md"
    write_text(f"{wide_table(given, list(loaded))}\n\n{population}.\n", page)
    return [
        *write_parquet_and_csv(pa.Table.from_pandas(long_table(given), preserve_index=False), folder / CLAIMS),
        page,
    ]


def _specifications(loaded: Mapping[str, RunTables]) -> pd.DataFrame:
    """The specifications of all runs' real steps and placebos, with their run, and their probe where a run has many."""
    tables = []
    for name, of_run in loaded.items():
        steps = steps_of(of_run)
        for step in steps:
            probe = step.probe_id if len(steps) > 1 else None
            tables.append(step.own_specifications.assign(run=name, probe=probe))
    return pd.concat(tables, ignore_index=True)


def _rows(name: str, tables: RunTables) -> pd.DataFrame:
    """The contrasts of a run's real steps, with what tells the run from others."""
    run = tables.run
    capture = Stage(run, "capture").record("inputs.student.dropped_layers")
    pair = {side: capture["settings"][side] for side in ("student", "teacher")}
    pair["without_layers"] = ", ".join(map(str, capture["inputs"]["student"]["dropped_layers"]))
    adapters = (capture["settings"][f"{side}_adapter"] for side in ("student", "teacher"))
    pair["adapters"] = ", ".join(filter(None, adapters))
    pair |= {"teacher_prompt": teacher_prompt(capture), "prompts": bank_prompts(capture)}
    contrasts = []
    for step in steps_of(tables):
        note = Stage(run, f"probes/{step.probe_id}").record()
        ladder: dict[str, Any] = note["results"].get("ladder", {})
        settings: dict[str, Any] = note["settings"] | {n: v for n, v in ladder.items() if n == "learning_rate"}
        rows = rows_where(tables.contrasts, probe_id=step.probe_id, outcome=OUTCOME, score="compatibility")
        rows = rows[rows["design"].isin(_DESIGNS)]
        facts = {fact: pair[fact] for fact in _PAIR} | {fact: settings.get(fact, "") for fact in _UPDATE}
        columns = ["k", "design", "estimate", "ci_low", "ci_high", "n_high", "n_low", "n_positions", "n_prompts"]
        table = rows[[*columns, "note", "method"]].assign(run=name, probe_id=step.probe_id, **facts)
        contrasts.append(table[["run", "probe_id", *facts, *columns, "note", "method"]])
    return pd.concat(contrasts, ignore_index=True) if contrasts else pd.DataFrame()


def _curves(loaded: Mapping[str, RunTables]) -> Picture:
    steps = {name: steps_of(tables)[:1] for name, tables in loaded.items()}  # of a run, all are of the same positions
    populations = [f"{name}: {step.specified_population}" for name, of_run in steps.items() for step in of_run]
    picture = curves_figure(_specifications(loaded), f"Banks: {'; '.join(populations)}.")
    picture.ask(PLOTS["specification_curve"].title)
    return picture


def _figure(rows: pd.DataFrame, what: str) -> Picture:
    labels = list(dict.fromkeys(rows["run"]))
    figure = blank_figure(1.4 + 0.4 * len(labels))
    panels = figure.subplots(len(_DESIGNS), 1)
    seen = []
    for ax, (design, title) in zip(panels, _DESIGNS.items(), strict=True):
        of_design = rows_where(rows, design=design, k=K).dropna(subset="estimate").set_index("run")
        draw_forest(ax, labels, of_design, [REAL] * len(labels))
        ax.set_title(title, loc="left")
        seen.append(f"{title}: {listed(of_design, of_design.index) or 'not estimable'}")
    panels[-1].set_xlabel("difference of mean gain [nats]")
    key(figure, "real step", placebos=False)
    figure.ask("Inside Q3, do tokens with high C gain more on every pair?")
    figure.tell(
        f"{what} K={K}; 95% intervals: prompt-cluster bootstrap; counts, methods and other K in the table.",
        f"Difference of mean gain in nats, {'; '.join(seen)}.",
    )
    return figure
