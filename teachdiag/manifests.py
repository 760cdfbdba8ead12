"""Manifests of prompt sources, `data_manifests/*.toml`: where prompts are, what columns mean, what models read."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from teachdiag.errors import ManifestError
from teachdiag.settings import template_options

FOLDER = Path(__file__).parent / "data_manifests"
# Section: entry: (type, needed). Section '' is the top level.
_ENTRIES: dict[str, dict[str, tuple[type, bool]]] = {
    "": {
        **{"id": (str, True), "description": (str, False), "licence": (str, True)},
        **{"rows": (int, False), "sha256": (list, False)},
        **{"source": (dict, True), "columns": (dict, True), "template": (dict, False), "grading": (dict, False)},
    },
    "source": {
        **{"kind": (str, True), "dataset": (str, False), "config": (str, False), "revision": (str, False)},
        **{"split": (str, False), "file": (str, False), "size": (int, False), "seed": (int, False)},
    },
    "columns": {
        **{"question": (str, True), "solution": (str, False)},
        **{"answer": (str, False), "answer_after": (str, False)},
    },
    "template": {
        "prompt": (str, False),
        "privileged": (str, False),
        "options": (dict, False),
        "prefilled": (bool, False),
    },
    "grading": {"grader": (str, False), "answer_type": (str, False), "answer_after": (str, False)},
}
_NEEDED_BY_KIND = {
    **{"file": ("file",), "hub": ("dataset", "file"), "reasoning_gym": ("dataset", "size", "seed")},
    "arithmetic": ("size", "seed"),
}
GRADERS = ("math_verify", "reasoning_gym", "exact")
ANSWER_TYPES = ("latex", "number", "text", "set", "interval", "choice")
_FIELDS = ("question", "solution", "answer")
_TOML_NAMES = {bool: "true or false", str: "string", int: "whole number", list: "list", dict: "table"}


Message = dict[str, str]  # role and content


@dataclass(frozen=True)
class Prompt:
    """One problem of a source, its columns mapped.

    Attributes:
        prompt_id: id of its manifest, and a digest of what is asked.
        source_row: zero-based row of the source.
        question: what is asked: a text, or the last user message of a conversation.
        solution: worked solution; None where the source has none.
        answer: final answer; None where the source has none.
        conversation: role and content of every message, where the source has conversations; else empty.
    """

    prompt_id: str
    source_row: int
    question: str
    solution: str | None
    answer: str | None
    conversation: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """One prompt source as its TOML file describes it (see `data_manifests/own.toml` for every key)."""

    path: Path
    id: str
    licence: str
    rows: int | None
    sha256: tuple[str, ...]
    source: Mapping[str, Any]
    columns: Mapping[str, str]
    template: Mapping[str, str]
    template_options: Mapping[str, Any]
    prefilled: bool
    grading: Mapping[str, str]

    def student_messages(self, prompt: Prompt) -> list[Message]:
        """Return the conversation that the student sees."""
        return self._fill("prompt", prompt)

    def privileged_messages(self, prompt: Prompt) -> list[Message]:
        """Return the conversation of a privileged teacher, with the worked solution in its last user message.

        Raises:
            ManifestError: the source has no worked solutions, or the manifest no such template.
        """
        if "privileged" not in self.template:
            raise ManifestError(f"{self.path}: --teacher-prompt privileged needs the entry template.privileged")
        if prompt.solution is None:
            raise ManifestError(
                f"{self.path}: --teacher-prompt privileged needs worked solutions, and {self.id} has none "
                "(columns.solution)"
            )
        return self._fill("privileged", prompt)

    def _fill(self, name: str, prompt: Prompt) -> list[Message]:
        """The conversation, with the template, filled in, in place of its last user message."""
        mapped = {field: value for field in _FIELDS if (value := getattr(prompt, field)) is not None}
        try:
            text = self.template[name].format_map(mapped)
        except KeyError as error:
            raise ManifestError(f"{self.path}: template.{name} uses {error}, which [columns] does not map") from error
        messages = [{"role": role, "content": content} for role, content in prompt.conversation]
        asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
        if not asked:
            return [{"role": "user", "content": text}]
        messages[asked[-1]]["content"] = text
        return messages


def manifest_names() -> list[str]:
    """Ids of the manifests that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != "own")


def read_manifest(name: str) -> Manifest:
    """Read a manifest by its id, or by the path of a TOML file.

    Raises:
        ManifestError: there is no such manifest, or it is not valid; the message names the entry.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except IsADirectoryError:
        raise ManifestError(f"the prompt manifest {path} is a folder: give the path of a .toml file in it") from None
    except (OSError, ValueError) as error:
        if isinstance(error, tomllib.TOMLDecodeError | UnicodeDecodeError):
            raise ManifestError(f"{path} is not TOML: {error}") from error
        raise ManifestError(
            f"no prompt manifest {name[:100]!r}: choose from {', '.join(manifest_names())}, or give the path of a "
            ".toml file"
        ) from None
    _check_entries(path, content)
    template = content.get("template", {})
    return Manifest(
        path=path,
        id=content["id"],
        licence=content["licence"],
        rows=content.get("rows"),
        sha256=tuple(content.get("sha256", ())),
        source=content["source"],
        columns=content["columns"],
        template={"prompt": "{question}"} | {k: v for k, v in template.items() if isinstance(v, str)},
        template_options=_options(path, template.get("options", {})),
        prefilled=template.get("prefilled", False),
        grading={"grader": GRADERS[0]} | content.get("grading", {}),
    )


def _check_entries(path: Path, content: dict[str, Any]) -> None:
    for section, known in _ENTRIES.items():
        entries, prefix = (content.get(section), f"{section}.") if section else (content, "")
        if entries is None:
            continue
        unknown = entries.keys() - known
        if unknown:
            raise ManifestError(f"{path}: unknown entries {', '.join(sorted(prefix + name for name in unknown))}")
        for name, (kind, needed) in known.items():
            if name in entries and type(entries[name]) is not kind:
                raise ManifestError(f"{path}: the entry {prefix}{name} must be a {_TOML_NAMES[kind]}")
            if needed and name not in entries:
                raise ManifestError(f"{path}: the entry {prefix}{name} is missing")
    if re.fullmatch(r"\w+", content["id"]) is None:
        raise ManifestError(f"{path}: the entry id must be made of letters, digits and '_'")
    for name in ("prompt", "privileged"):
        _check_template(path, name, content.get("template", {}).get(name, "{question}"))
    source = content["source"]
    if source["kind"] not in _NEEDED_BY_KIND:
        raise ManifestError(f"{path}: source.kind is {source['kind']!r}: choose {', '.join(_NEEDED_BY_KIND)}")
    for name in _NEEDED_BY_KIND[source["kind"]]:
        if name not in source:
            raise ManifestError(f"{path}: the entry source.{name} is missing, which kind {source['kind']} needs")
    grader = content.get("grading", {}).get("grader", GRADERS[0])
    if grader not in GRADERS:
        raise ManifestError(f"{path}: grading.grader is {grader!r}: choose {', '.join(GRADERS)}")
    answer_type = content.get("grading", {}).get("answer_type")
    if answer_type is not None and answer_type not in ANSWER_TYPES:
        raise ManifestError(f"{path}: grading.answer_type is {answer_type!r}: choose {', '.join(ANSWER_TYPES)}")
    if answer_type is not None and grader != "math_verify":
        raise ManifestError(f"{path}: grading.answer_type says how the grader math_verify reads answers, not {grader}")
    if grader == "reasoning_gym" and source["kind"] != "reasoning_gym":
        raise ManifestError(f"{path}: grading.grader reasoning_gym needs a source of that kind")


_COMMAND_OF_FIELD = re.compile(r"\\[a-zA-Z]+\{(?:solution|answer)\}")


def _check_template(path: Path, name: str, text: str) -> None:
    """Refuse what is more than a text with fields: a format could read attributes, or pad without end."""
    rule = f"{path}: template.{name} may use {{question}}, {{solution}} and {{answer}}, with other braces doubled"
    try:
        fields = [parts for _, *parts in Formatter().parse(text) if parts[0] is not None]
    except ValueError as error:
        raise ManifestError(f"{rule} ({error})") from error
    if command := _COMMAND_OF_FIELD.search(text.replace("{{", "")):
        raise ManifestError(f"{rule} (LaTeX's {command[0]} would be filled in: write {{{{ and }}}})")
    for field, spec, conversion in fields:
        if field not in _FIELDS or spec or conversion:
            written = f"{field}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}"
            raise ManifestError(f"{rule} ({{{written[:40]}}} is wrong)")
    if name == "prompt" and "question" not in [field for field, *_ in fields]:
        raise ManifestError(f"{path}: template.prompt lacks {{question}}, so that all prompts would be the same")


def _options(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the chat template, by the same rules as on the command line; TOML has dates, JSON does not."""
    return template_options(json.dumps(options, default=lambda moment: moment.isoformat()), f"{path}: template.options")
