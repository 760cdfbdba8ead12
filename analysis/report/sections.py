"""What every kind of probe has to say to people: a sentence on how it was made, its verdict, its tables and figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from teachdiag.analysis.bank.measurements import STEP_KINDS, Record
from teachdiag.analysis.kinds.comparison_text import lds_sentences, lds_table, panel_table
from teachdiag.analysis.kinds.placebo import MEAN_GAIN, panel_sentences
from teachdiag.analysis.kinds.selectors import MIN_SEEDS
from teachdiag.analysis.kinds.selectors_text import selection_sentences, selection_tables
from teachdiag.analysis.kinds.single_token_text import (
    first_order_table,
    inner_table,
    isolated_table,
    predicted_table,
    study_sentences,
)
from teachdiag.analysis.kinds.step_tables import (
    TOP_BUDGET,
    contrast_table,
    further,
    inference_table,
    proxy_table,
    status_table,
    titled,
    top_table,
)
from teachdiag.analysis.step.findings import judged_sentences
from teachdiag.analysis.step.step_length import ladder_table, learning_rate, length_text, obstacle
from teachdiag.analysis.text.text_tables import without_layers
from teachdiag.artefacts import (
    BUCKETS,
    CONTRASTS,
    ESTIMATES,
    FINDINGS,
    INFERENCE,
    PLACEBO_PANEL,
    SATURATION,
    SELECTION,
    TOP_N,
)
from teachdiag.markdown import bullets, markdown_table
from teachdiag.plots import STEP, plots_of
from teachdiag.runs import Stage, bank_prompts, teacher_prompt
from teachdiag.settings import EMBEDDED, HEADLINE_K

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Results:
    """The tables of the analysis that people read."""

    estimates: pd.DataFrame
    findings: pd.DataFrame
    saturation: pd.DataFrame
    selection: pd.DataFrame
    panel: pd.DataFrame
    contrasts: pd.DataFrame
    inference: pd.DataFrame
    top_n: pd.DataFrame
    buckets: pd.DataFrame


RESULT_TABLES = (ESTIMATES, FINDINGS, SATURATION, SELECTION, PLACEBO_PANEL, CONTRASTS, INFERENCE, TOP_N, BUCKETS)


def read_results(run: Path) -> Results:
    """Read them from a run.

    Raises:
        ArtefactError: the analysis has not been run.
    """
    return Results(*(table.read(run / table.place / f"{table.name}.parquet") for table in RESULT_TABLES))


def verdict(record: Record, results: Results) -> list[str]:
    """Return what one probe shows, in sentences."""
    return list(_VERDICTS[record.kind](record, results))


@dataclass(frozen=True)
class Section:
    """What one probe has to say: how it was made, its verdict, its tables by title, and the names of its figures."""

    probe_id: str
    kind: str
    title: str
    text: str
    sentences: list[str]
    tables: Tables
    figures: list[str]

    def markdown(self) -> list[str]:
        """Return its part of `summary.md`, paragraph by paragraph."""
        parts = [f"## {self.title} `{self.probe_id}`", self.text, "### Verdict", bullets(self.sentences)]
        parts += [part for title, table in self.tables.items() for part in (f"### {title}", markdown_table(table))]
        return [*parts, " ".join(f"![{name}](figures/{name}.png)" for name in self.figures)]

    def as_dict(self) -> dict[str, Any]:
        """Return it for `summary.json`, tables as columns and rows of text."""
        tables = [
            {"title": title, "columns": list(table.columns), "rows": table.to_numpy().tolist()}
            for title, table in self.tables.items()
        ]
        return {
            "probe_id": self.probe_id,
            "kind": self.kind,
            "title": self.title,
            "text": self.text,
            "sentences": self.sentences,
            "tables": tables,
            "figures": self.figures,
        }


def section(record: Record, sentences: Sequence[str], results: Results, suffix: str) -> Section:
    """Return what one probe has to say.

    Args:
        record: the probe.
        sentences: its verdict.
        results: the tables of the analysis.
        suffix: what its figures' names end in.
    """
    tables = {title: table for title, table in _TABLES[record.kind](record, results).items() if len(table)}
    figures = [f"{plot.name}{suffix}" for plot in plots_of(STEP if record.kind in STEP_KINDS else record.kind)]
    title = _TITLES[record.kind]
    return Section(record.probe_id, record.kind, title, probe_text(record), list(sentences), tables, figures)


def pair_text(run: Path, results: Results) -> str:
    """Say which pair, which prompts, how large the bank is, and what brackets are."""
    capture = Stage(run, "capture").record(
        "settings.student", "settings.teacher", "settings.teacher_prompt", "inputs.student.dropped_layers"
    )
    settings, without = capture["settings"], without_layers(capture["inputs"]["student"]["dropped_layers"])
    bank = results.estimates[results.estimates["analysis"] == "q3"].iloc[0]
    return (
        f"Student: {_model(settings['student'])}{without}. Teacher: {_model(settings['teacher'])}, with the "
        f"{teacher_prompt(capture)} prompt. Bank: {bank['n_positions']} positions of {bank['n_prompts']} "
        f"`{bank_prompts(capture)}` prompts. Brackets are 95% bootstrap intervals, prompts resampled where "
        "nothing else is said. Gain: by how much KL(teacher || student) fell, in nats."
        + "".join(f" Beware: {doubt}." for doubt in capture["results"].get("warnings", ()))
    )


def probe_text(record: Record) -> str:
    """Say how one probe's steps were taken, and what its placebos are."""
    return _TEXTS[record.kind](record)


def _model(name: str) -> str:
    return "SmolLM2-135M-Instruct (embedded)" if name == EMBEDDED else f"`{name}`"


def _step_text(record: Record) -> str:
    settings = record.settings
    prompts = "held-out prompts" if settings["update_on"] == "update" else "the bank itself"
    steps = settings.get("steps", 1)
    count = "One" if steps == 1 else f"{steps} {settings.get('rollouts', 'fixed')}-rollout"
    return (
        f"{count} {settings['optimizer']} step{'s' * (steps > 1)}, learning rate {learning_rate(record)}, on the "
        f"mean {settings['loss']} loss of the student's rollouts on {prompts}.{length_text(record)} Placebos "
        "went through the same analysis: `theta0` is no step at all, `shuffled_teacher` learns from another context's "
        "teacher, `random_direction` has the real step's length."
    )


def _checkpoint_text(record: Record) -> str:
    return (
        f"The student trained elsewhere, {_model(record.settings['student_after'])}, beside theta0 in another batch "
        "layout and a random direction of the same length."
    )


def _placebo_text(record: Record) -> str:
    return (
        f"{_step_text(record)} `shuffled_rollouts` learns from the true teacher on responses dealt to other prompts: "
        f"no null, and nothing is judged against it. Each was drawn {record.settings['draws']} times. Brackets are 95% "
        "ranges for one more draw on the same bank, mean -+ t sd sqrt(1 + 1/n), wide where draws are few; a number "
        "survives if it lies beyond that range on its own side of 0. A star marks the placebos that it does not lie "
        "beyond."
    )


def _selectors_text(record: Record) -> str:
    settings = record.settings
    return (
        f"{settings['optimizer']} steps, learning rate {learning_rate(record)}, each on the mean "
        f"{settings['loss']} loss of the selected positions of one update batch; {settings['seeds']} batches, the same "
        "for every selector. Compared at equal learning rate (rate), and with every step stretched to the length of "
        "that on the whole batch (norm). `random` is the control. Brackets: bootstrap over batches and bank prompts"
        f"{'; they are too short with so few batches, so nothing is judged' if settings['seeds'] < MIN_SEEDS else ''}."
    )


def _lds_text(record: Record) -> str:
    settings = record.settings
    return (
        f"{settings['masks']} {settings['optimizer']} steps, learning rate {learning_rate(record)}, each on the "
        f"mean {settings['loss']} loss of {100 * settings['mask_budget']:g}% random positions of one update batch. "
        "Token-LDS: Spearman over masks of measured gain and summed predictor. Brackets: bootstrap over masks."
    )


def _isolated_text(record: Record) -> str:
    settings = record.settings
    length = "one step size" if settings["match"] == "rate" else "one update norm"
    return (
        f"One SGD step at a time on the {settings['loss']} loss of a single position, from theta0, {length} for all "
        f"({learning_rate(record)}). L_fix is the mean forward KL of {settings['fix_contexts']} contexts that "
        "were set aside."
    )


def _predicted_text(record: Record) -> str:
    settings = record.settings
    return (
        f"First-order gains ({settings['method']} derivatives) of one {settings['optimizer']} step, learning rate "
        f"{learning_rate(record)}, on the mean {settings['loss']} loss, against what the step and its parts gain."
    )


def _step_tables(record: Record, results: Results) -> Tables:
    claims = status_table(results.findings, record.probe_id)
    return (
        {"The same claims at every K and on every outcome": claims}
        | titled(results.estimates, record.probe_id)
        | {
            f"Inside Q3, gain at high C less gain at low C [nats], {record.probe_id}": contrast_table(
                results.contrasts, results.estimates, record.probe_id
            ),
            "The same with C's proxies in its place": proxy_table(results.contrasts, record.probe_id),
            f"The bank's best-scored {TOP_BUDGET:.0%} of positions (K={HEADLINE_K})": top_table(
                results.top_n, record.probe_id
            ),
            f"Cluster-robust errors (K={HEADLINE_K})": inference_table(results.inference, record.probe_id),
        }
        | further(results.estimates, record.probe_id)
        | {_LADDER: ladder_table(record)}
    )


def _isolated_tables(record: Record, results: Results) -> Tables:
    return {
        "Rank correlation of every predictor with isolated steps": isolated_table(results.estimates, record.probe_id),
        "What first order explains": first_order_table(results.estimates, record.probe_id),
    }


def _predicted_tables(record: Record, results: Results) -> Tables:
    return {
        "First order against measured gain": predicted_table(results.estimates, record.probe_id),
        "Rank correlation of every predictor with fix_inner": inner_table(results.estimates, record.probe_id),
    }


def panel_obstacle(record: Record, results: Results) -> list[str]:
    """Return why nothing is judged on the real step of a placebo panel, if so: it was too long."""
    mine = results.panel[(results.panel["probe_id"] == record.probe_id) & (results.panel["statistic"] == MEAN_GAIN)]
    mean = float(mine["estimate"].iloc[0])
    judged = mine["survives"].dropna()
    found = obstacle(record, f"{mean:.3g}", harmed=mean < 0 and len(judged) > 0 and bool(judged.all()))
    return [found[1]] if found else []


def _panel_verdict(record: Record, results: Results) -> list[str]:
    if reason := panel_obstacle(record, results):
        return reason
    mine = results.panel[results.panel["probe_id"] == record.probe_id]
    return panel_sentences([{str(name): value for name, value in row.items()} for row in mine.to_dict("records")])


def _of_step(record: Record, results: Results) -> list[str]:
    return judged_sentences(results.findings, record.probe_id)


def _of_study(record: Record, results: Results) -> list[str]:
    return study_sentences(results.estimates, record.probe_id)


_LADDER = "The step at shorter lengths, and what first order explains of it"
_TITLES = {
    "one_step": "Step",
    "checkpoint": "Checkpoint",
    "placebo": "Placebos of the step",
    "selectors": "Selectors",
    "lds": "Token-LDS",
    "isolated": "Isolated steps",
    "predicted": "First-order predictions",
}
_TEXTS: dict[str, Callable[[Record], str]] = {
    "one_step": _step_text,
    "checkpoint": _checkpoint_text,
    "placebo": _placebo_text,
    "selectors": _selectors_text,
    "lds": _lds_text,
    "isolated": _isolated_text,
    "predicted": _predicted_text,
}
_VERDICTS: dict[str, Callable[[Record, Results], list[str]]] = {
    **dict.fromkeys(STEP_KINDS, _of_step),
    "placebo": _panel_verdict,
    "selectors": lambda record, r: selection_sentences(r.selection, r.estimates, record.probe_id),
    "lds": lambda record, r: lds_sentences(r.estimates, record.probe_id, int(record.settings["masks"])),
    "isolated": _of_study,
    "predicted": _of_study,
}
_TABLES: dict[str, Callable[[Record, Results], Tables]] = {
    **dict.fromkeys(STEP_KINDS, _step_tables),
    "placebo": lambda record, r: {
        "Headline statistics beside placebos": panel_table(r.panel, record.probe_id),
        _LADDER: ladder_table(record),
    },
    "selectors": lambda record, r: selection_tables(r.selection, record.probe_id),
    "lds": lambda record, r: {"Token-LDS of every predictor": lds_table(r.estimates, record.probe_id)},
    "isolated": _isolated_tables,
    "predicted": _predicted_tables,
}
