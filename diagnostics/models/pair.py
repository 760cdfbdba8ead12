"""The pair: student and teacher, pinned, in outline, and loaded with their heads cut to the shared vocabulary."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from teachdiag.diagnostics.models.adapters import check_adapter
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.sources import ModelSource, Outline, Sources, outline, resolve_adapter
from teachdiag.diagnostics.models.vocabulary import Known, ends_of, shared_vocabulary
from teachdiag.diagnostics.models.weights import resolve_whole
from teachdiag.errors import ModelError, SettingsError
from teachdiag.progress import Reporter
from teachdiag.settings import EndOfText, PairSettings


@dataclass(frozen=True)
class Pair:
    """Student and teacher, loaded, with the number of leading ids that their heads are cut to."""

    student: LanguageModel
    teacher: LanguageModel
    vocabulary: int


@dataclass(frozen=True)
class PairOutline:
    """Student and teacher before their weights are loaded, with the ids that they share."""

    student: Outline
    teacher: Outline
    known: Known


def resolve_student(settings: PairSettings, reporter: Reporter) -> ModelSource:
    """Pin the student.

    Raises:
        ModelError: it cannot be found, or does not fit its architecture.
    """
    trusted = settings.trust_remote_code
    student = resolve_whole(settings.student, settings.revision, settings.dropped_layers, reporter, trusted)
    return replace(adapted(student, settings.student_adapter, reporter), end_of_text=settings.end_of_text)


def resolve_pair(settings: PairSettings, reporter: Reporter) -> Sources:
    """Pin student and teacher.

    Raises:
        ModelError: one cannot be found, or does not fit its architecture.
    """
    student = resolve_student(settings, reporter)
    wanted = settings.teacher, settings.teacher_revision or settings.revision
    if wanted == (settings.student, settings.revision):  # whose files need not be read again
        teacher = replace(student, dropped_layers=(), adapter=None, end_of_text="same")
    else:
        teacher = resolve_whole(*wanted, (), reporter, settings.trust_remote_code)
    if settings.teacher_options:
        teacher = replace(teacher, options=json.dumps(settings.teacher_options, sort_keys=True))
    return student, adapted(teacher, settings.teacher_adapter, reporter)


def adapted(source: ModelSource, adapter: str, reporter: Reporter) -> ModelSource:
    """Return a model with the adapter of a folder on it; as it is, where that is ''.

    Raises:
        ModelError: it cannot be found, or is not of this model.
    """
    if not adapter:
        return source
    source = replace(source, adapter=resolve_adapter(adapter, source, reporter))
    check_adapter(source)
    return source


def refuse_nothing_to_learn(sources: Sources, teacher_prompt: str, same_prompts: bool) -> None:
    """Refuse a pair of the same weights under the same prompts, and a privileged prompt that privileges nobody.

    Args:
        sources: student and teacher.
        teacher_prompt: what was asked for, 'same' or 'privileged'.
        same_prompts: whether the prompts are the same, as they were rendered or brought.

    Raises:
        ModelError: there is nothing to learn.
        SettingsError: all of the teacher's prompts are the student's where other ones were asked for.
    """
    student, teacher = sources
    if same_prompts and teacher_prompt == "privileged":
        raise SettingsError(
            "--teacher-prompt privileged: yet every prompt of the teacher is the student's own; leave it out, or bring "
            "contexts, or a manifest's template, with other prompts for the teacher"
        )
    if same_prompts and _weights(student) == _weights(teacher):
        raise ModelError(
            f"student and teacher are both {student.name} with the same prompt, so there is nothing to learn: choose "
            "another teacher, an adapter of one of them, --student-drop-layers, or --teacher-prompt privileged"
        )


def pinned(source: ModelSource) -> dict[str, Any]:
    """What identifies the weights; where a local copy lies does not, nor what it may do and how it ends."""
    facts = asdict(source)
    del facts["path"], facts["trusted"], facts["end_of_text"], facts["adapter"], facts["options"]
    if source.options:
        facts["options"] = source.options
    if source.adapter:
        facts["adapter"] = {"name": source.adapter.name, "digest": source.adapter.digest}
    return facts


def _weights(source: ModelSource) -> tuple[str, tuple[int, ...], str]:
    """What decides every number that a model computes."""
    return source.whole_digest, source.dropped_layers, source.options


def outline_pair(sources: Sources, reporter: Reporter) -> PairOutline:
    """Read both models' tokenizers and configurations, and compare their vocabularies.

    Args:
        sources: student and teacher.
        reporter: told where heads are cut.

    Raises:
        ModelError: they cannot be read, or the models do not share a vocabulary.
    """
    student, teacher = outline(sources[0]), outline(sources[1])
    pair = outlined(student, teacher, sources[0].end_of_text)
    if not student.rows == teacher.rows == pair.known.count:
        reporter.say(
            f"LM heads of {student.rows} (student) and {teacher.rows} (teacher) rows are cut to the {pair.known.count} "
            "ids that the tokenizer knows"
        )
    return pair


def outlined(student: Outline, teacher: Outline, end_of_text: EndOfText) -> PairOutline:
    """Compare the vocabularies of two models in outline, and say what ends a response.

    Raises:
        ModelError: they do not share a vocabulary, or end a text otherwise and must not.
    """
    known = shared_vocabulary(student, teacher)
    return PairOutline(replace(student, end_ids=ends_of(student, teacher, end_of_text)), teacher, known)


def load_pair(sources: Sources, dtype: str, device: str, *, master: bool = False) -> Pair:
    """Load both models, their heads cut to the shared vocabulary.

    Args:
        sources: student and teacher. Loaded once where they have the same weights and the student stays at theta0.
        dtype: type of the weights, or of the student's forward computation with `master`.
        device: torch device.
        master: keep the student's weights in float32, to be updated.

    Raises:
        ModelError: one cannot be loaded, or they do not share a vocabulary.
    """
    student = load(sources[0], dtype, device, master=master)
    shared = not master and _weights(sources[0]) == _weights(sources[1])
    teacher = student if shared else load(sources[1], dtype, device)
    student.end_with(ends_of(student, teacher, sources[0].end_of_text))
    return Pair(student, teacher, shared_vocabulary(student, teacher).size)
