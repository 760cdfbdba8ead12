"""Settings of `check-loss`, which asks whether a loss of one's own teaches."""

from dataclasses import dataclass

from teachdiag.settings.base import SCALE, Checked, arguments, option


@dataclass(frozen=True, kw_only=True)
class CheckLossSettings(Checked):
    """Which losses, on which run's positions."""

    losses: list[str] = arguments(
        "Functions as module:function, each loss(student_logits, teacher_logits, token_ids, mask); modules are looked "
        "for in this folder, too"
    )
    run: str = option("runs/demo", "Run directory with a captured bank, whose pair and positions are taken")
    contexts: int = option(8, "Contexts of the bank that are drawn", "contexts")
    positions: int = option(12, "Response positions that follow one another in each of them", "positions")
    candidates: int = option(
        48, "Likeliest tokens at each position over which the expectation of a sampled loss is exact", "tokens"
    )
    tail_draws: int = option(16, "Draws from all other tokens of that expectation", "draws")
    references: bool = option(True, "Show teachdiag's losses, TRL's, and a known mistake beside them")
    seed: int = option(0, "Seed of what is drawn", "integer")
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu", panel=SCALE)

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range, or a loss is not named as module:function.
        """
        super().__post_init__()
        named = [name.partition(":") for name in self.losses]
        self._require(
            bool(named) and all(module and function for module, _, function in named), "losses", "module:function"
        )
        self._check_at_least(1, "contexts", "positions", "candidates")
        self._check_at_least(2, "tail_draws")
        self._check_at_least(0, "seed")
        self._check_at_most(10_000, "contexts", "positions", "candidates", "tail_draws")
