"""What every kind of probe has to say to people: a sentence on how it was made, its verdict, its tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.kinds.kind import Results, Tables, analysis_of
from teachdiag.analysis.step.findings import secondary_title
from teachdiag.analysis.text.text_tables import altered, model_name
from teachdiag.glossary import explain, legend
from teachdiag.markdown import bullets, folded, markdown_table
from teachdiag.plots import STEP, plots_of
from teachdiag.runs import Stage, bank_prompts, teacher_prompt
from teachdiag.settings import KINDS


@dataclass(frozen=True)
class Section:
    """What one probe has to say: how it was made, its verdict, its tables by title, and its figures.

    `figures`: what each asks, by name. `secondary`: the title and the sentences of secondary claims; None where it has
    none. `legend` explains words of the verdict, `legends` those of each table, by title, that were not yet explained.
    """

    probe_id: str
    kind: str
    title: str
    text: str
    sentences: list[str]
    legend: str
    tables: Tables
    legends: dict[str, str]
    figures: dict[str, str]
    secondary: tuple[str, list[str]] | None = None

    def markdown(self) -> list[str]:
        """Return its part of `summary.md`, paragraph by paragraph."""
        parts = [f"## {self.title} `{self.probe_id}`", self.text, "### Verdict", bullets(self.sentences)]
        if self.secondary is not None:
            title, sentences = self.secondary
            parts.append(folded(title, bullets(sentences)))
        parts.append(self.legend)
        for title, table in self.tables.items():
            parts += [f"### {title}", markdown_table(table), self.legends[title]]
        figures = " ".join(f"![{question}](figures/{name}.png)" for name, question in self.figures.items())
        return [part for part in (*parts, figures) if part]

    def as_dict(self) -> dict[str, Any]:
        """Return it for `summary.json`, tables as columns and rows of text."""
        tables = [
            {"title": title, "columns": list(table.columns), "rows": table.to_numpy().tolist()}
            | {"legend": self.legends[title]}
            for title, table in self.tables.items()
        ]
        return {
            "probe_id": self.probe_id,
            "kind": self.kind,
            "title": self.title,
            "text": self.text,
            "sentences": self.sentences,
            "legend": self.legend,
            "tables": tables,
            "figures": list(self.figures),
        }


def section(record: Record, sentences: Sequence[str], results: Results, suffix: str) -> Section:
    """Return what one probe has to say.

    Args:
        record: the probe.
        sentences: its verdict.
        results: the tables of the analysis.
        suffix: what its figures' names end in.
    """
    probe = analysis_of(record)
    tables = {title: table for title, table in probe.tables(results).items() if len(table)}
    figures = {f"{plot.name}{suffix}": plot.title for plot in plots_of(figure_group(record))}
    further = probe.secondary(results)
    said = probe.text() + _moved(record)
    told = explain([said])  # which explains what it names
    of_verdict = explain([*sentences, *further], told)
    legends = {
        title: legend(explain([title, *table.columns, *table.to_numpy().ravel()], [*told, *of_verdict]))
        for title, table in tables.items()
    }
    return Section(
        record.probe_id,
        record.kind,
        probe.title,
        said,
        list(sentences),
        legend(of_verdict),
        tables,
        legends,
        figures,
        (secondary_title(results.findings, record.probe_id), further) if further else None,
    )


def _moved(record: Record) -> str:
    """Say how many weights steps moved; nothing where these were all."""
    trained = record.results.get("trained")
    if trained is None or trained["parameters"] == trained["of"]:
        return ""
    return f" Steps move {trained['parameters']:,} of the student's {trained['of']:,} weights."


def figure_group(record: Record) -> str:
    """Return what decides a probe's figures: figures of several probes of one group carry their probe's name."""
    return STEP if KINDS[record.kind].step else record.kind


def pair_text(run: Path, results: Results) -> str:
    """Say which pair, which prompts, how large the bank is, and what brackets are."""
    capture = Stage(run, "capture").record(
        *("settings.student", "settings.teacher", "settings.teacher_prompt"),
        *("inputs.student.dropped_layers", "inputs.teacher.dropped_layers"),
    )
    student, teacher = (
        model_name(capture["settings"][side]) + altered(capture["inputs"][side]) for side in ("student", "teacher")
    )
    bank = results.estimates[results.estimates["analysis"] == "q3"].iloc[0]
    return (
        f"Student: {student}. Teacher: {teacher}, with the "
        f"{teacher_prompt(capture)} prompt. Bank: {bank['n_positions']} positions of {bank['n_prompts']} "
        f"`{bank_prompts(capture)}` prompts. Brackets are 95% bootstrap intervals, prompts resampled where "
        "nothing else is said. Gain: by how much KL(teacher || student) fell, in nats."
        + "".join(f" Beware: {doubt}." for doubt in capture["results"].get("warnings", ()))
    )
