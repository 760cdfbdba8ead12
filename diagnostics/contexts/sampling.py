"""Prompts to response tokens, sampled from the student. Each rollout has a random stream of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from teachdiag.diagnostics.models.language_model import LanguageModel, nan_advice
from teachdiag.diagnostics.models.sources import Outline
from teachdiag.diagnostics.models.vocabulary import Known
from teachdiag.errors import ContextError, SettingsError
from teachdiag.settings import Sampling


@dataclass(frozen=True)
class Rollout:
    """One sampled response: its token ids, and why it ended ('stop' or 'length')."""

    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True)
class Group:
    """Rollouts that are written together: the number of their shard, and what is known of each before sampling."""

    index: int
    rows: tuple[dict[str, Any], ...]

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The student's prompt token ids of each."""
        return [row["prompt_token_ids"] for row in self.rows]

    @property
    def seeds(self) -> list[int]:
        """The seed of each one's own random stream."""
        return [row["sampling_seed"] for row in self.rows]


class KnownAlone(LogitsProcessor):  # type: ignore[misc]
    """Put the ids that no tokenizer knows, which are padding, out of reach of everything after it."""

    def __init__(self, known: Known, device: torch.device) -> None:
        """Take the ids that are known."""
        self.size = known.size
        self.holes = torch.tensor(known.holes, device=device) if known.holes else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask; shapes (rollouts, length) and (rollouts, ids)."""
        scores[:, self.size :] = -torch.inf
        return scores if self.holes is None else scores.index_fill_(1, self.holes, -torch.inf)


class SeededSampling(LogitsProcessor):  # type: ignore[misc]
    """Turn greedy generation into sampling with one random stream a rollout.

    Each step draws the token whose cumulative probability first exceeds the rollout's next uniform number, and puts
    all logits but its own at minus infinity. What a rollout says thus depends on its seed and not on which other
    rollouts share its batch (up to the rounding of the logits).
    """

    def __init__(self, uniforms: np.ndarray, prompt_length: int, device: torch.device) -> None:
        """Take uniform numbers in [0, 1) of shape (rollouts, steps)."""
        self.uniforms = torch.from_numpy(uniforms).to(device)
        self.prompt_length = prompt_length
        self._broken = torch.tensor(-1, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Force one token a row; shapes (rollouts, length) and (rollouts, ids). NaN is remembered as `broken`."""
        step = input_ids.shape[1] - self.prompt_length
        cumulative = scores.double().softmax(-1).cumsum(-1)
        nan = ~torch.isfinite(cumulative[:, -1]).all()
        self._broken = torch.where(nan & (self._broken < 0), step, self._broken)
        target = self.uniforms[:, step, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True).clamp_max(scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    @property
    def broken(self) -> int | None:
        """The first step at which a rollout met NaN.

        Asked for when all rollouts have ended: other processes may be in the middle of the same pass, and a GPU waits
        for who reads.
        """
        step = int(self._broken)
        return None if step < 0 else step


@torch.no_grad()
def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return prompts that end side by side, as generation wants them: ids and attention mask, (N, longest), int64."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def sample(
    student: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    sharded: bool = False,
) -> list[Rollout]:
    """Sample one response a prompt, all in one batch, of ids that the tokenizer knows.

    Args:
        student: the model at theta0.
        prompts: prompt token ids; repeat a prompt to sample it more than once.
        seeds: one seed a rollout.
        sampling: temperature, top-p, top-k and length.
        sharded: whether every process samples at the same time from a model that they share.

    Raises:
        ContextError: a logit is NaN, so that nothing can be sampled.
    """
    pad = student.tokenizer.pad_token_id or 0
    ids, mask = left_padded(prompts, pad, student.device)
    uniforms = np.stack([np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds])
    config = GenerationConfig(
        do_sample=False, max_new_tokens=sampling.max_new_tokens, eos_token_id=sorted(student.end_ids), pad_token_id=pad
    )
    drawing = SeededSampling(uniforms, ids.shape[1], student.device)
    bent = warpers(sampling.temperature, sampling.top_k, sampling.top_p)
    output = student.model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        synced_gpus=sharded,  # as many passes in every process as the longest of their rollouts needs
        logits_processor=LogitsProcessorList([KnownAlone(student.known, student.device), *bent, drawing]),
    )
    broken = drawing.broken
    if broken is not None:
        raise ContextError(
            f"the student gives NaN logits at token {broken} of a rollout: {nan_advice(student.computes_in)}"
        )
    return [ended(row, student.end_ids) for row in output[:, ids.shape[1] :].tolist()]


def sample_group(student: LanguageModel, group: Group, sampling: Sampling, *, sharded: bool = False) -> list[Rollout]:
    """Sample a group's rollouts, as one batch."""
    return sample(student, group.prompts, group.seeds, sampling, sharded=sharded)


def check_candidates(top_k: int, vocabulary: int) -> None:
    """Refuse to sample from more candidates than there are.

    Raises:
        SettingsError: --top-k is beyond the vocabulary.
    """
    if top_k > vocabulary:
        raise SettingsError(f"--top-k is {top_k}: the models share {vocabulary} ids; give fewer, or 0 for all of them")


def check_prompts_fit(
    prompts: Sequence[tuple[str, tuple[int, ...]]],
    model: LanguageModel | Outline,
    room: int,
    option: str = "--max-new-tokens",
) -> None:
    """Refuse a prompt that leaves no room for its response.

    Args:
        prompts: (prompt_id, token ids) pairs.
        model: the model whose context length is the limit.
        room: tokens that must fit behind the prompt.
        option: what sets these.

    Raises:
        ContextError: a prompt is too long; the message names it, its length and the limit.
    """
    for prompt_id, ids in prompts:
        if len(ids) + room > model.limit:
            raise ContextError(
                f"prompt {prompt_id} has {len(ids)} tokens; with {room} for the response it exceeds the {model.limit} "
                f"that {model.name} was made for: choose shorter prompts or a smaller {option}"
            )


def warpers(temperature: float, top_k: int, top_p: float) -> list[LogitsProcessor]:
    """Return what bends the distribution before it is sampled from; a temperature of 1, K of 0 and p of 1 are off."""
    if temperature == 0.0:
        return [TopKLogitsWarper(1)]
    processors: list[LogitsProcessor] = []
    if temperature != 1.0:
        processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    return processors


def ended(row: list[int], end_ids: frozenset[int]) -> Rollout:
    """Cut a row behind its first end-of-text token; what generate appended after it is padding."""
    for index, token in enumerate(row):
        if token in end_ids:
            return Rollout(tuple(row[: index + 1]), "stop")
    return Rollout(tuple(row), "length")
