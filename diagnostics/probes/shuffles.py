"""Shuffles that take the signal out of an update and leave its statistics: the teacher's rows, and whole rollouts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from teachdiag.diagnostics.models.alignment import Batch, Context
from teachdiag.diagnostics.probes.teacher_states import TeacherStates
from teachdiag.errors import EstimationError

_BINS = 10  # of teacher entropy


def shuffle_teacher(
    states: TeacherStates, contexts: Sequence[Context], entropy: np.ndarray, seed: int
) -> TeacherStates:
    """Deal the teacher's rows among positions of similar teacher entropy, so that none stays with its own prompt.

    Positions are sorted by teacher entropy and cut into ten bins of equal size; a bin in which one prompt holds more
    than half of the positions is joined with the next. Rows move within their bin.

    Args:
        states: the teacher's states.
        contexts: whose rows are dealt; all others keep their own.
        entropy: the teacher's entropy at their positions, context by context, shape (positions,), nats.
        seed: of this draw.

    Raises:
        EstimationError: one prompt holds more than half of the positions.
    """
    refuse_unshufflable(contexts)
    rng = np.random.default_rng(seed)
    rows = states.rows(Batch(tuple(contexts)))
    owner = np.repeat(_prompt_codes(contexts), [c.rows for c in contexts])
    stand_in = np.arange(len(states.states))
    for members in _mixed_bins(np.argsort(entropy, kind="stable"), owner):
        given, taken = _derange(members, owner[members], rng)
        stand_in[rows[taken]] = rows[given]
    return replace(states, stand_in=stand_in)


def shuffle_rollouts(contexts: Sequence[Context], limit: int, first_id: int, seed: int) -> list[Context]:
    """Deal the responses among the prompts, so that none stays with its own prompt.

    Args:
        contexts: the update batch.
        limit: longest sequence that both models were made for; responses are cut to fit.
        first_id: the new contexts are numbered downwards from here, so that they clash with no context of the run.
        seed: of this draw.

    Raises:
        EstimationError: one prompt holds more than half of the contexts, or so little of a response fits behind its new
            prompt that none of the student's own tokens is left.
    """
    prompts = _prompt_codes(contexts)
    if 2 * np.bincount(prompts).max() > len(contexts):
        raise EstimationError(
            f"the shuffled-rollouts placebo needs an update batch in which no prompt holds more than half of the "
            f"{len(contexts)} contexts: use more update contexts"
        )
    given, taken = _derange(np.arange(len(contexts)), prompts, np.random.default_rng(seed))
    dealt = [
        _behind(contexts[i], contexts[j], limit, first_id - index)
        for index, (i, j) in enumerate(zip(taken, given, strict=True))
    ]
    if not all(context.rows for context in dealt):
        raise EstimationError(
            f"the shuffled-rollouts placebo, which cuts sequences to the {limit} tokens that the models were made for, "
            "leaves no token of the student's in a response: leave out contexts that begin with long turns of others"
        )
    return dealt


def refuse_unshufflable(contexts: Sequence[Context]) -> None:
    """Refuse contexts among which the teacher's rows cannot be shuffled.

    Raises:
        EstimationError: one prompt holds more than half of the positions, so that its rows cannot all leave it.
    """
    held = np.bincount(_prompt_codes(contexts), weights=[c.rows for c in contexts])
    if 2 * held.max() > held.sum():
        raise EstimationError(
            f"the shuffled-teacher placebo needs an update batch in which no prompt holds more than half of the "
            f"positions: {len(contexts)} contexts of {len(held)} prompts do not do; use more update contexts"
        )


def _prompt_codes(contexts: Sequence[Context]) -> np.ndarray:
    """Number the prompts of some contexts in the order in which they appear, shape (contexts,)."""
    seen = {prompt: code for code, prompt in enumerate(dict.fromkeys(c.prompt_id for c in contexts))}
    return np.array([seen[c.prompt_id] for c in contexts])


def _behind(context: Context, rollout: Context, limit: int, context_id: int) -> Context:
    """The response of a rollout, and what is kept of it, behind the prompts of another context."""
    room = limit + 1 - max(map(len, _prompts(context)))
    kept = rollout.kept if rollout.kept is None else tuple(t for t in rollout.kept if t < room)
    return replace(context, context_id=context_id, response=rollout.response[:room], kept=kept, weights=None)


def _prompts(context: Context) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return context.student_prompt, context.teacher_prompt


def _mixed_bins(order: np.ndarray, owner: np.ndarray) -> list[np.ndarray]:
    """Cut an order into bins in which no owner holds more than half; the last takes what is left over."""
    bins: list[np.ndarray] = []
    pending = np.empty(0, np.int64)
    for part in np.array_split(order, _BINS):
        pending = np.concatenate([pending, part])
        if _mixed(owner[pending]):
            bins.append(pending)
            pending = np.empty(0, np.int64)
    while len(pending) and bins and not _mixed(owner[pending]):
        pending = np.concatenate([bins.pop(), pending])
    return [*bins, pending] if len(pending) else bins


def _mixed(owner: np.ndarray) -> bool:
    return len(owner) > 0 and 2 * int(np.bincount(owner).max()) <= len(owner)


def _derange(items: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pair every item with one of another owner: (given, taken), each a permutation of the items.

    The items are laid out owner by owner, owners and the items of each in random order, and rotated by the largest
    holding: every item then leaves its owner, provided that none holds more than half.
    """
    mixed = rng.permutation(len(items))
    rank = rng.permutation(int(owner.max()) + 1)
    laid = mixed[np.argsort(rank[owner[mixed]], kind="stable")]
    taken = items[laid]
    return np.roll(taken, int(np.bincount(owner).max())), taken
