"""What settings are made of: choices, constants, how an option is declared, and how it is checked."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, field, fields
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from teachdiag.errors import SettingsError
from teachdiag.jsontext import parse_json

DType = Literal["float32", "bfloat16", "float16"]
Optimizer = Literal["auto", "adamw", "sgd"]
Rollouts = Literal["fixed", "fresh"]
Match = Literal["rate", "norm"]
Derivative = Literal["central", "one-sided", "jvp"]
Normalisation = Literal["quantile", "rank", "none"]
Scope = Literal["global", "sequence"]
Ties = Literal["random", "earliest"]
Split = Literal["bank", "update"]
GainOutcome = Literal["gain", "gain_reverse"]  # columns of the table `gains`
PositionsFrom = Literal["first", "spread", "random", "all"]
TeacherPrompt = Literal["same", "privileged"]
EndOfText = Literal["same", "student", "union"]
Engine = Literal["transformers", "vllm", "ray"]
TeacherEngine = Literal["transformers", "vllm"]
EngineDType = Literal["run", "float32", "bfloat16", "float16"]
TeacherGives = Literal["auto", "states", "logprobs", "top"]
ReportTo = Literal["none", "trackio", "wandb", "tensorboard", "mlflow"]
LossMean = Literal["positions", "sequences"]

SUPPORT_SIZES = (8, 16, 32)  # every K that is measured; the largest is the length of the stored top-K lists
HEADLINE_K = 16  # the K of sentences and figures that show a single one; the paper's
HEADLINE_OUTCOME = "gain"  # likewise the outcome
HEADLINE_SELECTORS = ("forward_kl", "learnable", "entropy", "random", "oracle")  # likewise the selectors
HEADLINE_BUDGETS = (0.01, 0.05, 0.1, 0.3)  # and the shares of an update batch that a table of them shows
HEADLINE_BUDGET = 0.1  # and the one that a sentence names
SHRINKS = (1.0, 0.5, 0.25, 0.125)  # shares of a step at which a prediction is compared with what happens
SHORT_ENOUGH = 0.95  # share of the variance of the bank's gain that first order explains of a step that is no longer
NOISE_SAFETY = 10.0  # a KL is reported relative to itself only from this many noise floors up
MATCHES: dict[Match, str] = {"norm": "equal step length", "rate": "equal learning rate"}  # how masked steps compare
CLOCK = "strftime_now"  # what chat templates read the date by
HUB_PATIENCE = 5.0  # seconds in which the Hub must answer, once: its own libraries ask for half a minute
COUNTABLE = 100_000  # of what is done one by one: steps, draws, masks
_SHOWN = 80  # characters of a value in a message
_TOO_LARGE = 2**63
_FEW_KINDS = 4  # up to which help names the kinds of probe that read an option; the panel names a single one
EMBEDDED = "embedded"  # names SmolLM2-135M-Instruct, which comes with pip
TRUST_HELP = "Let code run that comes with a model: read it first. Without it such a model is refused"
EMBEDDED_DROPPED_LAYER = 20  # the decoder layer (0-based) whose absence still leaves sensible text

# Panels of help pages, in their order.
OPTIONS, MODELS, PROMPTS, SAMPLING, SELECTION, STEPS, ENGINES, JUDGING, SCALE, ALWAYS = PANELS = (
    *("Options", "Models", "Prompts", "Sampling", "Selection", "Loss and steps"),
    *("Engines", "Judging", "Scale", "Of every command"),
)

PROMPT_SOURCE = "Prompt source: a manifest's id, or the path of a manifest of your own"
DATA_FILE = "Copy of the prompt source, local or at an fsspec path such as s3://, not its Hub file"
TEMPLATE_OPTIONS = (
    f"Options of the chat template as JSON, such as '{{\"enable_thinking\": false}}'; tools and documents too, and "
    f"{CLOCK}, the date it is to show"
)


class Sampling(NamedTuple):
    """How tokens are drawn: temperature (0 takes the likeliest), nucleus mass, candidates (0 is all), length."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


def option(
    default: Any,  # noqa: ANN401
    help: str | Callable[[], str],
    unit: str = "",
    *,
    panel: str = "",
    kinds: tuple[str, ...] = (),
) -> Any:  # noqa: ANN401 (as fields are)
    """Declare a settings field.

    Args:
        default: its value where none is given.
        help: what `--help` says of it, or makes that when it is asked for.
        unit: of the value.
        panel: of the help page; by default that of its kinds.
        kinds: the kinds of probe that read it; none where all do.
    """
    usual = OPTIONS if not kinds else f"Only of kind {kinds[0]}" if len(kinds) == 1 else STEPS
    facts = {"help": help, "unit": unit, "argument": False, "panel": panel or usual, "kinds": kinds}
    return field(default=default, metadata=facts)


def arguments(help: str) -> Any:  # noqa: ANN401
    """Declare a settings field, at least one word, that the command line takes without an option's name."""
    return field(default_factory=list, metadata={"help": help, "unit": "", "argument": True, "panel": "", "kinds": ()})


def help_texts(settings_class: type) -> dict[str, str]:
    """Return what help says of each field of a settings class; made when asked for, as installed objects are in it."""
    hints = get_type_hints(settings_class)
    return {entry.name: _help_text(entry, hints[entry.name]) for entry in fields(settings_class)}


def _help_text(entry: "Field[Any]", hint: Any) -> str:  # noqa: ANN401
    """A field's text, and in brackets its choices, its kinds of probe, its unit and its default."""
    help, kinds, default = entry.metadata["help"], entry.metadata["kinds"], entry.default
    facts = [
        f"kinds {', '.join(kinds)}" if 1 < len(kinds) <= _FEW_KINDS else "",
        ", ".join(get_args(hint)) if get_origin(hint) is Literal else "",
        entry.metadata["unit"].removeprefix("1"),
    ]
    if isinstance(default, bool):
        facts.append(f"default {'on' if default else 'off'}")
    elif default not in ("", None, MISSING):
        facts.append(f"default {default:g}" if isinstance(default, float) else f"default {default}")
    text, stated = help() if callable(help) else help, "; ".join(filter(None, facts))
    return f"{text} ({stated})" if stated else str(text)


def fits(value: object, hint: Any) -> bool:  # noqa: ANN401 (an annotation)
    """Whether a plain value, as TOML, JSON or a caller gives it, is of an annotated type; no bool is a number."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, {float: int | float, Path: str | Path}.get(hint, hint))


def in_words(hint: Any) -> str:  # noqa: ANN401
    """Return what values of an annotated type are, for messages."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(in_words(part) for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is list:
        return f"a list, each entry {in_words(get_args(hint)[0])}"
    return _WORDS.get(get_origin(hint) or hint, str(getattr(hint, "__name__", hint)))


def headline_budget(budgets: Iterable[float]) -> float:
    """Return the budget of texts and tables that show a single one: nearest to a tenth by ratio, below 1 if any is."""
    known = sorted(map(float, budgets))
    return min([b for b in known if b < 1] or known, key=lambda b: abs(math.log(b / HEADLINE_BUDGET)))


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "text", dict: "a table"}


def shown(value: object) -> str:
    """Return a value as messages quote it: on one line, of a long one the beginning."""
    try:
        text = repr(value)
    except Exception:  # a whole number of too many digits, or a stranger's object that cannot say what it is
        text = type(value).__name__
    text = " ".join(text.encode(errors="backslashreplace").decode().split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 and file names can hold it; an argument with other bytes comes with lone surrogates."""
    return "\0" not in text and text.encode(errors="replace").decode() == text


class Checked:
    """Checks shared by the settings classes.

    `UNRECORDED`: options that decide no number, and are in no note.
    """

    UNRECORDED: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Check every field against its annotation, and that numbers and text are such as machines can hold.

        Raises:
            SettingsError: one is of another type, no finite number of 64 bits, or text that no file name can be.
        """
        hints = get_type_hints(type(self))
        for entry in fields(self):  # type: ignore[arg-type]
            name, hint, value = entry.name, hints[entry.name], getattr(self, entry.name)
            self._require(fits(value, hint), name, in_words(hint))
            if isinstance(value, int):
                self._require(abs(value) < _TOO_LARGE, name, "a whole number of 64 bits")
            elif isinstance(value, float):
                self._require(math.isfinite(value), name, "finite")
            elif isinstance(value, str | list):
                self._require(all(map(_is_unicode, value)), name, "Unicode without NUL")

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise SettingsError(f"{flag(name)} is {shown(getattr(self, name))}: it must be {rule}")

    def _check_at_least(self, lowest: float, *names: str) -> None:
        for name in names:
            self._require(lowest <= getattr(self, name) < math.inf, name, f"at least {lowest}, and finite")

    def _check_at_most(self, highest: float, *names: str) -> None:
        for name in names:
            self._require(getattr(self, name) <= highest, name, f"at most {highest:g}")

    def refuse_idle(self, idle: Mapping[str, str]) -> None:
        """Refuse an option that is set and would not be read: it would promise what does not happen.

        Args:
            idle: options that are not read, and what reads them.

        Raises:
            SettingsError: one is not at its default.
        """
        for name, default in self.defaults().items():
            if name in idle and getattr(self, name) != default:
                raise SettingsError(f"{flag(name)} belongs to {idle[name]}: leave it out")

    def _check_clip_norm(self, name: str) -> None:
        """Below this bound AdamW's 1e-8 drowns the gradient, and SGD's steps are nothing beside a weight."""
        self._require(getattr(self, name) == 0 or getattr(self, name) >= 1e-6, name, "0, or at least 1e-06")

    def _check_temperature(self, name: str, *, zero: bool = False) -> None:
        """Beyond these bounds float32 logits overflow, or nothing is left of them."""
        value, greedy = getattr(self, name), "0, or " if zero else ""
        self._require((zero and value == 0) or 1e-3 <= value <= 1e3, name, f"{greedy}from 0.001 to 1000")

    def _check_template_options(self, *names: str) -> None:
        for name in names:
            template_options(getattr(self, name), flag(name))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return every option's default."""
        return {entry.name: entry.default for entry in fields(cls)}  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for the run directory."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


def flag(name: str) -> str:
    """Return an option as the command line spells it; a field that would be a word of Python's ends in `_`."""
    return "--" + name.removesuffix("_").replace("_", "-")


_APPLYING = {  # of apply_chat_template itself, which belong to whoever renders
    *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("tokenizer_kwargs", "processor_kwargs", "sanitize_control_tokens"),
}


def template_options(text: str, name: str = "--template-options") -> dict[str, Any]:
    """Return the options of a chat template, such as enable_thinking or tools, that a JSON object gives.

    Args:
        text: the object; '' is none.
        name: what gave it, for messages.

    Raises:
        SettingsError: it is no JSON object, names what is no option of a template, or a date that is none.
    """
    try:
        options = parse_json(text or "{}")
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise SettingsError(f"{name} is {text[:60]!r}: give a JSON object such as '{{\"enable_thinking\": false}}'")
    reserved = sorted(options.keys() & _APPLYING)
    if reserved:
        raise SettingsError(f"{name} has {', '.join(reserved)}, which is no option of a chat template: leave it out")
    if CLOCK in options and not _is_moment(options[CLOCK]):
        raise SettingsError(f"{name}: {CLOCK} is {options[CLOCK]!r}: give the date that it is to show, as 2026-01-31")
    return options


def _is_moment(value: object) -> bool:
    try:
        datetime.fromisoformat(str(value) if isinstance(value, str) else "")
    except ValueError:
        return False
    return True
