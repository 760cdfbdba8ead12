"""The token view as markup: a section of the report, or a page of its own for a notebook."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from teachdiag.errors import ArtefactError
from teachdiag.figures.report.token_view import View, token_view
from teachdiag.figures.run_tables import load_tables
from teachdiag.settings import ReportSettings

_HERE = Path(__file__).parent
_SCRIPTS = ("theme", "colours", "words", "enlarge", "card", "filters", "histogram", "address", "export", "tokens")


def tokens_page(run: Path, context_ids: Sequence[int]) -> str:
    """Return a whole HTML page with the tokens of some contexts of an analysed run, which needs no other file.

    Args:
        run: the run directory.
        context_ids: the contexts.

    Raises:
        RunError: the run has not been analysed.
        ArtefactError: a table is missing, the bank has no such context, or the run was captured without token texts.
    """
    view = token_view({run.name: load_tables(run)}, ReportSettings(), context_ids)
    if view.missing:
        raise ArtefactError(view.missing)
    return bare_page(f"{run.name}: tokens", f'<section id="tokens">{tokens_section(view)}</section>', view)


def bare_page(title: str, body: str, view: View) -> str:
    """Return a whole page of markup with a token view in it."""
    return Template((_HERE / "bare.html").read_text(encoding="utf-8")).substitute(
        title=escape(title), style=style(), body=body, script=script(view)
    )


def tokens_section(view: View) -> str:
    """Return the section's markup, or why there is none."""
    if view.missing:
        return f"<p>{escape(view.missing)}</p>"
    note = f'<p class="words">{escape(view.note)}</p>' if view.note else ""
    text = (_HERE / "tokens.html").read_text(encoding="utf-8")
    return text.replace("{shown}", escape(view.shown)).replace("{note}", note)


def style() -> str:
    """Return the style sheets."""
    return "".join((_HERE / f"{name}.css").read_text(encoding="utf-8") for name in ("report", "tokens"))


def script(view: View) -> str:
    """Return the data and the code that draws them, as elements."""
    code = "".join((_HERE / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    # A literal '</script' inside the data would end it.
    data = json.dumps(view.data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    held = "" if view.missing else f'<script type="application/json" id="data">{data}</script>\n'
    return f'{held}<script>\n"use strict";\n{code}</script>'
