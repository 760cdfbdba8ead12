"""A fresh LoRA adapter, as options ask for one: `r=16,alpha=32,target=q_proj+v_proj`."""

import math
from dataclasses import dataclass
from typing import Any

from teachdiag.errors import SettingsError
from teachdiag.settings.base import shown

ALL_LINEAR = "all-linear"
_RANK = 16


@dataclass(frozen=True)
class Lora:
    """A low-rank update of linear layers: W + alpha / rank * B A, B at 0 (arXiv 2106.09685, section 4.1).

    Attributes:
        rank: rows of A.
        alpha: what B A is multiplied by, times the rank.
        target: names of the layers, as peft matches them; 'all-linear' is all but the LM head.
    """

    rank: int
    alpha: float
    target: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """The same by peft's names."""
        target = ALL_LINEAR if self.target == (ALL_LINEAR,) else list(self.target)
        return {"r": self.rank, "lora_alpha": self.alpha, "target_modules": target}


def read_lora(text: str, name: str) -> Lora:
    """Return the adapter that an option asks for.

    Args:
        text: `r=16,alpha=32,target=q_proj+v_proj`, each with a default: 16, twice r, all-linear; '' takes them all.
        name: the option's, for messages.

    Raises:
        SettingsError: it names something else, or a value is impossible.
    """
    parts = [part.partition("=")[::2] for part in text.split(",")] if text else []
    given = dict(parts)
    target = tuple(given.get("target", ALL_LINEAR).split("+"))
    try:
        rank = int(given.get("r", _RANK))
        alpha = float(given.get("alpha", 2 * rank))
    except ValueError:
        rank, alpha = 0, 0.0
    known = len(given) == len(parts) and given.keys() <= {"r", "alpha", "target"} and all(target)
    if not known or rank < 1 or not 0 < alpha < math.inf:
        raise SettingsError(
            f"{name} asks for a LoRA adapter by {shown(text)}: give r and alpha above 0, and names of layers, as in "
            "r=16,alpha=32,target=q_proj+v_proj"
        )
    return Lora(rank, alpha, target)
