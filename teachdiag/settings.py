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
Kind = Literal["one_step", "placebo", "checkpoint", "isolated", "predicted", "selectors", "lds"]
Optimizer = Literal["auto", "adamw", "sgd"]
Rollouts = Literal["fixed", "fresh"]
Match = Literal["rate", "norm"]
Derivative = Literal["central", "jvp"]
Normalisation = Literal["quantile", "rank", "none"]
Scope = Literal["global", "sequence"]
Ties = Literal["random", "earliest"]
Split = Literal["bank", "update"]
TeacherPrompt = Literal["same", "privileged"]

SUPPORT_SIZES = (8, 16, 32)  # every K that is measured; the largest is the length of the stored top-K lists
HEADLINE_K = 16  # the K of sentences and figures that show a single one; the paper's
HEADLINE_OUTCOME = "gain"  # likewise the outcome
SHRINKS = (1.0, 0.5, 0.25, 0.125)  # shares of a step at which a prediction is compared with what happens
NOISE_SAFETY = 10.0  # a KL is reported relative to itself only from this many noise floors up
MATCHES: dict[Match, str] = {"norm": "equal update norm", "rate": "equal learning rate"}  # how masked steps compare
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
    """One kind of probe, its loss, and where its steps are taken. The pair and the bank are the run's."""

    name: str = option("", "Name of the probe inside the run; by default made from kind, loss, optimizer and settings")
    kind: Kind = option(
        "one_step",
        "'one_step': a step on the update batch beside its placebos; 'placebo': the same with many draws of each; "
        "'checkpoint': a student trained elsewhere; 'isolated': one step on one position's loss at a time; "
        "'predicted': first-order gains of every position; 'selectors': steps restricted to selected positions; "
        "'lds': steps restricted to random positions",
    )
    loss: Loss = option("reverse_kl", "OPD loss of the step, over the full vocabulary except 'sampled_reverse_kl'")
    jsd_beta: float = option(0.5, "Teacher's share of the mixture in --loss jsd", "between 0 and 1")
    optimizer: Optimizer = option(
        "auto",
        "Optimizer of the step, with fresh state; 'auto' is sgd where loss terms are compared one by one (isolated, "
        "selectors, lds), else adamw",
    )
    learning_rate: float | None = option(
        None,
        "Learning rate of the step; by default 1e-5 for AdamW, 1e-3 for SGD, 1e-5 for isolated steps. With --match "
        "norm: the length of each isolated step, by default 5e-4",
    )
    weight_decay: float = option(0.0, "Weight decay of the step, decoupled for AdamW", "1")
    clip_norm: float = option(0.0, "Gradient norm above which the gradient is scaled down; 0 is off", "Euclidean norm")
    steps: int = option(1, "Optimizer steps in a row, each on the next --update-contexts (kind one_step)", "steps")
    rollouts: Rollouts = option(
        "fixed", "'fresh' samples the responses of each of --steps anew from the student as it is then"
    )
    draws: int = option(5, "Draws of each placebo (kind placebo)", "draws")
    student_after: str = option("", "Hub id or local folder of the trained student (kind checkpoint)")
    update_on: Split = option("update", "'update': held-out prompts; 'bank': the bank itself, and labelled so")
    update_contexts: int = option(
        0, "Contexts in the update batch; 0 takes all there are (kind selectors: half of them)", "contexts"
    )
    bank_contexts: int = option(
        0, "Contexts of the bank that are rescored, from the first; 0 takes all (kinds selectors, lds)", "contexts"
    )
    fix_contexts: int = option(
        4,
        "Contexts set aside from the update split, whose mean forward KL is L_fix (kinds isolated, predicted, "
        "selectors, lds)",
        "contexts",
    )
    sample: int = option(240, "Positions that get a step of their own; 0 takes all (kind isolated)", "positions")
    sample_from: Split = option("bank", "Split from which these positions are drawn (kind isolated)")
    match: Match = option("rate", "'rate': one step size for all; 'norm': one update norm for all (kind isolated)")
    method: Derivative = option(
        "central",
        "First-order gains by central differences, or exactly, in forward mode (kinds predicted, selectors, lds)",
    )
    selector: str = option(
        "all",
        "Selectors to compare, comma-separated: names, module:function, released:MASK for one of the released code, or "
        "'all' (kind selectors)",
    )
    budgets: str = option("0.03,0.10,0.30,1.0", "Shares of the update batch that are kept, comma-separated (selectors)")
    seeds: int = option(5, "Draws of the update batch, the same for every selector (kind selectors)", "draws")
    normalisation: Normalisation = option("quantile", "How selectors put columns on a common scale")
    scope: Scope = option("global", "Whether positions compete over the whole batch or within each sequence")
    min_keep: int = option(0, "Positions kept in every sequence whatever the budget; 0 is off (selectors)", "positions")
    ties: Ties = option("random", "Which of the positions of equal score are kept (kind selectors)")
    masks: int = option(100, "Random masks of the update batch (kind lds)", "masks")
    mask_budget: float = option(0.1, "Share of the update batch in each random mask (kind lds)", "share")
    seed: int = option(0, "Root of every random stream of the probe", "integer")
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu")
    batch_tokens: int = option(2048, "Padded tokens in one forward (and backward) pass", "tokens")
    tile_positions: int = option(128, "Positions whose logits exist at the same time", "positions")

    def __post_init__(self) -> None:
        """Check every field on its own and against the kind, and resolve what 'auto' leaves open.

        Raises:
            SettingsError: a value is outside its range, or an option belongs to another kind of probe.
        """
        self._check_choices()
        self._refuse_foreign_options()
        termwise = self.kind in ("isolated", "selectors", "lds")
        if self.optimizer == "auto":
            object.__setattr__(self, "optimizer", "sgd" if termwise else "adamw")
        self._require(self.kind != "isolated" or self.optimizer == "sgd", "optimizer", "'sgd' with --kind isolated")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", self._usual_rate())
        self._check_at_least(1, "batch_tokens", "tile_positions", "steps", "draws", "fix_contexts", "seeds", "masks")
        self._check_at_least(0, "learning_rate", "weight_decay", "clip_norm", "update_contexts", "bank_contexts")
        self._check_at_least(0, "sample", "min_keep", "seed")
        self._require(self.step_size < 1e38, "learning_rate", "a number that float32 holds")
        self._require(
            self.step_size > 0 or self.kind not in _TERMS, "learning_rate", f"above 0 with --kind {self.kind}"
        )
        self._require(0 < self.jsd_beta < 1, "jsd_beta", "strictly between 0 and 1")
        self._require(0 < self.mask_budget <= 1, "mask_budget", "in (0, 1]")
        self._require(re.fullmatch(r"[\w-]*", self.name) is not None, "name", "made of letters, digits, '_' and '-'")
        self._require(self.kind != "checkpoint" or self.student_after != "", "student_after", "given for a checkpoint")
        self._require(self.rollouts == "fixed" or self.steps > 1, "steps", "above 1 with --rollouts fresh")
        self.budget_shares  # noqa: B018 (parsing is the check)

    @property
    def step_size(self) -> float:
        """Learning rate of the step, resolved."""
        assert self.learning_rate is not None, "resolved when built"
        return self.learning_rate

    @property
    def budget_shares(self) -> tuple[float, ...]:
        """Budgets of the selector experiment, each in (0, 1]."""
        try:
            shares = tuple(dict.fromkeys(float(share) for share in self.budgets.split(",")))
        except ValueError:
            shares = ()
        self._require(all(0 < s <= 1 for s in shares) and shares != (), "budgets", "shares in (0, 1], like '0.03,0.1'")
        return shares

    def _usual_rate(self) -> float:
        if self.kind == "isolated":
            return 5e-4 if self.match == "norm" else 1e-5
        return 1e-5 if self.optimizer == "adamw" else 1e-3

    def _refuse_foreign_options(self) -> None:
        """Refuse an option that the chosen kind does not read: it would promise what does not happen."""
        for entry in fields(self):
            kinds = _OPTION_KINDS.get(entry.name)
            if kinds and self.kind not in kinds and getattr(self, entry.name) != entry.default:
                raise SettingsError(
                    f"{_flag(entry.name)} belongs to --kind {' or '.join(kinds)}, not to {self.kind}: leave it out"
                )


_BATCHES: tuple[Kind, ...] = ("one_step", "placebo", "predicted", "selectors", "lds")
_TERMS: tuple[Kind, ...] = ("isolated", "predicted", "selectors", "lds")
_OPTION_KINDS: dict[str, tuple[Kind, ...]] = {
    "loss": (*_BATCHES, "isolated"),
    "jsd_beta": (*_BATCHES, "isolated"),
    "optimizer": (*_BATCHES, "isolated"),
    "learning_rate": (*_BATCHES, "isolated"),
    "weight_decay": _BATCHES,
    "clip_norm": _BATCHES,
    "steps": ("one_step",),
    "rollouts": ("one_step",),
    "draws": ("placebo",),
    "student_after": ("checkpoint",),
    "update_on": ("one_step", "placebo"),
    "update_contexts": _BATCHES,
    "bank_contexts": ("selectors", "lds"),
    "fix_contexts": _TERMS,
    "sample": ("isolated",),
    "sample_from": ("isolated",),
    "match": ("isolated",),
    "method": ("predicted", "selectors", "lds"),
    "selector": ("selectors",),
    "budgets": ("selectors",),
    "seeds": ("selectors",),
    "normalisation": ("selectors",),
    "scope": ("selectors",),
    "min_keep": ("selectors",),
    "ties": ("selectors",),
    "masks": ("lds",),
    "mask_budget": ("lds",),
}


@dataclass(frozen=True, kw_only=True)
class AnalyzeSettings(_Checked):
    """How the estimates are made."""

    draws: int = option(1000, "Prompt-cluster bootstrap draws", "draws")
    folds: int = option(5, "Folds of the prompt-grouped cross-validation", "folds")
    fold_repeats: int = option(10, "Fold assignments that the cross-validation averages over", "assignments")
    compat: Literal["none", "released"] = option(
        "none", "'released': the released code's own tables, on a bank from `teachdiag import released`", "choice"
    )
    cuts: Literal["redrawn", "fixed"] = option(
        "redrawn",
        "Cuts of normalised scores, medians and thirds in each bootstrap draw: estimated anew, or those of the whole "
        "bank (as the released code has them)",
        "choice",
    )
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


@dataclass(frozen=True, kw_only=True)
class FiguresSettings(_Checked):
    """Which figures are drawn."""

    only: str = option("", "Draw this figure alone, by its file's name without the ending; all by default", "name")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(_Checked):
    """What the report shows."""

    contexts: int = option(100, "Contexts in the token view, the first of the bank", "contexts")
    budget: float = option(0.1, "Share of the bank that selectors take in the token view", "share")

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        self._check_at_least(1, "contexts")
        if not 0 < self.budget <= 1:
            raise SettingsError(f"--budget is {self.budget:g}: it must lie in (0, 1]")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
