"""Settings of train and evaluate."""

from dataclasses import dataclass
from typing import Any

from teachdiag.errors import SettingsError
from teachdiag.jsontext import parse_json
from teachdiag.losses import LOSSES, unread_options
from teachdiag.registry import described
from teachdiag.settings.base import (
    COUNTABLE,
    DATA_FILE,
    HEADLINE_K,
    JUDGING,
    MODELS,
    PROMPT_SOURCE,
    PROMPTS,
    SAMPLING,
    SCALE,
    SELECTION,
    STEPS,
    SUPPORT_SIZES,
    TEMPLATE_OPTIONS,
    TRUST_HELP,
    Checked,
    DType,
    LossMean,
    Normalisation,
    ReportTo,
    Sampling,
    Scope,
    Ties,
    arguments,
    option,
    shown,
)
from teachdiag.settings.capture import PairSettings
from teachdiag.settings.lora import Lora, read_lora


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings(Checked):
    """On which held-out prompts, and how, students are judged."""

    prompts: str = option("gsm_symbolic", PROMPT_SOURCE, panel=PROMPTS)
    data_file: str = option("", DATA_FILE, panel=PROMPTS)
    template_options: str = option("", TEMPLATE_OPTIONS, panel=PROMPTS)
    prompt_seed: int = option(
        0, "Root of which prompts are held out, and of the random numbers of answers", "integer", panel=PROMPTS
    )
    eval_prompts: int = option(32, "Held-out prompts that every model answers", "prompts", panel=JUDGING)
    eval_samples: int = option(2, "Answers to each held-out prompt", "answers", panel=JUDGING)
    eval_temperature: float = option(
        1.0, "Sampling temperature of answers; 0 takes the likeliest token", "1", panel=JUDGING
    )
    eval_top_p: float = option(1.0, "Nucleus sampling mass of answers; 1 is off", "probability", panel=JUDGING)
    eval_max_new_tokens: int = option(256, "Length at which an answer is cut", "tokens", panel=JUDGING)
    eval_batch: int = option(64, "Answers generated together", "answers", panel=SCALE)
    dtype: DType = option(
        "float32", "Type of the computation; weights that are trained are float32 always", panel=MODELS
    )
    device: str = option(
        "auto", "Torch device for loading and answering: 'auto' takes CUDA where there is one", panel=SCALE
    )

    @property
    def answering(self) -> Sampling:
        """How answers are sampled."""
        return Sampling(self.eval_temperature, self.eval_top_p, 0, self.eval_max_new_tokens)

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        self._check_at_least(1, "eval_prompts", "eval_samples", "eval_max_new_tokens", "eval_batch")
        self._check_at_least(0, "prompt_seed")
        self._check_at_most(COUNTABLE, "eval_samples")
        self._check_temperature("eval_temperature", zero=True)
        self._require(0 < self.eval_top_p <= 1, "eval_top_p", "in (0, 1]")
        self._check_template_options("template_options")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ProtocolSettings):
    """How models are judged by themselves."""

    models: list[str] = arguments(
        "Models to judge: Hub ids, folders such as students/... of a run, LoRA adapters of models that they name, or "
        "'embedded'"
    )
    revision: str = option("main", "Hub revision of the models", panel=MODELS)
    trust_remote_code: bool = option(False, TRUST_HELP, panel=MODELS)

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        self._require(0 < len(self.models) == len(set(self.models)), "models", "one model or more, each named once")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(PairSettings, ProtocolSettings):
    """One run of selective on-policy distillation: which pair, which positions carry the loss, and for how long."""

    sweep: str = option("", "TOML recipe with a table [sweep]: many arms, budgets and seeds instead of one run")
    workers: int = option(
        1, "Students of a sweep that are trained side by side, each in a process of its own", panel=SCALE
    )
    train_prompts: int = option(
        256, "Distinct prompts to train on, disjoint from the held-out ones", "prompts", panel=PROMPTS
    )
    selector: str = option(
        "learnable",
        "Which positions carry the loss: a selector's name, module:function, released:MASK, or 'full' for all of them",
        panel=SELECTION,
    )
    budget: float = option(0.1, "Share of each rollout batch's positions that is kept", "in (0, 1]", panel=SELECTION)
    k: int = option(HEADLINE_K, "Support size of D, C and their kin", "tokens", panel=SELECTION)
    soft: bool = option(
        False, "Weights in proportion to the score, with the budget's total, instead of a mask", panel=SELECTION
    )
    warmup: int = option(
        0, "Steps over which the kept share falls from everything to the budget", "steps", panel=SELECTION
    )
    normalisation: Normalisation = option("quantile", "How scores' columns are put on a common scale", panel=SELECTION)
    scope: Scope = option(
        "global", "Whether positions compete over the whole rollout batch or within each sequence", panel=SELECTION
    )
    min_keep: int = option(
        0, "Positions kept in every sequence whatever the budget; 0 is off", "positions", panel=SELECTION
    )
    ties: Ties = option("random", "Which of the positions of equal score are kept", panel=SELECTION)
    lora: str = option(
        "",
        "Train a fresh LoRA adapter instead of all weights, and save it alone: 'r=16,alpha=32,target=q_proj+v_proj'; "
        "'r=16' is alpha=32 and all linear layers but the LM head",
        panel=STEPS,
    )
    loss: str = option("reverse_kl", lambda: f"OPD loss: {described(LOSSES)}", panel=STEPS)
    jsd_beta: float = option(0.5, "Teacher's share of the mixture in --loss jsd", "between 0 and 1", panel=STEPS)
    loss_mean: LossMean = option(
        "positions",
        "'positions': mean over kept positions; 'sequences': mean of each sequence's mean, as released",
        panel=STEPS,
    )
    steps: int = option(50, "Optimizer steps, each on a rollout batch of its own", "steps", panel=STEPS)
    batch: int = option(8, "Prompts of one rollout batch, over all processes", "prompts", panel=STEPS)
    micro_batch: int = option(4, "Prompts of one forward and backward pass of one process", "prompts", panel=SCALE)
    learning_rate: float = option(1e-5, "Learning rate of AdamW, constant", "1", panel=STEPS)
    weight_decay: float = option(0.0, "Weight decay, decoupled", "1", panel=STEPS)
    clip_norm: float = option(
        1.0, "Gradient norm above which the gradient is scaled down", "Euclidean norm", panel=STEPS
    )
    max_new_tokens: int = option(64, "Length at which a rollout is cut", "tokens", panel=SAMPLING)
    temperature: float = option(1.0, "Sampling temperature of the rollouts", "1", panel=SAMPLING)
    top_p: float = option(1.0, "Nucleus sampling mass of the rollouts; 1 is off", "probability", panel=SAMPLING)
    top_k: int = option(0, "Candidates kept in sampling; 0 is off", "tokens", panel=SAMPLING)
    tile_positions: int = option(256, "Positions whose logits exist at the same time", "positions", panel=SCALE)
    save_steps: int = option(0, "Steps between checkpoints that an interrupted run continues from; 0 is off", "steps")
    keep: bool = option(True, "Keep the weights of trained students, in students/ of the run", panel=MODELS)
    seed: int = option(0, "Root of the prompts' order, the rollouts and random masks; equal for all arms", "integer")
    report_to: ReportTo = option("none", "Where TRL logs to; its package must be installed")
    trl: str = option("", "Further settings of trl.DistillationConfig as JSON, such as '{\"use_vllm\": true}'")

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        self._check_at_least(1, "train_prompts", "steps", "batch", "micro_batch", "max_new_tokens", "tile_positions")
        self._check_at_least(1, "workers")
        self._check_at_least(0, "warmup", "min_keep", "weight_decay", "top_k", "seed", "save_steps")
        self._check_at_most(COUNTABLE, "steps", "workers")
        self._check_at_most(2**31 - 1, "seed")  # a column of 32 bits holds it
        self._check_temperature("temperature")
        self._require(
            1e-12 <= self.learning_rate <= 1, "learning_rate", "from 1e-12, below which no weight moves, to 1"
        )
        self._require(self.weight_decay * self.learning_rate < 1, "weight_decay", "below 1 / --learning-rate")
        self._require(0 < self.budget <= 1, "budget", "in (0, 1]")
        self._check_clip_norm("clip_norm")
        self._require(0 < self.jsd_beta < 1, "jsd_beta", "strictly between 0 and 1")
        self.refuse_idle(unread_options(self.loss))
        self._require(self.k in SUPPORT_SIZES, "k", f"one of {', '.join(map(str, SUPPORT_SIZES))}")
        self._require(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        self._require(self.batch % self.micro_batch == 0, "batch", f"a multiple of --micro-batch {self.micro_batch}")
        self._require(self.batch <= self.train_prompts, "batch", f"at most --train-prompts {self.train_prompts}")
        self.refuse_idle({"student_adapter": "capture and what reads its run; training begins with a fresh --lora"})
        self.adapter  # noqa: B018 (parsing is the check)
        self.trl_settings  # noqa: B018 (parsing is the check)
        self.dropped_layers, self.teacher_options  # noqa: B018

    @property
    def adapter(self) -> Lora | None:
        """The adapter that is trained; None where all weights are."""
        return read_lora(self.lora, "--lora") if self.lora else None

    @property
    def trl_settings(self) -> dict[str, Any]:
        """Further settings of `trl.DistillationConfig`."""
        try:
            options = parse_json(self.trl or "{}")
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise SettingsError(
                f"--trl is {shown(self.trl)}: it must be a JSON object, such as '{{\"use_vllm\": true}}'"
            )
        for name in options:
            instead = TRL_KEYS_TAKEN.get(name) or TRL_KEYS_TAKEN.get(f"{name.partition('_')[0]}_*")
            if instead:
                raise SettingsError(f"--trl sets {name}, which teachdiag sets itself: {instead}")
            if name in _WITH_VLLM and options.get("use_vllm") is not True:
                raise SettingsError(f"--trl sets {name}, which only vLLM reads: leave it out, or set use_vllm as well")
        return options


_ROLLOUTS, _STUDENT = "use --max-new-tokens, --temperature, --top-p and --top-k", "use --student and --revision"
_TEACHER, _JUDGED = "use --teacher and --teacher-revision", "students are judged as --eval-prompts and its kin say"
_CONSTANT, _ORDER = "the learning rate is constant: use --learning-rate", "the order of prompts is drawn from --seed"
TRL_KEYS_TAKEN = {  # settings of trl.DistillationConfig that ours decide or that have no part in it -> what to use
    "output_dir": "use --run",
    **dict.fromkeys(("max_steps", "num_train_epochs"), "use --steps"),
    **dict.fromkeys(("per_device_train_batch_size", "auto_find_batch_size"), "use --micro-batch"),
    "gradient_accumulation_steps": "use --batch and --micro-batch",
    "learning_rate": "use --learning-rate",
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"), _CONSTANT),
    "weight_decay": "use --weight-decay",
    "max_grad_norm": "use --clip-norm",
    **dict.fromkeys(("max_completion_length", "temperature", "top_p", "top_k"), _ROLLOUTS),
    "seed": "use --seed",
    **dict.fromkeys(("data_seed", "shuffle_dataset", "train_sampling_strategy"), _ORDER),
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), "use --dtype"),
    "use_cpu": "use --device",
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "save_only_model"), "use --save-steps"),
    **dict.fromkeys(("resume_from_checkpoint", "ignore_data_skip"), "the same command continues a run"),
    **dict.fromkeys(("logging_strategy", "logging_steps", "logging_first_step"), "every step is logged"),
    **dict.fromkeys(("push_to_hub", "hub_*"), "push the student's folder, in students/ of the run, when it is done"),
    "report_to": "use --report-to",
    "disable_tqdm": "use --quiet",
    "chat_template_kwargs": "use --template-options",
    "cache_implementation": "rollouts are sampled by teachdiag, or by vLLM",
    "beta": "use --loss and --jsd-beta",
    "label_smoothing_factor": "use --loss",
    **dict.fromkeys(("eval_*", "do_eval", "do_predict", "load_best_model_at_end", "metric_for_best_model"), _JUDGED),
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), _STUDENT),
    **dict.fromkeys(("teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs"), _TEACHER),
}
_WITH_VLLM = ("min_p", "generation_kwargs")  # our own sampler does not read them
