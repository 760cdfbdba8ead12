"""Predicted probes: first-order gains against measured ones as the step shrinks, and what ranks the inner products.

To first order, a step's share s gains s times the predicted gain. The remainder should shrink with s squared (paper
Eq. 2: at most beta eta^2), down to the noise floor, below which it is rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table as Grid

from teachdiag.analysis.bank.lookup import lookup, lookup_text, row_interval
from teachdiag.analysis.bank.measurements import Bank, load_aligned
from teachdiag.analysis.kinds.kind import Estimates, Inputs, KindAnalysis, Results, Tables, grid
from teachdiag.analysis.kinds.rank_tables import rank_sentences, rank_table
from teachdiag.analysis.resampling.bootstrap import MIN_PROMPTS, Interval, Resampling, ratio, variance
from teachdiag.analysis.step.profiles import concentration_row
from teachdiag.analysis.step.rank_correlations import (
    PREDICTED,
    Sample,
    found_intervals,
    load_tokens,
    predictor_scores,
    spearman_rows,
    weighted_spearman,
)
from teachdiag.analysis.step.step_length import learning_rate
from teachdiag.artefacts import ESTIMATES, PREDICTIONS
from teachdiag.errors import ArtefactError
from teachdiag.runs import Stage
from teachdiag.scores import Array, Mask
from teachdiag.settings import SHRINKS
from teachdiag.tables import rows_where

CLEAN = 3.0  # noise floors that an rms remainder must exceed to be more than rounding
_FIX, _SUCCESS, _SHUFFLED = "fix_inner", "success_inner", "success_inner_shuffled"
_INNER = {
    _FIX: "the inner product with the gradient of L_fix",
    _SUCCESS: "the inner product with the gradient of L_success",
}
_HEADINGS = {_FIX: "fix_inner", _SUCCESS: "success_inner", _SHUFFLED: "grades shuffled"}
_SHARE_COLUMNS = {
    "predicted_r2": "R2",
    "predicted_correlation": "squared correlation",
    "predicted_spearman": "Spearman",
    "predicted_remainder": "rms remainder [nats]",
    "predicted_mean_remainder": "mean absolute remainder [nats]",
}


class Predicted(KindAnalysis):
    """First-order gains of every position."""

    title = "First-order predictions"
    question = "Is first order enough?"

    def estimates(self, inputs: Inputs) -> Estimates:
        """Return how far first order foresees the measured gain, and what ranks the inner products."""
        return {ESTIMATES: predicted_rows(inputs.run, self.probe_id, inputs.bank, inputs.resampling)}

    def text(self) -> str:
        """Say how gains were predicted and measured."""
        settings = self.settings
        return (
            f"First-order gains ({settings['method']} derivatives) of one {settings['optimizer']} step, learning rate "
            f"{learning_rate(self.record)}, on the mean {settings['loss']} loss, against what the step and its parts "
            "gain."
        )

    def sentences(self, results: Results) -> list[str]:
        """Say how well first order foresees the gain, how the remainder falls, and what success agrees with."""
        said = predicted_sentences(results.estimates, self.probe_id)
        return [*said, *_success_sentences(results.estimates, self.probe_id, self.record.results.get("success"))]

    def tables(self, results: Results) -> Tables:
        """Return the prediction by share of the step, and rank correlations with the inner products."""
        estimates, probe_id = results.estimates, self.probe_id
        return {
            "First order against measured gain": predicted_table(estimates, probe_id),
            "Rank correlation of every predictor with the inner products": inner_table(estimates, probe_id),
        }

    def central_tables(self, results: Results) -> Tables:
        """Return the prediction by share of the step."""
        return {
            f"First order against measured gain, {self.probe_id}": predicted_table(results.estimates, self.probe_id)
        }

    def measured(self, title: str) -> list[Grid | str]:
        """Return mean gain and R2 of the prediction at each share of the step."""
        results = self.record.results
        rows = [(share, f"{results['mean_gain'][share]:.3g}", f"{r2:.4f}") for share, r2 in results["r2"].items()]
        return [
            grid(title, ("share of the step", "mean gain [nats]", "R2 of the first-order prediction"), rows),
            f"mean predicted gain of the whole step: {results['mean_predicted_gain']:.3g} nats",
        ]


def predicted_sentences(estimates: pd.DataFrame, probe_id: str) -> list[str]:
    """Say what one predicted probe shows, from the estimates table alone."""
    of_probe = estimates[estimates["probe_id"] == probe_id]
    if of_probe.empty:
        return []
    measured = {name: what for name, what in _INNER.items() if name == _FIX or name in set(of_probe["outcome"])}
    ranked = rank_sentences(of_probe, "inner_spearman", measured)
    return [*_fit_sentences(of_probe), *_exponent_sentences(of_probe), *ranked]


def inner_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return every predictor's rank correlation with fix_inner over the bank, and its difference from raw KL's.

    Where responses were graded, those with success and with its placebo stand beside it.
    """
    return rank_table(estimates, probe_id, "inner_spearman", _FIX, _HEADINGS)


def share_name(share: float) -> str:
    """Return how the estimates call a share of the step: '1', '1/2', ..."""
    return str(Fraction(share))


def measured_column(share: float) -> str:
    """Return the column of the predictions that holds the measured gain of this share of the step."""
    return f"gain_at_{round(1 / share)}"


def predicted_rows(run: Path, probe_id: str, bank: Bank, resampling: Resampling) -> list[dict[str, Any]]:
    """Return the estimates of one probe of kind predicted.

    Args:
        run: the run directory.
        probe_id: a finished probe of kind predicted.
        bank: the run's bank.
        resampling: seed and number of the bootstrap's draws.

    Raises:
        ArtefactError: the probe's table is missing, is not of this bank, or lacks a gain.
        EstimationError: a predictor cannot be normalised.
    """
    results = Stage(run, f"probes/{probe_id}").record().get("results", {})
    outcomes = _load(run, probe_id, bank)
    outcomes["gain"] = outcomes[measured_column(SHRINKS[0])]
    sample = Sample(probe_id, "predicted", outcomes, np.ones(len(bank)), bank.prompts, bank.n_prompts, resampling)
    scores = predictor_scores(load_tokens(run, "bank"))
    scores[PREDICTED, None] = outcomes[_FIX]
    enough = results.get("success", {}).get("prompts", 0) >= MIN_PROMPTS
    inner = [_FIX, *(name for name in (_SUCCESS, _SHUFFLED) if enough and name in outcomes)]
    sums = _sums(sample)
    return [
        *_fit_rows(sample, sums),
        *_rank_rows(sample),
        *_remainder_rows(sample, sums, results.get("noise_floor")),
        *_concentration_rows(sample),
        *spearman_rows(sample, scores, "inner_spearman", inner, {_FIX: PREDICTED}),
    ]


def _load(run: Path, probe_id: str, bank: Bank) -> dict[str, Array]:
    folder, names = run / "predictions" / probe_id, (_FIX, "predicted_gain", *map(measured_column, SHRINKS))
    table = load_aligned(PREDICTIONS, folder, names, bank)
    columns = {name: np.asarray(table[name], np.float64) for name in (*names, _SUCCESS, _SHUFFLED)}
    columns = {name: values for name, values in columns.items() if name in names or not np.isnan(values).all()}
    lacking = [name for name, values in columns.items() if np.isnan(values).any()]
    if lacking:
        raise ArtefactError(f"{folder} lacks {', '.join(lacking)} at some positions: run the probe again")
    return columns


@dataclass(frozen=True)
class _Sums:
    """Weighted sums over positions in every draw, shape (1 + draws, shares) each, at each share of the step.

    `y` is the measured gain, `p` the share times the predicted gain.
    """

    n: Array
    y: Array
    yy: Array
    p: Array
    pp: Array
    yp: Array
    missed: Array
    off: Array


def _sums(sample: Sample) -> _Sums:
    y, p = (np.column_stack(columns) for columns in (_measured(sample), _predicted(sample)))
    parts = (np.ones_like(y), y, y**2, p, p**2, y * p, (y - p) ** 2, np.abs(y - p))
    totals = sample.totals(np.hstack(parts), sample.counts("predicted"))
    return _Sums(*np.split(totals, len(parts), axis=1))


def _measured(sample: Sample) -> list[Array]:
    return [sample.outcomes[measured_column(share)] for share in SHRINKS]


def _predicted(sample: Sample) -> list[Array]:
    return [share * sample.outcomes["predicted_gain"] for share in SHRINKS]


def _fit_rows(sample: Sample, sums: _Sums) -> list[dict[str, Any]]:
    """Return R2 of the prediction as it is, and the squared correlation, which forgives a wrong scale."""
    spread = sums.n * variance(sums.n, sums.y, sums.yy)
    covariance = ratio(sums.yp, sums.n) - ratio(sums.y, sums.n) * ratio(sums.p, sums.n)
    scale = variance(sums.n, sums.y, sums.yy) * variance(sums.n, sums.p, sums.pp)
    return _per_share(sample, "predicted_r2", "1", 1 - ratio(sums.missed, spread), "R2 of share * predicted gain") + (
        _per_share(sample, "predicted_correlation", "1", ratio(covariance**2, scale), "squared correlation")
    )


def _rank_rows(sample: Sample) -> list[dict[str, Any]]:
    observed, counts = np.column_stack(_measured(sample)), sample.counts("ranks")
    scores = sample.outcomes["predicted_gain"][:, None]
    drawn = weighted_spearman(observed, scores, sample.stands_for, sample.prompts, counts)[:, :, 0]
    return _per_share(sample, "predicted_spearman", "1", drawn, "Spearman, ranks made anew in each draw")


def _remainder_rows(sample: Sample, sums: _Sums, floor: float | None) -> list[dict[str, Any]]:
    """Return the remainder's size at each share, by which power of the share it falls, and beta of paper Eq. 2."""
    rms = np.sqrt(ratio(sums.missed, sums.n))
    mean = ratio(sums.off, sums.n)
    rows = _per_share(sample, "predicted_remainder", "nats", rms, "root mean square of gain - share * predicted gain")
    rows += _per_share(sample, "predicted_mean_remainder", "nats", mean, "mean |gain - share * predicted gain|")
    every = rms[0] > 0
    rows += _exponent_row(sample, "all shares", rms, every, "every share, rounding or not")
    if floor is None:
        return rows
    known = Interval(float(floor), np.nan, np.nan)
    what = "99th percentile of |change of KL| when theta0 is rescored in another batch layout"
    rows.append(sample.row("predicted_noise_floor", "gain", "bank", "nats", known, what))
    clean = every & (rms[0] > CLEAN * floor)
    rounding = [share_name(s) for s, fine in zip(SHRINKS, clean, strict=True) if not fine]
    left_out = f"left out as rounding, under {CLEAN:g} noise floors ({floor:.3g} nats): {', '.join(rounding) or 'none'}"
    rows += _exponent_row(sample, "above noise", rms, clean, left_out)
    if clean.any():
        largest = int(np.argmax(clean))  # SHRINKS fall
        beta = found_intervals(rms[:, [largest]] / SHRINKS[largest] ** 2)[0]
        what = "rms remainder / share^2 at the largest share above the noise"
        rows.append(sample.row("predicted_beta", "gain", share_name(SHRINKS[largest]), "nats", beta, what))
    return rows


def _exponent_row(sample: Sample, term: str, rms: Array, used: Mask, which: str) -> list[dict[str, Any]]:
    """Return the least-squares slope of log rms remainder on log share, where two shares or more are used."""
    if used.sum() < 2:
        return []
    x = np.log(np.array(SHRINKS)[used])
    x -= x.mean()
    kept = rms[:, used]
    logs = np.log(kept, out=np.full(kept.shape, np.nan), where=kept > 0)
    slope = found_intervals((logs @ x / (x @ x))[:, None])[0]
    what = f"least-squares slope of log rms remainder on log share ({which})"
    return [sample.row("predicted_exponent", "gain", term, "1", slope, what)]


def _concentration_rows(sample: Sample) -> list[dict[str, Any]]:
    """Return the share of the whole step's sum of squares in ten positions: where it is large, R2 hangs on few."""
    gain = sample.outcome("gain")
    return [] if gain.obstacle else [concentration_row(gain)]


def _per_share(sample: Sample, analysis: str, unit: str, drawn: Array, what: str) -> list[dict[str, Any]]:
    rows = [
        sample.row(analysis, "gain", share_name(share), unit, interval, what)
        for share, interval in zip(SHRINKS, found_intervals(drawn), strict=True)
    ]
    return [row for row in rows if not np.isnan(row["estimate"])]


def predicted_table(estimates: pd.DataFrame, probe_id: str) -> pd.DataFrame:
    """Return how the first-order prediction fares at each share of the step, as text with intervals."""
    of_probe = estimates[estimates["probe_id"] == probe_id]
    return pd.DataFrame(
        [
            {"share of the step": share_name(share)}
            | {
                heading: lookup_text(of_probe, analysis=analysis, outcome="gain", term=share_name(share))
                for analysis, heading in _SHARE_COLUMNS.items()
            }
            for share in SHRINKS
        ]
    )


def _fit_sentences(of_probe: pd.DataFrame) -> list[str]:
    """Say how far the first-order prediction explains the measured gain at each share of the step."""
    by_share = {
        share: lookup(of_probe, analysis="predicted_r2", outcome="gain", term=share_name(share)) for share in SHRINKS
    }
    known = {share: r2 for share, r2 in by_share.items() if r2 is not None}
    if not known:
        return ["The step changes no position, so that there is nothing for the first order to explain."]
    listed = ", ".join(f"{r2} at {share_name(share)}" for share, r2 in known.items())
    concentrated = lookup(of_probe, analysis="concentration", outcome="gain")
    aside = (
        ""
        if concentrated is None
        else f" Ten positions hold {concentrated.estimate:.0%} of the whole step's sum of squares."
    )
    return [f"First order explains of the measured gain, by share of the step: R2 {listed}.{aside}"]


def _success_sentences(estimates: pd.DataFrame, probe_id: str, graded: Mapping[str, Any] | None) -> list[str]:
    """Say whether what lowers KL also makes answers right, beside shuffled grades; nothing without grades."""
    if graded is None:
        return []
    number, prompts, right = (graded[name] for name in ("rollouts", "prompts", "right"))
    counted = f"{number} graded rollouts of {prompts} prompts, {right} of them right"
    if prompts < MIN_PROMPTS:
        return [f"Success is not judged: it would rest on {counted}, and {MIN_PROMPTS} prompts are needed."]
    rows = rows_where(estimates, probe_id=probe_id, analysis="inner_spearman", term=PREDICTED)
    agrees, placebo = (lookup(rows, outcome=outcome) for outcome in (_SUCCESS, _SHUFFLED))
    if agrees is None:
        return [f"There is no success to compare with: {counted}."]
    what = f"What lowers L_fix and what makes answers right ({counted})"
    beside = "" if placebo is None else f"; with grades dealt to other rollouts {placebo}"
    return [f"{what}: Spearman of the two inner products {agrees}{beside}."]


def _exponent_sentences(of_probe: pd.DataFrame) -> list[str]:
    """Say by which power of the share the remainder falls, with and without what rounding makes of it."""
    slopes = {
        term: lookup(of_probe, analysis="predicted_exponent", outcome="gain", term=term)
        for term in ("above noise", "all shares")
    }
    listed = [f"{slope} ({term})" for term, slope in slopes.items() if slope is not None]
    if not listed:
        return ["Too few shares of the step leave a remainder above the noise to say by which power it falls."]
    beta = of_probe[of_probe["analysis"] == "predicted_beta"]
    size = "" if beta.empty else f"; beta {row_interval(beta.iloc[0])} nats, read at share {beta['term'].iloc[0]}"
    return [
        f"The rms remainder falls as the share of the step to the power {', '.join(listed)}; second order would give 2"
        f"{size}. 'Above noise' leaves out shares whose rms remainder is under {CLEAN:g} noise floors."
    ]
