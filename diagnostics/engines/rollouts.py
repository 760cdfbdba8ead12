"""Rollouts by vLLM: many at a time, each with its own seed, handed on group by group as they finish."""

import gc
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from teachdiag.diagnostics.engines.launch import require_vllm, start
from teachdiag.diagnostics.pair import PairOutline
from teachdiag.diagnostics.rollouts import Group, Rollout, ended
from teachdiag.diagnostics.sources import ModelSource
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

_PADDING = 1024  # ids that vLLM can bend for one rollout
_AHEAD = 64  # groups that wait in the engine, so that it never lacks work and the queue does not grow with the run


def roll_out(
    source: ModelSource, pair: PairOutline, settings: CaptureSettings, groups: list[Group], reporter: Reporter
) -> Iterator[tuple[Group, list[Rollout]]]:
    """Yield each group with its rollouts, in the order in which the groups finish; the engine is gone afterwards.

    Args:
        source: the student.
        pair: its end-of-text ids, and the ids that may be sampled.
        settings: sampling, and the engine's options.
        groups: what is still to be sampled.
        reporter: progress.

    Raises:
        ModelError: vLLM is not installed, or does not take the model.
    """
    if pair.student.rows - pair.vocabulary > _PADDING:
        raise ModelError(
            f"the student's LM head has {pair.student.rows} rows, of which the teacher shares {pair.vocabulary}: vLLM "
            f"takes at most {_PADDING} ids out of reach; use --engine transformers"
        )
    engine = start(source, settings, longest(groups, settings), reporter)
    try:
        yield from serve(engine, pair, settings, groups)
    finally:
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # for the models that score


def longest(groups: Iterable[Group], settings: CaptureSettings) -> int:
    """Longest sequence that rollouts may become, in tokens."""
    return max(len(prompt) for group in groups for prompt in group.prompts) + settings.max_new_tokens


def serve(
    engine: Any,  # noqa: ANN401
    pair: PairOutline,
    settings: CaptureSettings,
    groups: Iterable[Group],
) -> Iterator[tuple[Group, list[Rollout]]]:
    """Yield each group with its rollouts from a running engine; arguments as for `roll_out`."""
    waiting = iter(groups)
    places: dict[str, tuple[Group, int]] = {}  # of every request that the engine has
    found: dict[int, dict[int, Rollout]] = {}  # rollouts of the groups that the engine has
    while True:
        for group in islice(waiting, _AHEAD - len(found)):
            found[group.index] = {}
            for row, (prompt, params) in enumerate(zip(group.prompts, _sampling(group, pair, settings), strict=True)):
                places[f"{group.index}/{row}"] = (group, row)
                engine.llm_engine.add_request(f"{group.index}/{row}", {"prompt_token_ids": list(prompt)}, params)
        if not places:
            return
        for output in engine.llm_engine.step():
            if output.finished:
                group, row = places.pop(output.request_id)
                found[group.index][row] = ended(list(output.outputs[0].token_ids), pair.student.end_ids)
                if len(found[group.index]) == len(group.rows):
                    rollouts = found.pop(group.index)
                    yield group, [rollouts[row] for row in range(len(group.rows))]


def _sampling(group: Group, pair: PairOutline, settings: CaptureSettings) -> list[Any]:
    """Parameters of each rollout; with n > 1 the samples of one prompt would share a seed."""
    vllm = require_vllm()
    padding = dict.fromkeys(range(pair.vocabulary, pair.student.rows), -math.inf)
    return [
        vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_new_tokens,
            seed=seed,
            stop_token_ids=sorted(pair.student.end_ids),
            logit_bias=padding or None,
            detokenize=False,
            output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )
        for seed in group.seeds
    ]
