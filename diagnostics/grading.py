"""Is an answer right? A text that holds no answer at all is an outcome of its own."""

import importlib
from collections.abc import Callable
from typing import Any, Literal

from teachdiag.errors import ManifestError, SettingsError
from teachdiag.manifests import Manifest, Prompt

Outcome = Literal["right", "wrong", "unparseable"]
Grader = Callable[[Prompt, str], Outcome]


def grader_of(manifest: Manifest) -> Grader:
    """Return what judges answers to a manifest's prompts.

    `math_verify`: the last mathematical expression of the text, compared as mathematics. `reasoning_gym`: the data
    set's own scoring, of what stands between <answer> tags, else of the last number; right is the full score. `exact`:
    what follows the last mark `grading.answer_after`, word for word.

    Raises:
        SettingsError: the grader's package is not installed.
        ManifestError: the source has no answers, or `exact` lacks its mark.
    """
    if "answer" not in manifest.columns:
        raise ManifestError(f"{manifest.path}: answers can only be graded where columns.answer says what is right")
    kind = manifest.grading["grader"]
    if kind == "exact":
        if "answer_after" not in manifest.grading:
            raise ManifestError(f"{manifest.path}: the grader exact needs the entry grading.answer_after")
        mark = manifest.grading["answer_after"]
        return lambda prompt, text: _exact(prompt, text, mark)
    verify = _package("math_verify")
    if kind == "math_verify":
        return lambda prompt, text: _by_mathematics(prompt, text, verify)
    return _by_gym(manifest, _package("reasoning_gym"), verify)


def _exact(prompt: Prompt, text: str, mark: str) -> Outcome:
    _, found, after = text.rpartition(mark)
    if not found or not after.strip():
        return "unparseable"
    return "right" if after.split() == str(prompt.answer).split() else "wrong"


def _by_mathematics(prompt: Prompt, text: str, verify: Any) -> Outcome:  # noqa: ANN401 (a module)
    found = verify.parse(text)
    if not found:
        return "unparseable"
    return "right" if verify.verify(verify.parse(str(prompt.answer)), found) else "wrong"


def _by_gym(manifest: Manifest, gym: Any, verify: Any) -> Grader:  # noqa: ANN401 (modules)
    source = manifest.source
    dataset = gym.create_dataset(source["dataset"], size=source["size"], seed=source["seed"])

    def grade(prompt: Prompt, text: str) -> Outcome:
        entry = dataset[prompt.source_row]  # with the metadata that some scores read
        if entry["question"] != prompt.question:
            raise ManifestError(
                f"{manifest.path}: row {prompt.source_row} is another problem than reasoning-gym makes now: use its "
                f"revision {source.get('revision', 'that made them')}, or the grader math_verify"
            )
        answer = gym.utils.extract_answer(text)
        if answer is None:
            parsed = verify.parse(text)
            if not parsed:
                return "unparseable"
            answer = str(parsed[-1])
        return "right" if dataset.score_answer(answer, entry) >= 1.0 else "wrong"

    return grade


def _package(name: str) -> Any:  # noqa: ANN401 (a module)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(f"grading needs {name}: pip install 'teachdiag[train]' ({error})") from error
