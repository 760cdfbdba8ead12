"""The outcome loss of graded rollouts: along its gradient, what makes answers right becomes less or more likely.

L_success = -(1/n) sum_i A_i sum_t log p(y_it), over n graded rollouts and their kept positions. Minus its gradient
estimates that of the expected grade (Williams 1992, doi:10.1007/BF00992696), not divided by lengths. The grade is 1 of
a right response and 0 of any other that ended; one that was cut before it gave an answer has none, and is left out. The
advantage A_i is the grade less the mean grade of the prompt's rollouts where prompts have several, else of all.

Unmasking On-Policy Distillation (arXiv 2605.10889) asks the same of one position at a time: it compares gradients in
the logits, with success rates from rollouts that are forced through each candidate. A bank has no such rollouts; the
inner product with this gradient, in the student's weights, is this project's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from teachdiag.artefacts import GRADES
from teachdiag.diagnostics.models.alignment import Context
from teachdiag.diagnostics.probes.probe_setup import ProbeSetup
from teachdiag.diagnostics.probes.updates import Objective
from teachdiag.diagnostics.scoring.statistics import log_probabilities
from teachdiag.runs import Stage


@dataclass(frozen=True)
class Rollouts:
    """Graded rollouts of some contexts: a row each, by context_id, with `prompt_id` and `reward`, 1 or 0.

    `left_out`: how many were cut before they gave an answer.
    """

    rows: pd.DataFrame
    left_out: int

    @property
    def repeated(self) -> bool:
        """Whether some prompt has several, which are then compared among themselves."""
        return bool(self.rows["prompt_id"].duplicated().any())

    @property
    def advantages(self) -> "pd.Series[float]":
        """The advantage of each rollout, by context_id."""
        reward = self.rows["reward"]
        mean = reward.groupby(self.rows["prompt_id"]).transform("mean") if self.repeated else reward.mean()
        advantages: pd.Series[float] = reward - mean
        return advantages

    def shuffled(self, seed: int) -> "Rollouts":
        """Return the same rollouts with their rewards dealt anew among them: a placebo."""
        order = np.random.default_rng(seed).permutation(len(self.rows))
        return Rollouts(self.rows.assign(reward=self.rows["reward"].to_numpy()[order]), self.left_out)

    def facts(self) -> dict[str, Any]:
        """What a probe records of them."""
        return {
            "rollouts": len(self.rows),
            "prompts": int(self.rows["prompt_id"].nunique()),
            "right": int(self.rows["reward"].sum()),
            "left_out": self.left_out,
            "baseline": "prompt" if self.repeated else "all",
        }


def grading_digest(run: Path) -> dict[str, str]:
    """Return the digest of a run's grades, for what a probe records of its inputs; nothing where it was not graded.

    Raises:
        RunError: grading is unfinished, or the grades are no longer what it wrote.
    """
    stage = Stage(run, "grade")
    return {} if stage.read() is None else {"grades": stage.require()["tables"]["grades"]}


def graded_rollouts(run: Path, contexts: Sequence[Context]) -> Rollouts | None:
    """Return the graded rollouts among some contexts; None where the run was not graded."""
    if Stage(run, "grade").read() is None:
        return None
    grades = GRADES.read(run / GRADES.folder, among={"context_id": [c.context_id for c in contexts]})
    grades = grades.set_index("context_id").sort_index()
    unknown = (grades["grade"] == "unparseable") & (grades["finish_reason"] != "stop")
    known = grades[~unknown]
    rows = pd.DataFrame({"prompt_id": known["prompt_id"], "reward": (known["grade"] == "right").astype(float)})
    return Rollouts(rows, int(unknown.sum()))


def success_loss(setup: ProbeSetup, contexts: Sequence[Context], rollouts: Rollouts) -> Objective | None:
    """Return L_success of some graded rollouts; None where all have the same grade, which says nothing of success.

    Args:
        setup: gives the teacher's states, which are not read.
        contexts: those of the rollouts, and maybe others.
        rollouts: graded.
    """
    advantages = rollouts.advantages
    advantages = advantages[advantages != 0]
    if advantages.empty:
        return None
    telling = [c for c in contexts if c.context_id in advantages.index]
    objective = Objective(telling, setup.teacher, _surprisal)
    to_sum = objective.positions / len(rollouts.rows)  # an objective is a mean over positions
    factors = {c.context_id: np.full(len(c.response), to_sum * advantages[c.context_id]) for c in telling}
    return Objective(telling, setup.teacher, _surprisal, factors=factors)


def _surprisal(student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p(y), (N, V) and (N,) to (N,)."""
    return -log_probabilities(student_logits).gather(-1, tokens[:, None])[:, 0]
