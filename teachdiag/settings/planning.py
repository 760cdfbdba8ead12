"""Settings of plan."""

from dataclasses import dataclass

from teachdiag.settings.base import (
    COUNTABLE,
    MODELS,
    SCALE,
    Checked,
    DType,
    option,
)


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Checked):
    """How large the planned run is, with which models, on which devices."""

    positions: float = option(1e6, "Response positions of the whole run, such as 1e9", "positions")
    positions_per_context: int = option(64, "Response positions of each context", "positions")
    prompt_tokens: float = option(128.0, "Mean length of a prompt, chat template included", "tokens")
    student_parameters: float | None = option(
        None,
        "Parameters of the student, such as 1.7e9; by default those of the calibration",
        "parameters",
        panel=MODELS,
    )
    teacher_parameters: float | None = option(
        None, "Parameters of the teacher; by default those of the calibration", "parameters", panel=MODELS
    )
    vocabulary: float | None = option(
        None, "Shared vocabulary; by default that of the calibration", "ids", panel=MODELS
    )
    width: float | None = option(
        None,
        "Width of the hidden state, of the wider model; by default that of the calibration",
        "features",
        panel=MODELS,
    )
    dtype: DType = option(
        "float32", "Type of the models' weights; LM head and statistics are float32 always", panel=MODELS
    )
    processes: int = option(1, "Processes, each with a device of its own", "processes", panel=SCALE)
    device_memory: float = option(80.0, "Memory of one device", "GB", panel=SCALE)
    calibration: str = option(
        "", "Calibration to extrapolate from; by default this machine's, from the cache folder", panel=SCALE
    )

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        sizes = "positions", "student_parameters", "teacher_parameters", "vocabulary", "width", "prompt_tokens"
        given = [name for name in sizes if getattr(self, name) is not None]
        self._check_at_least(1, *given, "positions_per_context", "processes")
        self._check_at_most(1e15, *given)
        self._check_at_most(COUNTABLE, "processes")
        self._require(self.positions == int(self.positions), "positions", "a whole number, such as 1e9")
        self._require(0 < self.device_memory <= 1e9, "device_memory", "above 0, and at most 1e9")
