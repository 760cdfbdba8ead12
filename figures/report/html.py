"""Write `report.html` of an analysed run: self-contained, without network, whole or not at all."""

from pathlib import Path
from typing import Any

from teachdiag.errors import RunError
from teachdiag.figures.report.page import page
from teachdiag.figures.report.token_view import token_view
from teachdiag.figures.run_tables import load_tables, read_summary
from teachdiag.progress import Reporter
from teachdiag.runs import Stage, joining, probe_names
from teachdiag.settings import ReportSettings
from teachdiag.tables import write_text


def write_report(run: Path, settings: ReportSettings, reporter: Reporter) -> dict[str, Any]:
    """Write the report of a run.

    Returns:
        `report`: the file; `size`: in bytes; `contexts`: how many the token view shows.

    Raises:
        RunError: the run has not been analysed.
        ArtefactError: a table is missing.
    """
    Stage(run, "analyze").record()
    with joining(run):
        return _write(run, settings, reporter)


def _write(run: Path, settings: ReportSettings, reporter: Reporter) -> dict[str, Any]:
    stages = {
        "capture": Stage(run, "capture").require("settings.max_new_tokens"),
        "analyze": Stage(run, "analyze").require(),
    }
    if (grading := Stage(run, "grade")).note.exists():
        stages["grade"] = grading.require()
    stages |= {name: Stage(run, f"probes/{name}").require() for name in probe_names(run)}
    figures = Stage(run, "figures")
    if figures.note.exists():  # older versions left none
        figures.require()
    content = read_content(run)
    tables = load_tables(run)
    with reporter.bar("Report", total=2) as advance:
        view = token_view({run.name: tables}, settings)
        advance(1)
        text = page(run, content, stages, view)
        advance(1)
    write_text(text, run / "report.html")
    return {"report": str(run / "report.html"), "size": len(text.encode()), "contexts": view.contexts}


def read_content(run: Path) -> dict[str, Any]:
    """Read what `analyze` has to say, its first page included.

    Raises:
        RunError: it is missing or damaged, or of a version that wrote no first page.
    """
    content = read_summary(run)
    if "front" not in content:
        raise RunError(f"{run} was analysed by an older version: run `teachdiag analyze {run}` again")
    return content
