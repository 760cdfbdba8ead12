"""Grades of a run's responses, each by the answer of its own prompt: the table `grades`.

They are a stage of their own beside the capture, which stays as it is: the same command again with `--grade` grades a
run that is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teachdiag.artefacts import CONTEXTS, GRADE_NAMES, GRADES
from teachdiag.diagnostics.grading.extraction import THINKING, without_thinking
from teachdiag.diagnostics.grading.grader import SECONDS, Grader, grader_of
from teachdiag.diagnostics.models.vocabulary import special_tokens
from teachdiag.diagnostics.processes.collectives import joined, on_first
from teachdiag.diagnostics.processes.group import in_share
from teachdiag.diagnostics.processes.shared_stage import SharedStage
from teachdiag.errors import ManifestError
from teachdiag.manifests import Prompt
from teachdiag.progress import Reporter
from teachdiag.prompts import PromptSet
from teachdiag.runs import Stage
from teachdiag.settings import CaptureSettings
from teachdiag.tables import is_intact, refuse_strays, shard_files, shard_paths, write_shard

_ENDING = 16  # tokens of a prompt that the beginning of its thinking takes at most
_ENDED = "stop"  # finish_reason of a response that ended by itself
_MUCH_CUT = 0.2  # of the bank's responses, before they gave an answer


@dataclass(frozen=True)
class AnswerKey:
    """What the responses of a run are graded by.

    Attributes:
        prompts: the source.
        grader: the source's.
        asked: the prompt of the source, with its answer, behind every prompt_id of the run.
    """

    prompts: PromptSet
    grader: Grader
    asked: Mapping[str, Prompt]


def answer_key(prompts: PromptSet, asked: Mapping[str, Sequence[int]], tokenizer: Any) -> AnswerKey:  # noqa: ANN401
    """Find the answer of every prompt of a run, and make sure that each can be graded by.

    A prompt that was brought from elsewhere, under a name of its own, is the one whose question it holds word for word.

    Args:
        prompts: the source.
        asked: token ids of the student's prompts, by prompt_id.
        tokenizer: the student's.

    Raises:
        ManifestError: the source has no answers, one of them cannot be read, or a prompt is none of the source's.
        SettingsError: the grader's package is not installed.
    """
    grader = grader_of(prompts.manifest)
    named = {prompt.prompt_id: prompt for prompt in prompts.prompts}
    by_id = {
        prompt_id: named.get(prompt_id) or _holding(prompts, prompt_id, tokenizer.decode(ids))
        for prompt_id, ids in asked.items()
    }
    grader.check(by_id.values())
    return AnswerKey(prompts, grader, by_id)


def _holding(prompts: PromptSet, prompt_id: str, text: str) -> Prompt:
    """Return the one prompt whose question stands in a text; of questions that hold one another, the longest."""
    held = [prompt for prompt in prompts.prompts if prompt.question.strip() in text]
    longest = max(held, key=lambda prompt: len(prompt.question), default=None)
    if longest is None:
        raise ManifestError(
            f"prompt {prompt_id} holds no question of {prompts.manifest.id}, so that there is no answer to grade its "
            "responses by: name the source of the rollouts with --prompts, or leave --grade out"
        )
    if other := next((prompt for prompt in held if prompt.question.strip() not in longest.question), None):
        raise ManifestError(
            f"prompt {prompt_id} holds the questions of rows {longest.source_row} and {other.source_row} of "
            f"{prompts.manifest.id}, so that nothing tells which of them its responses answer: leave --grade out"
        )
    return longest


def grade_responses(
    run: Path,
    key: AnswerKey,
    settings: CaptureSettings,
    tokenizer: Any,  # noqa: ANN401
    reporter: Reporter,
) -> dict[str, Any]:
    """Grade every response of a captured run, unless they are; continue where a killed run stopped.

    Several processes share the shards out. A response that did not end by itself counts only for what it states as its
    answer: its last number may be none.

    Returns:
        The stage's summary: responses by split and grade, those that were cut before they gave an answer among them,
        and `warnings`.

    Raises:
        RunError: the run was graded by other prompts.
    """
    stage = SharedStage(run, "grade", tables=("grades",))
    captured = on_first(Stage(run, "capture").record)()
    source = {"manifest": key.prompts.manifest.id, "content_sha256": key.prompts.content_sha256}
    inputs = {"contexts": captured["tables"]["contexts"], "prompts": source}
    if stage.claim({"prompts": settings.prompts, "data_file": settings.data_file}, inputs):
        reporter.say(f"{run}: grading is complete")
        return dict(stage.require()["results"])
    files = shard_files(run / "contexts")
    shards = list(zip(files, shard_paths(run / "grades", len(files)), strict=True))
    on_first(refuse_strays)(run / "grades", [path for _, path in shards])
    total = sum(captured["results"]["contexts"].values())
    with stage.timed():
        with joined(), reporter.bar("Grades", total=total) as advance:
            for number, (file, path) in enumerate(shards):
                if in_share(number):
                    advance(_grade_shard(file, path, key, tokenizer, reporter))
        results = on_first(_summary)(run)
        stage.complete(results)
    for warning in results["warnings"]:
        reporter.say(f"Beware: {warning}")
    return results


def _grade_shard(file: Path, path: Path, key: AnswerKey, tokenizer: Any, reporter: Reporter) -> int:  # noqa: ANN401
    """Grade the responses of one shard, unless it is done; return how many there are."""
    contexts = CONTEXTS.read_arrow(file).to_pylist()
    if is_intact(path):
        return len(contexts)
    rows, given_up = [], 0
    for context in contexts:
        prompt = key.asked[context["prompt_id"]]
        text = answer_text(tokenizer, context["prompt_token_ids"], _own_ids(context))
        verdict = key.grader.judge(prompt, text, cut=context["finish_reason"] != _ENDED)
        given_up += verdict.given_up
        kept = {name: context[name] for name in ("context_id", "prompt_id", "split", "finish_reason")}
        rows.append(kept | {"grade": verdict.outcome, "answer": verdict.answer, "reference": prompt.answer})
    write_shard(GRADES.build_rows(rows), path)
    if given_up:
        reporter.say(f"{given_up} responses could not be judged within {SECONDS:g} s, and are unparseable")
    return len(rows)


def _own_ids(context: Mapping[str, Any]) -> list[int]:
    """Return the tokens of a response that the student wrote: what tools and users said is no answer of its own."""
    ids: list[int] = context["response_token_ids"]
    mask = context.get("response_mask")  # which older captures lack
    return ids if mask is None else [token for token, own in zip(ids, mask, strict=True) if own]


def _summary(run: Path) -> dict[str, Any]:
    grades = GRADES.read(run / "grades", ["split", "grade", "finish_reason"])
    lost = (grades["grade"] == "unparseable") & (grades["finish_reason"] == "length")
    results: dict[str, Any] = {
        str(split): {grade: int((of_split == grade).sum()) for grade in GRADE_NAMES}
        | {"cut_before_an_answer": int(lost[of_split.index].sum())}
        for split, of_split in grades.groupby("split")["grade"]
    }
    share = float(lost[grades["split"] == "bank"].mean())
    if share < _MUCH_CUT:
        return results | {"warnings": []}
    return results | {
        "warnings": [
            f"{share:.0%} of the bank's responses were cut before they gave an answer: they are unparseable, and "
            "nobody knows whether they would have been right; capture with a larger --max-new-tokens"
        ]
    }


def answer_text(tokenizer: Any, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> str:  # noqa: ANN401
    """Return an answer as text, without special tokens and without the thinking, which a prompt's end may begin.

    Thinking that never ends leaves nothing.
    """
    written = tokenizer.decode(answer_ids, skip_special_tokens=False)
    ending = tokenizer.decode(prompt_ids[-_ENDING:], skip_special_tokens=False).rstrip()
    begun = next((opening for opening, _ in THINKING if ending.endswith(opening)), "")
    if not begun and not any(mark in written for marks in THINKING for mark in marks):
        return str(tokenizer.decode(answer_ids, skip_special_tokens=True))
    text = without_thinking(begun + written)
    for token in special_tokens(tokenizer).values():
        text = text.replace(token, "")
    return text
