"""OPD losses of single positions, from the student's and the teacher's logits.

Shapes: N positions, V shared vocabulary. Gradients flow to the student's logits only; everything is float32, in nats.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from teachdiag.diagnostics.scoring.statistics import log_probabilities
from teachdiag.losses import LOSSES

PositionLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def position_loss(name: str, settings: Mapping[str, Any]) -> PositionLoss:
    """Return the loss of that name: (student_logits (N, V), teacher_logits (N, V), tokens (N,)) -> (N,).

    Args:
        name: one of `LOSSES`.
        settings: values of options, of which it takes those that it reads.

    Raises:
        SettingsError: there is no such loss.
    """
    loss = LOSSES[name]
    options = {option: settings[option] for option in loss.options}
    return lambda student, teacher, tokens: loss.function(
        log_probabilities(student), log_probabilities(teacher), tokens, **options
    )
