"""What is known of a kind of probe without importing any of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from teachdiag.errors import SettingsError
from teachdiag.registry import attribute, load
from teachdiag.settings.base import Optimizer

if TYPE_CHECKING:
    from teachdiag.settings.probe import ProbeSettings


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of probe. Its two ends are imported where they are needed: rooms meet only through tables.

    Attributes:
        name: as `--kind` takes it; its rows of the estimates have it as their `update`.
        help: what is measured, in a line.
        measured_by: 'module:class' of its end in diagnostics, a `Measurement`.
        analysed_by: 'module:class' of its end in analysis, a `KindAnalysis`.
        folders: of the tables that it fills, relative to the run; each has a sub-folder a probe.
        options: options of other kinds that it reads too. Those of its own say so where they are declared.
        needs: options that must be given.
        optimizers: with which its steps can be taken; the first is 'auto'.
        usual_rate: the learning rate where none is given; on a ladder, its longest.
        laddered: whether that is found on a ladder where one step is taken.
        copies: of the weights that steps move, in float32: theta0, and either the moved weights and a direction, or a
            gradient; further directions that are kept beside them.
        step: whether it is one update of the student beside placebos, in `gains`, which gets the full analysis.
        draws: of each placebo, where no number is given.
        placebos: whether it says what placebos show, rather than what the pair does.
    """

    name: str
    help: str
    measured_by: str
    analysed_by: str
    folders: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    optimizers: tuple[Optimizer, ...] = ("adamw", "sgd")
    usual_rate: "Callable[[ProbeSettings], float]" = lambda settings: 1e-5 if settings.optimizer == "adamw" else 1e-3
    laddered: bool = False
    copies: int = 3
    step: bool = False
    draws: int = 2
    placebos: bool = False

    def end(self, reference: str) -> Any:  # noqa: ANN401 (each room knows the class of its own)
        """Import the end that `measured_by` or `analysed_by` names.

        Raises:
            InputError: it cannot be imported.
        """
        return load(f"kind of probe {self.name}", lambda: attribute(reference), lambda _, loaded: loaded)


def declared_kind(label: str, loaded: object) -> Kind:
    """Return what an entry point gave as the kind that it stands for.

    Raises:
        SettingsError: it is none.
    """
    if not isinstance(loaded, Kind):
        raise SettingsError(f"{label}: {loaded!r} is no teachdiag.settings.Kind")
    return loaded
