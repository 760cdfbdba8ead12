"""What is seen at one step: the statistics of capture at some positions, and one number of each for the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from teachdiag.artefacts.monitored import SATURATED
from teachdiag.diagnostics.scoring.statistics import log_probabilities, statistics
from teachdiag.diagnostics.scoring.tiles import Columns, States, tiled
from teachdiag.errors import EstimationError
from teachdiag.scores import Array, clip_to, quantile_range

Numbers = dict[str, float | None]

_MEANS = {  # columns of `monitor` by those of `positions`, and two of our own
    **{name: name for name in ("forward_kl", "reverse_kl", "student_entropy", "teacher_entropy")},
    **{name: f"{name}_k16" for name in ("disagreement", "compatibility", "overlap")},
    **{name: name for name in ("end_of_text", "teacher_end_of_text")},
}
EXTRA = ("end_of_text", "teacher_end_of_text")  # what is measured beside the columns of `positions`


@dataclass(frozen=True)
class Scales:
    """5% and 95% quantiles of D and C, by which D^L and D^I are read at every later step, too."""

    disagreement: tuple[float, float]
    compatibility: tuple[float, float]

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray]) -> "Scales | None":
        """Take them from some positions; None where D or C is constant, or not finite."""
        names = "disagreement_k16", "compatibility_k16"
        try:
            return cls(*(quantile_range(columns[name].astype(np.float64), name) for name in names))
        except EstimationError:
            return None

    def split(self, columns: Mapping[str, np.ndarray]) -> tuple[Array, Array]:
        """D^L = norm(D) norm(C) and D^I = norm(D) (1 - norm(C)), shape (N,) each."""
        d = clip_to(columns["disagreement_k16"].astype(np.float64), *self.disagreement)
        c = clip_to(columns["compatibility_k16"].astype(np.float64), *self.compatibility)
        return d * c, d * (1 - c)


@torch.no_grad()
def observe(states: States, tokens: Tensor, end_ids: Sequence[int], tile_positions: int) -> Columns:
    """Every column of `positions` that logits determine, and both models' mass on tokens that end a text, NaN of none.

    Args:
        states: both models' hidden states at N positions, or their logits with heads that return them.
        tokens: realised token ids, shape (N,), int64.
        end_ids: tokens that end a text.
        tile_positions: positions whose logits exist at the same time.
    """
    ends = torch.tensor(list(end_ids), dtype=torch.int64, device=tokens.device)

    def measure(student: Tensor, teacher: Tensor, rows: slice) -> dict[str, Tensor]:
        masses = [log_probabilities(logits)[:, ends].exp().sum(-1) for logits in (student, teacher)]
        if not len(ends):  # nobody said which they are
            masses = [torch.full_like(mass, torch.nan) for mass in masses]
        return statistics(student, teacher, tokens[rows]) | dict(zip(EXTRA, masses, strict=True))

    return tiled(states, measure, tile_positions)


def summarised(columns: Mapping[str, np.ndarray], contexts: np.ndarray, scales: Scales | None) -> Numbers:
    """One number of each column of `monitor` that positions determine; None for what is not finite.

    Args:
        columns: what `observe` returned, and `hidden_norm_sq` where hidden states are known; shape (N,) each.
        contexts: number of the sequence of each position, shape (N,).
        scales: of D^L and D^I.
    """
    means = {name: columns[stored] for name, stored in _MEANS.items()}
    means |= at_tokens(columns["student_logp"], columns["teacher_logp"])
    means["saturated"] = columns["compatibility_k16"] >= SATURATED
    if "hidden_norm_sq" in columns:
        means["head_gain"] = columns["hidden_norm_sq"] * columns["logit_alignment"]
    if scales:
        means["learnable"], means["incompatible"] = scales.split(columns)
    return dict.fromkeys(("head_gain", "learnable", "incompatible")) | averaged(means, contexts)


def at_tokens(student_logp: np.ndarray, teacher_logp: np.ndarray) -> dict[str, np.ndarray]:
    """What the tokens' own log-probabilities tell at N positions, by column of `monitor`.

    At tokens y that were drawn from p, the mean of log p(y)/q(y) estimates KL(p || q), and that of min(1, q(y)/p(y))
    the mass that both share, the sum of min(p, q): what speculative decoding would accept (arXiv 2211.17192).

    Args:
        student_logp: log p(y), nats, shape (N,).
        teacher_logp: log q(y), shape (N,).
    """
    ratio = student_logp - teacher_logp
    return {"log_ratio": ratio, "shared_mass": np.exp(np.minimum(0, -ratio))}


def averaged(columns: Mapping[str, np.ndarray], contexts: np.ndarray) -> Numbers:
    """Means over N positions, None for one that is not finite, and how many positions and sequences are behind them.

    Args:
        columns: by name, shape (N,) each.
        contexts: number of the sequence of each position, shape (N,).
    """
    means = {name: float(column.mean(dtype=np.float64)) for name, column in columns.items()}
    values: Numbers = {name: mean if np.isfinite(mean) else None for name, mean in means.items()}
    return values | {"n_positions": len(contexts), "n_contexts": len(np.unique(contexts))}


def gain_since(before: np.ndarray, now: np.ndarray, contexts: np.ndarray) -> Numbers:
    """Mean fall of a KL at the same positions, nats, and its standard error over contexts.

    The mean is a ratio of sums over contexts; its error is that of the linearised ratio.

    Args:
        before: shape (N,).
        now: shape (N,).
        contexts: number of the context of each position, shape (N,).
    """
    fall = before.astype(np.float64) - now
    mean = float(fall.mean())
    if not np.isfinite(mean):
        return {"gain": None, "gain_error": None}
    _, codes = np.unique(contexts, return_inverse=True)
    residuals = np.bincount(codes, fall - mean)
    n = len(residuals)
    error = float(np.sqrt(n / (n - 1) * np.square(residuals).sum()) / len(fall)) if n > 1 else None
    return {"gain": mean, "gain_error": error}
