"""Gain by response position, and where in the response the bank's gain comes from."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.seen import TITLES, interval_text
from teachdiag.figures.style import PLACEBO, REAL, Picture, blank_figure
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.tables import rows_where


def position_profile_figure(step: StepTables) -> Picture:
    """Draw mean gain by position over the placebos', and the share of the total beside that of positions."""
    figure = blank_figure(3.3)
    upper, lower = figure.subplots(2, 1, sharex=True)
    real, *placebos = step.updates
    means, shares = (_rows(step, step.probe_id, statistic) for statistic in ("mean", "share of total"))
    for number, update in enumerate(placebos):
        rows = _rows(step, step.updates[update], "mean")
        style = {"color": PLACEBO, "markersize": 8, "markeredgewidth": 1.2}
        upper.plot(rows["bucket"], rows["estimate"], "_", label="" if number else "placebos", **style)
    _draw_intervals(means, upper)
    label = f"{TITLES.get(real, real)}, 95%"
    upper.plot(means["bucket"], means["estimate"], "o", color=REAL, markersize=4, label=label)
    lower.bar(shares["bucket"], shares["estimate"], width=0.7, color=REAL, alpha=0.35, label="of the gain")
    _draw_intervals(shares, lower)
    tokens = _rows(step, step.probe_id, "share of tokens")  # where positions were drawn
    positions = tokens["estimate"] if len(tokens) else shares["n_positions"] / shares["n_positions"].sum()
    style = {"color": "0.2", "markersize": 12, "markeredgewidth": 1.3}
    lower.plot(shares["bucket"], positions.to_numpy(), "_", label="of the positions", **style)
    upper.set_ylabel("mean gain [nats]")
    lower.set_ylabel("share")
    lower.set_xticks(means["bucket"], _names(means))
    lower.set_xlabel("response position; 0 is the first token")
    for ax in (upper, lower):
        ax.axhline(0, color="0.3", linewidth=0.7, zorder=0)
        ax.spines[["top", "right"]].set_visible(False)
        handles, names = ax.get_legend_handles_labels()
        ax.legend(handles[::-1], names[::-1], loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    numbers = zip(_names(means), means[["estimate", "ci_low", "ci_high"]].to_numpy(), strict=True)
    figure.tell(
        f"{OUTCOME.capitalize()} by response position, and each position's share of the bank's whole gain. "
        f"{step.placebos} {step.population}; probe {step.probe_id}. {step.intervals}.",
        f"Mean gain in nats by position: {', '.join(f'{name}: {interval_text(*row)}' for name, row in numbers)}.",
    )
    return figure


def _rows(step: StepTables, probe_id: str, statistic: str) -> pd.DataFrame:
    rows = rows_where(step.buckets, probe_id=probe_id, outcome=OUTCOME, score="position", statistic=statistic)
    return rows.sort_values("bucket")


def _draw_intervals(rows: pd.DataFrame, ax: Axes) -> None:
    low, high = (np.asarray(rows[end], float) for end in ("ci_low", "ci_high"))
    ax.vlines(rows["bucket"], low, high, color=REAL, linewidth=1.3)


def _names(rows: pd.DataFrame) -> list[str]:
    ends = rows[["score_low", "score_high"]].itertuples(index=False)
    *names, last = [f"{low:g}" if low == high else f"{low:g}-{high:g}" for low, high in ends]
    return [*names, f"{last.partition('-')[0]}+" if "-" in last else last]
