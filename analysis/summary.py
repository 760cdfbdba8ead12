"""The analysis for people: its two central tables, and `summary.md`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from teachdiag.analysis.findings import STATUSES, at_headline, lookup
from teachdiag.analysis.frame import OUTCOMES
from teachdiag.analysis.regression import GAP
from teachdiag.analysis.validity import label, predictor_sets, versus_base
from teachdiag.artefacts import ESTIMATES, FINDINGS, probes_by_step
from teachdiag.runs import Stage
from teachdiag.settings import EMBEDDED, HEADLINE_K, SUPPORT_SIZES
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME

_COEFFICIENTS = (
    ("beta_L", "standardized_decomposition", "learnable"),
    ("beta_I", "standardized_decomposition", "incompatible"),
    ("beta_L - beta_I", "standardized_decomposition", GAP),
    ("gap beside H x D", "standardized_nested", GAP),
    ("gap per unit of norm [nats]", "slope_decomposition", GAP),
)
_NAMES = {"forward_kl": "raw KL", "compatibility": "C", "decomposition": "{D^L, D^I}", "hidden x": "hidden^2 x"}
_MEASURES = (("cv_r2", "R2"), ("cv_rank", "rank corr."))


def coefficient_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return beta_L, beta_I and their gap at each K, real step and placebos side by side, as text with intervals.

    Args:
        estimates: the estimates table.
        probe_id: a real step.
    """
    ids = probes_by_step(estimates)[probe_id]
    return pd.DataFrame(
        [
            {"K": str(k), "update": update}
            | {name: _shown(estimates, own_id, analysis, term, k) for name, analysis, term in _COEFFICIENTS}
            | {"CRV1 error of the gap": _gap_error(estimates, own_id, k)}
            for k in SUPPORT_SIZES
            for update, own_id in ids.items()
        ]
    )


def validity_table(estimates: pd.DataFrame, probe_id: str, k: int = HEADLINE_K) -> pd.DataFrame:
    """Return how well each set of signals predicts gain on prompts not seen, real step and placebos side by side.

    Args:
        estimates: the estimates table.
        probe_id: a real step.
        k: support size of the signals that have one.
    """
    ids = probes_by_step(estimates)[probe_id]
    real = next(iter(ids))
    return pd.DataFrame(
        [
            {"measure": measure, "signals": _readable(name)}
            | {update: _shown(estimates, own_id, analysis, name, own_k) for update, own_id in ids.items()}
            | {f"{real} vs raw KL": _shown(estimates, probe_id, f"{analysis}_difference", versus_base(name), own_k)}
            for analysis, measure in _MEASURES
            for name, own_k in predictor_sets()
            if own_k in (None, k)
        ]
    )


def outcome_table(estimates: pd.DataFrame, probe_id: str, k: int = HEADLINE_K) -> pd.DataFrame:
    """Return the standardised gap beta_L - beta_I on each outcome, real step and placebos side by side."""
    return pd.DataFrame(
        [
            {"outcome": outcome}
            | {
                update: _shown(estimates, own_id, "standardized_decomposition", GAP, k, outcome)
                for update, own_id in probes_by_step(estimates)[probe_id].items()
            }
            for outcome in OUTCOMES
        ]
    )


def mean_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return each update's mean gain over the bank and inside Q3, its noise, and how few positions carry it."""
    return pd.DataFrame(
        [
            {
                "update": update,
                "mean gain [nats]": _shown(estimates, own_id, "mean", "bank", None),
                "inside Q3": _shown(estimates, own_id, "mean", "q3", None),
                "mean noise": _shown(estimates, own_id, "noise_floor", "bank", None),
                "variance in ten positions": _shown(estimates, own_id, "concentration", "ten positions", None),
            }
            for update, own_id in probes_by_step(estimates)[probe_id].items()
        ]
    )


def status_table(findings: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return the status of every claim at each K; claims without K stand in the first column."""
    mine = findings[findings["probe_id"] == probe_id]
    names = mine["finding"].where(mine["outcome"] == OUTCOME, mine["finding"] + " on " + mine["outcome"])
    sizes = mine["k"].map(lambda k: "no K" if pd.isna(k) else f"K={int(k)}")
    table = mine.assign(claim=names, size=sizes).set_index(["claim", "size"])["status"].unstack(fill_value="")  # noqa: PD010
    columns = [name for name in ("no K", *(f"K={k}" for k in SUPPORT_SIZES)) if name in table.columns]
    return table.loc[list(dict.fromkeys(names)), columns].reset_index()


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
    for probe_id in probes_by_step(estimates):
        titles, (coefficients, validity) = zip(*_titled(estimates, probe_id).items(), strict=True)
        coefficients = _at_headline(coefficients).drop(columns=["gap per unit of norm [nats]", "CRV1 error of the gap"])
        validity = validity[~validity["signals"].str.contains("hidden")].drop(columns="theta0", errors="ignore")
        tables += [_rich(title, table) for title, table in zip(titles, (coefficients, validity), strict=True)]
    return tables


def result_block(run: Path) -> str:
    """Return the run's result at the headline K in Markdown, short enough for a README: tables, then the verdict."""
    estimates = ESTIMATES.read(run / "analysis" / "estimates.parquet")
    findings = FINDINGS.read(run / "analysis" / "findings.parquet")
    parts = [_facts(run, estimates)]
    for probe_id in probes_by_step(estimates):
        coefficients = _at_headline(coefficient_table(estimates, probe_id))
        validity = validity_table(estimates, probe_id)
        alone = validity[~validity["signals"].str.contains(r"hidden|\+")]
        headline = at_headline(findings, probe_id)
        counts = headline["status"].value_counts()
        told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)
        parts += [
            _step_text(run, probe_id),
            f"Standardised coefficients of gain on D^L (beta_L) and D^I (beta_I), K={HEADLINE_K}:",
            _markdown(coefficients[["update", "beta_L", "beta_I", "beta_L - beta_I"]]),
            f"beta_L - beta_I for other measures of the gain, K={HEADLINE_K} (`gain_relative` is gain / KL before):",
            _markdown(outcome_table(estimates, probe_id).drop(columns="theta0", errors="ignore")),
            f"Predicting gain on prompts not seen, K={HEADLINE_K}:",
            _markdown(alone.drop(columns=["theta0", "one_step vs raw KL"], errors="ignore")),
            f"<details><summary>The verdict, {len(headline)} claims: {told}</summary>",
            "\n".join(f"- {sentence}" for sentence in headline["sentence"]),
            "</details>",
        ]
    return "\n\n".join(parts)


def summary_markdown(
    run: Path,
    sentences: dict[str, list[str]],
    estimates: pd.DataFrame,
    findings: pd.DataFrame,
    saturation: pd.DataFrame,
) -> str:
    """Write `summary.md`.

    Args:
        run: the run directory, whose stages say how everything was made.
        sentences: each real step's verdict.
        estimates: the estimates table.
        findings: the findings table.
        saturation: the saturation table.
    """
    parts = ["# What this student can learn from this teacher\n", _facts(run, estimates)]
    for probe_id, verdict in sentences.items():
        parts += [f"## Step `{probe_id}`\n", _step_text(run, probe_id), "### Verdict\n"]
        parts += ["\n".join(f"- {sentence}" for sentence in verdict)]
        parts += ["### The same claims at every K and on every outcome\n", _markdown(status_table(findings, probe_id))]
        for title, table in (_titled(estimates, probe_id) | _further(estimates, probe_id)).items():
            parts += [f"### {title}\n", _markdown(table)]
        suffix = f"-{probe_id}" if len(sentences) > 1 else ""
        parts.append(" ".join(f"![{f}](figures/{f}{suffix}.png)" for f in ("coefficients", "gain_surface", "deciles")))
    parts += ["## Ties and saturation of the normalised scores\n", _markdown(saturation_table(saturation))]
    parts += ["![plane](figures/plane.png)", "Every number, for all outcomes and K: `analysis/estimates.csv`."]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _facts(run: Path, estimates: pd.DataFrame) -> str:
    """Say which pair, which prompts, how large the bank is, and what brackets and placebos mean."""
    capture = Stage(run, "capture").record()
    settings, dropped = capture["settings"], capture["inputs"]["student"]["dropped_layers"]
    without = f" without decoder layer {', '.join(map(str, dropped))} (0-based)" if dropped else ""
    bank = estimates[(estimates["analysis"] == "mean") & (estimates["term"] == "bank")].iloc[0]
    return (
        f"Student: {_model(settings['student'])}{without}. Teacher: {_model(settings['teacher'])}, with the "
        f"{settings['teacher_prompt']} prompt. Bank: {bank['n_positions']} positions of {bank['n_prompts']} "
        f"`{settings['prompts']}` prompts. Brackets are 95% prompt-cluster bootstrap intervals. Placebos went through "
        "the same analysis: `theta0` is no step at all, `shuffled_teacher` learns from another context's teacher, "
        "`random_direction` has the real step's length."
    )


def _model(name: str) -> str:
    return "SmolLM2-135M-Instruct (embedded)" if name == EMBEDDED else f"`{name}`"


def _step_text(run: Path, probe_id: str) -> str:
    settings = Stage(run, f"probes/{probe_id}").record()["settings"]
    prompts = "held-out prompts" if settings["update_on"] == "update" else "the bank itself"
    return (
        f"One {settings['optimizer']} step, learning rate {settings['learning_rate']:g}, on the mean "
        f"{settings['loss']} loss of the student's rollouts on {prompts}. Gain: by how much KL(teacher || student) "
        "fell, in nats."
    )


def _titled(estimates: pd.DataFrame, probe_id: str) -> dict[str, pd.DataFrame]:
    return {
        f"Standardised coefficients of {OUTCOME}, {probe_id}": coefficient_table(estimates, probe_id),
        f"Predicting {OUTCOME} on prompts not seen (K={HEADLINE_K}), {probe_id}": validity_table(estimates, probe_id),
    }


def _at_headline(coefficients: pd.DataFrame) -> pd.DataFrame:
    return coefficients[coefficients["K"] == str(HEADLINE_K)]


def _further(estimates: pd.DataFrame, probe_id: str) -> dict[str, pd.DataFrame]:
    return {
        f"Standardised beta_L - beta_I by outcome (K={HEADLINE_K})": outcome_table(estimates, probe_id),
        "Mean gain": mean_table(estimates, probe_id),
    }


def _gap_error(estimates: pd.DataFrame, probe_id: str, k: int) -> str:
    rows = estimates[
        (estimates["probe_id"] == probe_id)
        & (estimates["analysis"] == "standardized_decomposition")
        & (estimates["term"] == GAP)
        & (estimates["outcome"] == OUTCOME)
        & (estimates["k"] == k)
    ]
    return "-" if rows.empty else f"{rows['std_error'].iloc[0]:.3g}"


def _shown(
    estimates: pd.DataFrame, probe_id: str, analysis: str, term: str, k: int | None, outcome: str = OUTCOME
) -> str:
    interval = lookup(estimates, probe_id, analysis, term, k, outcome)
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
