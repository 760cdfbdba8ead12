"""First-order predictions against measured gains, and how the remainder falls as the step shrinks."""

import math
from fractions import Fraction
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.artefacts import PREDICTIONS
from teachdiag.figures.run_tables import RunTables
from teachdiag.figures.style import PLACEBO, REAL, Picture, blank_figure, mark_missing
from teachdiag.runs import Stage
from teachdiag.settings import SHRINKS
from teachdiag.tables import rows_where

_SMALLEST = min(SHRINKS)
_MEASURED = f"gain_at_{round(1 / _SMALLEST)}"
_REMAINDERS = (
    ("predicted_remainder", "rms", "-", "o"),
    ("predicted_mean_remainder", "mean absolute", "--", "s"),
)


def read_points(run: Path, probe_id: str) -> pd.DataFrame:
    """Read predicted and measured gain of every position of one predicted probe.

    Raises:
        RunError: the table is no longer what the probe wrote.
        ArtefactError: it is missing.
    """
    Stage(run, f"probes/{probe_id}").require()
    return PREDICTIONS.read(run / "predictions" / probe_id, ["predicted_gain", _MEASURED])


def draw_points(points: pd.DataFrame, median_size: float, ax: Axes) -> Axes:
    """Draw one dot a position and the identity line; axes are linear within the median size, logarithmic beyond.

    Args:
        points: what `read_points` returns.
        median_size: of the whole step's predicted gain, in nats.
        ax: where to draw.
    """
    x, y = _SMALLEST * points["predicted_gain"], points[_MEASURED]
    linear = _SMALLEST * median_size or 1.0
    reach = 1.3 * max(float(x.abs().max()), float(y.abs().max()), linear)
    ax.plot([-reach, reach], [-reach, reach], color="0.3", linewidth=0.7, zorder=0)
    ax.scatter(x, y, s=4, color=REAL, alpha=0.35, linewidths=0, rasterized=True)
    ax.set_xscale("symlog", linthresh=linear)
    ax.set_yscale("symlog", linthresh=linear)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ticks = _decades(linear, reach)
    ax.set_xticks([-tick for tick in ticks] + [0] + ticks)
    ax.set_yticks([-tick for tick in ticks] + [0] + ticks)
    ax.xaxis.set_major_formatter(_plain)
    ax.yaxis.set_major_formatter(_plain)
    ax.set_xlabel(f"predicted gain [nats], {Fraction(_SMALLEST)} of the step")
    ax.set_ylabel("measured gain [nats]")
    return ax


def draw_remainders(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw both remainders by share of the step with their intervals, a guide of slope 2, and the noise.

    Args:
        rows: the probe's part of the estimates table.
        ax: where to draw.
    """
    for analysis, name, line, marker in _REMAINDERS:
        part = rows[rows["analysis"] == analysis]
        shares = part["term"].map(Fraction).astype(float)
        ax.vlines(shares, part["ci_low"], part["ci_high"], color=REAL, linewidth=1.4)
        ax.plot(shares, part["estimate"], line, marker=marker, color=REAL, markersize=4, linewidth=1, label=name)
    whole = rows_where(rows, analysis="predicted_remainder", term="1")
    if len(whole):
        guide = [whole["estimate"].iloc[0] * share**2 for share in SHRINKS]
        ax.plot(SHRINKS, guide, ":", color="0.3", linewidth=1, label="slope 2", zorder=0)
    floor = rows[rows["analysis"] == "predicted_noise_floor"]["estimate"]
    if len(floor) and floor.iloc[0] > 0:
        ax.axhline(floor.iloc[0], color=PLACEBO, linewidth=1, label="noise floor", zorder=0)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(SHRINKS, [str(Fraction(share)) for share in SHRINKS])
    ax.yaxis.set_major_formatter(_plain)
    ax.set_xlabel("share of the step")
    ax.set_ylabel("remainder [nats]")
    ax.legend()
    return ax


def predicted_figure(tables: RunTables, probe_id: str) -> Picture:
    """Draw both panels of one probe of kind predicted."""
    rows = rows_where(tables.estimates, probe_id=probe_id)
    figure = blank_figure(5.4)
    upper, lower = figure.subplots(2, 1, height_ratios=(1.25, 1))
    median_size = float(tables.scale("predicted_gain", probe_id)["median_size"])
    draw_points(read_points(tables.run, probe_id), median_size, upper)
    explained = _said(rows, "predicted_r2", str(Fraction(_SMALLEST)), "R2")
    upper.set_title(f"first order at the smallest share\n{explained}", loc="left")
    remainders = rows[rows["analysis"].isin([analysis for analysis, *_ in _REMAINDERS])]
    if (remainders["estimate"] > 0).any():
        draw_remainders(rows, lower)
    else:
        mark_missing(lower)
    slope = _said(rows, "predicted_exponent", "above noise", "slope")
    lower.set_title(f"gain less share times predicted gain\n{slope}", loc="left")
    for ax in (upper, lower):
        ax.spines[["top", "right"]].set_visible(False)
    facts = rows[rows["analysis"] == "predicted_mean_remainder"].iloc[0]
    figure.tell(
        f"Gain: drop of KL(teacher || student). {facts['n_positions']:,} bank positions of {facts['n_prompts']} "
        f"prompts; probe {probe_id}. Above: linear within the median size of the prediction, logarithmic beyond. Noise "
        "floor: 99th percentile of what another batch layout changes; the stated slope leaves out shares whose rms "
        f"remainder is under three of them. 95% intervals: {facts['method'].rpartition('; ')[2]}.",
        f"Measured against predicted gain at {Fraction(_SMALLEST)} of the step: {explained}; what is left, by the "
        f"share of the step: {slope}.",
    )
    return figure


def _plain(value: float, _: float) -> str:
    """Return a tick's number without an exponent that is raised, and so too small."""
    return f"{value:g}"


def _decades(lowest: float, highest: float) -> list[float]:
    """Return the powers of ten in a range, thinned to four at most."""
    exponents = range(math.ceil(math.log10(lowest)), math.floor(math.log10(highest)) + 1)
    return [10.0**exponent for exponent in exponents[:: -(-len(exponents) // 4) or 1]]


def _said(rows: pd.DataFrame, analysis: str, term: str, name: str) -> str:
    """Return one estimate with its interval, after its name."""
    rows = rows_where(rows, analysis=analysis, term=term)
    if rows.empty:
        return f"{name} not estimable"
    estimate, low, high = (float(x) for x in rows[["estimate", "ci_low", "ci_high"]].astype(float).iloc[0])
    return f"{name} {estimate:.4g}" + ("" if math.isnan(low) else f" [{low:.4g}, {high:.4g}]")
