"""What every kind of probe has to say to people: a sentence on how it was made, its verdict, its tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachdiag.analysis.bank.measurements import Record
from teachdiag.analysis.kinds.kind import Results, Tables, analysis_of
from teachdiag.analysis.step.findings import secondary_title
from teachdiag.analysis.text.text_tables import model_name, without_layers
from teachdiag.markdown import bullets, folded, markdown_table
from teachdiag.plots import STEP, plots_of
from teachdiag.runs import Stage, bank_prompts, teacher_prompt
from teachdiag.settings import KINDS


@dataclass(frozen=True)
class Section:
    """What one probe has to say: how it was made, its verdict, its tables by title, and the names of its figures.

    `secondary`: the title and the sentences of secondary claims; None where it has none.
    """

    probe_id: str
    kind: str
    title: str
    text: str
    sentences: list[str]
    tables: Tables
    figures: list[str]
    secondary: tuple[str, list[str]] | None = None

    def markdown(self) -> list[str]:
        """Return its part of `summary.md`, paragraph by paragraph."""
        parts = [f"## {self.title} `{self.probe_id}`", self.text, "### Verdict", bullets(self.sentences)]
        if self.secondary is not None:
            title, sentences = self.secondary
            parts.append(folded(title, bullets(sentences)))
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
    probe = analysis_of(record)
    tables = {title: table for title, table in probe.tables(results).items() if len(table)}
    figures = [f"{plot.name}{suffix}" for plot in plots_of(figure_group(record))]
    further = probe.secondary(results)
    secondary = (secondary_title(results.findings, record.probe_id), further) if further else None
    return Section(record.probe_id, record.kind, probe.title, probe.text(), list(sentences), tables, figures, secondary)


def figure_group(record: Record) -> str:
    """Return what decides a probe's figures: figures of several probes of one group carry their probe's name."""
    return STEP if KINDS[record.kind].step else record.kind


def pair_text(run: Path, results: Results) -> str:
    """Say which pair, which prompts, how large the bank is, and what brackets are."""
    capture = Stage(run, "capture").record(
        "settings.student", "settings.teacher", "settings.teacher_prompt", "inputs.student.dropped_layers"
    )
    settings, without = capture["settings"], without_layers(capture["inputs"]["student"]["dropped_layers"])
    bank = results.estimates[results.estimates["analysis"] == "q3"].iloc[0]
    return (
        f"Student: {model_name(settings['student'])}{without}. Teacher: {model_name(settings['teacher'])}, with the "
        f"{teacher_prompt(capture)} prompt. Bank: {bank['n_positions']} positions of {bank['n_prompts']} "
        f"`{bank_prompts(capture)}` prompts. Brackets are 95% bootstrap intervals, prompts resampled where "
        "nothing else is said. Gain: by how much KL(teacher || student) fell, in nats."
        + "".join(f" Beware: {doubt}." for doubt in capture["results"].get("warnings", ()))
    )
