"""Token-LDS: do per-token predictions add up to what a step on many tokens does?

Each mask keeps random positions of one update batch, and its step is taken for real. The linear datamodelling score
(Park et al. 2023, TRAK), with tokens in the place of examples, is Spearman's correlation over masks of the measured
fall of held-out KL with the sum of a predictor over the kept positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.lookup import lookup, lookup_text, row_interval
from teachdiag.analysis.bank.normalised import Key
from teachdiag.analysis.kinds.kind import Estimates, Inputs, KindAnalysis, Results, Tables
from teachdiag.analysis.kinds.rank_tables import extent, leading_rows
from teachdiag.analysis.kinds.selectors import measured_masks
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling
from teachdiag.analysis.step.rank_correlations import (
    PREDICTED,
    found_intervals,
    load_tokens,
    predictor_scores,
    weighted_spearman,
)
from teachdiag.analysis.step.step_length import learning_rate
from teachdiag.analysis.text.text_tables import named, readable
from teachdiag.artefacts import ESTIMATES, INTERVENTIONS, PREDICTIONS
from teachdiag.errors import ArtefactError
from teachdiag.scores import Array
from teachdiag.seeds import derive_seed
from teachdiag.selectors import Tokens
from teachdiag.signals import BASE, BASE_LABEL, versus_base
from teachdiag.tables import rows_where

ENOUGH_MASKS = 100
FIRST_ORDER = "first_order"  # the predictor that is <grad L_bank, grad l_t>: it has seen the outcome's own positions
_SPLIT = "update"
_FOLLOWED = ("learnable", "logit_alignment", BASE)


@dataclass(frozen=True)
class Masks:
    """The masks of one probe.

    `kept`: shape (masks, positions), 1 where a position was kept. `gain`: shape (masks,), mean gain of the bank, nats.
    `scores`: shape (positions,) each, the predictors. `n_prompts`: prompts of the update batch.
    """

    probe_id: str
    kept: Array
    gain: Array
    scores: dict[Key, Array]
    n_prompts: int

    def __len__(self) -> int:
        return len(self.gain)


class Lds(KindAnalysis):
    """Steps restricted to random positions."""

    title = "Token-LDS"
    question = "Do per-token scores add up?"

    def estimates(self, inputs: Inputs) -> Estimates:
        """Return every predictor's token-LDS."""
        return {ESTIMATES: lds_rows(inputs.run, self.probe_id, inputs.resampling)}

    def text(self) -> str:
        """Say how the steps were taken."""
        settings = self.settings
        return (
            f"{settings['masks']} {settings['optimizer']} steps, learning rate {learning_rate(self.record)}, each on "
            f"the mean {settings['loss']} loss of {100 * settings['mask_budget']:g}% random positions of one update "
            "batch. Token-LDS: Spearman over masks of measured gain and summed predictor. Brackets: bootstrap over "
            "masks."
        )

    def sentences(self, results: Results) -> list[str]:
        """Say whose sums rank the masks best."""
        return lds_sentences(results.estimates, self.probe_id, int(self.settings["masks"]))

    def tables(self, results: Results) -> Tables:
        """Return every predictor's token-LDS."""
        return {"Token-LDS of every predictor": lds_table(results.estimates, self.probe_id)}

    def central_tables(self, results: Results) -> Tables:
        """Return every predictor's token-LDS."""
        return {f"Token-LDS, {self.probe_id}": lds_table(results.estimates, self.probe_id)}

    def compact_tables(self, results: Results) -> Tables:
        """Return the token-LDS of the first predictors, and of those under test."""
        table = lds_table(results.estimates, self.probe_id)
        return {f"Token-LDS: {extent(table)} predictors, and some": leading_rows(table)}

    def measured(self, title: str) -> list[Grid | str]:
        """Return the mean gain of the masked steps."""
        return measured_masks(self.record.results, title)


def lds_rows(run: Path, probe_id: str, resampling: Resampling) -> list[dict[str, Any]]:
    """Return the rows of the estimates table for one probe of kind lds.

    Args:
        run: the run directory.
        probe_id: the probe.
        resampling: seed and number of draws; here masks are resampled.

    Raises:
        ArtefactError: a table is missing, or a mask keeps a position that has no prediction.
        EstimationError: a predictor cannot be normalised over the update batch.
    """
    masks = load_masks(run, probe_id)
    keys = list(masks.scores)
    sums = masks.kept @ np.column_stack([masks.scores[key] for key in keys])
    drawn = mask_correlations(masks.gain, sums, mask_counts(len(masks), resampling))
    beside = drawn - drawn[:, [keys.index((BASE, None))]]
    rows = [_row(masks, "token_lds", key, interval, resampling) for key, interval in _estimable(keys, drawn)]
    return rows + [
        _row(masks, "token_lds_difference", (versus_base(name), k), interval, resampling)
        for (name, k), interval in _estimable(keys, beside)
        if name != BASE
    ]


def load_masks(run: Path, probe_id: str) -> Masks:
    """Read the masks of one probe, what each step gained, and every predictor at the update batch's positions.

    Scores are normalised over the update batch, as the selectors of a step would be.

    Raises:
        ArtefactError: a table is missing, or a mask keeps a position that has no prediction.
        EstimationError: a predictor cannot be normalised over the update batch.
    """
    columns = ["seed", "kept_context_ids", "kept_positions", "mean_gain"]
    table = INTERVENTIONS.read(run / "interventions" / probe_id, columns).sort_values("seed", ignore_index=True)
    predictions = PREDICTIONS.read(
        run / "predictions" / probe_id, ["context_id", "position", "prompt_id", "fix_inner", "bank_inner"]
    ).sort_values(["context_id", "position"], ignore_index=True)
    index = pd.MultiIndex.from_frame(predictions[["context_id", "position"]])
    tokens = _restricted(load_tokens(run, _SPLIT), index, probe_id)
    inner = {(name, None): predictions[c].to_numpy(np.float64) for name, c in _INNER.items()}
    kept = np.stack([_membership(mask, index, probe_id) for mask in table.itertuples()])
    scores = {key: values for key, values in (predictor_scores(tokens) | inner).items() if np.isfinite(values).all()}
    n_prompts = int(predictions["prompt_id"].nunique())
    return Masks(probe_id, kept, table["mean_gain"].to_numpy(np.float64), scores, n_prompts)


def mask_counts(n_masks: int, resampling: Resampling) -> Array:
    """Return how often each mask counts in each draw, shape (1 + draws, masks), row 0 all ones.

    Row 0 alone where there are too few masks for an interval.
    """
    if n_masks < MIN_PROMPTS:
        return np.ones((1, n_masks))
    rng = np.random.default_rng(derive_seed(resampling.seed, "bootstrap", "masks"))
    counts = rng.multinomial(n_masks, np.full(n_masks, 1 / n_masks), size=resampling.draws)
    return np.vstack([np.ones(n_masks), counts])


def mask_correlations(gain: Array, sums: Array, counts: Array) -> Array:
    """Return Spearman's correlation of the gains, (masks,), with each predictor's sums, (masks, m): (draws, m).

    Ranks are made anew in each draw; NaN where a draw leaves no spread.
    """
    masks = np.arange(len(gain))
    return weighted_spearman(gain[:, None], sums, np.ones(len(gain)), masks, counts)[:, 0]


_INNER = {PREDICTED: "fix_inner", FIRST_ORDER: "bank_inner"}


def _restricted(tokens: Tokens, index: pd.MultiIndex, probe_id: str) -> Tokens:
    """Return the tokens at the positions of an index, in its order."""
    known = pd.MultiIndex.from_arrays([tokens.stored("context_id"), tokens.stored("position")])
    rows = known.get_indexer(index)
    if (rows < 0).any():
        raise ArtefactError(f"the predictions of {probe_id} hold positions that the update split has not: probe again")
    return replace(tokens, columns={name: values[rows] for name, values in tokens.columns.items()})


def _membership(mask: Any, index: pd.MultiIndex, probe_id: str) -> Array:  # noqa: ANN401 (a row of itertuples)
    rows = index.get_indexer(pd.MultiIndex.from_arrays([mask.kept_context_ids, mask.kept_positions]))
    if (rows < 0).any():
        raise ArtefactError(f"mask {mask.seed} of {probe_id} keeps a position that has no prediction: probe again")
    kept = np.zeros(len(index))
    kept[rows] = 1
    return kept


def _estimable(keys: Sequence[Key], samples: Array) -> list[tuple[Key, Interval]]:
    """Return each predictor's number, those left out that the estimate itself leaves undefined."""
    return [
        (key, interval)
        for key, interval in zip(keys, found_intervals(samples), strict=True)
        if not np.isnan(interval.estimate)
    ]


def _row(masks: Masks, analysis: str, key: Key, interval: Interval, resampling: Resampling) -> dict[str, Any]:
    name, k = key
    few = f" (fewer than {ENOUGH_MASKS}: rough)" if len(masks) < ENOUGH_MASKS else ""
    drawn = f"bootstrap over masks, {resampling.draws} draws, percentile"
    if len(masks) < MIN_PROMPTS:
        drawn = f"no interval from fewer than {MIN_PROMPTS}"
    return {
        "analysis": analysis,
        "probe_id": masks.probe_id,
        "update": "lds",
        "outcome": "mean_gain",
        "k": k,
        "term": name,
        "unit": "1",
        **interval.columns(),
        "std_error": None,
        "method": f"Spearman of mean gain and summed predictor over {len(masks)} random masks{few}; {drawn}",
        "n_positions": masks.kept.shape[1],
        "n_prompts": masks.n_prompts,
        "n_dropped": 0,
    }


def lds_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return every predictor's token-LDS, highest first, and its difference from raw KL's, as text with intervals."""
    rows = _lds(estimates, probe_id)
    return pd.DataFrame(
        [
            {"predictor": named(row), "token-LDS": str(row_interval(row))}
            | {f"less {BASE_LABEL}'s": lookup_text(_difference(estimates, probe_id, str(row["term"])))}
            for _, row in rows.iterrows()
        ]
    )


def lds_sentences(estimates: pd.DataFrame, probe_id: str, n_masks: int) -> list[str]:
    """Say whose sums rank the masks best, and where TA-OPD's score, logit alignment and raw KL stand.

    Args:
        estimates: the estimates table.
        probe_id: a probe of kind lds.
        n_masks: its masks.
    """
    everyone = _lds(estimates, probe_id)
    if everyone.empty:
        return ["No token-LDS can be estimated: the masks' gains do not vary."]
    form, rows = everyone[everyone["term"] == FIRST_ORDER], everyone[everyone["term"] != FIRST_ORDER]
    best, terms = rows.iloc[0], list(rows["term"])
    followed = "".join(
        f"; {readable(name)} {row_interval(rows.iloc[index])} is number {index + 1}"
        for name in _FOLLOWED
        if name in terms and (index := terms.index(name))
    )
    ceiling = f" The first-order form for this very bank reaches {row_interval(form.iloc[0])}." if len(form) else ""
    rough = f" Fewer than {ENOUGH_MASKS} masks: take these as rough." if n_masks < ENOUGH_MASKS else ""
    sentences = [
        f"Over {n_masks} random masks of one update batch, sums of {named(best)} rank the measured gains best of "
        f"{len(rows)} predictors (token-LDS {row_interval(best)}; the best of many flatters itself){followed}."
        f"{ceiling}{rough}"
    ]
    compared = [_against_base(estimates, probe_id, name) for name in ("learnable", "logit_alignment", "predicted")]
    return sentences + [f"Token-LDS less {BASE_LABEL}'s: {'; '.join(filter(None, compared))}."] * any(compared)


def _lds(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    rows = estimates[(estimates["probe_id"] == probe_id) & (estimates["analysis"] == "token_lds")]
    return rows.sort_values("estimate", ascending=False, kind="stable")


def _difference(estimates: pd.DataFrame, probe_id: str, term: str) -> pd.DataFrame:
    return rows_where(estimates, probe_id=probe_id, analysis="token_lds_difference", term=versus_base(term))


def _against_base(estimates: pd.DataFrame, probe_id: str, term: str) -> str:
    difference = lookup(_difference(estimates, probe_id, term))
    if difference is None:
        return ""
    verdict = {1: "higher", -1: "lower", 0: "not told apart"}[difference.side()]
    return f"{term} {difference} ({verdict if difference.known else 'no interval'})"
