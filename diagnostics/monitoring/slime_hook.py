"""slime's log function for rollouts: what the sampled tokens tell of a distillation, in slime's own metrics.

In slime's options:

    --custom-rollout-log-function-path teachdiag.diagnostics.monitoring.slime_hook.log_rollout_data

Samples hand over tokens and their log-probabilities, and no distribution: of the monitor's numbers there are the log
ratio, the mass that both models share, and lengths, with their alarms. Tables go to `teachdiag` beside slime's
checkpoints, or where the environment's TEACHDIAG_MONITOR says.
"""

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from teachdiag.diagnostics.monitoring.monitor import Monitor
from teachdiag.errors import SettingsError


def log_rollout_data(
    rollout_id: int,
    args: Any,  # noqa: ANN401
    samples: Sequence[Any],
    rollout_extra_metrics: dict[str, Any] | None,
    rollout_time: float,
) -> bool:
    """Look at a rollout, and put what was seen among the metrics that slime logs.

    Args:
        rollout_id: slime's, taken for the step.
        args: slime's; `save` is where its checkpoints go.
        samples: slime's, with `response_length`, `loss_mask`, `rollout_log_probs` and `teacher_log_probs`, whose last
            `response_length` entries are the response's. Those with `remove_sample` are left out;
            without any other, nothing is seen.
        rollout_extra_metrics: what slime logs beside its own; gets the numbers.
        rollout_time: seconds.

    Returns:
        False: slime goes on to log its own.

    Raises:
        SettingsError: samples lack a log-probability of a response's token, or `Monitor` refuses what they have.
    """
    kept = [sample for sample in samples if not getattr(sample, "remove_sample", False) and sample.response_length]
    if not kept:
        return False
    student = _padded(_log_probs(sample, "rollout_log_probs") for sample in kept)
    teacher = _padded(_log_probs(sample, "teacher_log_probs") for sample in kept)
    told = _monitor(_folder(args)).observe_log_probs(rollout_id, student, teacher, _padded(map(_mask, kept)))
    if rollout_extra_metrics is not None:
        rollout_extra_metrics.update(told)
    return False


@cache
def _monitor(folder: Path) -> Monitor:
    return Monitor(folder, every=1)


def _folder(args: Any) -> Path:  # noqa: ANN401
    return Path(os.environ.get("TEACHDIAG_MONITOR") or Path(getattr(args, "save", None) or ".") / "teachdiag")


def _log_probs(sample: Any, name: str) -> Tensor:  # noqa: ANN401
    values = getattr(sample, name, None)
    if values is None or len(values) < sample.response_length:
        raise SettingsError(
            f"a sample of slime's has {0 if values is None else len(values)} {name} for a response of "
            f"{sample.response_length} tokens: slime's own rollouts keep the student's, and the teacher's come with "
            "--use-opd --opd-type sglang"
        )
    return torch.as_tensor(values, dtype=torch.float64)[-sample.response_length :]


def _mask(sample: Any) -> Tensor:  # noqa: ANN401
    mask = sample.loss_mask if sample.loss_mask is not None else [1] * sample.response_length
    return torch.as_tensor(mask)[-sample.response_length :]


def _padded(parts: Iterable[Tensor]) -> Tensor:
    return pad_sequence(list(parts), batch_first=True)
