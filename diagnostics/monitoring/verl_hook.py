"""verl's registry of distillation losses: what the sampled tokens tell of a distillation, in verl's own metrics.

verl's workers import this module where its configuration says

    actor_rollout_ref.model.external_lib=teachdiag.diagnostics.monitoring.verl_hook

and each loss that is estimated from the sampled tokens (k1, k3 and so on) then reports two numbers more: the tokens'
mean log ratio, and the mass that both models share. verl 0.9 hands over micro-batches without the number of their step,
so that nothing is written, and no alarm is raised.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from verl.trainer.distillation.losses import DISTILLATION_LOSS_REGISTRY, get_distillation_loss_settings
from verl.workers.utils.padding import no_padding_2_padding

from teachdiag.diagnostics.monitoring.observation import at_tokens

Loss = Callable[..., tuple[Tensor, dict[str, Any]]]


def reporting(loss: Loss) -> Loss:
    """Return a distillation loss of verl's that reports what its sampled tokens tell.

    Args:
        loss: takes `config`, `distillation_config`, `model_output` and `data` of a micro-batch; returns the loss of
            each token, shape (sequences, response), and metrics by name.
    """

    @wraps(loss)
    def reported(config: Any, distillation_config: Any, model_output: Any, data: Any) -> tuple[Tensor, dict[str, Any]]:  # noqa: ANN401
        losses, metrics = loss(
            config=config, distillation_config=distillation_config, model_output=model_output, data=data
        )
        return losses, metrics | numbers(model_output, data)

    return reported


def numbers(model_output: Any, data: Any) -> dict[str, float]:  # noqa: ANN401
    """Return the means over the student's own tokens of a micro-batch, as verl's metrics; none of a batch without any.

    Args:
        model_output: with `log_probs` of all tokens under the student, nats.
        data: with the teacher's, `teacher_logprobs`, and `response_mask`.
    """
    mask = data["response_mask"]
    mask = (mask.bool().to_padded_tensor(False) if mask.is_nested else mask.bool()).cpu()
    student = no_padding_2_padding(model_output["log_probs"], data)
    teacher = no_padding_2_padding(data["teacher_logprobs"], data).squeeze(-1)
    ours, theirs = (logp.detach().double().cpu()[mask].numpy() for logp in (student, teacher))
    if not len(ours):
        return {}
    return {f"teachdiag/live/{name}": float(column.mean()) for name, column in at_tokens(ours, theirs).items()}


for _name, _loss in list(DISTILLATION_LOSS_REGISTRY.items()):
    if get_distillation_loss_settings(_name).use_estimator:
        DISTILLATION_LOSS_REGISTRY[_name] = reporting(_loss)
