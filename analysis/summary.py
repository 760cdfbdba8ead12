"""The analysis for people: its two central tables, and `summary.md`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from teachdiag.analysis.findings import HEADLINE_K, OUTCOME, STATUSES, at_headline, lookup
from teachdiag.analysis.regression import GAP
from teachdiag.analysis.validity import label, predictor_sets, versus_base
from teachdiag.artefacts import ESTIMATES, FINDINGS
from teachdiag.runs import Stage
from teachdiag.settings import SUPPORT_SIZES

_COEFFICIENTS = (
    ("beta_L", "standardized_decomposition", "learnable"),
    ("beta_I", "standardized_decomposition", "incompatible"),
    ("beta_L - beta_I", "standardized_decomposition", GAP),
    ("the same beside H x D", "standardized_nested", GAP),
    ("per unit of norm [nats]", "slope_decomposition", GAP),
)
_NAMES = {"forward_kl": "raw KL", "compatibility": "C", "decomposition": "{D^L, D^I}", "hidden x": "hidden^2 x"}
_MEASURES = (("cv_r2", "R2"), ("cv_rank", "rank corr."))


def real_steps(estimates: pd.DataFrame) -> dict[str, list[str]]:
    """Return the real steps in a table of estimates, each with the updates of its placebos."""
    probes = estimates.loc[estimates["probe_id"] != "", ["probe_id", "update"]].drop_duplicates()
    steps: dict[str, list[str]] = {}
    for probe_id, update in probes.itertuples(index=False):
        own = probe_id.removesuffix(f".{update}")
        steps.setdefault(own, []).extend([] if own == probe_id else [update])
    return steps


def coefficient_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return beta_L, beta_I and their gap at each K, real step and placebos side by side, as text with intervals.

    Args:
        estimates: the estimates table.
        probe_id: a real step.
    """
    ids = _probe_ids(estimates, probe_id)
    return pd.DataFrame(
        [
            {"K": str(k), "update": update}
            | {name: _shown(estimates, own_id, analysis, term, k) for name, analysis, term in _COEFFICIENTS}
            for k in SUPPORT_SIZES
            for update, own_id in ids.items()
        ]
    )


def validity_table(estimates: pd.DataFrame, probe_id: str, k: int = HEADLINE_K) -> pd.DataFrame:
    """Return how well each set of signals predicts gain on prompts not seen, and how that differs from raw KL alone.

    Args:
        estimates: the estimates table.
        probe_id: a real step; its placebos' differences stand beside it.
        k: support size of the signals that have one.
    """
    ids = _probe_ids(estimates, probe_id)
    return pd.DataFrame(
        [
            {
                "measure": measure,
                "signals": _readable(name),
                "value": _shown(estimates, probe_id, analysis, name, own_k),
                **{
                    f"vs raw KL: {update}": _shown(
                        estimates, own_id, f"{analysis}_difference", versus_base(name), own_k
                    )
                    for update, own_id in ids.items()
                },
            }
            for analysis, measure in _MEASURES
            for name, own_k in predictor_sets()
            if own_k in (None, k)
        ]
    )


def saturation_table(saturation: pd.DataFrame) -> pd.DataFrame:
    """Return the saturation table as text."""
    shares = [name for name in saturation.columns if name.startswith(("share_at", "tied_at"))]
    scores = [
        label((name, None if np.isnan(k) else int(k)))
        for name, k in zip(saturation["score"], saturation["k"].astype(float), strict=True)
    ]
    return pd.DataFrame({"score": scores} | {s.replace("_", " "): saturation[s].map("{:.1%}".format) for s in shares})


def terminal_tables(run: Path) -> list[Table]:
    """Return the two central tables of every real step at the headline K, cut to the width of a terminal.

    `summary.md` has every K, the theta0 placebo (rounding alone) and the remaining signals too.
    """
    estimates = ESTIMATES.read(run / "analysis" / "estimates.parquet")
    tables = []
    for probe_id in real_steps(estimates):
        titles, (coefficients, validity) = zip(*_titled(estimates, probe_id).items(), strict=True)
        coefficients = _at_headline(coefficients).drop(columns="per unit of norm [nats]")
        validity = validity[~validity["signals"].str.contains("hidden")].drop(
            columns="vs raw KL: theta0", errors="ignore"
        )
        tables += [_rich(title, table) for title, table in zip(titles, (coefficients, validity), strict=True)]
    return tables


def result_block(run: Path) -> str:
    """Return the run's result at the headline K in Markdown, short enough for a README: tables, then the verdict."""
    estimates = ESTIMATES.read(run / "analysis" / "estimates.parquet")
    findings = FINDINGS.read(run / "analysis" / "findings.parquet")
    parts = [_facts(Stage(run, "capture").require(), "")]
    for probe_id in real_steps(estimates):
        coefficients = _at_headline(coefficient_table(estimates, probe_id))
        validity = validity_table(estimates, probe_id)
        alone = validity[~validity["signals"].str.contains(r"hidden|\+")]
        columns = {measure: rows.set_index("signals")["value"] for measure, rows in alone.groupby("measure")}
        headline = at_headline(findings, probe_id)
        counts = headline["status"].value_counts()
        told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)
        parts += [
            _markdown(coefficients[["update", "beta_L", "beta_I", "beta_L - beta_I"]]),
            _markdown(
                pd.DataFrame(columns).reset_index().rename(columns={"signals": "gain on prompts not seen, from"})
            ),
            f"<details><summary>The verdict at K={HEADLINE_K}, {len(headline)} claims: {told}</summary>",
            "\n".join(f"- {sentence}" for sentence in headline["sentence"]),
            "</details>",
        ]
    return "\n\n".join(parts)


def summary_markdown(
    capture: dict[str, Any],
    sizes: str,
    steps: dict[str, str],
    sentences: dict[str, list[str]],
    estimates: pd.DataFrame,
    saturation: pd.DataFrame,
) -> str:
    """Write `summary.md`.

    Args:
        capture: the capture stage's JSON.
        sizes: prompts, contexts and positions of the bank, as text.
        steps: how each real step was made, by probe_id.
        sentences: each real step's verdict.
        estimates: the estimates table.
        saturation: the saturation table.
    """
    parts = ["# What this student can learn from this teacher\n", _facts(capture, sizes)]
    for probe_id, made in steps.items():
        parts += [f"## Step `{probe_id}`\n", made, "### Verdict\n", "\n".join(f"- {s}" for s in sentences[probe_id])]
        for title, table in _titled(estimates, probe_id).items():
            parts += [f"### {title}\n", _markdown(table)]
        suffix = f"-{probe_id}" if len(steps) > 1 else ""
        parts.append(" ".join(f"![{f}](figures/{f}{suffix}.png)" for f in ("coefficients", "gain_surface", "deciles")))
    parts += ["## Ties and saturation of the normalised scores\n", _markdown(saturation_table(saturation))]
    parts += ["![plane](figures/plane.png)", "Every number, for all outcomes and K: `analysis/estimates.csv`."]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _facts(capture: dict[str, Any], sizes: str) -> str:
    settings = capture["settings"]
    dropped = capture["inputs"]["student"]["dropped_layers"]
    without = f" without layer {', '.join(map(str, dropped))}" if dropped else ""
    return (
        f"Student: `{settings['student']}`{without}. Teacher: `{settings['teacher']}`, with the "
        f"{settings['teacher_prompt']} prompt. Prompts: `{settings['prompts']}`. {sizes}Brackets are 95% "
        "prompt-cluster bootstrap intervals. Placebos went through the same analysis: `theta0` is no step at all, "
        "`shuffled_teacher` learns from another context's teacher, `random_direction` has the real step's length."
    )


def _titled(estimates: pd.DataFrame, probe_id: str) -> dict[str, pd.DataFrame]:
    return {
        f"Standardised coefficients of {OUTCOME}, {probe_id}": coefficient_table(estimates, probe_id),
        f"Predicting {OUTCOME} on prompts not seen (K={HEADLINE_K}), {probe_id}": validity_table(estimates, probe_id),
    }


def _at_headline(coefficients: pd.DataFrame) -> pd.DataFrame:
    return coefficients[coefficients["K"] == str(HEADLINE_K)]


def _probe_ids(estimates: pd.DataFrame, probe_id: str) -> dict[str, str]:
    """Return the probe_id of the real step and of each placebo, by update."""
    real = estimates.loc[estimates["probe_id"] == probe_id, "update"].iloc[0]
    return {real: probe_id} | {update: f"{probe_id}.{update}" for update in real_steps(estimates)[probe_id]}


def _shown(estimates: pd.DataFrame, probe_id: str, analysis: str, term: str, k: int | None) -> str:
    interval = lookup(estimates, probe_id, analysis, term, k)
    return "-" if interval is None else str(interval)


def _readable(name: str) -> str:
    for technical, readable in _NAMES.items():
        name = name.replace(technical, readable)
    return name


def _markdown(table: pd.DataFrame) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    header = [line(list(table.columns)), line(["---"] * len(table.columns))]
    return "\n".join([*header, *(line(list(row)) for row in table.itertuples(index=False))])


def _rich(title: str, table: pd.DataFrame) -> Table:
    shown = Table(title=title)
    for place, heading in enumerate(table.columns):
        shown.add_column(escape(heading.replace(": ", ":\n")), no_wrap=place < 2, overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*(escape(cell.replace(" [", "\n[")) for cell in row))
    return shown
