"""Rollouts by vLLM: many at a time, each with its own seed, handed on group by group as they finish."""

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from teachdiag.diagnostics.contexts.sampling import Group, Rollout, ended
from teachdiag.diagnostics.engines.protocol import Job, Scoring, refuse_several_processes
from teachdiag.diagnostics.engines.vllm_launch import require_vllm, start
from teachdiag.diagnostics.models.pair import PairOutline
from teachdiag.diagnostics.models.sources import ModelSource
from teachdiag.errors import ModelError
from teachdiag.progress import Reporter
from teachdiag.settings import CaptureSettings

_PADDING = 1024  # ids that vLLM can bend for one rollout
_AHEAD = 2048  # rollouts that wait in the engine, so that it never lacks work and the queue does not grow with the run


class VllmRollouts:
    """Rollouts by an engine of their own, which is gone before other models take memory."""

    def require(self, settings: CaptureSettings) -> None:
        """Refuse several processes, and a machine without vLLM."""
        refuse_several_processes()
        require_vllm()

    def sample(
        self, job: Job, scoring: Scoring, groups: list[Group], write: Callable[[Group, list[Rollout]], None]
    ) -> None:
        """Sample many groups at a time."""
        for group, rollouts in roll_out(job.sources[0], job.pair, job.settings, groups, job.reporter):
            write(group, rollouts)


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
    refuse_padding(pair)
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
    yield from whole_groups(_finished(engine, pair, settings, iter(groups)))


def whole_groups(finished: Iterable[tuple[Group, int, Rollout]]) -> Iterator[tuple[Group, list[Rollout]]]:
    """Yield each group when the last of its rollouts has come, from (group, row, rollout) in any order."""
    begun: dict[int, dict[int, Rollout]] = {}
    for group, row, rollout in finished:
        rollouts = begun.setdefault(group.index, {})
        rollouts[row] = rollout
        if len(rollouts) == len(group.rows):
            del begun[group.index]
            yield group, [rollouts[row] for row in range(len(group.rows))]


def sampling_options(pair: PairOutline, settings: CaptureSettings) -> dict[str, Any]:
    """Parameters of every rollout as plain values, but for its seed, which n > 1 samples of a prompt would share."""
    padding = dict.fromkeys(pair.known.unknown(pair.student.rows), -math.inf)
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": sorted(pair.student.end_ids),
        "logit_bias": padding or None,
        "detokenize": False,
    }


def refuse_padding(pair: PairOutline) -> None:
    """Refuse a student with more padding than vLLM can put out of reach.

    Raises:
        ModelError: it has.
    """
    if pair.student.rows - pair.known.count > _PADDING:
        raise ModelError(
            f"the student's LM head has {pair.student.rows} rows, of which its tokenizer knows {pair.known.count}: "
            f"vLLM takes at most {_PADDING} ids out of reach; use --engine transformers"
        )


def _finished(
    engine: Any,  # noqa: ANN401
    pair: PairOutline,
    settings: CaptureSettings,
    waiting: Iterator[Group],
) -> Iterator[tuple[Group, int, Rollout]]:
    vllm = require_vllm()
    options = sampling_options(pair, settings) | {"output_kind": vllm.sampling_params.RequestOutputKind.FINAL_ONLY}
    requests: dict[str, tuple[Group, int]] = {}  # that the engine has, by their ids
    while True:
        while len(requests) < _AHEAD and (group := next(waiting, None)):
            for row, (prompt, seed) in enumerate(zip(group.prompts, group.seeds, strict=True)):
                requests[f"{group.index}/{row}"] = (group, row)
                params = vllm.SamplingParams(**options, seed=seed)
                engine.llm_engine.add_request(f"{group.index}/{row}", {"prompt_token_ids": list(prompt)}, params)
        if not requests:
            return
        for output in engine.llm_engine.step():
            if output.finished:
                group, row = requests.pop(output.request_id)
                yield group, row, ended(list(output.outputs[0].token_ids), pair.student.end_ids)
