"""Settings of the pair, and of capture."""

import re
from dataclasses import dataclass
from typing import Any

from teachdiag.errors import SettingsError
from teachdiag.jsontext import parse_json
from teachdiag.settings.base import (
    COUNTABLE,
    DATA_FILE,
    EMBEDDED,
    EMBEDDED_DROPPED_LAYER,
    ENGINES,
    MODELS,
    PROMPT_SOURCE,
    PROMPTS,
    SAMPLING,
    SCALE,
    TEMPLATE_OPTIONS,
    TRUST_HELP,
    Checked,
    DType,
    EndOfText,
    Engine,
    EngineDType,
    PositionsFrom,
    Sampling,
    TeacherEngine,
    TeacherGives,
    TeacherPrompt,
    flag,
    option,
    template_options,
)

_QUANTISED, _KERNELS = "quantization_config", ("attn_implementation", "experts_implementation")  # for from_pretrained
_OF_VLLM = ("engine_dtype", "tensor_parallel", "gpu_memory", "prefix_caching")
_OF_RAY = ("ray_workers", "store")
_ADDRESS = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?/v1/?")
_REQUESTS = 1_000  # threads


@dataclass(frozen=True, kw_only=True)
class PairSettings(Checked):
    """Which student learns from which teacher."""

    student: str = option(
        EMBEDDED, "Student: Hub id, local folder, GGUF file, or 'embedded' (SmolLM2-135M-Instruct)", panel=MODELS
    )
    teacher: str = option(EMBEDDED, "Teacher: Hub id, local folder, GGUF file, or 'embedded'", panel=MODELS)
    revision: str = option("main", "Hub revision of both models", panel=MODELS)
    teacher_revision: str = option("", "Hub revision of the teacher, where it differs", panel=MODELS)
    student_drop_layers: str = option(
        "auto",
        "Decoder layers to remove from the student, zero-based, comma-separated, or 'none'. 'auto' removes layer "
        f"{EMBEDDED_DROPPED_LAYER} in the demo, where embedded student and teacher would be identical, and nothing "
        "elsewhere",
        panel=MODELS,
    )
    student_adapter: str = option(
        "", "LoRA adapter that is put on the student: the folder that peft saved it to", panel=MODELS
    )
    teacher_adapter: str = option("", "The same for the teacher", panel=MODELS)
    teacher_load: str = option(
        "",
        'How transformers loads the teacher, as JSON, such as \'{"quantization_config": {"load_in_8bit": true}}\': '
        f"{', '.join((_QUANTISED, *_KERNELS))}",
        panel=MODELS,
    )
    end_of_text: EndOfText = option(
        "same",
        "Ids that end a response. 'same': both models must have the same ones; 'student': the student's, so that the "
        "teacher's is a token like others; 'union': those of either, whichever comes first. With the last two the KL "
        "of a last position holds that the models end with different tokens, as base and instructed models do",
        panel=MODELS,
    )
    trust_remote_code: bool = option(False, TRUST_HELP, panel=MODELS)

    @property
    def dropped_layers(self) -> tuple[int, ...]:
        """Zero-based decoder layers that the student lacks."""
        if self.student_drop_layers == "auto":
            return (EMBEDDED_DROPPED_LAYER,) if self.is_demo else ()
        if self.student_drop_layers == "none":
            return ()
        try:
            return tuple(sorted({int(layer) for layer in self.student_drop_layers.split(",")}))
        except ValueError:
            raise SettingsError(
                f"--student-drop-layers is {self.student_drop_layers!r}: give zero-based layer numbers such as "
                "'20' or '3,20', 'auto', or 'none'"
            ) from None

    @property
    def teacher_options(self) -> dict[str, Any]:
        """What transformers is to load the teacher with, beside type, place and revision."""
        try:
            options = parse_json(self.teacher_load or "{}")
        except ValueError:
            options = None
        known = isinstance(options, dict) and all(
            isinstance(value, dict) if name == _QUANTISED else name in _KERNELS and re.fullmatch(r"\w+", str(value))
            for name, value in options.items()
        )
        rule = f"a JSON object of {_QUANTISED}, an object, and {' and '.join(_KERNELS)}, names that transformers brings"
        self._require(known, "teacher_load", rule)
        return dict(options or {})

    @property
    def is_demo(self) -> bool:
        """Whether it is the embedded model against itself, with nothing to learn as it stands."""
        return self.student == self.teacher == EMBEDDED and self.student_adapter == self.teacher_adapter == ""


@dataclass(frozen=True, kw_only=True)
class CaptureSettings(PairSettings):
    """Which pair, which prompts, how the rollouts are drawn and how they are scored."""

    UNRECORDED = ("grade", "teacher_requests")

    teacher_prompt: TeacherPrompt = option(
        "same", "'privileged' puts the worked solution into the teacher's prompt (self-distillation)", panel=PROMPTS
    )
    prompts: str = option("gsm_symbolic", PROMPT_SOURCE, panel=PROMPTS)
    data_file: str = option("", DATA_FILE, panel=PROMPTS)
    template_options: str = option("", TEMPLATE_OPTIONS, panel=PROMPTS)
    teacher_template_options: str = option(
        "", "Options for the teacher's prompt, rendered by the same template, where they differ (JSON)", panel=PROMPTS
    )
    contexts: str = option(
        "", "Parquet file or folder of the `contexts` schema: score these rollouts, sample none", panel=PROMPTS
    )
    bank_prompts: int = option(64, "Prompts of the bank, on which gains are measured", "prompts", panel=PROMPTS)
    update_prompts: int = option(64, "Prompts of update batches, disjoint from the bank's", "prompts", panel=PROMPTS)
    max_prompt_tokens: int = option(
        0, "Longest prompt of the student that is drawn, template included; 0 takes any", "tokens", panel=PROMPTS
    )
    responses: int = option(1, "Rollouts sampled for each prompt", "responses", panel=SAMPLING)
    max_new_tokens: int = option(64, "Length at which a rollout is cut", "tokens", panel=SAMPLING)
    positions: int = option(64, "Response positions scored in each context", "positions")
    positions_from: PositionsFrom = option(
        "spread",
        "Which these are of a longer response: 'spread' draws them as evenly as possible over the logarithm of the "
        "position, so that late tokens are measured beside early ones; 'random' draws all alike; 'first' takes its "
        "first ones, as in the paper; 'all' scores every position",
    )
    temperature: float = option(1.0, "Sampling temperature of the rollouts", "1", panel=SAMPLING)
    top_p: float = option(1.0, "Nucleus sampling mass; 1 is off", "probability", panel=SAMPLING)
    top_k: int = option(0, "Candidates kept in sampling; 0 is off", "tokens", panel=SAMPLING)
    grade: bool = option(
        False,
        "Judge whether each response is right, with the grader of --prompts; the same command again with --grade does "
        "so for a run that is there",
        panel=PROMPTS,
    )
    seed: int = option(0, "Root of every random stream: prompt draw, split, rollouts", "integer")
    engine: Engine = option(
        "transformers",
        "What samples the rollouts; 'ray' is vLLM on the machines of a Ray cluster, which score the contexts as well",
        panel=ENGINES,
    )
    ray_workers: int = option(
        0,
        "Workers of Ray, which sample, and then score; 0 is one a GPU, or one a machine without any",
        "workers",
        panel=ENGINES,
    )
    store: str = option(
        "",
        "fsspec path, such as s3://bucket/run, through which Ray's workers exchange shards; by default the run "
        "directory, which all machines must then share",
        panel=ENGINES,
    )
    teacher_engine: TeacherEngine = option(
        "transformers", "What runs the teacher; 'vllm' for one that does not fit beside the student", panel=ENGINES
    )
    teacher_url: str = option(
        "",
        "Address of a server of vLLM or SGLang that serves the teacher, as http://host:8000/v1; --teacher is then the "
        "model's id there. Its key, if it has one, is read from the environment variable TEACHDIAG_TEACHER_KEY",
        panel=ENGINES,
    )
    teacher_requests: int = option(16, "Requests to that server under way at the same time", "requests", panel=ENGINES)
    teacher_gives: TeacherGives = option(
        "auto",
        "What a teacher behind vLLM or an address answers: 'states', its last hidden states, from which every column "
        "follows (vLLM here alone); 'logprobs', log-probabilities at both models' top ids, without the full-vocabulary "
        "columns; 'top', at its own top ids, so that C and D are known within bounds (an address alone). 'auto' is "
        "logprobs where they can be had exactly, or else states, or of an address top",
        panel=ENGINES,
    )
    engine_dtype: EngineDType = option("run", "Type of the weights in vLLM; 'run' is that of --dtype", panel=ENGINES)
    tensor_parallel: int = option(1, "Devices that share one model in vLLM", "devices", panel=ENGINES)
    gpu_memory: float = option(0.9, "Share of each GPU's memory that vLLM takes", "share", panel=ENGINES)
    prefix_caching: bool = option(True, "Whether vLLM computes a prompt once for all of its responses", panel=ENGINES)
    shard_model: bool = option(
        False, "Share each model's layers over the processes (FSDP2), for models larger than a device", panel=SCALE
    )
    dtype: DType = option(
        "float32", "Type of the models' weights; LM head and statistics are float32 always", panel=MODELS
    )
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu", panel=SCALE)
    batch_tokens: int = option(4096, "Padded tokens in one forward pass", "tokens", panel=SCALE)
    tile_positions: int = option(128, "Positions whose logits exist at the same time", "positions", panel=SCALE)
    shard_contexts: int = option(8, "Contexts a shard: what is lost if the run is killed", "contexts", panel=SCALE)

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range; the message names the option.
        """
        super().__post_init__()
        self._check_at_least(
            1,
            *("bank_prompts", "update_prompts", "responses", "max_new_tokens", "positions", "batch_tokens"),
            *("tile_positions", "shard_contexts", "tensor_parallel", "teacher_requests"),
        )
        self._check_at_least(0, "top_k", "seed", "ray_workers", "max_prompt_tokens")
        self._check_at_most(COUNTABLE, "responses", "ray_workers", "tensor_parallel")
        self._check_at_most(_REQUESTS, "teacher_requests")
        self._check_temperature("temperature")
        self._require(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        self._require(0 < self.gpu_memory <= 1, "gpu_memory", "in (0, 1]")
        self._refuse_engine_options()
        self._check_teacher()
        if self.positions_from == "all":
            self.refuse_idle({"positions": "--positions-from first, spread or random"})
        self._check_template_options("template_options", "teacher_template_options")
        if self.contexts and any(self.options_given):
            raise SettingsError("--template-options renders prompts, which --contexts brings rendered: leave it out")
        self.dropped_layers, self.teacher_options  # noqa: B018 (parsing is the check)

    def of_capture(self) -> dict[str, Any]:
        """Return the settings that decide the tables of capture.

        Not --grade, nor what grades brought contexts; nor how hard a server is pressed, which may change on the way.
        """
        of_grading = ("grade", *(("prompts", "data_file") if self.contexts else ()))
        settings = self.as_dict() | {name: self.defaults()[name] for name in of_grading}
        return {name: value for name, value in settings.items() if name not in self.UNRECORDED}

    @property
    def is_demo(self) -> bool:
        """Whether it is the embedded model against itself, under the prompts of a source, the same for both."""
        ours, theirs = (template_options(text) for text in self.options_given)
        return super().is_demo and not self.contexts and self.teacher_prompt == "same" and ours == theirs

    @property
    def options_given(self) -> tuple[str, str]:
        """Options of the chat template for the student's prompt and the teacher's."""
        return self.template_options, self.teacher_template_options or self.template_options

    def _refuse_engine_options(self) -> None:
        """Refuse an option of an engine that is not used: it would promise what does not happen."""
        loaded_here = self.engine == self.teacher_engine == "transformers" and not self.teacher_url
        if self.shard_model and not loaded_here:
            raise SettingsError("--shard-model is for models in transformers; vLLM shares one by --tensor-parallel")
        if self.engine == "ray" and self.teacher_engine == "vllm":
            raise SettingsError(
                "--engine ray scores with both models in each worker: leave --teacher-engine out, or score the "
                "rollouts in another run with --contexts"
            )
        self._refuse_adapters_elsewhere()
        here = self.engine != "ray" and self.teacher_engine == "transformers" and not self.teacher_url
        if self.teacher_load and (self.shard_model or not here):
            raise SettingsError("--teacher-load is for a teacher that transformers runs in this process: leave it out")
        served = (self.engine != "transformers" and not self.contexts) or self.teacher_engine == "vllm"
        idle = {} if served else dict.fromkeys(_OF_VLLM, "vLLM, which runs nothing here")
        if self.engine != "ray":
            idle |= dict.fromkeys(_OF_RAY, "--engine ray")
        if self.teacher_url:
            idle |= {"teacher_revision": "a teacher on the Hub"}
            idle |= dict.fromkeys(("teacher_engine", "teacher_adapter"), "a teacher that is loaded")
        else:
            idle["teacher_requests"] = "--teacher-url"
            if self.teacher_engine != "vllm":
                idle["teacher_gives"] = "--teacher-engine vllm and --teacher-url"
        self.refuse_idle(idle)

    def _refuse_adapters_elsewhere(self) -> None:
        """Refuse an adapter on a model that transformers does not run whole in this process."""
        sampled = self.engine != "transformers" and not self.contexts
        for name, elsewhere in (
            ("student_adapter", sampled or self.engine == "ray"),
            ("teacher_adapter", self.engine == "ray" or self.teacher_engine == "vllm"),
        ):
            if getattr(self, name) and (elsewhere or self.shard_model):
                where = "--shard-model" if self.shard_model else "vLLM and Ray"
                raise SettingsError(
                    f"{flag(name)} cannot be read with {where}: merge the adapter into its model (peft's "
                    "merge_and_unload, then save_pretrained), and give that"
                )

    def _check_teacher(self) -> None:
        """Refuse what the teacher cannot give, and an address that is none, or holds a password."""
        if not self.teacher_url:
            self._require(
                self.teacher_gives != "top", "teacher_gives", "auto, states or logprobs without --teacher-url"
            )
            return
        self._require(self.teacher_gives != "states", "teacher_gives", "auto, logprobs or top with --teacher-url")
        self._require(
            _ADDRESS.fullmatch(self.teacher_url) is not None,
            "teacher_url",
            "an address such as http://host:8000/v1, without a key or password (see TEACHDIAG_TEACHER_KEY)",
        )
        self._require(self.teacher != EMBEDDED, "teacher", "the model's id at --teacher-url")
        self._require(self.end_of_text != "union", "end_of_text", "same or student: no server tells how its model ends")
        if self.engine == "ray":
            raise SettingsError("--engine ray scores with both models in each worker: leave --teacher-url out")

    @property
    def sampling(self) -> Sampling:
        """How rollouts are sampled."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)
