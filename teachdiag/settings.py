"""One frozen settings class a stage, checked when built.

A field is declared once, with its help text and unit; the command line and TOML recipes are made from the fields.
"""

import math
import re
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from teachdiag.errors import SettingsError

DType = Literal["float32", "bfloat16", "float16"]
Loss = Literal["reverse_kl", "forward_kl", "jsd", "sampled_reverse_kl"]
Optimizer = Literal["adamw", "sgd"]
Split = Literal["bank", "update"]
TeacherPrompt = Literal["same", "privileged"]

SUPPORT_SIZES = (8, 16, 32)  # every K that is measured; the largest is the length of the stored top-K lists
HEADLINE_K = 16  # the K of sentences and figures that show a single one; the paper's
HEADLINE_OUTCOME = "gain"  # likewise the outcome
EMBEDDED = "embedded"  # names SmolLM2-135M-Instruct, which comes with pip
EMBEDDED_DROPPED_LAYER = 20  # the decoder layer (0-based) whose absence still leaves sensible text


def option(default: Any, help: str, unit: str = "") -> Any:  # noqa: ANN401 (dataclass fields are Any by nature)
    """Declare a settings field with the help text and unit that `--help` shows."""
    return field(default=default, metadata={"help": help, "unit": unit})


def help_text(entry: "Field[Any]") -> str:
    """Return the help text of a settings field, with its unit."""
    unit = entry.metadata["unit"]
    return f"{entry.metadata['help']} ({unit})" if unit else str(entry.metadata["help"])


class _Checked:
    """Range checks shared by the settings classes."""

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise SettingsError(f"{_flag(name)} is {getattr(self, name)!r}: it must be {rule}")

    def _check_choices(self) -> None:
        hints = get_type_hints(type(self))
        for entry in fields(self):  # type: ignore[arg-type]
            hint = hints[entry.name]
            if get_origin(hint) is Literal:
                choices = get_args(hint)
                self._require(getattr(self, entry.name) in choices, entry.name, f"one of {', '.join(choices)}")

    def _check_at_least(self, lowest: float, *names: str) -> None:
        for name in names:
            self._require(lowest <= getattr(self, name) < math.inf, name, f"at least {lowest}, and finite")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for the run directory."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, kw_only=True)
class CaptureSettings(_Checked):
    """Which pair, which prompts, how the rollouts are drawn and how they are scored."""

    student: str = option(EMBEDDED, "Student: Hub id, local folder, or 'embedded' (SmolLM2-135M-Instruct)")
    teacher: str = option(EMBEDDED, "Teacher: Hub id, local folder, or 'embedded'")
    revision: str = option("main", "Hub revision of both models")
    teacher_revision: str = option("", "Hub revision of the teacher, where it differs")
    student_drop_layers: str = option(
        "auto",
        "Decoder layers to remove from the student, zero-based, comma-separated, or 'none'. 'auto' removes layer "
        f"{EMBEDDED_DROPPED_LAYER} where embedded student and teacher would be identical, and nothing elsewhere",
    )
    teacher_prompt: TeacherPrompt = option(
        "same", "'privileged' puts the worked solution into the teacher's prompt (self-distillation)"
    )
    prompts: str = option("gsm_symbolic", "Prompt source: a manifest's id, or the path of a manifest of your own")
    data_file: str = option("", "Local copy of the prompt source, instead of its Hub file")
    contexts: str = option("", "Parquet file or folder of the `contexts` schema: score these rollouts, sample none")
    bank_prompts: int = option(64, "Prompts of the bank, on which gains are measured", "prompts")
    update_prompts: int = option(24, "Prompts of the update batch, disjoint from the bank's", "prompts")
    responses: int = option(1, "Rollouts sampled for each prompt", "responses")
    max_new_tokens: int = option(64, "Length at which a rollout is cut", "tokens")
    positions: int = option(64, "Response positions scored in each context, from the first", "positions")
    temperature: float = option(1.0, "Sampling temperature of the rollouts", "1")
    top_p: float = option(1.0, "Nucleus sampling mass; 1 is off", "probability")
    top_k: int = option(0, "Candidates kept in sampling; 0 is off", "tokens")
    seed: int = option(0, "Root of every random stream: prompt draw, split, rollouts", "integer")
    dtype: DType = option("float32", "Type of the models' weights; LM head and statistics are float32 always")
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu")
    batch_tokens: int = option(4096, "Padded tokens in one forward pass", "tokens")
    tile_positions: int = option(128, "Positions whose logits exist at the same time", "positions")
    shard_contexts: int = option(8, "Contexts a shard: what is lost if the run is killed", "contexts")

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        self._check_choices()
        self._check_at_least(
            1,
            *("bank_prompts", "update_prompts", "responses", "max_new_tokens", "positions", "batch_tokens"),
            *("tile_positions", "shard_contexts"),
        )
        self._check_at_least(0, "top_k", "seed")
        self._require(self.temperature > 0, "temperature", "above 0")
        self._require(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        self.dropped_layers  # noqa: B018 (parsing is the check)

    @property
    def dropped_layers(self) -> tuple[int, ...]:
        """Zero-based decoder layers that the student lacks."""
        if self.student_drop_layers == "auto":
            identical = self.student == self.teacher == EMBEDDED and self.teacher_prompt == "same"
            return (EMBEDDED_DROPPED_LAYER,) if identical else ()
        if self.student_drop_layers == "none":
            return ()
        try:
            return tuple(sorted({int(layer) for layer in self.student_drop_layers.split(",")}))
        except ValueError:
            raise SettingsError(
                f"--student-drop-layers is {self.student_drop_layers!r}: give zero-based layer numbers such as "
                "'20' or '3,20', 'auto', or 'none'"
            ) from None


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(_Checked):
    """One optimizer step, its loss, and where it is taken. The pair and the bank are the run's."""

    name: str = option("", "Name of the probe inside the run; by default made from loss, optimizer and settings")
    loss: Loss = option("reverse_kl", "OPD loss of the step, over the full vocabulary except 'sampled_reverse_kl'")
    jsd_beta: float = option(0.5, "Teacher's share of the mixture in --loss jsd", "between 0 and 1")
    optimizer: Optimizer = option("adamw", "Optimizer of the single step, with fresh state")
    learning_rate: float = option(1e-5, "Learning rate of the step", "1")
    weight_decay: float = option(0.0, "Weight decay of the step, decoupled for AdamW", "1")
    clip_norm: float = option(1.0, "Gradient norm above which the gradient is scaled down; 0 is off", "Euclidean norm")
    update_on: Split = option("update", "'update': held-out prompts; 'bank': the bank itself, and labelled so")
    update_contexts: int = option(0, "Contexts in the update batch; 0 takes all there are", "contexts")
    seed: int = option(0, "Root of the placebos' random streams", "integer")
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu")
    batch_tokens: int = option(2048, "Padded tokens in one forward (and backward) pass", "tokens")
    tile_positions: int = option(128, "Positions whose logits exist at the same time", "positions")

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        self._check_choices()
        self._check_at_least(1, "batch_tokens", "tile_positions")
        self._check_at_least(0, "learning_rate", "weight_decay", "clip_norm", "update_contexts", "seed")
        self._require(self.learning_rate < 1e38, "learning_rate", "a number that float32 holds")
        self._require(0 < self.jsd_beta < 1, "jsd_beta", "strictly between 0 and 1")
        self._require(re.fullmatch(r"[\w-]*", self.name) is not None, "name", "made of letters, digits, '_' and '-'")


@dataclass(frozen=True, kw_only=True)
class AnalyzeSettings(_Checked):
    """How the estimates are made."""

    draws: int = option(1000, "Prompt-cluster bootstrap draws", "draws")
    folds: int = option(5, "Folds of the prompt-grouped cross-validation", "folds")
    fold_repeats: int = option(10, "Fold assignments that the cross-validation averages over", "assignments")
    seed: int = option(0, "Root of the bootstrap's and the folds' random streams", "integer")

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        self._check_at_least(100, "draws")
        self._check_at_least(2, "folds")
        self._check_at_least(1, "fold_repeats")
        self._check_at_least(0, "seed")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
