"""The words of tables, verdicts and figures in a line each, said where they first appear."""

import re
from collections.abc import Collection, Iterable

STATUSES = {
    "holds": "the interval lies above 0, and so does the difference from every placebo",
    "reversed": "the same below 0, so that the opposite holds",
    "artefact": "a placebo shows it too",
    "unclear": "not told from a placebo",
    "not shown": "not told from 0",
    "too long": "the step was, so that nothing is judged on it",
    "not judged": "the step does not carry it",
}
GAINS = {"gain": "gain", "gain_reverse": "gain in KL(student || teacher)"}  # by the column `outcome`
DROPS = {"gain": "drop of KL(teacher || student)", "gain_reverse": "drop of KL(student || teacher)"}
_UPDATES = {
    "theta0": "nothing moved, the bank rescored in another batch layout",
    "shuffled_teacher": "a step towards the teacher's rows of other contexts",
    "shuffled_rollouts": "a step towards the true teacher on responses dealt to other prompts",
    "random_direction": "a random direction as long as the step",
}
_SIGNALS = {
    "D^L": "learnable disagreement, norm(D) norm(C)",
    "D^I": "incompatible disagreement, norm(D) (1 - norm(C))",
    "C": "the teacher's mass on the student's top K",
    "D": "KL(teacher || student) of both renormalised on the union of their top K",
    "raw KL": "KL(teacher || student) at theta0",
    "logit_alignment": "inner product of both KLs' gradients in the student's logits",
    "H x D": "norm(student entropy) norm(D)",
    "beta_L": "coefficient on D^L",
    "beta_I": "coefficient on D^I",
    "Q3": "student entropy at or below its median, raw KL at or above",
    "gain_reverse": DROPS["gain_reverse"],
    "gain_relative": "gain as a share of the KL before",
    "gain_log": "log of the KL before over that after",
}
_WORDS = {
    **{name: (name.replace("_", "[_ ]"), text) for name, text in _UPDATES.items()},
    **{name: (rf"(?<![\w^.]){re.escape(name)}(?![\w^.])", text) for name, text in _SIGNALS.items()},
}
_OPENINGS = {status: f"{status.capitalize()}(?: at K=\\d+)?:" for status in STATUSES} | {
    "reversed": "The opposite holds"
}


def explain(texts: Iterable[object], told: Collection[str] = ()) -> dict[str, str]:
    """Return what the statuses, placebos and signals mean that some texts hold.

    Args:
        texts: cells, headings or sentences. A status is a cell of its own, or opens a sentence of a verdict.
        told: words that need no further explanation.
    """
    lines = [str(text) for text in texts]
    whole, cells = "\n".join(lines), set(lines)
    statuses = {
        status: meaning
        for status, meaning in STATUSES.items()
        if status in cells or any(re.match(_OPENINGS[status], line) for line in lines)
    }
    words = {name: text for name, (pattern, text) in _WORDS.items() if re.search(pattern, whole)}
    return {name: text for name, text in (statuses | words).items() if name not in told}


def legend(explained: dict[str, str]) -> str:
    """Return explanations as one sentence; nothing where there are none."""
    listed = "; ".join(f"{name}: {text}" for name, text in explained.items())
    return f"{listed}." if listed else ""
