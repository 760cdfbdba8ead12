"""Several runs on one page: what each found, and their tokens beside one another."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from html import escape
from pathlib import Path

from teachdiag.figures.report.html import read_content
from teachdiag.figures.report.page import headline, inline, primary_claims
from teachdiag.figures.report.token_view import token_view
from teachdiag.figures.report.tokens_page import bare_page, tokens_section
from teachdiag.figures.run_tables import load_tables
from teachdiag.runs import joining
from teachdiag.settings import ReportSettings
from teachdiag.tables import write_text


def write_side_by_side(runs: Sequence[Path], settings: ReportSettings) -> Path:
    """Write `comparison/report.html` beside the first of several runs that have reports; return the file.

    Contexts that all runs have with the same prompt stand side by side; where there are none, each shows its own.

    Raises:
        RunError: a run has not been analysed.
        ArtefactError: a table is missing.
    """
    path = runs[0].parent / "comparison" / "report.html"
    names = [run.name for run in runs]
    named = {str(run) if names.count(run.name) > 1 else run.name: run for run in runs}
    with ExitStack() as held:
        for run in runs:
            held.enter_context(joining(run))
        view = token_view({name: load_tables(run) for name, run in named.items()}, settings)
        articles = "".join(_article(name, run, path) for name, run in named.items())
    title = f"Side by side: {', '.join(named)}"
    body = (
        f'<header><div><p class="mark">teachdiag</p><h1>{escape(title)}</h1></div></header>\n<main>'
        f'<div class="runs">{articles}</div>\n'
        f'<section id="tokens"><h2>Tokens</h2>{tokens_section(view)}</section></main>'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(bare_page(title, body, view), path)
    return path


def _article(name: str, run: Path, page: Path) -> str:
    """Return what one run found, with the way to its own report."""
    content = read_content(run)
    report = escape(os.path.relpath(run / "report.html", page.parent))
    return (
        f'<article><h2><a href="{report}">{escape(name)}</a></h2><p class="pair">{inline(content["pair"])}</p>'
        f"{headline(content['front'])}{primary_claims(content['front'])}</article>"
    )
