"""Conversations to token ids: through a tokenizer's chat template, with its options, by a clock that stands still."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, meta, nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from teachdiag.diagnostics.models.vocabulary import special_tokens
from teachdiag.errors import ContextError, SettingsError, cause
from teachdiag.progress import Reporter
from teachdiag.runs import Stage
from teachdiag.settings import CLOCK, CaptureSettings, ProtocolSettings, template_options

Options = Mapping[str, Any]
Messages = Sequence[Mapping[str, str]]


def encode_prompt(tokenizer: Any, prompt: str | Messages, options: Options | None = None) -> tuple[int, ...]:  # noqa: ANN401
    """Token ids of a user's message or a conversation: by the chat template where there is one, else as plain text.

    Plain text has the special tokens in front that the tokenizer puts there by itself, and none behind it: an
    end-of-text token there would end what the student is to continue.

    Raises:
        ContextError: the template cannot render it, or a conversation meets a tokenizer without a template.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if tokenizer.chat_template is not None:
        try:
            ids = encode_messages(tokenizer, messages, options)
        except Exception as error:  # a template is a program, which may fail in any way
            raise ContextError(f"the tokenizer's chat template cannot render it: {cause(error)}") from error
    elif [message["role"] for message in messages] != ["user"]:
        raise ContextError(
            "it is a conversation, but the tokenizer has no chat template: give single messages, or take a model that "
            "has one"
        )
    else:
        ids = _plain(tokenizer, messages[0]["content"])
    return ids


def encode_prompts(
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[tuple[str, Messages]],
    options: Options,
    reporter: Reporter | None = None,
) -> list[tuple[int, ...]]:
    """Token ids of named prompts, as `encode_prompt` has them; a reporter is told of control tokens in their own text.

    Raises:
        ContextError: as there, with the prompt's name; or nothing comes out, or the same for all prompts.
    """
    asked = []
    for name, messages in prompts:
        try:
            asked.append(encode_prompt(tokenizer, messages, options))
        except ContextError as error:
            raise ContextError(f"prompt {name}: {error}") from error
        if not asked[-1]:
            raise ContextError(f"prompt {name} is no token at all once it is rendered: check the chat template")
    if len(asked) > 1 and len(set(asked)) == 1:
        raise ContextError(
            f"all {len(asked)} prompts are the same tokens once they are rendered: check that the chat template writes "
            "the user's message"
        )
    if reporter:
        say_control_tokens(tokenizer, prompts, reporter)
        if again := len({name for name, _ in prompts}) - len(set(asked)):
            reporter.say(
                f"{again} of {len(asked)} prompts are the same tokens as another once they are rendered: they count as "
                "prompts of their own, which makes intervals narrower than they are"
            )
    return asked


def encode_messages(tokenizer: Any, messages: Messages, options: Options | None = None) -> tuple[int, ...]:  # noqa: ANN401
    """Token ids of a conversation through the chat template, up to where the assistant is to write.

    A last message of the assistant's is left open, to be continued.

    Args:
        tokenizer: whose template it is.
        messages: roles and contents.
        options: what else the template reads, by name: tools, documents, enable_thinking and the like; `strftime_now`
            is what its clock shows, an ISO date, by default the time of the call.
    """
    variables = dict(options or {})
    moment = variables.pop(CLOCK, None)
    prefilled = messages[-1]["role"] == "assistant"
    with _clock(_template(tokenizer, variables), moment):
        rendered = tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=not prefilled,
            continue_final_message=prefilled,
            tokenize=False,
            **variables,
        )
    return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def options_read(tokenizer: Any, options: Options | None = None) -> list[str]:  # noqa: ANN401
    """Names of the options that a tokenizer's chat template reads, `strftime_now` among them if it reads the clock.

    Raises:
        ContextError: the template cannot be parsed.
    """
    if tokenizer.chat_template is None:
        return []
    try:
        template = _template(tokenizer, options or {})
        tree = template.environment.parse(tokenizer.get_chat_template(tools=(options or {}).get("tools")))
    except (TemplateError, SyntaxError, ValueError) as error:
        raise ContextError(f"the tokenizer's chat template cannot be read: {cause(error)}") from error
    clock = {name.name for name in tree.find_all(nodes.Name) if name.name == CLOCK}  # a global, which `meta` leaves out
    read = meta.find_undeclared_variables(tree) - {"messages", "add_generation_prompt"} | clock
    return sorted(name for name in read if not name.endswith("_token"))


def resolve_options(
    given: str, tokenizers: Mapping[str, Any], defaults: Options, before: Mapping[str, Any], reporter: Reporter
) -> dict[str, Any]:
    """Return the options that prompts are rendered with, the date included if a template reads the clock.

    Args:
        given: --template-options.
        tokenizers: by the names of their models.
        defaults: the manifest's options; those given outrank them.
        before: the options that an earlier start of the same run recorded, whose date is kept.
        reporter: told what a template does not read.

    Raises:
        SettingsError: an option was given that no template reads.
    """
    asked = template_options(given)
    options = {**defaults, **asked}
    read = {name: options_read(tokenizer, options) for name, tokenizer in tokenizers.items()}
    for option in options:
        deaf = [name for name, names in read.items() if option not in names]
        if len(deaf) == len(read) and option in asked:
            known = sorted(set().union(*read.values())) or ["none"]
            raise SettingsError(
                f"--template-options has {option}, which the chat template of {' and '.join(deaf)} does not read; "
                f"options that it reads: {', '.join(known)}"
            )
        if deaf:
            reporter.say(f"the chat template of {' and '.join(deaf)} does not read the option {option}")
    if any(CLOCK in names for names in read.values()):
        options.setdefault(CLOCK, before.get(CLOCK) or datetime.now().date().isoformat())
    return options


def recorded_options(stage: Stage, settings: CaptureSettings | ProtocolSettings) -> Options:
    """Return the options that an earlier start of a stage recorded, if it was given the same ones; else none."""
    note = stage.read()
    if note is None or note["settings"].get("template_options", "") != settings.template_options:
        return {}
    recorded: Options = note["inputs"].get("prompts", {}).get("template_options", {})
    return recorded


def say_control_tokens(tokenizer: Any, prompts: Sequence[tuple[str, Messages]], reporter: Reporter) -> None:  # noqa: ANN401
    """Say in how many prompts a message's own text holds special tokens, which models obey as those of a template."""
    special = special_tokens(tokenizer).values()
    held = [[t for t in special if any(t in message["content"] for message in prompt)] for _, prompt in prompts]
    held_by = [tokens[0] for tokens in held if tokens]
    if held_by:
        reporter.say(
            f"{len(held_by)} of {len(prompts)} prompts hold special tokens of the tokenizer in their own text (such as "
            f"{held_by[0]}): models read them as control tokens, not as text"
        )


def ids_digest(prompts: Iterable[Sequence[int]]) -> str:
    """SHA-256 of prompts' token ids, in order."""
    return hashlib.sha256("\n".join(" ".join(map(str, ids)) for ids in prompts).encode()).hexdigest()


def _template(tokenizer: Any, options: Options) -> Any:  # noqa: ANN401
    return _compile_jinja_template(tokenizer.get_chat_template(tools=options.get("tools")))


@contextmanager
def _clock(template: Any, moment: str | None) -> Iterator[None]:  # noqa: ANN401
    """Let the template's clock show a moment: arguments of a rendering are data alone, so that it cannot be one."""
    if moment is None:
        yield
        return
    template.globals[CLOCK] = datetime.fromisoformat(moment).strftime
    try:
        yield
    finally:
        del template.globals[CLOCK]


def _plain(tokenizer: Any, text: str) -> tuple[int, ...]:  # noqa: ANN401
    ids, bare = (tuple(tokenizer(text, add_special_tokens=special)["input_ids"]) for special in (True, False))
    front = next((n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare), len(ids) - len(bare))
    return ids[: front + len(bare)]
