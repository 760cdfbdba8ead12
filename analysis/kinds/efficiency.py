"""Kind efficiency: what a step on what each selector chose keeps of the whole batch's gain, for people."""

from collections.abc import Sequence

import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.lookup import lookup, lookup_text, row_dicts, row_interval
from teachdiag.analysis.efficiency.kept_means import ORACLE, RANDOM
from teachdiag.analysis.efficiency.rows import efficiency_rows, load_measured, outcome_of
from teachdiag.analysis.efficiency.step_lengths import ALL
from teachdiag.analysis.kinds.kind import CONTENDER, Estimates, Inputs, KindAnalysis, Results, Tables, grid
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, shown
from teachdiag.analysis.resampling.few_blocks import clear_side
from teachdiag.analysis.text.text_tables import capitalised, readable
from teachdiag.artefacts import EFFICIENCY
from teachdiag.glossary import GAINS
from teachdiag.settings import HEADLINE_BUDGETS, HEADLINE_SELECTORS, MATCHES, Match, headline_budget
from teachdiag.signals import BASE, BASE_LABEL
from teachdiag.tables import rows_where

_LISTED = 6  # names that a sentence lists
_VERDICTS = {1: "keeps more than", -1: "keeps less than", 0: "cannot be told from"}
_NAMES = {CONTENDER: f"{CONTENDER} (TA-OPD)", RANDOM: "random positions"}

_OF_MEASURED = "mean over the update batches whose gradients were measured; `teachdiag analyze` takes all contexts"


class Efficiency(KindAnalysis):
    """Efficiency of selectors, to first order."""

    title = "Efficiency of selectors"
    question = "Which tokens to train on?"

    def estimates(self, inputs: Inputs) -> Estimates:
        """Return what every selector keeps at every budget, and what real steps kept."""
        return {EFFICIENCY: efficiency_rows(load_measured(inputs.run, self.record), inputs.resampling)}

    def text(self) -> str:
        """Say what was measured, and what the brackets are."""
        settings, blocks = self.settings, self.record.results["blocks"]
        return (
            f"{capitalised(self._gain)} on the bank, to first order, of an SGD step on the mean {settings['loss']} "
            "loss of the positions that a selector keeps of the update batch, as a share of that of a step on all of "
            f"them: at equal update norm, with norms measured on real batches ({settings['norm_batches']}), and at "
            f"equal learning rate. `{ORACLE}` ranks by the gain itself, and is judged on the bank that it ranked by: a "
            "ceiling at equal learning rate; at equal update norm, tokens whose gradients point apart can keep more. "
            "Brackets: bootstrap over update prompts, every selection made anew, and over "
            f"{len(blocks)} blocks of bank prompts."
        )

    @property
    def _gain(self) -> str:
        return GAINS[outcome_of(self.settings)]

    def _share_of_gain(self, how: str) -> str:
        return f"Share of the whole batch's {self._gain}, {how}"

    def sentences(self, results: Results) -> list[str]:
        """Say who leads at one budget, how TA-OPD's score fares against raw KL, and whether anything beats all."""
        return efficiency_sentences(rows_where(results.efficiency, probe_id=self.probe_id))

    def tables(self, results: Results) -> Tables:
        """Return the share that every selector keeps at every budget, its differences, and the real steps."""
        rows = rows_where(results.efficiency, probe_id=self.probe_id)
        tables = {
            self._share_of_gain(how): share_table(rows_where(rows, match=match, statistic="share"))
            for match, how in MATCHES.items()
        }
        for match, how in MATCHES.items():
            tables[f"Less that of {BASE_LABEL}, {how}"] = share_table(
                rows_where(rows, match=match, statistic="share_vs_base")
            )
        placebo = share_table(rows_where(rows, match="rate", statistic="share_shuffled"))
        return tables | {"The same positions under a shuffled teacher": placebo, "Real masked steps": real_table(rows)}

    def central_tables(self, results: Results) -> Tables:
        """Return nothing: the first page has what a few selectors keep at a few budgets."""
        return {}

    def compact_tables(self, results: Results) -> Tables:
        """Return the same at both matches."""
        rows = rows_where(results.efficiency, probe_id=self.probe_id)
        return {self._share_of_gain(how): headline_table(rows, match) for match, how in MATCHES.items()}

    def measured(self, title: str) -> list[Grid | str]:
        """Return what the measured cells keep on the real batches, at equal step length."""
        cells = {(cell["selector"], cell["budget"]): f"{cell['norm']:.3g}" for cell in self.record.results["masked"]}
        budgets = sorted({budget for _, budget in cells if budget < 1})
        selectors = [name for name in dict.fromkeys(name for name, _ in cells) if name != ALL]
        rows = [[_named(name), *(cells.get((name, budget), "-") for budget in budgets)] for name in selectors]
        shares = f"share of the whole batch's {self._gain}, first order, {MATCHES['norm']}"
        return [grid(f"{title}: {shares}", ["kept by", *map(_percent, budgets)], rows), _OF_MEASURED]


def headline_table(rows: pd.DataFrame, match: str = "norm") -> pd.DataFrame:
    """Return the share that the headline's selectors keep at its budgets, as text with intervals.

    Args:
        rows: those of one probe.
        match: 'norm' or 'rate'.
    """
    shares = rows_where(rows, match=match, statistic="share")
    budgets = [b for b in HEADLINE_BUDGETS if (shares["budget"] == b).any()]
    return pd.DataFrame(
        [
            {"selector": _named(name)} | {_percent(b): lookup_text(shares, selector=name, budget=b) for b in budgets}
            for name in HEADLINE_SELECTORS
            if (shares["selector"] == name).any()
        ]
    )


def share_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one statistic of every selector at every budget as text, best first at the budget that texts show."""
    budgets = sorted(rows["budget"].unique())
    return pd.DataFrame(
        [
            {"selector": _named(name)} | {_percent(b): lookup_text(rows, selector=name, budget=b) for b in budgets}
            for name in _ranked(rows)
        ]
    )


def real_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what real steps kept beside first order of the same batches and of all, as text."""
    taken = rows[rows["real_share"].notna()].sort_values(["match", "budget", "selector"])
    return pd.DataFrame(
        [
            {
                "selector": _named(str(row["selector"])),
                "budget": _percent(row["budget"]),
                "match": row["match"],
                "real steps": str(Interval(row["real_share"], row["real_low"], row["real_high"])),
                "first order, same batches": shown(row["real_first_order"]),
                "first order, all": str(row_interval(row)),
            }
            for _, row in taken.iterrows()
        ]
    )


def efficiency_sentences(rows: pd.DataFrame) -> list[str]:
    """Say what one probe shows; nothing is judged where the whole batch's own gain is not told from 0.

    Args:
        rows: those of the probe.
    """
    shares = rows_where(rows, statistic="share")
    if shares.empty:
        return [_obstacle(rows)]
    budget = headline_budget(shares["budget"])
    sentences = [_leader_sentence(rows, budget, match) for match in MATCHES]
    sentences += [_contender_sentence(rows, budget), _whole_batch_sentence(rows)]
    return [s for s in [*sentences, _placebo_sentence(rows, budget), _real_sentence(rows)] if s]


def _obstacle(rows: pd.DataFrame) -> str:
    (row,) = row_dicts(rows_where(rows, selector=ALL, statistic="gain"))
    gain = row_interval(row)
    what = f"the gain of a step on the whole update batch, {gain} nats per unit of learning rate to first order,"
    if not gain.known:
        return f"No share is judged: {what} has no interval from fewer than {MIN_PROMPTS} update prompts."
    if clear_side(gain, row["n_blocks"]) < 0:
        return f"No share is judged: {what} lies below 0, so that there is no gain to keep a share of."
    return f"No share is judged: {what} is not clearly told from 0, and a share of it could be anything."


def _leader_sentence(rows: pd.DataFrame, budget: float, match: Match) -> str:
    """Name the selector that keeps most at a budget, and the places of those that are followed."""
    shares = rows_where(rows, match=match, statistic="share", budget=budget)
    ranked = [name for name in _ranked(shares) if name not in (ORACLE, RANDOM)]
    if len(ranked) < 2:
        return ""
    followed = [
        f"{_named(name)} {lookup_text(shares, selector=name)}"
        + (f" (number {ranked.index(name) + 1})" if name in ranked else "")
        for name in (BASE, CONTENDER, RANDOM, ORACLE)
        if (shares["selector"] == name).any() and name != ranked[0]
    ]
    return (
        f"At {_percent(budget)} of the positions and {MATCHES[match]}, of {len(ranked)} selectors {_named(ranked[0])} "
        f"keeps most of the whole batch's gain: {lookup_text(shares, selector=ranked[0])} (the best of many flatters "
        f"itself); {', '.join(followed)}."
    )


def _contender_sentence(rows: pd.DataFrame, budget: float) -> str:
    parts = []
    for match, how in MATCHES.items():
        less = lookup(rows, match=match, statistic="share_vs_base", budget=budget, selector=CONTENDER)
        if less is not None:
            parts.append(f"{_judged(less)} {BASE_LABEL} at {how} (difference {less})")
    return f"At {_percent(budget)}, {_named(CONTENDER)} {', and '.join(parts)}." if parts else ""


def _whole_batch_sentence(rows: pd.DataFrame) -> str:
    """Say which selectors keep more than all at equal norm; at equal rate, larger gradients alone do so."""
    compared = rows_where(rows, match="norm", statistic="share")
    compared = compared[~compared["selector"].isin((ORACLE, RANDOM)) & compared["ci_low"].notna()]
    if compared.empty:
        return ""
    better = compared[compared["ci_low"] > 1]
    if better.empty:
        return (
            f"At {MATCHES['norm']}, none of {len(compared)} selectors and budgets is shown to gain more than the whole "
            "batch."
        )
    names = [f"{_named(s)} at {_percent(b)}" for s, b in better[["selector", "budget"]].itertuples(index=False)]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (
        f"At {MATCHES['norm']}, {len(names)} of {len(compared)} selectors and budgets gain more than the whole batch "
        f"(one in forty does by chance): {', '.join(names[:_LISTED])}{more}."
    )


def _placebo_sentence(rows: pd.DataFrame, budget: float) -> str:
    placebo = rows_where(rows, match="rate", statistic="share_shuffled", budget=budget)
    parts = [
        f"{lookup_text(placebo, selector=name)} ({_named(name)})"
        for name in (BASE, CONTENDER, RANDOM)
        if (placebo["selector"] == name).any()
    ]
    opening = f"Under a shuffled teacher the same positions keep, at {_percent(budget)} and {MATCHES['rate']},"
    return f"{opening} {', '.join(parts)}." if parts else ""


def _real_sentence(rows: pd.DataFrame) -> str:
    taken = rows[rows["real_share"].notna()]
    known = taken[taken["real_low"].notna()]
    if known.empty:
        return ""
    held = (known["real_low"] <= known["real_first_order"]) & (known["real_first_order"] <= known["real_high"])
    apart = (known["real_share"] - known["real_first_order"]).abs() / known["real_first_order"].abs()
    steps = len(known[["selector", "budget"]].drop_duplicates())
    taken_steps = "1 masked step was" if steps == 1 else f"{steps} masked steps were"
    return (
        f"{taken_steps} really taken: in {held.sum()} of {len(known)} comparisons (at equal norm and at equal rate) "
        f"the interval of its share holds first order's, which is {apart.median():.1%} away (median)."
    )


def _judged(less: Interval) -> str:
    return _VERDICTS[less.side()] if less.known else "has no interval beside"


def _ranked(rows: pd.DataFrame) -> Sequence[str]:
    """Return selectors by falling estimate at the budget that texts show; those without one last."""
    if rows.empty:
        return []
    ordered = rows_where(rows, budget=headline_budget(rows["budget"])).sort_values(
        "estimate", ascending=False, kind="stable"
    )
    return list(dict.fromkeys(map(str, [*ordered["selector"], *rows["selector"]])))


def _named(selector: str) -> str:
    return _NAMES.get(selector, readable(selector))


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
