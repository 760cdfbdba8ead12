"""Gain by decile of each score, with intervals, over what placebos print."""

import pandas as pd
from matplotlib.axes import Axes

from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.seen import TITLES, interval_text
from teachdiag.figures.style import PLACEBO, REAL, Picture, blank_figure
from teachdiag.settings import HEADLINE_K
from teachdiag.signals import DECILES, added_signals, with_role

_COLUMNS = 2


def draw_profile(rows: pd.DataFrame, ax: Axes, label: str = "") -> Axes:
    """Draw mean gain by decile and its interval; reads decile, estimate, ci_low and ci_high."""
    rows = rows.sort_values("decile")
    ax.fill_between(rows["decile"], rows["ci_low"], rows["ci_high"], color=REAL, alpha=0.2, linewidth=0)
    ax.plot(rows["decile"], rows["estimate"], "-o", color=REAL, markersize=2.5, linewidth=1.2, label=label)
    return ax


def deciles_figure(step: StepTables) -> Picture:
    """Draw one panel a score, real step over placebos."""
    scores = with_role("deciles", DECILES, added_signals().values())
    scores = [signal for signal in scores if (step.deciles["score"] == signal.name).any()]
    n_rows = -(-(len(scores) + 1) // _COLUMNS)  # the legend has a place of its own
    figure = blank_figure(0.4 + 1.2 * n_rows)
    panels = figure.subplots(n_rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    real, *placebos = step.updates
    ends = []
    for ax, signal in zip(panels, scores, strict=False):
        ax.axhline(0, color="0.3", linewidth=0.7, zorder=0)
        for number, update in enumerate(placebos):
            profile = step.profile(update, signal.name, HEADLINE_K).sort_values("decile")
            label = "" if number else "placebos"
            ax.plot(profile["decile"], profile["estimate"], color=PLACEBO, linewidth=0.9, label=label)
        profile = step.profile(real, signal.name, HEADLINE_K).sort_values("decile")
        draw_profile(profile, ax, f"{TITLES.get(real, real)}, 95%")
        ax.set_title(signal.title)
        ax.set_xticks([1, 4, 7, 10])
        ax.spines[["top", "right"]].set_visible(False)
        numbers = profile[["estimate", "ci_low", "ci_high"]].to_numpy()
        ends.append(f"{signal.label} from {interval_text(*numbers[0])} to {interval_text(*numbers[-1])}")
    for ax in panels[::_COLUMNS]:
        ax.set_ylabel("gain [nats]")
    for ax in panels[max(len(scores) - _COLUMNS, 0) : len(scores)]:
        ax.tick_params(labelbottom=True)
    for ax in panels[len(scores) :]:
        ax.axis("off")
    figure.supxlabel("decile of the score", fontsize="medium")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center")
    figure.tell(
        f"Mean gain (drop of KL(teacher || student)) by decile of each score before the update, K={HEADLINE_K}. "
        f"A: logit_alignment. {step.placebos} {step.population}; probe {step.probe_id}. {step.intervals}.",
        f"Mean gain in nats from the lowest to the highest decile: {'; '.join(ends)}.",
    )
    return figure
