"""OPD losses of single positions, by name.

Shapes: N positions, V shared vocabulary. `logp` and `logq` are the log-probabilities of student and teacher, p and q;
everything is float32, in nats, and gradients flow to `logp` alone. No torch is imported: settings read this module.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from teachdiag.errors import SettingsError
from teachdiag.registry import Registry, guarded

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A loss of single positions.

    Attributes:
        function: (logp (N, V), logq (N, V), sampled tokens (N,), and its options by name) to the losses (N,).
        help: what it is, in a few words.
        source: where it comes from.
        options: settings that it reads.
        sampled: whether it is an estimate from the sampled token, unbiased only where the student sampled that itself.
    """

    function: "Callable[..., Tensor]"
    help: str
    source: str
    options: tuple[str, ...] = ()
    sampled: bool = False


def reverse_kl(logp: "Tensor", logq: "Tensor") -> "Tensor":
    """KL(p || q) = sum_v p_v (log p_v - log q_v), full vocabulary: the OPD loss (paper Eq. 6). (N, V) to (N,)."""
    return (logp.exp() * (logp - logq)).sum(-1)


def forward_kl(logp: "Tensor", logq: "Tensor") -> "Tensor":
    """KL(q || p), full vocabulary: the same with the models exchanged. (N, V) to (N,)."""
    return reverse_kl(logq, logp)


def generalised_jsd(logp: "Tensor", logq: "Tensor", beta: float) -> "Tensor":
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, arXiv 2306.13649, Eq. 1). (N, V) to (N,).

    beta KL(q || m) + (1 - beta) KL(p || m) with the mixture m = beta q + (1 - beta) p, taken between probabilities.
    beta = 1/2 is the Jensen-Shannon divergence; divided by beta it tends to KL(q || p) as beta falls to 0.
    """
    logm = (logq + math.log(beta)).logaddexp(logp + math.log1p(-beta))
    return beta * forward_kl(logm, logq) + (1 - beta) * reverse_kl(logp, logm)


def sampled_reverse_kl(logp: "Tensor", logq: "Tensor", tokens: "Tensor") -> "Tensor":
    """Score-function form of the reverse KL at the sampled token y: its gradient is an unbiased estimate.

    -A log p(y) with the detached advantage A = log q(y) - log p(y); since E_p[grad log p] = 0, the expected gradient
    under y ~ p is that of KL(p || q). The value itself is no divergence. (N, V) and (N,) to (N,).
    """
    at_token = logp.gather(-1, tokens[:, None])[:, 0]
    advantage = logq.gather(-1, tokens[:, None])[:, 0] - at_token.detach()
    return -advantage * at_token


_BUILT_IN = {
    "reverse_kl": Loss(lambda logp, logq, _: reverse_kl(logp, logq), "KL(student || teacher)", "paper Eq. 6"),
    "forward_kl": Loss(lambda logp, logq, _: forward_kl(logp, logq), "KL(teacher || student)", "raw KL"),
    "jsd": Loss(
        lambda logp, logq, _, jsd_beta: generalised_jsd(logp, logq, jsd_beta),
        "generalised Jensen-Shannon divergence",
        "arXiv 2306.13649, Eq. 1",
        options=("jsd_beta",),
    ),
    "sampled_reverse_kl": Loss(
        sampled_reverse_kl, "the first, estimated from the sampled tokens", "score function", sampled=True
    ),
}


def _loss(label: str, loaded: object) -> Loss:
    """Take a loss from elsewhere; whatever its function raises becomes one sentence."""
    if not isinstance(loaded, Loss):
        raise SettingsError(f"{label} is {type(loaded).__name__}, no teachdiag.losses.Loss")

    def function(logp: "Tensor", logq: "Tensor", tokens: "Tensor", **options: Any) -> "Tensor":  # noqa: ANN401
        with guarded(label, "failed"):
            losses_N: Tensor = loaded.function(logp, logq, tokens, **options)
            if losses_N.shape != tokens.shape:
                raise SettingsError(f"returned shape {tuple(losses_N.shape)} for {len(tokens)} positions")
            return losses_N

    return replace(loaded, function=function)


LOSSES = Registry("teachdiag.losses", "loss", _BUILT_IN, _loss)


def unread_options(name: str) -> dict[str, str]:
    """Return the options that other losses read and this one does not, with what reads them.

    Raises:
        SettingsError: there is no such loss.
    """
    read = LOSSES[name].options
    return {
        option: f"--loss {other}" for other, loss in _BUILT_IN.items() for option in loss.options if option not in read
    }
