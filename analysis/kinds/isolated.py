"""Isolated probes: what a step on one token's own loss does, what foresees it, and how far first order explains it.

The probed positions are a stratified sample. Every number is weighted by how many positions of the split each stands
for, so that it speaks of the whole split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.lookup import lookup, lookup_text
from teachdiag.analysis.bank.measurements import Bank
from teachdiag.analysis.bank.normalised import Key
from teachdiag.analysis.kinds.kind import Estimates, Inputs, KindAnalysis, Results, Tables, grid
from teachdiag.analysis.kinds.rank_tables import extent, leading_rows, rank_sentences, rank_table
from teachdiag.analysis.resampling.bootstrap import Interval, Resampling, ratio, variance
from teachdiag.analysis.step.rank_correlations import (
    PREDICTED,
    Sample,
    found_intervals,
    load_tokens,
    predictor_scores,
    spearman_rows,
)
from teachdiag.analysis.step.step_length import learning_rate
from teachdiag.artefacts import ESTIMATES, ISOLATED
from teachdiag.errors import ArtefactError
from teachdiag.runs import Stage
from teachdiag.scores import Array, Codes
from teachdiag.selectors import Tokens

FIRST_ORDER = {"gain": "own_inner", "fix_gain": "fix_inner"}  # outcome: the inner product that foresees it
PER_STEP = "{}_per_step"  # an outcome divided by its own step size
LOWERS, WITHIN_NOISE = "lowers", "within noise"  # shares of steps: gain above 0, gain of the size of rounding
WITHOUT_LARGEST = "first order, without the largest miss"
_NOISE_FLOORS = {"gain": "noise_floor", "fix_gain": "fix_noise_floor"}  # outcome: where the probe's results have it
_KEY = ["context_id", "position"]
_NUMBERS = ("gain", "fix_gain", "own_inner", "fix_inner")
GAINS = {"gain": "the gain at its own context", "fix_gain": "the drop of L_fix"}
_HEADINGS = {
    "gain": "own gain",
    "fix_gain": "drop of L_fix",
    PER_STEP.format("gain"): "own gain per unit of step",
    PER_STEP.format("fix_gain"): "drop of L_fix per unit of step",
    "own_inner": "own_inner",
    "fix_inner": "fix_inner",
}


class Isolated(KindAnalysis):
    """Steps on one position's loss at a time."""

    title = "Isolated steps"
    question = "What does a step on one token do?"

    def estimates(self, inputs: Inputs) -> Estimates:
        """Return what the steps gain, and what ranks their gains."""
        return {ESTIMATES: isolated_rows(inputs.run, self.probe_id, inputs.bank, inputs.resampling)}

    def text(self) -> str:
        """Say how the steps were taken."""
        length = "one step size" if self.settings["match"] == "rate" else "one update norm"
        return (
            f"One SGD step at a time on the {self.settings['loss']} loss of a single position, from theta0, {length} "
            f"for all ({learning_rate(self.record)}). L_fix is the mean forward KL of {self.settings['fix_contexts']} "
            "contexts that were set aside."
        )

    def sentences(self, results: Results) -> list[str]:
        """Say how many steps help, and what foresees which."""
        return isolated_sentences(results.estimates, self.probe_id)

    def tables(self, results: Results) -> Tables:
        """Return rank correlations, and what first order explains."""
        estimates, probe_id = results.estimates, self.probe_id
        return {
            "Rank correlation of every predictor with isolated steps": isolated_table(estimates, probe_id),
            "What first order explains": first_order_table(estimates, probe_id),
        }

    def central_tables(self, results: Results) -> Tables:
        """Return rank correlations."""
        return {f"Spearman with isolated steps, {self.probe_id}": isolated_table(results.estimates, self.probe_id)}

    def compact_tables(self, results: Results) -> Tables:
        """Return rank correlations with both gains, of the first predictors and of those under test."""
        table = isolated_table(results.estimates, self.probe_id)
        wanted = [name for name in ("predictor", *(_HEADINGS[outcome] for outcome in FIRST_ORDER)) if name in table]
        title = f"Rank correlation with what one token's step does: {extent(table)} predictors, and some"
        return {title: leading_rows(table[wanted])}

    def measured(self, title: str) -> list[Grid | str]:
        """Return mean gain and share of steps that gain, at the position itself and at other prompts."""
        results = self.record.results
        rows = [
            ("at the position itself", f"{results['mean_gain']:.3g}", f"{results['share_gaining']:.1%}"),
            ("L_fix, at other prompts", f"{results['mean_fix_gain']:.3g}", f"{results['share_helping_others']:.1%}"),
        ]
        return [
            grid(title, ("one step on one position's loss", "mean gain [nats]", "steps that gain"), rows),
            f"{results['steps']} steps, weighted to stand for their whole split; noise floors "
            f"{results['noise_floor']:.2g} and {results['fix_noise_floor']:.2g} nats",
        ]


def isolated_sentences(estimates: pd.DataFrame, probe_id: str) -> list[str]:
    """Say what one isolated probe shows, from the estimates table alone."""
    of_probe = estimates[estimates["probe_id"] == probe_id]
    if of_probe.empty:
        return []
    return [
        *_effect_sentences(of_probe),
        *rank_sentences(of_probe, "isolated_spearman", GAINS),
        *_linear_sentences(of_probe),
    ]


def isolated_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return every predictor's rank correlation with every isolated outcome, as text with intervals.

    Predictors fall by their correlation with the drop of L_fix; 'vs raw KL' is the difference of that from raw KL's.
    """
    return rank_table(estimates, probe_id, "isolated_spearman", "fix_gain", _HEADINGS)


def isolated_rows(run: Path, probe_id: str, bank: Bank, resampling: Resampling) -> list[dict[str, Any]]:
    """Return the estimates of one isolated probe.

    Args:
        run: the run directory.
        probe_id: a finished probe of kind isolated.
        bank: the run's bank.
        resampling: seed and number of the bootstrap's draws; prompts of the update split are drawn likewise.

    Raises:
        ArtefactError: the probe's table is missing, is empty, holds a position twice, or is not of this run.
        EstimationError: a predictor cannot be normalised.
    """
    table = _load(run, probe_id)
    split = str(table["split"].iloc[0])
    results = Stage(run, f"probes/{probe_id}").record().get("results", {})
    tokens = _without(load_tokens(run, split), results.get("fix_contexts", []))
    rows = _token_rows(table, tokens, run)
    prompts, n_prompts = _clusters(table, bank if split == "bank" else None, rows)
    outcomes = _outcomes(table)
    weights = table["weight"].to_numpy(np.float64)
    sample = Sample(probe_id, "isolated", outcomes, weights, prompts, n_prompts, resampling)
    scores: dict[Key, Array] = {key: values[rows] for key, values in predictor_scores(tokens).items()}
    scores[PREDICTED, None] = outcomes["fix_inner"]
    explained = {
        outcome: table["step_size"].to_numpy(np.float64) * outcomes[inner] for outcome, inner in FIRST_ORDER.items()
    }
    return [
        *spearman_rows(sample, scores, "isolated_spearman", list(outcomes), {"fix_inner": PREDICTED}),
        *_first_order_rows(sample, explained, split),
        *_noise_rows(sample, results, split),
    ]


def _load(run: Path, probe_id: str) -> pd.DataFrame:
    folder = run / "isolated" / probe_id
    table = ISOLATED.read(folder)
    if table.empty:
        raise ArtefactError(f"{folder} holds no position: run the probe again under another --name")
    if table.duplicated(_KEY).any():
        raise ArtefactError(f"{folder} holds a position twice: run the probe again under another --name")
    return table.sort_values(_KEY, ignore_index=True)


def _without(tokens: Tokens, contexts: Sequence[int]) -> Tokens:
    """Leave out the contexts of L_fix, from which no position is drawn."""
    kept = ~np.isin(tokens.stored("context_id"), contexts)
    return replace(tokens, columns={name: values[kept] for name, values in tokens.columns.items()})


def _token_rows(table: pd.DataFrame, tokens: Tokens, run: Path) -> Codes:
    """Return the row of the tokens that each probed position is."""
    known = pd.MultiIndex.from_arrays([tokens.stored(name) for name in _KEY])
    rows = known.get_indexer(pd.MultiIndex.from_frame(table[_KEY]))
    if (rows < 0).any():
        stranger = table.loc[rows < 0, _KEY].iloc[0]
        raise ArtefactError(
            f"the isolated probe stepped on position {stranger['position']} of context {stranger['context_id']}, "
            f"which {run / 'positions'} lacks: run the probe again in this run directory"
        )
    return rows.astype(np.int64)


def _clusters(table: pd.DataFrame, bank: Bank | None, rows: Codes) -> tuple[Codes, int]:
    """Return the prompt of each probed position, and how many are resampled: all of the bank, or those probed."""
    ids = table["prompt_id"].to_numpy(str)
    if bank is None:
        names, prompts = np.unique(ids, return_inverse=True)
        return prompts.astype(np.int64), len(names)
    if (np.array(bank.names)[bank.prompts[rows]] != ids).any():
        raise ArtefactError(
            "the isolated probe's prompts are not the bank's: run the probe again in this run directory"
        )
    return bank.prompts[rows], bank.n_prompts


def _outcomes(table: pd.DataFrame) -> dict[str, Array]:
    """Return the outcomes; where step sizes differ, gains per unit of step size too."""
    outcomes = {name: table[name].to_numpy(np.float64) for name in _NUMBERS}
    step_size = table["step_size"].to_numpy(np.float64)
    if np.ptp(step_size) > 0 and step_size.min() > 0:
        outcomes |= {PER_STEP.format(name): outcomes[name] / step_size for name in FIRST_ORDER}
    return outcomes


def _first_order_rows(sample: Sample, explained: Mapping[str, Array], split: str) -> list[dict[str, Any]]:
    """Return mean, share of steps that help, R2 of the first order and size of the remainder, for both gains."""
    counts = sample.counts("isolated")
    rows = []
    for outcome, prediction in explained.items():
        y = sample.outcomes[outcome]
        miss = y - prediction
        columns = np.column_stack([np.ones_like(y), y, y**2, miss**2, np.abs(miss), np.abs(y), y > 0])
        n, total, squares, missed, off, size, helped = sample.totals(columns, counts).T
        r2 = 1 - ratio(missed, n * variance(n, total, squares))
        others = np.arange(len(y)) != np.argmax(sample.stands_for * miss**2)
        without = _r2(y[others], miss[others], sample.stands_for[others])
        names = (
            ("isolated_mean", split, "nats", ratio(total, n), "weighted mean"),
            ("isolated_share", LOWERS, "1", ratio(helped, n), "weighted share of steps with gain above 0"),
            ("isolated_r2", "first_order", "1", r2, f"weighted R2 of step size * {FIRST_ORDER[outcome]}"),
            ("isolated_remainder", "relative", "1", ratio(off, size), "weighted mean |remainder| / mean |gain|"),
        )
        rows += [
            sample.row(analysis, outcome, term, unit, found_intervals(drawn[:, None])[0], what)
            for analysis, term, unit, drawn, what in names
        ]
        what = "the same without the position that the first order misses most"
        rows.append(sample.row("isolated_r2", outcome, WITHOUT_LARGEST, "1", Interval(without, np.nan, np.nan), what))
    return [row for row in rows if not np.isnan(row["estimate"])]


def _r2(y: Array, miss: Array, weights: Array) -> float:
    centred = y - np.average(y, weights=weights)
    spread = float((weights * centred**2).sum())
    return 1 - float((weights * miss**2).sum()) / spread if spread else np.nan


def _noise_rows(sample: Sample, results: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    """Return the noise floors that the probe measured, and the share of gains within them."""
    rows, counts = [], sample.counts("isolated")
    for outcome, name in _NOISE_FLOORS.items():
        if (floor := results.get(name)) is None:
            continue
        within = np.abs(sample.outcomes[outcome]) <= floor
        n, inside = sample.totals(np.column_stack([np.ones(len(within)), within]), counts).T
        share = found_intervals(ratio(inside, n)[:, None])[0]
        known = Interval(float(floor), np.nan, np.nan)
        what = "weighted share of steps with |gain| <= noise floor"
        rows.append(sample.row("isolated_share", outcome, WITHIN_NOISE, "1", share, what))
        rows.append(sample.row("isolated_noise_floor", outcome, split, "nats", known, "as the probe measured it"))
    return rows


def first_order_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return mean, share above 0, R2 of the first order and relative remainder of both isolated gains, as text."""
    of_probe = estimates[estimates["probe_id"] == probe_id]
    columns = {
        "mean [nats]": {"analysis": "isolated_mean"},
        "share above 0": {"analysis": "isolated_share", "term": LOWERS},
        "R2 of first order": {"analysis": "isolated_r2"},
        "mean absolute remainder / gain": {"analysis": "isolated_remainder"},
    }
    return pd.DataFrame(
        [
            {"outcome": _HEADINGS[outcome]}
            | {heading: lookup_text(of_probe, outcome=outcome, **held) for heading, held in columns.items()}
            for outcome in FIRST_ORDER
        ]
    )


def _effect_sentences(of_probe: pd.DataFrame) -> list[str]:
    """Say how many isolated steps help, and by how much on average."""
    facts = []
    for outcome, what in (("gain", "the KL at its own context"), ("fix_gain", "L_fix")):
        share, mean = (
            lookup(of_probe, analysis="isolated_share", outcome=outcome, term=LOWERS),
            lookup(of_probe, analysis="isolated_mean", outcome=outcome),
        )
        if share is not None and mean is not None:
            facts.append(f"lowers {what} in {_percent(share)} of positions (mean gain {mean} nats)")
    if not facts:
        return []
    row = of_probe[of_probe["analysis"] == "isolated_mean"].iloc[0]
    sentences = [
        f"A step on one position's loss alone {' and '.join(facts)}: {row['n_positions']} probed positions of "
        f"{row['n_prompts']} prompts, weighted to stand for the whole {row['term']} split."
    ]
    noise = {
        name: lookup(of_probe, analysis="isolated_share", outcome=outcome, term=WITHIN_NOISE)
        for outcome, name in GAINS.items()
    }
    within = [
        f"{name} is within the noise floor in {_percent(x)} of positions" for name, x in noise.items() if x is not None
    ]
    return sentences + ([f"Rounding: {'; '.join(within)}."] if within else [])


def _linear_sentences(of_probe: pd.DataFrame) -> list[str]:
    """Say how far first order explains the isolated gains."""
    parts = []
    for outcome, what in GAINS.items():
        r2, remainder = (
            lookup(of_probe, analysis="isolated_r2", outcome=outcome),
            lookup(of_probe, analysis="isolated_remainder", outcome=outcome),
        )
        if r2 is not None:
            size = "" if remainder is None else f", mean absolute remainder {remainder} of the mean absolute gain"
            rest = lookup(of_probe, analysis="isolated_r2", outcome=outcome, term=WITHOUT_LARGEST)
            parts.append(f"{what}: R2 {r2} ({rest} without the position that it misses most){size}")
    return [f"What first order (step size times inner product) explains of {'; of '.join(parts)}."] if parts else []


def _percent(share: Interval) -> str:
    if np.isnan(share.low):
        return f"{share.estimate:.1%}"
    return f"{share.estimate:.1%} [{share.low:.1%}, {share.high:.1%}]"
