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
from teachdiag.figures.report.token_view import View
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.settings import KINDS

_HERE = Path(__file__).parent


def page(run: Path, content: dict[str, Any], stages: dict[str, Any], view: View) -> str:
    """Return the whole page.

    Args:
        run: the run directory, whose figures are put in.
        content: `analysis/summary.json`.
        stages: notes of the run's stages.
        view: the token view's data.
    """
    evidence = [section for section in content["sections"] if not KINDS[section["kind"]].placebos]
    placebos = [section for section in content["sections"] if KINDS[section["kind"]].placebos]
    # A literal '</script' inside the data would end it.
    data = json.dumps(view.as_dict(), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return Template((_HERE / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{run.name}: what this student can learn"),
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        script=(_HERE / "report.js").read_text(encoding="utf-8"),
        pair=_inline(content["pair"]),
        verdict=_verdict(run, content),
        made="".join(_stage(name, note) for name, note in stages.items()),
        evidence="".join(_section(run, section) for section in evidence) + _figure(run, "plane"),
        placebos="".join(_section(run, section) for section in placebos) or _no_placebos(),
        caveats="".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in content["caveats"]),
        ties=_ties(run, content["saturation"]),
        tokens=_tokens(view),
        data=data,
    )


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
        f'<li><span class="status {status.replace(" ", "-")}">{escape(status)}</span> {escape(sentence)}</li>'
        for status, sentence in zip(claims["status"], claims["sentence"], strict=True)
    )
    return f'<ul class="claims">{items}</ul>'


def _section(run: Path, section: dict[str, Any]) -> str:
    figures = "".join(_figure(run, name) for name in section["figures"])
    tables = "".join(
        f"<details><summary>{escape(table['title'])}</summary>{_table(table['columns'], table['rows'])}"
        f"{_legend(table['legend'])}</details>"
        for table in section["tables"]
    )
    said = _list(section["sentences"]) + _legend(section["legend"]) if KINDS[section["kind"]].placebos else ""
    return f"<article><h3>{_heading(section)}</h3><p>{_inline(section['text'])}</p>{said}{figures}{tables}</article>"


def _ties(run: Path, saturation: dict[str, Any]) -> str:
    table = _table(saturation["columns"], saturation["rows"])
    return f"{table}{_legend(saturation['note'])}{_figure(run, 'saturation')}"


def _legend(text: str) -> str:
    """Lay out what explains the words of a list or a table; nothing where there is none."""
    return f'<p class="words">{_inline(text)}</p>' if text else ""


def _inline(text: str) -> str:
    """Escape a sentence; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _heading(section: dict[str, Any]) -> str:
    return f"{escape(section['title'])} <code>{escape(section['probe_id'])}</code>"


def _figure(run: Path, name: str) -> str:
    file = run / "figures" / f"{name}.png"
    if not file.exists():
        return ""
    image = base64.b64encode(file.read_bytes()).decode()
    alt = escape(f"Figure: {name.replace('_', ' ')}; its caption is in the picture")
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{image}"></figure>'


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{_inline(sentence)}</li>" for sentence in sentences) + "</ul>"


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


def _tokens(view: View) -> str:
    if view.missing:
        return f"<p>{escape(view.missing)}</p>"
    return (
        (_HERE / "tokens.html")
        .read_text(encoding="utf-8")
        .replace("{shown}", f"The first {len(view.contexts)} of the bank's {view.total} contexts, by context_id")
    )
