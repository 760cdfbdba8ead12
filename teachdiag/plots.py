"""Every figure: what it shows, of what, and where it is drawn. Names alone are known here, no drawing library.

A package adds one of its own in its `pyproject.toml`, and it stands wherever the built-in ones do: in `figures/`, in
`summary.md` and in the report.

    [project.entry-points."teachdiag.figures"]
    spread = "my_package.declared:SPREAD"  # a `Plot`
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from teachdiag.errors import SettingsError
from teachdiag.registry import Registry, attribute, load

BANK, STEP = "bank", "step"


@dataclass(frozen=True)
class Plot:
    """One figure.

    Attributes:
        name: that of its file; where several probes give it, the probe's name follows.
        of: `BANK`, once a run; `STEP`, once a real step; or the name of a kind of probe, once a probe of it.
        title: what it shows, in a line.
        drawn_by: 'module:function', which returns a matplotlib figure. It is given a `RunTables` where the figure is of
            the bank, a `StepTables` where it is of a step, a `RunTables` and the probe's name otherwise.
    """

    name: str
    of: str
    title: str
    drawn_by: str

    def function(self) -> Callable[..., Any]:
        """Return the function that draws it.

        Raises:
            InputError: it cannot be imported.
        """
        return load(f"figure {self.name}", lambda: attribute(self.drawn_by), _callable)


def plots_of(subject: str) -> list[Plot]:
    """Return the figures of the bank, of a step or of a kind of probe."""
    return [plot for plot in PLOTS.values() if plot.of == subject]


def _callable(label: str, loaded: object) -> Callable[..., Any]:
    if not callable(loaded):
        raise SettingsError(f"{label}: {loaded!r} draws nothing: it must be a function")
    return loaded


def _plot(label: str, loaded: object) -> Plot:
    if not isinstance(loaded, Plot):
        raise SettingsError(f"{label}: {loaded!r} is no teachdiag.plots.Plot")
    return loaded


_HERE = "teachdiag.figures.plots"
PLOTS = Registry(
    "teachdiag.figures",
    "figure",
    {
        plot.name: plot
        for plot in (
            Plot("plane", BANK, "D^L and D^I over student entropy and raw KL", f"{_HERE}.plane:plane_figure"),
            Plot("saturation", BANK, "what clipping and ties decide", f"{_HERE}.saturation:saturation_figure"),
            Plot("coefficients", STEP, "coefficients of D^L and D^I", f"{_HERE}.coefficients:coefficients_figure"),
            Plot("q3_contrast", STEP, "gain by support inside Q3", f"{_HERE}.q3_contrast:q3_contrast_figure"),
            Plot("proxies", STEP, "the same with C's proxies", f"{_HERE}.proxies:proxies_figure"),
            Plot("validity", STEP, "prediction on prompts not seen", f"{_HERE}.validity:validity_figure"),
            Plot("gain_surface", STEP, "gain over D^L and D^I", f"{_HERE}.gain_surface:gain_surface_figure"),
            Plot("deciles", STEP, "gain by decile of each score", f"{_HERE}.deciles:deciles_figure"),
            Plot("buckets", STEP, "gain by quarter of each score", f"{_HERE}.buckets:buckets_figure"),
            Plot("top_n", STEP, "gain of the best-scored positions", f"{_HERE}.top_n:top_n_figure"),
            Plot("position_profile", STEP, "gain by position", f"{_HERE}.position_profile:position_profile_figure"),
            Plot(
                "specification_curve",
                STEP,
                "primary numbers under every choice",
                f"{_HERE}.specification_curve:specification_figure",
            ),
            Plot("placebo_panel", "placebo", "statistics beside placebos", f"{_HERE}.placebo_panel:panel_figure"),
            Plot("efficiency", "efficiency", "share of gain kept", f"{_HERE}.efficiency:efficiency_figure"),
            Plot("budget_curve", "selectors", "gain by budget", f"{_HERE}.budget_curve:budget_figure"),
            Plot("lds", "lds", "token-LDS of every predictor", f"{_HERE}.lds:lds_figure"),
            Plot("isolated", "isolated", "what foresees one token's step", f"{_HERE}.isolated:isolated_figure"),
            Plot("predicted", "predicted", "first order against measured gain", f"{_HERE}.predicted:predicted_figure"),
        )
    },
    _plot,
)
