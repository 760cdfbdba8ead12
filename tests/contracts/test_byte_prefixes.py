"""Mass by byte prefixes, against every continuation that a tiny teacher can write."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.byte_prefixes import ByteOrder, Readings, starts

LETTERS = b"ab"
SHORT = st.binary(min_size=1, max_size=3).map(lambda raw: bytes(LETTERS[byte % 2] for byte in raw))
VOCABULARY = st.lists(SHORT, min_size=1, max_size=5)  # two ids may write the same
STEPS = 3  # tokens of a continuation: as many as the longest candidate has bytes


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[bytes | None], np.ndarray, list[bytes]]:
    """What a teacher's ids write (the last ends the text), its distribution behind every history, and candidates."""
    texts = [*draw(VOCABULARY), None]
    seed = draw(st.integers(0, 2**32 - 1))
    q = np.random.default_rng(seed).dirichlet(np.full(len(texts), 0.5), size=[len(texts)] * (STEPS - 1))
    return texts, q, draw(VOCABULARY)


def _truth(texts: list[bytes | None], q: np.ndarray, candidates: list[bytes]) -> float:
    """Add up the probability of every continuation that begins with a candidate, token by token."""
    total, end = 0.0, len(texts) - 1
    for tokens in product(range(len(texts)), repeat=STEPS):
        written = b"".join(texts[token] or b"" for token in (*tokens, end)[: (*tokens, end).index(end)])
        if any(written.startswith(candidate) for candidate in candidates):
            histories = [(end,) * (STEPS - 1), (tokens[0],) + (end,) * (STEPS - 2), tokens[:2]]
            total += float(np.prod([q[history][token] for history, token in zip(histories, tokens, strict=True)]))
    return total


@given(worlds())
@settings(deadline=None, max_examples=60)
def test_bounds_hold_whatever_comes_next(world: tuple[list[bytes | None], np.ndarray, list[bytes]]) -> None:
    texts, q, candidates = world
    end = len(texts) - 1
    first = q[(end,) * (STEPS - 1)]
    order = ByteOrder(texts)
    low, high = order.bounds(order.reached(first), candidates)
    assert low - 1e-12 <= _truth(texts, q, candidates) <= high + 1e-12
    open_mass = sum(
        mass
        for text, mass in zip(texts, first, strict=True)
        if text and not text.startswith(tuple(candidates)) and any(c.startswith(text) for c in candidates)
    )
    assert abs(high - low - open_mass) < 1e-12


@given(worlds())
@settings(deadline=None, max_examples=60)
def test_no_tighter_bounds_hold(world: tuple[list[bytes | None], np.ndarray, list[bytes]]) -> None:
    """One teacher ends the text behind its first token, another goes on, letter by letter, as some candidate."""
    texts, _, candidates = world
    texts = [b"a", b"b", *texts]
    end = len(texts) - 1
    first = np.random.default_rng(0).dirichlet(np.ones(len(texts)))
    order = ByteOrder(texts)
    low, high = order.bounds(order.reached(first), candidates)
    ending = np.zeros([len(texts)] * STEPS)
    ending[..., end] = 1.0
    eager = ending.copy()
    for history in (*product(range(end), repeat=1), *product(range(end), repeat=2)):
        written = b"".join(texts[token] or b"" for token in history)
        ahead = next((c[len(written)] for c in candidates if c.startswith(written) and c != written), LETTERS[0])
        eager[(*history, *[end] * (STEPS - 1 - len(history)))] = np.eye(len(texts))[LETTERS.index(ahead)]
    for teacher, bound in ((ending, low), (eager, high)):
        teacher[(end,) * (STEPS - 1)] = first
        assert abs(_truth(texts, teacher, candidates) - bound) < 1e-12


@given(VOCABULARY, st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_of_one_tokenizer_every_reading_is_the_token_itself(vocabulary: list[bytes], seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.dirichlet(np.ones(len(vocabulary)))
    candidates = rng.random(len(vocabulary)) < 0.5
    low, high = Readings((token, token) for token in range(len(vocabulary))).bounds(q, candidates)
    assert low == high
    assert abs(low - q[candidates].sum()) < 1e-12


def test_a_token_that_can_be_read_in_two_ways_is_open_where_one_is_a_candidate() -> None:
    readings = Readings([(0, 0), (0, 1), (1, 2), (2, 1)])
    q = np.array([0.5, 0.3, 0.2])
    expected = {(): (0, 0), (0,): (0, 0.5), (1,): (0.2, 0.7), (0, 1): (0.7, 0.7), (2,): (0.3, 0.3)}
    for candidates, bounds in expected.items():
        assert np.allclose(readings.bounds(q, np.isin(np.arange(3), candidates)), bounds)


def test_pieces_start_where_those_before_them_end() -> None:
    assert starts([b"ab", b"", b"c"]) == [0, 2, 2]
    assert starts([]) == []
