"""Losses that a user's is shown beside: teachdiag's own, TRL's, and a known mistake, each in a user's signature."""

import warnings
from functools import partial
from importlib.util import find_spec

from torch import Tensor

from teachdiag.diagnostics.loss_checks.gradients import LossFunction
from teachdiag.diagnostics.scoring.position_loss import position_loss
from teachdiag.diagnostics.scoring.statistics import log_probabilities
from teachdiag.losses import LOSSES

_K = 16  # candidates of the advantage that is no advantage
_TRL = {"trl KL(q || p)": 0.0, "trl JSD": 0.5, "trl KL(p || q)": 1.0}  # beta of each


def references() -> dict[str, LossFunction]:
    """Return the losses by name; TRL's where TRL is installed."""
    built_in = {name: partial(_own, name) for name in LOSSES}
    return built_in | _of_trl() | {"top-k advantage": top_k_advantage}


def top_k_advantage(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Reverse KL over the student's top K, as an advantage of whatever token was drawn: its expected gradient is 0.

    -A log p(y) with A = -sum_{v in top K} p_v (log p_v - log q_v), detached. A does not depend on y, and
    E_p[grad log p(y)] = 0, so that the teacher's message never arrives. Shape (S, L).
    """
    logp, logq = log_probabilities(student), log_probabilities(teacher)
    top, ids = logp.detach().topk(min(_K, logp.shape[-1]))
    advantage = -(top.exp() * (top - logq.gather(-1, ids))).sum(-1)
    losses: Tensor = -advantage * logp.gather(-1, tokens[..., None])[..., 0] * mask
    return losses


def _own(name: str, student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    values = position_loss(name, {"jsd_beta": 0.5})(student[mask], teacher[mask], tokens[mask])
    return student.new_zeros(mask.shape).masked_scatter(mask, values)


def _of_trl() -> dict[str, LossFunction]:
    if find_spec("trl") is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it may change
        from trl.experimental.gkd.gkd_trainer import GKDTrainer

    def loss(student: Tensor, teacher: Tensor, tokens: Tensor, mask: Tensor, beta: float) -> Tensor:
        value: Tensor = GKDTrainer.generalized_jsd_loss(student, teacher, tokens.masked_fill(~mask, -100), beta=beta)
        return value

    return {name: partial(loss, beta=beta) for name, beta in _TRL.items()}
