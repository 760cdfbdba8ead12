"""Settings of `timeline`, which tells a training from its looks at a canary."""

import re
from dataclasses import dataclass

from teachdiag.settings.base import HEADLINE_BUDGET, MODELS, SCALE, Checked, arguments, option

_NUMBERED = re.compile(r"(?:(\d+)=)?(.+?)(\d+)?/?")
_FIRST = (
    "Look at these students of a training that is over: folders whose names end in their step, as checkpoint-100, or "
)


@dataclass(frozen=True, kw_only=True)
class TimelineSettings(Checked):
    """Which looks, which selectors' masks, and perhaps checkpoints to look at first."""

    runs: list[str] = arguments("Folder that teachdiag.Monitor wrote, or that looks at --checkpoints are to be in")
    selector: str = option(
        "learnable,forward_kl,entropy,incompatible", "Selectors whose masks are followed, comma-separated"
    )
    budget: float = option(HEADLINE_BUDGET, "Share of the canary's positions that a mask keeps", "share")
    checkpoints: str = option("", f"{_FIRST}STEP=FOLDER; comma-separated", panel=MODELS)
    canary: str = option("", "Run whose bank and teacher --checkpoints are looked at with", panel=MODELS)
    contexts: int = option(16, "Contexts of that canary", "contexts", panel=MODELS)
    positions: int = option(64, "Response positions of each, at most", "positions", panel=MODELS)
    device: str = option("auto", "Torch device; 'auto' is cuda where there is one, else cpu", panel=SCALE)

    def __post_init__(self) -> None:
        """Check every field on its own.

        Raises:
            SettingsError: a value is outside its range, a checkpoint has no step, or options belong to --checkpoints.
        """
        super().__post_init__()
        self._require(len(self.runs) == 1, "runs", "one folder")
        self._require(0 < self.budget < 1, "budget", "in (0, 1)")
        self._require(bool(self.selectors), "selector", "the names of selectors")
        self._check_at_least(1, "contexts", "positions")
        if self.checkpoints:
            self._require(self.steps is not None, "checkpoints", "folders whose names end in a step, or STEP=FOLDER")
            self._require(bool(self.canary), "canary", "the run whose bank the checkpoints are looked at with")
        else:
            self.refuse_idle(dict.fromkeys(("canary", "contexts", "positions", "device"), "--checkpoints"))

    @property
    def selectors(self) -> list[str]:
        """The names, each once."""
        return list(dict.fromkeys(filter(None, map(str.strip, self.selector.split(",")))))

    @property
    def steps(self) -> dict[int, str] | None:
        """Checkpoints by step, ascending; None where one has no step, or one that another has."""
        steps: dict[int, str] = {}
        for text in filter(None, map(str.strip, self.checkpoints.split(","))):
            found = _NUMBERED.fullmatch(text)
            number = found and (found[1] or found[3])
            if not found or not number or int(number) in steps:
                return None
            steps[int(number)] = text[len(found[1]) + 1 :] if found[1] else text
        return dict(sorted(steps.items()))
