"""A pair with two tokenizers: what is known of C, held against pairs whose truth is known."""

from pathlib import Path

import numpy as np
import pytest
from tiny_pair import TEMPLATE, save_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from teachdiag.diagnostics.contexts.templates import encode_prompts
from teachdiag.errors import ModelError
from tools.byte_prefixes import starts, token_texts
from tools.two_tokenizers import Answer, Reader, answers, cut_in_two, known_table, measure, reader, truth_table

TEXT = "the hen ate, then\n\nheat 12 é€ ab"
MERGES = ["t h", "th e", "h e", "Ġ the", "a t", "n t", "he n", "Ċ Ċ", "he at", "Ġ a", "1 2", "Ã ©"]
CONVERSATIONS = [(str(index), [{"role": "user", "content": text}]) for index, text in enumerate(("the hen", "ate 12"))]


def byte_level(merges: list[str], without: str = "") -> PreTrainedTokenizerFast:
    """All bytes but some, what the merges make of them, and an end token."""
    pieces = [
        *sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(without)),
        *("".join(merge.split()) for merge in merges),
        "<end>",
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=TEMPLATE)


def sentence_pieces() -> PreTrainedTokenizerFast:
    """Characters of some text with its spaces shown, a word, and a fallback to bytes."""
    pieces = ["<unk>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁the,n1", "th", "the", "▁the"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


def written(student: Reader, text: str = TEXT) -> list[Answer]:
    """Answers of a given text: random models write hardly any that is one."""
    prompts = encode_prompts(student.model.tokenizer, CONVERSATIONS, {})
    return [Answer(prompt, tuple(student.encode(text.encode())), ended=True) for prompt in prompts]


def tiny(folder: Path, seed: int, merges: list[str], without: str = "") -> Reader:
    tokenizer = byte_level(merges, without)
    end = tokenizer.eos_token_id
    return reader(save_model(folder, seed, len(tokenizer), tokenizer, eos_token_id=end, pad_token_id=end))


@pytest.mark.parametrize("tokenizer", [byte_level(MERGES), sentence_pieces()])
def test_tokens_write_the_text_that_they_were_made_of(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = token_texts("it", tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert b"".join(texts[i] or b"?" for i in ids) == TEXT.encode()
    assert texts[tokenizer.eos_token_id] is None


def test_a_tokenizer_whose_bytes_are_not_known_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(ModelError, match="it: what bytes its tokens write is known of"):
        token_texts("it", PreTrainedTokenizerFast(tokenizer_object=words))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, Reader]:
    folder = tmp_path_factory.mktemp("pair")
    return tiny(folder / "student", 1, MERGES), tiny(folder / "teacher", 2, MERGES)


@pytest.mark.parametrize("cut", ["neither", "teacher", "student"])
def test_bounds_hold_the_truth_at_every_position(cut: str, pair: tuple[Reader, Reader]) -> None:
    student, teacher = pair
    seen_student = cut_in_two(student) if cut == "student" else student
    seen_teacher = cut_in_two(teacher) if cut == "teacher" else teacher
    assert cut == "neither" or len(seen_student.cut) + len(seen_teacher.cut) >= 2
    measured = measure(seen_student, seen_teacher, CONVERSATIONS, written(student))
    shared = measured.dropna()
    assert len(shared) > 50
    for name, truth in (("read", "c"), ("begins", "begins")):
        assert (shared[f"{name}_low"] - 1e-9 <= shared[truth]).all()
        assert (shared[truth] <= shared[f"{name}_high"] + 1e-9).all()
    if cut == "neither":  # of one tokenizer C is known
        np.testing.assert_allclose(shared["read_low"], shared["c"], atol=1e-12)
    if cut != "teacher":  # each token of the teacher is read in one way
        np.testing.assert_allclose(shared["read_low"], shared["read_high"], atol=1e-12)
    else:
        assert (shared["read_high"] - shared["read_low"] > 1e-3).any()
    assert set(truth_table({"it": measured})["C: held"]) == {"100.0%"}


def test_another_tokenizer_covers_the_starts_that_both_have(pair: tuple[Reader, Reader], tmp_path: Path) -> None:
    student, teacher = pair[0], tiny(tmp_path / "other", 3, MERGES[:3])
    measured = measure(student, teacher, CONVERSATIONS, written(student))
    assert "c" not in measured  # nobody knows it
    covered = dict(zip(measured["position"], measured["read_low"].notna(), strict=True))
    ours, theirs = (starts(side.spelled(side.encode(TEXT.encode()))) for side in (student, teacher))
    for (_, place), known in covered.items():
        assert known == ([*ours, len(TEXT.encode())][place] in {*theirs, len(TEXT.encode())})
    assert 0 < sum(covered.values()) <= len(covered) == 2 * (len(ours) + 1)
    assert known_table({"it": measured})["shared boundary"].nunique() == 1


def test_texts_begin_with_their_first_token_and_with_none_where_it_cannot_be_written(
    pair: tuple[Reader, Reader], tmp_path: Path
) -> None:
    whole, lacking = pair[0], tiny(tmp_path / "lacking", 4, MERGES, without="z")
    for side in (whole, lacking):
        assert side.first_tokens([b"the hen", b"h", b"\xc3"]) == [side.texts.index(t) for t in (b"the", b"h", b"\xc3")]
    assert lacking.first_tokens([b"z", b"zab", b"abz"]) == [len(lacking.texts)] * 2 + [lacking.texts.index(b"a")]


def test_answers_are_cut_where_they_stop_being_text(pair: tuple[Reader, Reader]) -> None:
    student = pair[0]
    for answer in answers(student, CONVERSATIONS):
        assert b"".join(student.spelled(answer.tokens)).decode() or not answer.tokens
        assert not answer.ended or student.model.end_ids.isdisjoint(answer.tokens)
