"""Settings of `compare-teachers`, which sets several teachers of one bank beside one another."""

from dataclasses import dataclass

from teachdiag.settings.base import Checked, arguments, option


@dataclass(frozen=True, kw_only=True)
class CompareTeachersSettings(Checked):
    """Which runs, whether they are probed first, and how their differences are resampled."""

    runs: list[str] = arguments(
        "Run directories, one a teacher, with the same student and contexts (capture --contexts RUN/contexts); the "
        "first is what the others are compared with"
    )
    probe: bool = option(
        False,
        "First take the probes that runs lack for their steps to be compared (kinds one_step, efficiency, predicted), "
        "each as the first run that has one took it, or by default; steps at one rate, the smallest that a run's "
        "ladder found. It takes what `teachdiag probe` takes",
    )
    draws: int = option(1000, "Draws of the prompt-cluster bootstrap", "draws")
    seed: int = option(0, "Seed of these draws", "integer")

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range, or there is nothing to compare.
        """
        super().__post_init__()
        self._require(len(self.runs) > 1 and len(set(self.runs)) == len(self.runs), "runs", "two or more, each once")
        self._check_at_least(100, "draws")
        self._check_at_most(100_000, "draws")
        self._check_at_least(0, "seed")
