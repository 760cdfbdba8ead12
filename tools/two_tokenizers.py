"""`python -m tools.two_tokenizers STUDENT TEACHER`: what is known of a teacher's signal through another tokenizer.

Without arguments (`make tokenizers`) it measures the embedded model and Gemma, each as the other's student, and the
demo's pair with one tokenizer cut in two, where the truth is known, and puts the tables into docs/tokenizers.md.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from teachdiag.diagnostics.contexts.sampling import sample
from teachdiag.diagnostics.contexts.templates import encode_prompts
from teachdiag.diagnostics.models.language_model import LanguageModel, load
from teachdiag.diagnostics.models.sources import resolve
from teachdiag.errors import InputError, ModelError, SettingsError
from teachdiag.manifests import read_manifest
from teachdiag.markdown import markdown_table
from teachdiag.progress import Reporter
from teachdiag.prompts import load_prompts
from teachdiag.settings import EMBEDDED, SUPPORT_SIZES, Sampling
from tools.byte_prefixes import ByteOrder, Readings, Reals, Texts, starts, token_texts
from tools.readme_result import ROOT, put

PAGE = ROOT / "docs/tokenizers.md"
PROMPTS, TOKENS = 16, 64
NARROW = 0.05  # width of an interval for a mass
_GEMMA, _LAYER = "runs/models/gemma-3-270m", 20  # the layer that the demo's student lacks
_TITLES = {"read": "C", "begins": "bytes"}
_TRUTHS = {"read": "c", "begins": "begins"}
_ROUNDING = 1e-9  # of sums of probabilities
_CHUNK = 20_000  # texts that are tokenised at a time

Flags = npt.NDArray[np.bool_]
Conversations = Sequence[tuple[str, list[dict[str, str]]]]


@dataclass(frozen=True)
class Answer:
    """A rollout of a student, as far as it is text: the ids of its prompt, its own ids, and whether it ended it."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Reader:
    """A model, and the vocabulary through which it is seen.

    Attributes:
        model: the model, loaded.
        texts: what its tokens write.
        cut: tokens that are seen as two others, which write the same and are not cut.
    """

    model: LanguageModel
    texts: Texts
    cut: dict[int, tuple[int, int]] = field(default_factory=dict)

    def spelled(self, tokens: Sequence[int]) -> list[bytes]:
        """Return what tokens write, one by one."""
        return [self.texts[token] or b"" for token in tokens]

    def seen(self, tokens: Sequence[int]) -> list[int]:
        """Return the model's tokens as they are seen."""
        return [part for token in tokens for part in self.cut.get(token, (token,))]

    def seen_mass(self, q: Reals) -> Reals:
        """Return probabilities of the model's tokens, shape (rows, V), as they are seen."""
        seen = q.copy()
        cut, heads = list(self.cut), [head for head, _ in self.cut.values()]
        seen[:, cut] = 0.0
        np.add.at(seen.T, heads, q[:, cut].T)
        return seen

    def encode(self, text: bytes) -> list[int]:
        """Return the model's tokens of a text.

        Raises:
            ModelError: they write another text.
        """
        ids: list[int] = self.model.tokenizer(text.decode(), add_special_tokens=False)["input_ids"]
        if b"".join(self.spelled(ids)) != text:
            raise ModelError(f"{self.model.name}: its tokenizer does not write {text!r} as it reads it")
        return ids

    def first_tokens(self, texts: Sequence[bytes]) -> list[int]:
        """Return the token, as it is seen, that each text begins with.

        Of a part of a character it is the longest token. What no token writes begins with an id behind the last.
        """
        by_text = {text: index for index, text in enumerate(self.texts) if text}
        first = [_longest(text, by_text, len(self.texts)) for text in texts]
        readable = [place for place, text in enumerate(texts) if _readable(text)]
        encode = self.model.tokenizer.backend_tokenizer.encode_batch_fast
        for at in range(0, len(readable), _CHUNK):
            chunk = readable[at : at + _CHUNK]
            coded = encode([texts[place].decode() for place in chunk], add_special_tokens=False)
            for place, token in zip(chunk, (one.ids[:1] for one in coded), strict=True):
                written = token and texts[place].startswith(self.spelled(token)[0] or b"?")
                first[place] = token[0] if written else len(self.texts)  # tokenizers may drop what they cannot write
        return [self.seen([token])[0] for token in first]

    @torch.no_grad()
    def distributions(self, prompt: Sequence[int], tokens: Sequence[int], at: Sequence[int]) -> Reals:
        """Return next-token probabilities behind a prompt and the beginning of a text.

        Args:
            prompt: ids of the prompt.
            tokens: the model's tokens of the text.
            at: bytes at which tokens start, or the text ends.

        Returns:
            Of the model's tokens, shape (len(at), V), float64.
        """
        place = {start: index for index, start in enumerate(starts([*self.spelled(tokens), b""]))}
        hidden = self.model.hidden(torch.tensor([[*prompt, *tokens]]))[0]
        rows = hidden[[len(prompt) - 1 + place[start] for start in at]]
        probabilities: Reals = self.model.head(rows).double().softmax(-1).numpy()
        return probabilities


def main(arguments: Sequence[str]) -> None:
    """Print what is known of a pair, or put what is known of the embedded pairs into their page.

    Raises:
        InputError: a model cannot be had, or the bytes of its tokens are not known.
    """
    if len(arguments) not in (0, 2):
        raise SettingsError(f"arguments {list(arguments)}: give a student and a teacher, or nothing, to fill the page")
    conversations = drawn()
    if arguments:
        student, teacher = map(reader, arguments)
        measured = measure(student, teacher, conversations, answers(student, conversations))
        print(markdown_table(known_table({f"{arguments[1]} teaches {arguments[0]}": measured})))
        return
    small, gemma = reader(EMBEDDED), reader(_GEMMA)
    ours, theirs = answers(small, conversations), answers(gemma, conversations)
    pairs = {
        "Gemma teaches SmolLM2": measure(small, gemma, conversations, ours),
        "SmolLM2 teaches Gemma": measure(gemma, small, conversations, theirs),
    }
    student = reader(EMBEDDED, (_LAYER,))
    controls = {
        "the teacher's": measure(student, cut_in_two(small), conversations, ours),
        "the student's": measure(cut_in_two(student), small, conversations, ours),
    }
    put(PAGE, "pairs", markdown_table(known_table(pairs)))
    put(PAGE, "controls", markdown_table(truth_table(controls)))


def known_table(pairs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return how many positions are covered, and how far the mass on the student's candidates is known there."""
    rows = []
    for (pair, k), group in _by_support(pairs):
        shared = group.dropna()
        row = {"pair": pair, "K": k, "positions": len(group), "shared boundary": f"{len(shared) / len(group):.1%}"}
        for name, title in _TITLES.items():
            low, high = shared[f"{name}_low"], shared[f"{name}_high"]
            row |= {title: _interval(low, high), f"{title}: known to {NARROW:g}": f"{(high - low < NARROW).mean():.1%}"}
        rows.append(row)
    return pd.DataFrame(rows)


def truth_table(controls: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the bounds beside the truths, and at how many positions they hold them."""
    rows = []
    for (control, k), group in _by_support(controls):
        shared = group.dropna()
        row = {"cut": control, "K": k, "positions": len(shared)}
        for name, title in _TITLES.items():
            low, high, truth = shared[f"{name}_low"], shared[f"{name}_high"], shared[_TRUTHS[name]]
            held = truth.between(low - _ROUNDING, high + _ROUNDING).mean()
            known = f"{(high - low < NARROW).mean():.1%}"
            row |= {f"{title}: truth": f"{truth.mean():.3f}", title: _interval(low, high)}
            row |= {f"{title}: held": f"{held:.1%}", f"{title}: known to {NARROW:g}": known}
        rows.append(row | {"rank corr. of the truths": f"{shared['c'].corr(shared['begins'], method='spearman'):.2f}"})
    return pd.DataFrame(rows)


def _interval(low: "pd.Series[float]", high: "pd.Series[float]") -> str:
    return f"{low.mean():.3f} to {high.mean():.3f}"


def _by_support(measured: dict[str, pd.DataFrame]) -> Iterator[tuple[tuple[str, int], pd.DataFrame]]:
    for name, table in measured.items():
        for k in SUPPORT_SIZES:
            yield (name, k), table[table["k"] == k]


def drawn() -> Conversations:
    """Return the prompts, as messages to either model's chat template."""
    manifest = read_manifest("gsm_symbolic")
    prompts, _ = load_prompts(manifest).draw(PROMPTS, 0, 0)
    return [(prompt.prompt_id, manifest.student_messages(prompt)) for prompt in prompts]


def reader(name: str, dropped_layers: tuple[int, ...] = ()) -> Reader:
    """Load a model."""
    model = load(resolve(name, "main", dropped_layers, Reporter(bars=False)), "float32", "cpu")
    return Reader(model, token_texts(model.name, model.tokenizer)[: model.known.size])


def cut_in_two(whole: Reader) -> Reader:
    """Return a model of which every second token that two others write is seen as these two."""
    places = {text: index for index, text in enumerate(whole.texts) if text and index % 2 == 0}
    halves = ((index, _halves(text, places)) for index, text in enumerate(whole.texts) if text and index % 2)
    return Reader(whole.model, whole.texts, {index: pair for index, pair in halves if pair})


def answers(student: Reader, conversations: Conversations) -> list[Answer]:
    """Sample an answer of the student to every prompt, and cut it where it stops being text."""
    prompts = encode_prompts(student.model.tokenizer, conversations, {})
    rollouts = sample(student.model, prompts, range(len(prompts)), Sampling(1.0, 1.0, 0, TOKENS))
    return [_as_text(student, prompt, rollout.token_ids) for prompt, rollout in zip(prompts, rollouts, strict=True)]


def readings(student: Reader, teacher: Reader) -> Readings:
    """Try every token of both vocabularies: which of the student's can be first where the teacher's is known?"""
    texts = {text for side in (student, teacher) for text in side.texts if text}
    texts |= {text + b"a" for text in texts if text[-1:].isspace()}
    tried = sorted(texts)
    pairs = set(zip(teacher.first_tokens(tried), student.first_tokens(tried), strict=True))
    pairs = {(theirs, ours) for theirs, ours in pairs if theirs < len(teacher.texts)}
    unseen = sorted({index for index, text in enumerate(teacher.texts) if text} - {theirs for theirs, _ in pairs})
    pairs |= set(zip(unseen, student.first_tokens(teacher.spelled(unseen)), strict=True))
    ends = {(theirs, ours) for theirs in teacher.model.end_ids for ours in student.model.end_ids}
    return Readings(pairs | ends)


class Pair:
    """A student and a teacher, and what their vocabularies tell of each other before any text is read."""

    def __init__(self, student: Reader, teacher: Reader) -> None:
        """Sort the teacher's vocabulary, and try how it is read by the student."""
        self.student, self.teacher = student, teacher
        self._order, self._readings = ByteOrder(teacher.texts), readings(student, teacher)
        self._one_vocabulary = student.texts == teacher.texts
        self._as_read = np.array([student.seen([token])[0] for token in range(len(student.texts))])

    def states(self, answer: Answer, prompt: tuple[int, ...]) -> list[tuple[Reals, Reals] | None]:
        """Return both models' probabilities at every position of an answer; None where the teacher is inside a token.

        Args:
            answer: the student's.
            prompt: the teacher's ids of the same prompt.
        """
        student, teacher = self.student, self.teacher
        text = b"".join(student.spelled(answer.tokens))
        end, theirs = [len(text)] * answer.ended, teacher.encode(text)
        ours = [*starts(student.spelled(student.seen(answer.tokens))), *end]
        boundaries = {*starts(student.spelled(answer.tokens)), *end} & {*starts(teacher.spelled(theirs)), len(text)}
        shared = [start for start in ours if start in boundaries]
        p = student.seen_mass(student.distributions(answer.prompt, answer.tokens, shared))
        known = dict(zip(shared, zip(p, teacher.distributions(prompt, theirs, shared), strict=True), strict=True))
        return [known.get(start) for start in ours]

    def bounds(self, p: Reals, q: Reals) -> Iterator[dict[str, float]]:
        """Yield what is known in one state, for every K, and where both have one vocabulary, the truths.

        Args:
            p: the student's probabilities, as they are seen, shape (its V,).
            q: those of the teacher's own tokens, shape (its V,).
        """
        student, teacher = self.student, self.teacher
        seen = teacher.seen_mass(q[None])[0]
        reached, reached_uncut = self._order.reached(seen), self._order.reached(q)
        for k in SUPPORT_SIZES:
            wanted = _candidates(student, p, k)
            ends = q[list(teacher.model.end_ids)].sum() * wanted[list(student.model.end_ids)].any()
            written = [text for token in np.flatnonzero(wanted).tolist() if (text := student.texts[token])]
            begins, read = self._order.bounds(reached, written), self._readings.bounds(seen, np.append(wanted, False))
            cell = {"begins_low": begins[0] + ends, "begins_high": begins[1] + ends}
            cell |= {"read_low": read[0], "read_high": read[1]}
            if self._one_vocabulary:
                cell["begins"] = self._order.bounds(reached_uncut, written)[0] + ends
                cell["c"] = q[wanted[self._as_read]].sum()
            yield cell


def measure(student: Reader, teacher: Reader, conversations: Conversations, rollouts: Sequence[Answer]) -> pd.DataFrame:
    """Measure every position of a pair, for every K.

    Returns:
        `position` (number of the answer, place of the token in it), `k`, and at shared boundaries the bounds
        `begins_low`, `begins_high`, `read_low`, `read_high`; where the models have one vocabulary, also the truths:
        `begins` (the next token of the whole vocabulary begins with a candidate) and `c`.
    """
    pair, cells = Pair(student, teacher), []
    prompts = encode_prompts(teacher.model.tokenizer, conversations, {})
    for number, (answer, prompt) in enumerate(zip(rollouts, prompts, strict=True)):
        for place, state in enumerate(pair.states(answer, prompt)):
            known = pair.bounds(*state) if state else repeat({})
            for k, bounds in zip(SUPPORT_SIZES, known, strict=False):
                cells.append({"position": (number, place), "k": k} | bounds)
    return pd.DataFrame(cells)


def _candidates(student: Reader, p: Reals, k: int) -> Flags:
    """Whether each id is among the top K; the tokens that end a text are one candidate."""
    wanted = np.zeros(len(p), bool)
    wanted[np.argsort(-p, kind="stable")[:k]] = True
    ends = list(student.model.end_ids)
    wanted[ends] = wanted[ends].any()
    return wanted


def _as_text(student: Reader, prompt: tuple[int, ...], tokens: Sequence[int]) -> Answer:
    size = next((place for place, token in enumerate(tokens) if student.texts[token] is None), len(tokens))
    ended = size < len(tokens) and tokens[size] in student.model.end_ids
    while not _readable(b"".join(student.spelled(tokens[:size]))):
        size, ended = size - 1, False
    return Answer(prompt, tuple(tokens[:size]), ended)


def _readable(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _longest(text: bytes, by_text: dict[bytes, int], otherwise: int) -> int:
    return next((by_text[text[:size]] for size in range(len(text), 0, -1) if text[:size] in by_text), otherwise)


def _halves(text: bytes, places: dict[bytes, int]) -> tuple[int, int] | None:
    for size in range(len(text) - 1, 0, -1):
        if text[:size] in places and text[size:] in places:
            return places[text[:size]], places[text[size:]]
    return None


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"Error: {error}")
