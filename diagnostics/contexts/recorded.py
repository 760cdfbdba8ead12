"""What an import recorded of the student's tokens, beside what the student here gives them: are these its weights?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from teachdiag.artefacts import CONTEXTS, POSITIONS, RECORDED
from teachdiag.progress import Reporter

# Trainers and engines in bfloat16 differ by a hundredth of a nat on average; a student of another step, or numbers that
# stand one token off, by more than this.
_SAME = 0.1  # nats
_WORDS = {"student_logp": "log-probabilities of sampled tokens", "student_entropy": "entropies"}


def compare_recorded(run: Path, reporter: Reporter) -> dict[str, Any]:
    """Compare what positions have with what contexts came with, if they came with anything, and say what came of it.

    Returns:
        `recorded`, by column of `positions`: how many `positions` have both, and `mean_absolute_difference` and
        `largest_difference` of these, nats; nothing where nothing was recorded.
    """
    compared = {}
    for name, ours in RECORDED.items():
        contexts = CONTEXTS.read(run / "contexts", ["context_id", name]).dropna()
        if contexts.empty:
            continue
        recorded = dict(zip(contexts["context_id"], contexts[name], strict=True))
        rows = POSITIONS.read(run / "positions", ["context_id", "position", ours], {"context_id": list(recorded)})
        theirs = [recorded[c][t] for c, t in zip(rows["context_id"], rows["position"], strict=True)]
        gaps = np.abs(rows[ours].to_numpy(np.float64) - np.array(theirs, np.float64))
        facts = {"mean_absolute_difference": float(gaps.mean()), "largest_difference": float(gaps.max())}
        compared[ours] = {"positions": len(gaps)} | facts
        reporter.say(_sentence(ours, compared[ours]))
    return {"recorded": compared} if compared else {}


def recorded_doubts(compared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say where the student that is scored can hardly be the one that the numbers were recorded of."""
    return [
        f"{_sentence(name, facts)}: other weights, another temperature, or other tokens than it was trained on"
        for name, facts in compared.items()
        if facts["mean_absolute_difference"] > _SAME
    ]


def _sentence(name: str, facts: Mapping[str, Any]) -> str:
    return (
        f"the student's {_WORDS[name]} differ from those that the import recorded by "
        f"{facts['mean_absolute_difference']:.2g} nats on average, {facts['largest_difference']:.2g} at most"
    )
