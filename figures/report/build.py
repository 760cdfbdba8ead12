"""Write `report.html` of an analysed run: self-contained, without network, whole or not at all."""

import json
from pathlib import Path
from typing import Any

from teachdiag.errors import RunError
from teachdiag.figures.report.caveats import caveats
from teachdiag.figures.report.page import page
from teachdiag.figures.report.tokens import token_view
from teachdiag.figures.tables import load_tables
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
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
    summary = run / "analysis/summary.json"
    if not summary.exists():
        raise RunError(f"{run} has no analysis/summary.json: run `teachdiag analyze {run}` first")
    content = json.loads(summary.read_text(encoding="utf-8"))
    stages = {"capture": Stage(run, "capture").record(), "analyze": Stage(run, "analyze").record()}
    probes = sorted(note.stem for note in (run / "probes").glob("*.json"))
    stages |= {name: Stage(run, f"probes/{name}").record() for name in probes}
    tables = load_tables(run)
    with reporter.bar("Report", total=3) as advance:
        view = token_view(run, tables, stages, settings)
        advance(1)
        found = caveats(run, tables, stages)
        advance(1)
        text = page(run, content, stages, found, view)
        advance(1)
    write_text(text, run / "report.html")
    return {"report": str(run / "report.html"), "size": len(text.encode()), "contexts": len(view.contexts)}
