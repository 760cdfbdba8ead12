"""OPD losses of single positions, from the student's and the teacher's logits.

Shapes: N positions, V shared vocabulary. Gradients flow to the student's logits only; everything is float32, in nats.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from teachdiag.diagnostics.scoring.statistics import log_probabilities
from teachdiag.settings import Loss

PositionLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def position_loss(name: Loss, jsd_beta: float) -> PositionLoss:
    """Return the loss of that name: (student_logits (N, V), teacher_logits (N, V), tokens (N,)) -> (N,)."""
    losses: dict[Loss, PositionLoss] = {
        "reverse_kl": lambda logp, logq, _: reverse_kl(logp, logq),
        "forward_kl": lambda logp, logq, _: forward_kl(logp, logq),
        "jsd": lambda logp, logq, _: generalised_jsd(logp, logq, jsd_beta),
        "sampled_reverse_kl": sampled_reverse_kl,
    }
    chosen = losses[name]
    return lambda student, teacher, tokens: chosen(log_probabilities(student), log_probabilities(teacher), tokens)


def reverse_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) = sum_v p_v (log p_v - log q_v), full vocabulary: the OPD loss (paper Eq. 6). (N, V) to (N,)."""
    return (logp.exp() * (logp - logq)).sum(-1)


def forward_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(q || p) = sum_v q_v (log q_v - log p_v), full vocabulary. (N, V) to (N,)."""
    return (logq.exp() * (logq - logp)).sum(-1)


def generalised_jsd(logp: Tensor, logq: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, arXiv 2306.13649, Eq. 1). (N, V) to (N,).

    beta KL(q || m) + (1 - beta) KL(p || m) with the mixture m = beta q + (1 - beta) p, taken between probabilities.
    beta = 1/2 is the Jensen-Shannon divergence; divided by beta it tends to KL(q || p) as beta falls to 0.
    """
    logm = torch.logaddexp(logq + math.log(beta), logp + math.log1p(-beta))
    return beta * forward_kl(logm, logq) + (1 - beta) * reverse_kl(logp, logm)


def sampled_reverse_kl(logp: Tensor, logq: Tensor, tokens: Tensor) -> Tensor:
    """Score-function form of the reverse KL at the sampled token y: its gradient is an unbiased estimate.

    -A log p(y) with the detached advantage A = log q(y) - log p(y); since E_p[grad log p] = 0, the expected gradient
    under y ~ p is that of KL(p || q). The value itself is no divergence. (N, V) and (N,) to (N,).
    """
    at_token = logp.gather(-1, tokens[:, None])[:, 0]
    advantage = logq.gather(-1, tokens[:, None])[:, 0] - at_token.detach()
    return -advantage * at_token
