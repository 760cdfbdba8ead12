"""What a server must show before rollouts are paid for: that its ids mean the same, and that its answers can be taken.

A sequence of our own is scored a few times. The same one twice tells whether answers repeat; what the model says comes
next, by way of generation, tells whether a prompt's log-probabilities stand where they belong.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np

from teachdiag.artefacts import TOP
from teachdiag.diagnostics.engines.served.servers import Listed, Server
from teachdiag.diagnostics.engines.served.transport import Refusal
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.errors import ModelError

REPEATS = 0.02  # nats, mean over tokens: by how much the same question may be answered otherwise
_ALIGNED = 0.1  # nats, mean over ids: between scoring a token and generating it, which may run other kernels
_MASS = 1.001  # most that probabilities of a list sum to, in low precision
_TOGETHER = 512  # ids a request whose text is compared
_SHOWN = 5  # ids that an error lists
_LENGTH = 96  # tokens of our sequence, at most
_TEXT = (
    "Three friends share 24 apples. Anna takes a third of them, Boris a quarter of the rest, and Chen what is left. "
    "How many apples does each of them have? Let us count: 24 / 3 = 8, then (24 - 8) / 4 = 4, and 24 - 8 - 4 = 12."
)


def check_tokens(server: Server, tokenizer: Any, known: Known, pool: Executor) -> None:  # noqa: ANN401
    """Compare the text of every token id with what the served tokenizer makes of it.

    Several ids are compared at a time, and one by one where their texts differ.

    Args:
        server: asked for texts.
        tokenizer: the student's.
        known: its ids.
        pool: requests under way.

    Raises:
        ModelError: some ids are other tokens there; the message lists the first ones.
    """
    holes = set(known.holes)
    ids = [i for i in range(known.size) if i not in holes]

    def differing(groups: Iterable[list[int]]) -> list[list[int]]:
        listed = list(groups)
        texts = pool.map(server.text, listed)
        return [group for group, text in zip(listed, texts, strict=True) if text != tokenizer.decode(group)]

    suspects = differing(ids[start : start + _TOGETHER] for start in range(0, len(ids), _TOGETHER))
    others = [token for (token,) in differing([token] for group in suspects for token in group)]
    if others:
        examples = "; ".join(f"id {i}: {tokenizer.decode([i])!r} against {server.text([i])!r}" for i in others[:_SHOWN])
        raise ModelError(
            f"the student and {server.model} behind {server.http.root} do not share a vocabulary: {len(others)} ids "
            f"differ ({examples}): serve a teacher with the student's tokenizer"
        )


def check_answers(server: Server, tokenizer: Any, known: Known, *, by_id: bool) -> None:  # noqa: ANN401
    """Refuse a server whose log-probabilities do not repeat, are no log-probabilities, or stand at the wrong place.

    Args:
        server: asked a few times.
        tokenizer: the student's.
        known: its ids.
        by_id: whether it will be asked for ids of our choice.

    Raises:
        ModelError: it is one.
    """
    ids = tokenizer(_TEXT, add_special_tokens=False)["input_ids"][: min(_LENGTH, server.limit - 1)]
    score = partial(server.score, ids, np.arange(1, len(ids)))
    try:
        first = score()
    except Refusal as refusal:
        raise ModelError(
            f"{refusal}; {TOP} log-probabilities of every token of a prompt are needed: start vLLM with --max-logprobs "
            f"{2 * TOP}"
        ) from refusal
    check_listed(server, first, known)
    _check_repeats(server, first, score)
    _check_aligned(server, first, ids)
    if by_id:
        asked = score(first.top_ids).asked
        assert asked is not None, "ids were asked for"
        if _distance(asked, first.top) > _ALIGNED:
            raise ModelError(
                f"{server.http.root} gives other log-probabilities at ids of our choice than in its top lists: use "
                "--teacher-gives top"
            )


def check_listed(server: Server, listed: Listed, known: Known) -> None:
    """Refuse top lists that hold ids that no tokenizer emits, no log-probabilities, or no list of the likeliest.

    Raises:
        ModelError: they do.
    """
    stranger = known.stranger(np.unique(listed.top_ids).tolist())
    if stranger is not None:
        raise ModelError(
            f"{server.http.root} has token id {stranger}, which the student's tokenizer does not know, among the {TOP} "
            "likeliest of a position: its model has another vocabulary, or gives mass to its LM head's padding; score "
            "with a teacher that is loaded here"
        )
    mass = np.exp(listed.top.astype(np.float64)).sum(-1)
    others = (listed.realised,) if listed.asked is None else (listed.realised, listed.asked)
    if not (mass <= _MASS).all() or not all((values <= 0).all() for values in others):
        raise ModelError(
            f"{server.http.root} gives no log-probabilities (a list of them has the mass {mass.max():.3g}): vLLM gives "
            "them with --logprobs-mode raw_logprobs, its default"
        )
    if (listed.top[:, 1:] > listed.top[:, :-1]).any() or (np.diff(np.sort(listed.top_ids)) == 0).any():
        raise ModelError(
            f"{server.http.root} gives lists that do not fall, or name an id twice: they are not of the {TOP} "
            "likeliest ids; does something stand between here and the server?"
        )


def _check_repeats(server: Server, first: Listed, score: Callable[[], Listed]) -> None:
    moved = _distance(score().realised, first.realised)
    if moved > REPEATS:
        raise ModelError(
            f"{server.http.root} answers the same question otherwise the second time, by {moved:.2g} nats a token: "
            "several models behind one address, or noise; serve one model that repeats itself"
        )


def _check_aligned(server: Server, first: Listed, ids: list[int]) -> None:
    """Compare the last token's list with what comes next when the model has read all tokens but that."""
    generated = server.following(ids[:-1])
    scored = dict(zip(first.top_ids[-1].tolist(), first.top[-1].tolist(), strict=True))
    both = generated.keys() & scored.keys()
    apart = [abs(generated[token] - scored[token]) for token in both]
    if 2 * len(both) < len(generated) or np.mean(apart) > _ALIGNED:
        raise ModelError(
            f"{server.http.root} is not aligned: before the last token of a prompt its log-probabilities are others "
            "than when it generates from there; a newer version of the server may be right"
        )


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours.astype(np.float64) - theirs).mean())
