"""Real steps for people: their numbers beside those of their placebos, as text with intervals."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.lookup import lookup, lookup_text, row_interval
from teachdiag.analysis.bank.measurements import OUTCOMES, Record
from teachdiag.analysis.kinds.kind import KindAnalysis, Results, Tables, grid
from teachdiag.analysis.step.design import GAP
from teachdiag.analysis.step.findings import judged_sentences
from teachdiag.analysis.step.specifications import AGREEMENT, COUNT, SAME_SIDE, SAME_SIGN
from teachdiag.analysis.step.step_length import ladder_table, learning_rate, length_text
from teachdiag.analysis.step.validity import predictor_sets
from teachdiag.artefacts import QUANTITIES, probes_by_step
from teachdiag.settings import HEADLINE_K, SHORT_ENOUGH, SUPPORT_SIZES
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import BASE_LABEL, COMPOSITION, SIGNALS, added_signals, set_label, versus_base
from teachdiag.tables import rows_where

_COEFFICIENTS = (
    ("beta_L", "standardized_decomposition", "learnable"),
    ("beta_I", "standardized_decomposition", "incompatible"),
    ("beta_L - beta_I", "standardized_decomposition", GAP),
    ("gap beside H x D", "standardized_nested", GAP),
    ("gap per unit of norm [nats]", "slope_decomposition", GAP),
)
_DESIGNS = ("thirds", "matched", "matched once")
TOP_BUDGET = 0.1  # of the table of best-scored positions
_COMPOSITION = {
    "Q3 share": "q3_share",
    **{SIGNALS[name].label: f"mean_{name}" for name in COMPOSITION},
    "decided by ties": "tied",
}
_MEASURES = (("cv_r2", "R2"), ("cv_rank", "rank corr."))


LADDER = "The step at shorter lengths, and what first order explains of it"


class StepAnalysis(KindAnalysis):
    """One update of the student beside its placebos, which the full analysis is made of."""

    def sentences(self, results: Results) -> list[str]:
        """Return its primary claims with their status."""
        return judged_sentences(results.findings, self.probe_id, primary=True)

    def secondary(self, results: Results) -> list[str]:
        """Return its secondary claims with their status."""
        return judged_sentences(results.findings, self.probe_id, primary=False)

    def tables(self, results: Results) -> Tables:
        """Return the claims at every K, and the numbers behind them."""
        estimates, probe_id = results.estimates, self.probe_id
        contrasts = contrast_table(results.contrasts, estimates, probe_id)
        top_title = f"The bank's best-scored {TOP_BUDGET:.0%} of positions (K={HEADLINE_K})"
        return (
            {"The same claims at every K and on every outcome": status_table(results.findings, probe_id)}
            | titled(estimates, probe_id)
            | {
                f"Inside Q3, gain at high C less gain at low C [nats], {probe_id}": contrasts,
                "The same with C's proxies in its place": proxy_table(results.contrasts, probe_id),
                top_title: top_table(results.top_n, probe_id),
                f"Cluster-robust errors (K={HEADLINE_K})": inference_table(results.inference, probe_id),
            }
            | {"The primary numbers under every choice": specification_table(estimates, probe_id)}
            | further(estimates, probe_id)
            | {LADDER: ladder_table(self.record)}
        )

    def central_tables(self, results: Results) -> Tables:
        """Return nothing: the first page has the primary claims."""
        return {}

    def measured(self, title: str) -> list[Grid | str]:
        """Return mean gains of the update and of its placebos."""
        return measured_updates(self.record.results, title)


def specification_shares(estimates: pd.DataFrame, probe_id: str) -> dict[str, tuple[int, float, float]]:
    """Return, by primary number, how many specifications a step or placebo has, and which shares agree with the claim.

    The first share has the sign of the real step's headline, the second an interval on the same side of 0, or about 0.
    """
    rows = rows_where(estimates, analysis=AGREEMENT, probe_id=probe_id)
    numbers = {
        quantity: [lookup(rows, term=f"{quantity}: {term}") for term in (COUNT, SAME_SIGN, SAME_SIDE)]
        for quantity in QUANTITIES
    }
    return {
        quantity: (int(count.estimate), sign.estimate, side.estimate)
        for quantity, (count, sign, side) in numbers.items()
        if count and sign and side
    }


def specification_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return how many specifications agree with a step's headline: its own in sign and interval, its placebos' too."""
    shares = {
        update: specification_shares(estimates, own) for update, own in probes_by_step(estimates)[probe_id].items()
    }
    real = next(iter(shares.values()))
    return pd.DataFrame(
        [
            {"number": quantity, "specifications": str(count)}
            | {
                f"{told}, {update}": f"{own[quantity][index]:.0%}" if quantity in own else "-"
                for index, told in ((1, "sign as in the claim"), (2, "interval as in the claim"))
                for update, own in shares.items()
            }
            for quantity, (count, _, _) in real.items()
        ]
    )


def step_text(record: Record) -> str:
    """Say how a step was taken, and what its placebos are."""
    settings = record.settings
    prompts = "held-out prompts" if settings["update_on"] == "update" else "the bank itself"
    steps = settings.get("steps", 1)
    count = "One" if steps == 1 else f"{steps} {settings.get('rollouts', 'fixed')}-rollout"
    return (
        f"{count} {settings['optimizer']} step{'s' * (steps > 1)}, learning rate {learning_rate(record)}, on the "
        f"mean {settings['loss']} loss of the student's rollouts on {prompts}.{length_text(record)} Placebos "
        "went through the same analysis: `theta0` is no step at all, `shuffled_teacher` learns from another context's "
        "teacher, `random_direction` has the real step's length."
    )


def measured_updates(results: Mapping[str, Any], title: str) -> list[Grid | str]:
    """Return what updates gained, as the probe's results have it, the step's ladder, and the noise floor."""
    rows = []
    for name, facts in results["updates"].items():
        draws = facts.get("draws", [facts])
        for number, draw in enumerate(draws, start=1):
            update = name if len(draws) == 1 else f"{name}, draw {number}"
            gains = [f"{draw['mean_gain']:.3g}", f"{draw['share_gaining']:.1%}"]
            rows.append([update, *gains, f"{draw['update_norm']:.3g}"])
    return [
        grid(title, ("update", "mean gain [nats]", "positions that gain", "update norm"), rows),
        *(_measured_ladder(results["ladder"]) if "ladder" in results else []),
        f"noise floor (99th percentile of |gain| when nothing changes): {results['noise_floor']:.2g} nats",
    ]


def _measured_ladder(ladder: Mapping[str, Any]) -> list[Grid | str]:
    rows = []
    for rung in ladder["rungs"]:
        r2 = "cannot tell" if rung["r2"] is None else f"{rung['r2']:.4f}"
        step = [f"{rung['share']:g}", f"{rung['learning_rate']:g}", f"{rung['mean_gain']:.3g}"]
        rows.append([*step, r2, f"{rung['noise']:.1e}"])
    fits = {True: "is short enough", False: "is too long", None: "cannot be told from rounding"}[ladder["short_enough"]]
    longest = "" if ladder["longest"] is None else f"; the longest that is: --learning-rate {ladder['longest']:g}"
    title = f"the step at shorter lengths: short enough is one with R2 from {SHORT_ENOUGH:g} on"
    return [
        grid(title, ("share", "learning rate", "mean gain [nats]", "R2 of first order", "rounding"), rows),
        f"the step that was taken, at learning rate {ladder['learning_rate']:g}, {fits}{longest}",
    ]


def coefficient_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return beta_L, beta_I and their gap at each K, real step and placebos side by side, as text with intervals.

    Args:
        estimates: the estimates table.
        probe_id: a real step.
    """
    ids, rows = probes_by_step(estimates)[probe_id], rows_where(estimates, outcome=OUTCOME)
    return pd.DataFrame(
        [
            {"K": str(k), "update": update}
            | {
                name: lookup_text(rows, probe_id=update_id, analysis=analysis, term=term, k=k)
                for name, analysis, term in _COEFFICIENTS
            }
            | {"CRV1 error of the gap": _gap_error(rows, update_id, k)}
            for k in SUPPORT_SIZES
            for update, update_id in ids.items()
        ]
    )


def validity_table(estimates: pd.DataFrame, probe_id: str, k: int = HEADLINE_K) -> pd.DataFrame:
    """Return how well each set of signals predicts gain on prompts not seen, real step and placebos side by side.

    Args:
        estimates: the estimates table.
        probe_id: a real step.
        k: support size of the signals that have one.
    """
    ids, rows = probes_by_step(estimates)[probe_id], rows_where(estimates, outcome=OUTCOME)
    real = next(iter(ids))
    added = [signal for name, signal in added_signals().items() if (estimates["term"] == name).any()]
    return pd.DataFrame(
        [
            {"measure": measure, "signals": set_label(name)}
            | {
                update: lookup_text(rows, probe_id=update_id, analysis=analysis, term=name, k=size)
                for update, update_id in ids.items()
            }
            | {
                f"{real} vs {BASE_LABEL}": lookup_text(
                    rows, probe_id=probe_id, analysis=f"{analysis}_difference", term=versus_base(name), k=size
                )
            }
            for analysis, measure in _MEASURES
            for name, size in predictor_sets(added)
            if size in (None, k)
        ]
    )


def outcome_table(estimates: pd.DataFrame, probe_id: str, k: int = HEADLINE_K) -> pd.DataFrame:
    """Return the standardised gap beta_L - beta_I on each outcome, real step and placebos side by side."""
    rows = rows_where(estimates, analysis="standardized_decomposition", term=GAP, k=k)
    return pd.DataFrame(
        [
            {"outcome": outcome}
            | {
                update: lookup_text(rows, probe_id=update_id, outcome=outcome)
                for update, update_id in probes_by_step(estimates)[probe_id].items()
            }
            for outcome in OUTCOMES
        ]
    )


def mean_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return each update's mean gain over the bank and inside Q3, its noise, and how few positions carry it."""
    rows = rows_where(estimates, outcome=OUTCOME)
    return pd.DataFrame(
        [
            {
                "update": update,
                "mean gain [nats]": lookup_text(rows, probe_id=update_id, analysis="mean", term="bank"),
                "inside Q3": lookup_text(rows, probe_id=update_id, analysis="mean", term="q3"),
                "mean noise": lookup_text(rows, probe_id=update_id, analysis="noise_floor"),
                "variance in ten positions": lookup_text(rows, probe_id=update_id, analysis="concentration"),
            }
            for update, update_id in probes_by_step(estimates)[probe_id].items()
        ]
    )


def status_table(findings: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return the status of every claim at each K; claims without K stand in the first column."""
    of_probe = findings[findings["probe_id"] == probe_id]
    names = of_probe["finding"].where(
        of_probe["outcome"] == OUTCOME, of_probe["finding"] + " on " + of_probe["outcome"]
    )
    sizes = of_probe["k"].map(lambda k: "no K" if pd.isna(k) else f"K={int(k)}")
    table = of_probe.assign(claim=names, size=sizes).set_index(["claim", "size"])["status"].unstack(fill_value="")  # noqa: PD010
    columns = [name for name in ("no K", *(f"K={k}" for k in SUPPORT_SIZES)) if name in table.columns]
    return table.loc[list(dict.fromkeys(names)), columns].reset_index()


def titled(estimates: pd.DataFrame, probe_id: str) -> dict[str, pd.DataFrame]:
    """Return the two central tables of a real step by their titles."""
    return {
        f"Standardised coefficients of {OUTCOME}, {probe_id}": coefficient_table(estimates, probe_id),
        f"Predicting {OUTCOME} on prompts not seen (K={HEADLINE_K}), {probe_id}": validity_table(estimates, probe_id),
    }


def at_headline_k(coefficients: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table of coefficients at the headline K."""
    return coefficients[coefficients["K"] == str(HEADLINE_K)]


def further(estimates: pd.DataFrame, probe_id: str) -> dict[str, pd.DataFrame]:
    """Return the further tables of a real step by their titles."""
    return {
        f"Standardised beta_L - beta_I by outcome (K={HEADLINE_K})": outcome_table(estimates, probe_id),
        "Mean gain": mean_table(estimates, probe_id),
    }


def contrast_table(contrasts: pd.DataFrame, estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return the contrasts of C inside Q3 at each K, real step and placebos side by side, as text with intervals."""
    of_support = contrasts[(contrasts["score"] == "compatibility") & (contrasts["outcome"] == OUTCOME)]
    rows = []
    for k in SUPPORT_SIZES:
        for update, update_id in probes_by_step(estimates)[probe_id].items():
            of_update = of_support[(of_support["probe_id"] == update_id) & (of_support["k"] == k)].set_index("design")
            cells = {str(name): _contrast(row) for name, row in of_update.iterrows()}
            rows.append({"K": str(k), "update": update} | dict.fromkeys(_DESIGNS, "-") | cells)
    return pd.DataFrame(rows)


def proxy_table(contrasts: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return a real step's contrasts by thirds of every support score, one column a K, as text with intervals."""
    of_probe = contrasts[(contrasts["probe_id"] == probe_id) & (contrasts["outcome"] == OUTCOME)]
    of_probe = of_probe[of_probe["design"] == "thirds"]
    cells = {(str(row["score"]), int(row["k"])): _contrast(row) for _, row in of_probe.iterrows()}
    return pd.DataFrame(
        [
            {"score": score} | {f"K={k}": cells.get((score, k), "-") for k in SUPPORT_SIZES}
            for score in of_probe["score"].unique()
        ]
    )


def top_table(top_n: pd.DataFrame, probe_id: str, k: int = HEADLINE_K) -> pd.DataFrame:
    """Return what a real step gained on the best-scored positions at one budget and K, best selector first, as text."""
    of_probe = top_n[(top_n["probe_id"] == probe_id) & (top_n["outcome"] == OUTCOME) & (top_n["budget"] == TOP_BUDGET)]
    of_probe = of_probe[of_probe["k"].isna() | (of_probe["k"] == k)].sort_values(
        "estimate", ascending=False, kind="stable"
    )
    return pd.DataFrame(
        [
            {"selector": str(row["selector"]), "mean gain [nats]": str(row_interval(row))}
            | {name: f"{row[column]:.2f}" for name, column in _COMPOSITION.items()}
            for _, row in of_probe.iterrows()
        ]
    )


def inference_table(inference: pd.DataFrame, probe_id: str, k: int = HEADLINE_K) -> pd.DataFrame:
    """Return errors and p-values of every tested coefficient of a real step at one K, as text."""
    of_probe = inference[
        (inference["probe_id"] == probe_id) & (inference["outcome"] == OUTCOME) & (inference["k"] == k)
    ]
    columns = ["estimate", "crv1_error", "crv3_error", "two_way_error", "crv3_p", "wild_p"]
    shown_columns = of_probe[columns].map(lambda value: "-" if pd.isna(value) else f"{value:.3g}")
    return pd.concat([of_probe[["model", "term"]], shown_columns], axis=1).reset_index(drop=True)


def _contrast(row: "pd.Series[Any]") -> str:
    number = [] if pd.isna(row["estimate"]) else [str(row_interval(row))]
    return "; ".join([*number, str(row["note"])] if row["note"] else number)


def _gap_error(rows: pd.DataFrame, probe_id: str, k: int) -> str:
    rows = rows_where(rows, probe_id=probe_id, analysis="standardized_decomposition", term=GAP, k=k)
    return "-" if rows.empty else f"{rows['std_error'].iloc[0]:.3g}"
