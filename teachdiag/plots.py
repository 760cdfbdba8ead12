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
        title: the question that it answers; it stands above the picture.
        drawn_by: 'module:function', which returns a `teachdiag.figures.style.Picture`, a Matplotlib figure that carries
            its caption and alternative text. It is given a `RunTables` where the figure is of
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


_QUESTIONS = {  # by name: of what each figure is, and what it asks
    "plane": (BANK, "Where are D^L and D^I large?"),
    "coefficients": (STEP, "Does gain rise more with D^L than with D^I?"),
    "q3_contrast": (STEP, "Inside Q3, do tokens with more support gain more?"),
    "validity": (STEP, "Does any signal foresee gain on new prompts better than raw KL?"),
    "gain_surface": (STEP, "At which D^L and D^I does the step gain?"),
    "deciles": (STEP, "Does gain rise with each score?"),
    "top_n": (STEP, "Do the best-scored positions gain more?"),
    "position_profile": (STEP, "Where in a response does the gain come from?"),
    "specification_curve": (STEP, "Does the conclusion hang on a choice?"),
    "placebo_panel": ("placebo", "Which numbers does a placebo print too?"),
    "efficiency": ("efficiency", "How much of the whole batch's gain do a few of its tokens keep?"),
    "budget_curve": ("selectors", "What does a step on selected positions gain?"),
    "lds": ("lds", "Which predictor ranks what masked steps gain?"),
    "isolated": ("isolated", "Which predictor foresees a step on one token?"),
    "predicted": ("predicted", "Does first order foretell what a step does?"),
}
PLOTS = Registry(
    "teachdiag.figures",
    "figure",
    {
        name: Plot(name, of, title, f"teachdiag.figures.plots.{name}:{name}_figure")
        for name, (of, title) in _QUESTIONS.items()
    },
    _plot,
)
