"""Means of the outcome: over the bank, inside Q3, by decile of each score, and over maps of two scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from teachdiag.analysis.bank.measurements import Bank, Outcome, Probe, Step, select_outcome
from teachdiag.analysis.bank.normalised import Key, Scores, in_q3
from teachdiag.analysis.bank.token_scores import scale_row
from teachdiag.analysis.resampling.bootstrap import Interval, Resampling, intervals, ratio
from teachdiag.artefacts import MIN_CELL
from teachdiag.scores import Array, Codes
from teachdiag.settings import HEADLINE_K, SUPPORT_SIZES
from teachdiag.signals import DECILES, Signal, with_role

N_BINS = 10
_GAIN_SURFACE = "gain_by_learnable_incompatible"
_CELLS_REACH = 0.95  # of a map's cells that lie within its colours: one extreme cell must not bleach all


def percentile_bins(values: Array) -> Codes:
    """Cut into `N_BINS` bins of equal size, numbered from 0. Equal values share the bin of their mid-rank."""
    return np.floor(N_BINS * (rankdata(values) - 0.5) / len(values)).astype(np.int64)


def decile_bins(raw: Scores, added: Sequence[Signal] = ()) -> dict[Key, Codes]:
    """Return the decile (from 0) of every bank position on each score that is profiled."""
    profiled = {signal.name for signal in with_role("deciles", DECILES, added)}
    return {key: percentile_bins(values) for key, values in raw.items() if key[0] in profiled}


def group_means(values: Array, groups: Codes, n_groups: int, prompts: Codes, weights: Array) -> Array:
    """Return the mean of each group in every draw, shape (draws, groups); NaN where a draw leaves a group empty."""
    sums, counts = (group_sums(column, groups, n_groups, prompts, weights.shape[1]) for column in (values, None))
    return ratio(weights @ sums, weights @ counts)


def group_sums(values: Array | None, groups: Codes, n_groups: int, prompts: Codes, n_prompts: int) -> Array:
    """Return each prompt's sum in each group, shape (prompts, groups); counts where no values are given."""
    sums = np.bincount(prompts * n_groups + groups, values, minlength=n_prompts * n_groups)
    return sums.reshape(n_prompts, n_groups).astype(np.float64)


def decile_rows(
    outcome: Outcome, raw: Scores, bins: Mapping[Key, Codes], resampling: Resampling
) -> list[dict[str, Any]]:
    """Return the rows of the deciles table for one outcome: mean outcome by decile of each score."""
    weights = resampling.weights("deciles")
    return [row for key in bins for row in _profile(outcome, key, raw[key], bins[key], weights)]


def mean_rows(outcome: Outcome, bank: Bank, resampling: Resampling) -> list[dict[str, Any]]:
    """Return the mean outcome over the bank and inside Q3."""
    q3 = outcome.of(in_q3(bank)[0])
    weights, method = resampling.weights("mean"), resampling.method("mean")
    rows = []
    for term, inside in (("bank", np.ones_like(q3)), ("q3", q3)):
        if inside.any():
            one_group = np.zeros(inside.sum(), np.int64)
            means = group_means(outcome.values[inside], one_group, 1, outcome.prompts[inside], weights)
            rows.append(
                outcome.row(
                    "mean", term, None, outcome.unit, intervals(means, bank.n_prompts)[0], method, inside=inside
                )
            )
    return rows


def concentration_row(outcome: Outcome) -> dict[str, Any]:
    """Return the share of an outcome's sum of squares about its mean that the ten furthest positions hold.

    Where it is large, means, slopes and R2 hang on few positions, and ranks say more.
    """
    squares = np.sort((outcome.values - outcome.values.mean()) ** 2)
    interval = Interval(float(squares[-10:].sum() / squares.sum()), np.nan, np.nan)
    return outcome.row("concentration", "ten positions", None, "1", interval, "share of the sum of squares")


def noise_floor_row(probe: Probe, bank: Bank) -> dict[str, Any]:
    """Return the mean noise floor of a probe: the size of mean gain that rounding alone can reach."""
    floor = Interval(float(probe.column("noise_floor").mean()), np.nan, np.nan)
    method = "mean |gain| of theta0 in another batch layout"
    return select_outcome(probe, "gain", bank).row("noise_floor", "bank", None, "nats", floor, method)


def q3_rows(bank: Bank) -> list[dict[str, Any]]:
    """Return the medians that bound Q3 and the share of positions in it: facts of the bank, of no probe."""
    inside, entropy, kl = in_q3(bank)
    everywhere = np.ones(len(inside), bool)
    whole = Outcome("", "", "", everywhere, inside.astype(np.float64), bank.prompts)
    return [
        whole.row("q3", term, None, unit, Interval(value, np.nan, np.nan), "whole bank")
        for term, unit, value in (
            ("median_student_entropy", "nats", entropy),
            ("median_forward_kl", "nats", kl),
            ("share", "1", float(inside.mean())),
        )
    ]


def gain_surface_rows(step: Step, normalised: Scores) -> list[dict[str, Any]]:
    """Return mean gain over the percentiles of D^L and D^I, for a real step and its placebos."""
    rows = []
    for k in SUPPORT_SIZES:
        x, y = normalised["learnable", k], normalised["incompatible", k]
        for probe in step.first_draws:
            cells = _grid(x, y, probe.column("gain"))
            surface = {"surface": _GAIN_SURFACE, "probe_id": probe.probe_id, "k": k}
            rows += [surface | {"x": "learnable", "y": "incompatible"} | cell for cell in cells]
    return rows


def gain_surface_scale(step: Step, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how far the colours of a step's map reach: over its drawn cells at the headline K."""
    drawn = [
        cell["value"]
        for cell in cells
        if cell["probe_id"] == step.real.probe_id and cell["k"] == HEADLINE_K and cell["n_positions"] >= MIN_CELL
    ]
    values = np.array(drawn or [0.0])
    return scale_row(_GAIN_SURFACE, step.real.probe_id, "nats", values, diverging=True, reach=_CELLS_REACH)


def plane_rows(bank: Bank, normalised: Scores) -> list[dict[str, Any]]:
    """Return mean D^L and D^I over the percentiles of student entropy and forward KL."""
    entropy, kl = (bank.column(name) for name in ("student_entropy", "forward_kl"))
    return [
        {"surface": f"{name}_on_plane", "probe_id": None, "k": k, "x": "student_entropy", "y": "forward_kl"} | cell
        for k in SUPPORT_SIZES
        for name in ("learnable", "incompatible")
        for cell in _grid(entropy, kl, normalised[name, k])
    ]


def _profile(outcome: Outcome, key: Key, score: Array, bins: Codes, weights: Array) -> list[dict[str, Any]]:
    score, bins = outcome.of(score), outcome.of(bins)
    means = intervals(group_means(outcome.values, bins, N_BINS, outcome.prompts, weights), weights.shape[1])
    counts = group_sums(None, bins, N_BINS, outcome.prompts, weights.shape[1])
    sizes, totals = counts.sum(axis=0), np.bincount(bins, score, N_BINS)
    return [
        {
            "probe_id": outcome.probe_id,
            "update": outcome.update,
            "outcome": outcome.name,
            "score": key[0],
            "k": key[1],
            "decile": int(number) + 1,
            "score_mean": float(totals[number] / sizes[number]),
            **means[number].columns(),
            "n_positions": int(sizes[number]),
            "n_prompts": int((counts[:, number] > 0).sum()),
        }
        for number in np.flatnonzero(sizes)
    ]


def _grid(x: Array, y: Array, values: Array) -> list[dict[str, Any]]:
    """Return the cells that hold positions; edges are the smallest and largest value in the bin."""
    x_bins, y_bins = percentile_bins(x), percentile_bins(y)
    cells = x_bins * N_BINS + y_bins
    sizes = np.bincount(cells, minlength=N_BINS**2)
    sums = np.bincount(cells, values, N_BINS**2)
    x_edges, y_edges = _edges("x", x, x_bins), _edges("y", y, y_bins)
    return [
        {"x_bin": i, "y_bin": j, **x_edges[i], **y_edges[j]}
        | {"value": float(sums[cell] / sizes[cell]), "n_positions": int(sizes[cell])}
        for cell in np.flatnonzero(sizes)
        for i, j in [divmod(int(cell), N_BINS)]
    ]


def _edges(axis: str, values: Array, bins: Codes) -> dict[int, dict[str, float]]:
    groups = {int(number): values[bins == number] for number in np.unique(bins)}
    return {
        number: {f"{axis}_low": float(group.min()), f"{axis}_high": float(group.max())}
        for number, group in groups.items()
    }
