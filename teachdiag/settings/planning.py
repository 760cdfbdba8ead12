"""Settings of plan, and of the calibration that it goes by."""

from dataclasses import dataclass
from typing import Literal

from teachdiag.settings.base import (
    COUNTABLE,
    DATA_FILE,
    MODELS,
    PROMPT_SOURCE,
    PROMPTS,
    SCALE,
    Checked,
    DType,
    option,
)
from teachdiag.settings.capture import PairSettings

_FROM_A_RUN = "What an effect needs"


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Checked):
    """How large the planned run is, with which models, on which devices; or what effect an earlier one is to detect."""

    from_: str = option(
        "",
        "Run directory, analysed: answer how many prompts, positions and hours an effect needs on this pair",
        panel=_FROM_A_RUN,
    )
    detect: float | None = option(
        None,
        "Size of the effect, in each claim's unit, from 0 and from the nearest placebo; by default what the run found",
        panel=_FROM_A_RUN,
    )
    claim: str = option("", "Only claims whose name holds this text; by default every primary claim", panel=_FROM_A_RUN)
    positions: float = option(1e6, "Response positions of the whole run, such as 1e9", "positions")
    positions_per_context: int = option(64, "Response positions of each context", "positions")
    response_tokens: float | None = option(
        None, "Mean length of a response, as it is sampled and read; by default only what is scored of it", "tokens"
    )
    train_rollouts: float | None = option(
        None, "Rollouts of a training run, steps x --batch: its time is told beside that of the diagnosis", "rollouts"
    )
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
        "",
        "Calibration to extrapolate from; by default what `teachdiag calibrate` measured here, else a reference",
        panel=SCALE,
    )

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range, or an option would not be read; the message names the option.
        """
        super().__post_init__()
        sizes = ["positions", "student_parameters", "teacher_parameters", "vocabulary", "width"]
        sizes += ["prompt_tokens", "response_tokens", "train_rollouts"]
        given = [name for name in sizes if getattr(self, name) is not None]
        self._check_at_least(1, *given, "positions_per_context", "processes")
        self._check_at_most(1e15, *given)
        self._check_at_most(COUNTABLE, "processes")
        self._require(self.positions == int(self.positions), "positions", "a whole number, such as 1e9")
        scored = self.response_tokens is None or self.response_tokens >= self.positions_per_context
        self._require(scored, "response_tokens", "at least --positions-per-context, which are scored of them")
        self._require(0 < self.device_memory <= 1e9, "device_memory", "above 0, and at most 1e9")
        self._require(self.detect is None or 0 < self.detect < 1e15, "detect", "above 0")
        if self.from_:
            ours = "positions", "positions_per_context", "response_tokens", "train_rollouts"
            self.refuse_idle(dict.fromkeys(ours, "a plan without --from"))
        else:
            self.refuse_idle(dict.fromkeys(("detect", "claim"), "--from RUN"))


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(PairSettings):
    """Which pair a machine is measured with, and where the record goes."""

    prompts: str = option("gsm_symbolic", PROMPT_SOURCE, panel=PROMPTS)
    data_file: str = option("", DATA_FILE, panel=PROMPTS)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Type of the models' weights; 'auto' is float32 on a CPU, and bfloat16 elsewhere", panel=MODELS
    )
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu", panel=SCALE)
    to: str = option("", "File to write; by default the one in the cache folder that `teachdiag plan` reads")

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        self.dropped_layers, self.teacher_options  # noqa: B018 (parsing is the check)
