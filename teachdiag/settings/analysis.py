"""Settings of analyze, figures and report."""

from dataclasses import dataclass
from typing import Literal

from teachdiag.settings.base import COUNTABLE, Checked, option


@dataclass(frozen=True, kw_only=True)
class AnalyzeSettings(Checked):
    """How the estimates are made."""

    draws: int = option(1000, "Prompt-cluster bootstrap draws", "draws")
    folds: int = option(5, "Folds of the prompt-grouped cross-validation", "folds")
    fold_repeats: int = option(10, "Fold assignments that the cross-validation averages over", "assignments")
    compat: Literal["none", "released"] = option(
        "none", "'released': the released code's own tables, on a bank from `teachdiag import released`"
    )
    cuts: Literal["redrawn", "fixed"] = option(
        "redrawn",
        "Cuts of normalised scores, medians and thirds in each bootstrap draw: estimated anew, or those of the whole "
        "bank (as the released code has them)",
    )
    seed: int = option(0, "Root of the bootstrap's and the folds' random streams", "integer")

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        self._check_at_least(100, "draws")
        self._check_at_least(2, "folds")
        self._check_at_least(1, "fold_repeats")
        self._check_at_least(0, "seed")
        self._check_at_most(COUNTABLE, "draws", "folds", "fold_repeats")


@dataclass(frozen=True, kw_only=True)
class FiguresSettings(Checked):
    """Which figures are drawn."""

    only: str = option("", "Draw this figure alone, by its file's name without the ending; all by default", "name")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Checked):
    """What the report shows."""

    contexts: int = option(100, "Contexts in the token view, spread evenly over the bank", "contexts")
    budget: float = option(
        0.1, "Share of the bank that selectors take in the token view, until its slider is moved", "share"
    )

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        self._check_at_least(1, "contexts")
        self._require(0 < self.budget <= 1, "budget", "in (0, 1]")
