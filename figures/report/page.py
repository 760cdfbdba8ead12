"""The page itself: sections in order, tables, figures as data, and the data that its script draws."""

import base64
import json
import re
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from teachdiag.artefacts import FINDINGS
from teachdiag.figures.captions import read_captions
from teachdiag.figures.report.token_view import View
from teachdiag.figures.report.tokens_page import bare_page, tokens_section
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.settings import KINDS

_HERE = Path(__file__).parent
_NO_STEP = "<p>No real step was judged: <code>teachdiag probe</code> takes one, with its placebos.</p>"
_NO_EFFICIENCY = (
    "<p>What selectors keep was not measured: <code>teachdiag probe --kind efficiency</code> measures it, and "
    "<code>teachdiag analyze</code> brings it here.</p>"
)
_LEADING = ("efficiency", "specification_curve")  # figures at the head of the page


def page(run: Path, content: dict[str, Any], stages: dict[str, Any], view: View) -> str:
    """Return the whole page.

    Args:
        run: the run directory, whose figures are put in.
        content: `analysis/summary.json`, with the run's first page.
        stages: notes of the run's stages.
        view: the token view's data.
    """
    front = content["front"]
    evidence = [section for section in content["sections"] if not KINDS[section["kind"]].placebos]
    placebos = [section for section in content["sections"] if KINDS[section["kind"]].placebos]
    body = Template((_HERE / "report.html").read_text(encoding="utf-8").rstrip()).substitute(
        headline=headline(front),
        pair=inline(content["pair"]),
        primary=primary_claims(front),
        efficiency=_efficiency(run, front, content),
        specifications=_leading(run, content, "specification_curve") or _NO_STEP,
        verdict=_verdict(run, content),
        made="".join(_stage(name, note) for name, note in stages.items()),
        evidence="".join(_section(run, section) for section in evidence) + _figure(run, "plane"),
        placebos="".join(_section(run, section) for section in placebos) or _no_placebos(),
        grades=_grades(content.get("grades")),
        caveats="".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in content["caveats"]),
        ties=_ties(content["saturation"]),
        tokens=tokens_section(view),
    )
    return bare_page(f"{run.name}: what this student can learn", body, view)


def headline(front: dict[str, Any]) -> str:
    """Return what was found in a few sentences, what to do next, and what changes how this is read."""
    said = "".join(f"<p>{inline(sentence)}</p>" for sentence in front["sentences"])
    command = f"<pre tabindex=0>{escape(front['command'])}</pre>" if front["command"] else ""
    caveats = f"<p><strong>Caveats:</strong> {inline(front['caveats'])}</p>" if front["caveats"] else ""
    return f'{said}<div class="next"><p><strong>Next: {inline(front["action"])}.</strong></p>{command}</div>{caveats}'


def primary_claims(front: dict[str, Any]) -> str:
    """Return the primary claims of every real step, each verdict beside its claim, where a phone shows it too."""
    tables = []
    for table in front["primary"]:
        rows = pd.DataFrame(table["rows"], columns=table["columns"]).set_index(["claim", "verdict"]).reset_index()
        shown = _table(list(rows.columns), rows.to_numpy().tolist(), marked="verdict")
        tables.append(f"<h3>Step <code>{escape(table['probe_id'])}</code></h3>{shown}")
    return "".join(tables) + _legend(front["legend"]) if tables else _NO_STEP


def _efficiency(run: Path, front: dict[str, Any], content: dict[str, Any]) -> str:
    """Return the curve of what selectors keep, and its table."""
    tables = "".join(
        f"<p>Share of the whole batch's {table['gain']} at equal step length, by the share of tokens, "
        f"<code>{escape(table['probe_id'])}</code>:</p>{_table(table['columns'], table['rows'])}"
        for table in front["efficiency"]
    )
    return (
        _leading(run, content, "efficiency") + (f"{tables}<p>{front['ceiling']}</p>" if tables else "")
    ) or _NO_EFFICIENCY


def _leading(run: Path, content: dict[str, Any], name: str) -> str:
    """Return a figure that stands at the head of the page, that of each probe which has it."""
    return "".join(_figure(run, f) for section in content["sections"] for f in section["figures"] if _is(f, name))


def _is(figure: str, name: str) -> bool:
    return figure == name or figure.startswith(f"{name}-")


def _verdict(run: Path, content: dict[str, Any]) -> str:
    """Claims of every real step with their status, then what the other probes say."""
    findings = FINDINGS.read(FINDINGS.file(run))
    judged = findings[(findings["outcome"] == OUTCOME) & (findings["k"].isna() | (findings["k"] == K))]
    judged = judged[judged["status"] != "not judged"]
    parts = []
    for probe_id, claims in judged.groupby("probe_id", sort=False):
        (legend,) = (section["legend"] for section in content["sections"] if section["probe_id"] == probe_id)
        parts.append(f"<h3>Step <code>{escape(str(probe_id))}</code></h3>{_claims(claims[claims['primary']])}")
        if len(secondary := claims[~claims["primary"]]):
            title = f"Secondary claims, {len(secondary)}"
            parts.append(f"<details><summary>{title}</summary>{_claims(secondary)}</details>")
        parts.append(_legend(legend))
    for section in content["sections"]:
        if (
            section["probe_id"] not in set(judged["probe_id"])
            and not KINDS[section["kind"]].placebos
            and section["sentences"]
        ):
            said = _list(section["sentences"]) + _legend(section["legend"])
            parts.append(f"<h3>{_heading(section)}</h3>{said}")
    return "".join(parts)


def _claims(claims: pd.DataFrame) -> str:
    items = "".join(
        f"<li>{_status(status)} {escape(sentence)}</li>"
        for status, sentence in zip(claims["status"], claims["sentence"], strict=True)
    )
    return f'<ul class="claims">{items}</ul>'


def _status(status: str) -> str:
    return f'<span class="status {status.replace(" ", "-")}">{escape(status)}</span>'


def _section(run: Path, section: dict[str, Any]) -> str:
    figures = "".join(_figure(run, f) for f in section["figures"] if not any(_is(f, name) for name in _LEADING))
    tables = "".join(
        f"<details><summary>{escape(table['title'])}</summary>{_table(table['columns'], table['rows'])}"
        f"{_legend(table['legend'])}</details>"
        for table in section["tables"]
    )
    said = _list(section["sentences"]) + _legend(section["legend"]) if KINDS[section["kind"]].placebos else ""
    return f"<article><h3>{_heading(section)}</h3><p>{inline(section['text'])}</p>{said}{figures}{tables}</article>"


def _grades(grades: dict[str, Any] | None) -> str:
    """Lay out what differs between right and wrong responses; nothing where they were not graded."""
    if grades is None:
        return ""
    shown = f"<p>{escape(grades['counts'])}</p>{_table(grades['columns'], grades['rows'])}{_legend(grades['note'])}"
    return f'<details id="grades"><summary>{escape(grades["title"])}</summary>{shown}</details>\n'


def _ties(saturation: dict[str, Any]) -> str:
    table = _table(saturation["columns"], saturation["rows"])
    return f"{table}{_legend(saturation['note'])}"


def _legend(text: str) -> str:
    """Lay out what explains the words of a list or a table; nothing where there is none."""
    return f'<p class="words">{inline(text)}</p>' if text else ""


def inline(text: str) -> str:
    """Escape a sentence; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _heading(section: dict[str, Any]) -> str:
    return f"{escape(section['title'])} <code>{escape(section['probe_id'])}</code>"


def _figure(run: Path, name: str) -> str:
    """Lay out a figure for light and dark pages over its question and caption; nothing where it is not drawn."""
    words, folder = read_captions(run).get(name), run / "figures"
    if words is None:
        return ""
    images = "".join(
        f'<img class="{page}" alt="{escape(words.seen)}" src="data:image/svg+xml;base64,{_encoded(file)}">'
        for page, file in (("light", folder / f"{name}.svg"), ("dark", folder / "dark" / f"{name}.svg"))
    )
    said = f"<strong>{escape(words.question)}</strong> {escape(words.caption)}"
    enlarged = f'<button type="button" title="Enlarge" aria-label="Enlarge this figure">{images}</button>'
    return f"<figure>{enlarged}<figcaption>{said}</figcaption></figure>"


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _table(columns: list[str], rows: list[list[Any]], marked: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{_status(cell) if column == marked else escape(str(cell))}</td>"
            for column, cell in zip(columns, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{inline(sentence)}</li>" for sentence in sentences) + "</ul>"


def _stage(name: str, note: dict[str, Any]) -> str:
    """Settings, inputs and versions of one stage, folded away."""
    facts = {key: value for key, value in note.items() if key not in ("results", "outputs")}
    text = escape(json.dumps(facts, indent=1, ensure_ascii=False))
    return f"<details><summary><code>{escape(name)}</code></summary><pre tabindex=0>{text}</pre></details>"


def _no_placebos() -> str:
    return (
        "<p>No probe of kind <code>placebo</code> was run: each step stands beside one draw of its placebos above. "
        "<code>teachdiag probe --kind placebo</code> draws each several times.</p>"
    )
