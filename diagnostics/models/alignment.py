"""Which logit predicts which token: the one place of the off-by-one, and of prompts of different lengths.

The distribution at response position t is read at sequence index len(prompt) + t - 1 and predicts response[t]. Only
kept positions are ever scored; tokens between them, such as those of tools and users, are read as context. A sequence
therefore ends with the token before the last kept position: nothing later is ever computed. Sequences are padded on the
right without an attention mask: under causal attention no kept position sees the padding.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.errors import ContextError

Side = Literal["student", "teacher"]
T = TypeVar("T")
KEY = [("context_id", "ascending"), ("position", "ascending")]  # the order of rows in every table of positions
_SIMILAR = 0.85  # of the longest context of a batch: what is shorter goes into the next


@dataclass(frozen=True)
class Context:
    """One frozen rollout, and which of its response positions are kept.

    Attributes:
        context_id: number of the context in its run.
        prompt_id: the prompt it came from.
        split: 'bank' or 'update'.
        student_prompt: the student's prompt token ids.
        teacher_prompt: the teacher's prompt token ids, which may be others.
        response: response token ids, up to the last position that may be kept.
        kept: response positions that are kept, ascending; None keeps all.
        weights: how many of the student's tokens each kept position stands for, where positions were drawn.
    """

    context_id: int
    prompt_id: str
    split: str
    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    response: tuple[int, ...]
    kept: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None

    @cached_property
    def positions(self) -> np.ndarray:
        """Kept response positions, ascending, shape (rows,), int64."""
        return np.arange(len(self.response)) if self.kept is None else np.array(self.kept, np.int64)

    @property
    def rows(self) -> int:
        """Number of kept positions."""
        return len(self.response) if self.kept is None else len(self.kept)

    @property
    def last(self) -> int:
        """The last kept position, of which there is one."""
        return len(self.response) - 1 if self.kept is None else self.kept[-1]

    def keeping(self, positions: Sequence[int] | np.ndarray) -> "Context":
        """Return the same rollout with only some of its kept positions, given in ascending order, unweighted."""
        return replace(self, kept=tuple(map(int, positions)), weights=None)

    def prompt(self, side: Side) -> tuple[int, ...]:
        """Prompt token ids of one side."""
        return self.student_prompt if side == "student" else self.teacher_prompt

    def inputs(self, side: Side) -> tuple[int, ...]:
        """Token ids of the shortest forward pass that reads every kept position."""
        return self.prompt(side) + self.response[: self.last]

    def places(self, side: Side) -> np.ndarray:
        """Indices into `inputs` at which the distributions of kept positions are read, shape (rows,), int64."""
        return len(self.prompt(side)) - 1 + self.positions

    @property
    def cost(self) -> int:
        """Tokens of the longer of the two forward passes."""
        return max(len(self.student_prompt), len(self.teacher_prompt)) + self.last


@dataclass(frozen=True)
class Batch:
    """Contexts that share one forward pass of each side. Rows are its kept positions, context by context."""

    contexts: tuple[Context, ...]
    extra_padding: int = 0

    @property
    def rows(self) -> int:
        """Kept positions in the batch."""
        return sum(c.rows for c in self.contexts)

    @property
    def tokens(self) -> np.ndarray:
        """Realised token ids, shape (rows,), int32."""
        return np.concatenate([np.asarray(c.response, np.int32)[c.positions] for c in self.contexts])

    @property
    def context_ids(self) -> np.ndarray:
        """Context of each row, shape (rows,), int64."""
        return np.concatenate([np.full(c.rows, c.context_id, np.int64) for c in self.contexts])

    @property
    def positions(self) -> np.ndarray:
        """Response position of each row, shape (rows,), int32."""
        return np.concatenate([c.positions for c in self.contexts]).astype(np.int32)

    def input_ids(self, side: Side, device: torch.device) -> Tensor:
        """Right-padded token ids, shape (contexts, length), int64. What pads is never attended to; it is id 0."""
        sequences = [c.inputs(side) for c in self.contexts]
        width = max(map(len, sequences)) + self.extra_padding
        padded = np.zeros((len(sequences), width), np.int64)
        for row, sequence in enumerate(sequences):
            padded[row, : len(sequence)] = sequence
        return torch.from_numpy(padded).to(device)

    def gather(self, hidden: Tensor, side: Side) -> Tensor:
        """Pick each row's hidden state: from shape (contexts, length, width) to (rows, width)."""
        context = np.repeat(np.arange(len(self.contexts)), [c.rows for c in self.contexts])
        index = np.concatenate([c.places(side) for c in self.contexts])
        to_device = hidden.device
        return hidden[torch.from_numpy(context).to(to_device), torch.from_numpy(index).to(to_device)]


def batched(contexts: Sequence[Context], batch_tokens: int) -> list[Batch]:
    """Group contexts of similar length into batches of at most `batch_tokens` padded tokens (or one context).

    No context is shorter than 85% of its batch's longest: fuller batches would save less than their padding costs.
    The grouping is the same for both sides, so that their rows pair up, and depends on nothing but the contexts.
    """
    batches: list[Batch] = []
    group: list[Context] = []
    for context in sorted(contexts, key=lambda c: (-c.cost, c.context_id)):  # the longest opens each batch
        if group and ((len(group) + 1) * group[0].cost > batch_tokens or context.cost < _SIMILAR * group[0].cost):
            batches.append(Batch(tuple(group)))
            group = []
        group.append(context)
    if group:
        batches.append(Batch(tuple(group)))
    return batches


def relaid(contexts: Sequence[Context], batch_tokens: int, limit: int, draw: int = 0) -> list[Batch]:
    """Lay out the same work otherwise, so that rounding shows as noise: smaller batches, padded further.

    Each draw is another layout: batches of a half, a third, ... of the tokens allowed, or of the tokens there are where
    these all fit. The padding stops at `limit`, the longest sequence that the model was made for.
    """
    usual, smaller = batched(contexts, batch_tokens), batched(contexts, batch_tokens // (2 + draw))
    if len(smaller) < min(2 + draw, len(contexts)) and len(usual) == 1:
        smaller = batched(contexts, len(contexts) * usual[0].contexts[0].cost // (2 + draw))
    return [replace(b, extra_padding=min(7 + draw, limit - max(c.cost for c in b.contexts))) for b in smaller]


def in_shards(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yield runs of consecutive items."""
    remaining = iter(items)
    while shard := tuple(islice(remaining, size)):
        yield shard


def check_fits(
    contexts: Sequence[Context], limits: dict[Side, int], known: Known, media_ids: frozenset[int] = frozenset()
) -> None:
    """Refuse contexts that a model cannot read.

    Args:
        contexts: the contexts to be scored.
        limits: longest sequence each model was made for, in tokens.
        known: the ids that the models share.
        media_ids: ids in whose places a model reads pictures or sounds, which no context has.

    Raises:
        ContextError: a context is longer than a model's limit, has an empty prompt or no kept position, or holds a
            token id outside the shared vocabulary, or one of a picture or a sound.
    """
    for context in contexts:
        if not context.rows:
            why = "no token of its response is the student's" if context.response else "its response is empty"
            raise ContextError(f"context {context.context_id} has no kept position: {why}")
        for side, limit in limits.items():
            if not context.prompt(side):
                raise ContextError(f"context {context.context_id} has an empty {side} prompt")
            foreign = known.stranger(context.prompt(side) + context.response)
            if foreign is not None:
                raise ContextError(
                    f"context {context.context_id} holds token id {foreign}, outside the shared vocabulary of "
                    f"{known.count}: it was tokenised for another model, or sampled from an LM head's padding"
                )
            if media_ids and (media := media_ids.intersection(context.prompt(side) + context.response)):
                raise ContextError(
                    f"context {context.context_id} holds token id {min(media)}, in whose place a picture or a sound "
                    "was read: only text is scored"
                )
            length = len(context.inputs(side))
            if length > limit:
                raise ContextError(
                    f"context {context.context_id} has {length} tokens for the {side}, whose limit is {limit}: use "
                    "shorter prompts, or fewer --positions from the first"
                )
