"""Kind selectors: what a step on the positions that each selector keeps gains, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.lookup import lookup, lookup_text
from teachdiag.analysis.kinds.gain_matrix import load_cells
from teachdiag.analysis.kinds.kind import CONTENDER, Estimates, Inputs, KindAnalysis, Results, Tables, grid
from teachdiag.analysis.kinds.rank_tables import extent, leading_rows
from teachdiag.analysis.kinds.selector_gains import (
    ALL,
    MIN_SEEDS,
    RANDOM,
    agreement_rows,
    draw_seeds_and_prompts,
    gain_statistics,
    released_rows,
    selection_rows,
)
from teachdiag.analysis.resampling.bootstrap import Interval
from teachdiag.analysis.step.step_length import learning_rate
from teachdiag.artefacts import ESTIMATES, SELECTION
from teachdiag.runs import Stage
from teachdiag.settings import MATCHES, headline_budget
from teachdiag.signals import BASE, SIGNALS
from teachdiag.tables import rows_where

_DESCRIBED = ("disagreement", "compatibility", "learnable", "incompatible", "student_entropy", "position")
_MEASURED = {"budget": "g", "match": "", "keep": ".1%", "mean_gain": ".3g", "first_order_gain": ".3g"}
_LISTED = 6  # names that a sentence lists
_VERDICTS = {1: "gains more than", -1: "gains less than", 0: "cannot be told from"}


class Selectors(KindAnalysis):
    """Steps restricted to selected positions."""

    title = "Selectors"
    question = "Which positions should carry the loss?"

    def estimates(self, inputs: Inputs) -> Estimates:
        """Return what every selector's steps gained and kept, and how first order and the release foretell it."""
        cells = load_cells(inputs.run, self.probe_id, inputs.bank)
        draws = draw_seeds_and_prompts(cells, inputs.resampling)
        results = Stage(inputs.run, f"probes/{self.probe_id}").record("results.noise_floor")["results"]
        gains = gain_statistics(cells, inputs.bank, float(results["noise_floor"]), draws.prompts)
        agreement = agreement_rows(cells) + released_rows(cells, gains)
        return {SELECTION: selection_rows(cells, gains, draws), ESTIMATES: agreement}

    def text(self) -> str:
        """Say how the steps were taken."""
        settings = self.settings
        few = "; they are too short with so few batches, so nothing is judged" * (settings["seeds"] < MIN_SEEDS)
        return (
            f"{settings['optimizer']} steps, learning rate {learning_rate(self.record)}, each on the mean "
            f"{settings['loss']} loss of the selected positions of one update batch; {settings['seeds']} batches, the "
            "same for every selector. Compared at equal learning rate (rate), and with every step stretched to the "
            "length of that on the whole batch (norm). `random` is the control. Brackets: bootstrap over batches and "
            f"bank prompts{few}."
        )

    def sentences(self, results: Results) -> list[str]:
        """Say who leads, at every budget."""
        return selection_sentences(results.selection, results.estimates, self.probe_id)

    def tables(self, results: Results) -> Tables:
        """Return gains and composition at every budget."""
        return selection_tables(results.selection, self.probe_id)

    def central_tables(self, results: Results) -> Tables:
        """Return gains at one budget."""
        title, table = self._at_one_budget(results)
        left_out = ["rate: mean gain", "Q3 share", "released gap"]
        return {f"{title}, {self.probe_id}": table.drop(columns=left_out, errors="ignore")}

    def headlines(self, results: Results) -> list[str]:
        """Say who leads, at one budget."""
        leaders_at = [headline_budget(_of(results.selection, self.probe_id)["budget"])]
        return selection_sentences(results.selection, results.estimates, self.probe_id, leaders_at)

    def compact_tables(self, results: Results) -> Tables:
        """Return gains at one budget, of the first selectors and of those under test."""
        title, table = self._at_one_budget(results)
        return {f"{title}: {extent(table)}, and some": leading_rows(table)}

    def measured(self, title: str) -> list[Grid | str]:
        """Return the mean gain of every selector's steps."""
        return measured_masks(self.record.results, title)

    def _at_one_budget(self, results: Results) -> tuple[str, pd.DataFrame]:
        budget = headline_budget(_of(results.selection, self.probe_id)["budget"])
        table = selection_table(results.selection, self.probe_id, budget)
        return f"Selectors at {_percent(budget)} of the batch, gains in nats", table


def measured_masks(results: Mapping[str, Any], title: str) -> list[Grid | str]:
    """Return what masked steps gained, as the probe's results have it."""
    headings = ("kept by", "budget", "matched", "kept", "mean gain [nats]", "SGD to first order")
    rows = [
        [row["selector"], *(f"{row[name]:{form}}" for name, form in _MEASURED.items())] for row in results["selectors"]
    ]
    matched = {row["match"] for row in results["selectors"]}
    how = "; matched by learning rate, or by the length of the step that keeps everything" if len(matched) > 1 else ""
    count = f"{results['cells']} masked steps, measured on {results['bank_positions']} bank positions{how}"
    return [grid(title, headings, rows), count]


def selection_table(selection: pd.DataFrame, probe_id: str, budget: float) -> pd.DataFrame:
    """Return every selector at one budget as text: gains (nats) with intervals at both matches, and what was kept.

    Selectors fall by their mean gain at equal norm; the whole batch, which has budget 1, comes last. First-order form,
    Q3 share and released gap are those at equal norm.
    """
    of_probe = _of(selection, probe_id)
    matches = [match for match in MATCHES if match in set(of_probe["match"])]
    leading = matches[0]
    shown = [(s, budget) for s in _ranked(of_probe, budget, leading)] + [(ALL, 1.0)] * (
        ALL in set(of_probe["selector"])
    )
    return pd.DataFrame([_selection_row(of_probe, selector, share, budget, matches) for selector, share in shown])


def _selection_row(
    of_probe: pd.DataFrame, selector: str, share: float, budget: float, matches: Sequence[str]
) -> dict[str, str]:
    rows = rows_where(of_probe, selector=selector, budget=share)
    leading = rows_where(rows, match=matches[0])
    return {
        "selector": selector if share == budget else f"{selector} (budget 1)",
        **{f"{m}: mean gain": lookup_text(rows, match=m, statistic="mean_gain") for m in matches},
        **{f"{m}: less random's": lookup_text(rows, match=m, statistic="mean_gain_vs_random") for m in matches},
        "first-order form": _point(leading, statistic="first_order_gain"),
        "Q3 share": _point(leading, statistic="q3_share"),
        "released gap": lookup_text(leading, statistic="released_gap"),
    }


def composition_table(selection: pd.DataFrame, probe_id: str, budget: float) -> pd.DataFrame:
    """Return what each selector kept at one budget, and what that earned for each position, as text."""
    of_probe = _of(selection, probe_id)
    leading = next(match for match in MATCHES if match in set(of_probe["match"]))
    columns = {
        "gain per kept [nats]": "gain_per_kept",
        "gain in Q3 [nats]": "gain_q3",
        "keep": "keep",
        "tied": "tied",
        "topped up": "topped_up",
        **{SIGNALS[name].label: f"mean_{name}" for name in _DESCRIBED},
    }
    return pd.DataFrame(
        [
            {"selector": selector}
            | {
                heading: _point(of_probe, selector=selector, budget=budget, match=leading, statistic=name)
                for heading, name in columns.items()
            }
            | {
                "update norm, equal rate": _point(
                    of_probe, selector=selector, budget=budget, match="rate", statistic="update_norm"
                )
            }
            for selector in _ranked(of_probe, budget, leading)
        ]
    )


def selection_tables(selection: pd.DataFrame, probe_id: str) -> dict[str, pd.DataFrame]:
    """Return the tables of one probe by their titles, budget by budget."""
    tables: dict[str, pd.DataFrame] = {}
    for budget in _budgets(_of(selection, probe_id)):
        tables |= {
            f"Selectors at {_percent(budget)} of the batch, gains in nats": selection_table(
                selection, probe_id, budget
            ),
            f"What they kept at {_percent(budget)}": composition_table(selection, probe_id, budget),
        }
    return tables


def selection_sentences(
    selection: pd.DataFrame, estimates: pd.DataFrame, probe_id: str, leaders_at: Sequence[float] | None = None
) -> list[str]:
    """Say how TA-OPD's score fares against random, who leads, and what the first-order form and the release tell.

    Args:
        selection: the selection table.
        estimates: the estimates table.
        probe_id: a probe of kind selectors.
        leaders_at: the budgets at which leaders are named; by default all below 1.
    """
    of_probe = _of(selection, probe_id)
    budgets = _budgets(of_probe)
    sentences = [_contender_sentence(of_probe, budget) for budget in budgets]
    sentences += [_leader_sentence(of_probe, budget) for budget in (budgets if leaders_at is None else leaders_at)]
    sentences += [_whole_batch_sentence(of_probe, budgets)]
    sentences += [_agreement_sentence(estimates, probe_id), _released_sentence(estimates, probe_id)]
    return [sentence for sentence in sentences if sentence]


def _contender_sentence(of_probe: pd.DataFrame, budget: float) -> str:
    """Compare the contender with random, paired, at both matches."""
    parts = []
    for match, how in MATCHES.items():
        less = lookup(of_probe, selector=CONTENDER, budget=budget, match=match, statistic="mean_gain_vs_random")
        gain = lookup(of_probe, selector=CONTENDER, budget=budget, match=match, statistic="mean_gain")
        if less is not None and gain is not None:
            parts.append(
                f"{_judged(less, _n_seeds(of_probe))} random positions at {how} ({gain} nats, difference {less})"
            )
    whole = f"At {_percent(budget)} of the batch, `{CONTENDER}` (TA-OPD) "
    return f"{whole}{', and '.join(parts)}." if parts else ""


def _leader_sentence(of_probe: pd.DataFrame, budget: float) -> str:
    """Name the selector with the largest mean gain, and the places of the contender and of raw KL."""
    parts = []
    for match, how in MATCHES.items():
        ranked = _ranked(of_probe, budget, match)
        if len(ranked) < 2:
            continue
        ranks = [f"`{name}` is number {ranked.index(name) + 1}" for name in _followed(ranked)]
        best = lookup(of_probe, selector=ranked[0], budget=budget, match=match, statistic="mean_gain")
        parts.append(f"at {how} `{ranked[0]}` ({best} nats){''.join(f', {rank}' for rank in ranks)}")
    if not parts:
        return ""
    n = max(len(_ranked(of_probe, budget, match)) for match in MATCHES)
    opening = f"Largest mean gain of {n} selectors at {_percent(budget)} (the best of many flatters itself)"
    return f"{opening}: {'; '.join(parts)}."


def _followed(ranked: Sequence[str]) -> list[str]:
    return [name for name in (CONTENDER, BASE, RANDOM) if name in ranked[1:]]


def _whole_batch_sentence(of_probe: pd.DataFrame, budgets: Sequence[float]) -> str:
    """Say which selectors gain more than the whole batch; of many comparisons, one in forty does so by chance."""
    if _n_seeds(of_probe) < MIN_SEEDS:
        return ""
    parts = []
    for match, how in MATCHES.items():
        better, compared = [], 0
        for budget in budgets:
            known = {
                s: lookup(of_probe, selector=s, budget=budget, match=match, statistic="mean_gain_vs_all")
                for s in _ranked(of_probe, budget, match)
            }
            compared += sum(less is not None for less in known.values())
            better += [
                f"`{s}` at {_percent(budget)}" for s, less in known.items() if less is not None and less.side() > 0
            ]
        if compared:
            parts.append(f"{len(better)} of {compared} at {how}{_listed(better)}")
    opening = "Selectors whose kept part gains more than the whole batch (one in forty does by chance)"
    return f"{opening}: {'; '.join(parts)}." if parts else ""


def _listed(names: Sequence[str]) -> str:
    """Return the first names in brackets, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f" ({', '.join(names[:_LISTED])}{more})" if names else ""


def _agreement_sentence(estimates: pd.DataFrame, probe_id: str) -> str:
    parts = []
    for match, how in MATCHES.items():
        rank, r2 = (
            lookup(estimates, probe_id=probe_id, analysis="first_order_agreement", term=f"{name} ({match})")
            for name in ("spearman", "r2")
        )
        if rank is not None and r2 is not None:
            parts.append(f"Spearman {rank}, R2 {r2} at {how}")
    opening = "Real mean gain of the selectors against its first-order form, within each batch and budget"
    return f"{opening}: {'; '.join(parts)}." if parts else ""


def _released_sentence(estimates: pd.DataFrame, probe_id: str) -> str:
    parts = []
    for match, how in MATCHES.items():
        rank = lookup(estimates, probe_id=probe_id, analysis="released_agreement", term=f"spearman ({match})")
        if rank is not None:
            parts.append(f"{rank} at {how}")
    opening = "The released statistic (gap of relative gain inside Q3) against mean gain, over selectors and budgets"
    return f"{opening}: Spearman {'; '.join(parts)}." if parts else ""


def _judged(less: Interval, n_seeds: int) -> str:
    if n_seeds < MIN_SEEDS:
        return f"is not judged ({n_seeds} batches are too few) against"
    return "has no interval beside" if np.isnan(less.low) else _VERDICTS[less.side()]


def _n_seeds(of_probe: pd.DataFrame) -> int:
    return int(of_probe["n_seeds"].max())


def _of(selection: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    return selection[selection["probe_id"] == probe_id]


def _budgets(of_probe: pd.DataFrame) -> list[float]:
    """Return the budgets below 1, at which selectors differ."""
    return sorted(float(b) for b in of_probe["budget"].unique() if b < 1)


def _ranked(of_probe: pd.DataFrame, budget: float, match: str) -> list[str]:
    """Return the selectors at a budget by falling mean gain."""
    rows = of_probe[
        (of_probe["budget"] == budget) & (of_probe["match"] == match) & (of_probe["statistic"] == "mean_gain")
    ]
    return [str(s) for s in rows.sort_values("estimate", ascending=False, kind="stable")["selector"]]


def _point(rows: pd.DataFrame, **held: object) -> str:
    interval = lookup(rows, **held)
    return "-" if interval is None else f"{interval.estimate:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
