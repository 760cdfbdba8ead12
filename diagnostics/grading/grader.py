"""Is an answer right? A text that holds no answer at all is an outcome of its own."""

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from teachdiag.diagnostics.grading.extraction import without_thinking
from teachdiag.errors import ManifestError, SettingsError
from teachdiag.manifests import Manifest, Prompt

SECONDS = 5.0  # that judging one answer may take
Outcome = Literal["right", "wrong", "unparseable"]


@dataclass(frozen=True)
class Verdict:
    """An outcome, and how it came about.

    Attributes:
        outcome: of the answer.
        answer: the answer as it is written in the text; None where it is unparseable.
        given_up: whether it is unparseable because judging was given up: beyond `SECONDS`, or an error.
    """

    outcome: Outcome
    answer: str | None = None
    given_up: bool = False


@dataclass(frozen=True)
class Grader:
    """What judges answers to a manifest's prompts; several threads may use it."""

    manifest: Manifest

    def __call__(self, prompt: Prompt, text: str, cut: bool = False) -> Outcome:
        """Return the outcome of `judge` alone."""
        return self.judge(prompt, text, cut).outcome

    def judge(self, prompt: Prompt, text: str, cut: bool = False) -> Verdict:
        """Judge an answer, in at most `SECONDS` and the time that a new process takes to start.

        Thinking (`<think>...</think>` and the like) is no part of the answer; thinking that never ends has none.

        Args:
            prompt: with its gold answer.
            text: what the model wrote.
            cut: it ended at a length limit, so that its last number may be none. Then only a box, answer tags, or a
                complete sentence that says 'answer' hold one.

        Raises:
            ManifestError: the gold answer is not of its type; the message names the row.
        """
        text = without_thinking(text)
        if self.manifest.grading["grader"] == "exact":
            return _exact(prompt, text, self.manifest.grading["answer_after"])
        reply = _judging.ask(self._request(prompt, text, cut))
        if "gold" in reply:
            raise ManifestError(f"{self._gold(prompt)} {reply['gold']}")
        return Verdict(**reply)

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Make sure, before any model is asked, that every prompt's gold answer can be read and is right by itself.

        Raises:
            ManifestError: one is not; the message names the row.
        """
        grading = self.manifest.grading
        forms = {"exact": f"{grading.get('answer_after')} {{}}", "reasoning_gym": "<answer>{}</answer>"}
        form = forms.get(grading["grader"], "\\boxed{{{}}}")
        for prompt in prompts:
            if self(prompt, form.format(prompt.answer)) != "right":
                raise ManifestError(
                    f"{self._gold(prompt)} is not right by itself, so that no answer could be: mend it, or the "
                    "[grading] of the manifest"
                )

    def _gold(self, prompt: Prompt) -> str:
        return f"{self.manifest.path}: the answer {str(prompt.answer)!r:.80} of row {prompt.source_row}"

    def _request(self, prompt: Prompt, text: str, cut: bool) -> dict[str, Any]:
        answer = {"text": text, "cut": cut}
        if self.manifest.grading["grader"] == "reasoning_gym":
            source = {"source": dict(self.manifest.source), "row": prompt.source_row, "question": prompt.question}
            return {"gym": source | answer}
        kind = self.manifest.grading.get("answer_type", "latex")
        return {"mathematics": {"answer_type": kind, "gold": str(prompt.answer)} | answer}


def grader_of(manifest: Manifest) -> Grader:
    """Return what judges answers to a manifest's prompts.

    `math_verify` compares as mathematics (`answers.values` says what is the same) what the last box holds; without a
    box, the first formula behind the last word 'answer'; without one, the last formula or number. Gold answers are
    read as `grading.answer_type` says:

    - `latex`, the default: LaTeX or plain, with or without dollars: numbers, expressions, collections, words, choices;
    - `number`: one number, with or without a unit;
    - `text`: words, compared as words;
    - `set`: elements parted by commas, in no order, whatever brackets are around them;
    - `interval`: an interval or a union of some, also as inequalities;
    - `choice`: the letter of an option, or several.

    `reasoning_gym`: numbers as `number`; else the data set's own scoring of what stands between <answer> tags, in a
    box, or behind the word 'answer'; right is the full score. `exact`: what follows the last mark
    `grading.answer_after`, word for word.

    Raises:
        SettingsError: the grader's package is not installed.
        ManifestError: the source has no answers, or `exact` lacks its mark.
    """
    if "answer" not in manifest.columns:
        raise ManifestError(f"{manifest.path}: answers can only be graded where columns.answer says what is right")
    kind = manifest.grading["grader"]
    if kind == "exact" and "answer_after" not in manifest.grading:
        raise ManifestError(f"{manifest.path}: the grader exact needs the entry grading.answer_after")
    needed = {"exact": (), "math_verify": ("math_verify",), "reasoning_gym": ("math_verify", "reasoning_gym")}
    for package in needed[kind]:
        if importlib.util.find_spec(package) is None:
            raise SettingsError(f"grading needs {package}: pip install 'teachdiag[train]'")
    return Grader(manifest)


def _exact(prompt: Prompt, text: str, mark: str) -> Verdict:
    _, marked, after = text.rpartition(mark)
    if not marked or not after.strip():
        return Verdict("unparseable")
    return Verdict("right" if after.split() == str(prompt.answer).split() else "wrong", after.strip())


class _JudgingProcess:
    """A process that judges one answer after the other, and is started anew where it ended itself over one.

    It reads arbitrary text as mathematics, which can take for ever in code that no signal stops.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Any = None  # a Popen with both pipes
        atexit.register(self.stop)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a request; an unparseable outcome where the process ended over it."""
        with self._lock:
            process = self._process or self._start()
            reply = ""
            try:
                print(json.dumps(request), file=process.stdin, flush=True)
                reply = process.stdout.readline()
            except OSError:  # it ended before it had read all
                pass
            finally:
                if not reply:  # also where this was interrupted: the reply that is due must not be the next one's
                    self._end()
            return dict(json.loads(reply)) if reply else {"outcome": "unparseable", "given_up": True}

    def stop(self) -> None:
        """End the process, if it runs."""
        with self._lock:
            self._end()

    def _start(self) -> Any:  # noqa: ANN401 (a Popen)
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "teachdiag.diagnostics.grading", str(SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="surrogatepass",
            env=os.environ | {"PYTHONPATH": paths, "PYTHONUTF8": "1"},
        )
        if not self._process.stdout.readline():
            self._end()
            raise SettingsError(
                "the process that judges answers does not start: `python -m teachdiag.diagnostics.grading 5` says why"
            )
        return self._process

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        with contextlib.suppress(OSError):  # of what it has not read
            process.stdin.close()
        process.stdout.close()
        process.wait()


_judging = _JudgingProcess()
