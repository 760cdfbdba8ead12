"""Gain by quarter of each score, everywhere and inside Q3 (paper Figures 4D, 5C)."""

from matplotlib.figure import Figure

from teachdiag.figures.run_tables import StepTables
from teachdiag.figures.style import REAL, SECOND, add_caption, blank_figure
from teachdiag.settings import HEADLINE_K as K
from teachdiag.settings import HEADLINE_OUTCOME as OUTCOME
from teachdiag.signals import BUCKETS, SIGNALS
from teachdiag.tables import rows_where

_REGIONS = {"all": ("all positions", REAL, "o"), "q3": ("Q3", SECOND, "s")}
_APART = 0.14  # horizontal distance of the two regions in one bucket


def buckets_figure(step: StepTables) -> Figure:
    """Draw one panel a score; a saturated score has fewer buckets."""
    figure = blank_figure(3.6)
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    rows = rows_where(step.buckets, probe_id=step.probe_id, outcome=OUTCOME, statistic="mean", k=K)
    for ax, score in zip(panels, BUCKETS, strict=True):
        for side, (region, (name, colour, marker)) in zip((-0.5, 0.5), _REGIONS.items(), strict=True):
            curve = rows_where(rows, score=score, region=region).sort_values("bucket")
            x = curve["bucket"] + side * _APART
            ax.vlines(x, curve["ci_low"], curve["ci_high"], color=colour, linewidth=1.2)
            ax.plot(x, curve["estimate"], marker=marker, color=colour, markersize=4, lw=1, label=name)
        ax.axhline(0, color="0.3", linewidth=0.7, zorder=0)
        ax.set_title(SIGNALS[score].title)
        ax.set_xticks([1, 2, 3, 4])
        ax.spines[["top", "right"]].set_visible(False)
    for ax in panels[[0, 3]]:
        ax.set_ylabel("mean gain [nats]")
    for ax in panels[3:]:
        ax.set_xlabel("quarter of the score")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    add_caption(
        figure,
        f"Mean {OUTCOME} by quarter of each score before the update, K={K}; equal scores share a bucket. "
        f"{step.population}; probe {step.probe_id}. {step.intervals}, buckets fixed.",
    )
    return figure
