"""`python -m tools.off_support RUN...`: how much of each run's disagreement lies outside the student's own candidates.

With S the student's top K and C = q(S) the teacher's mass on it, the chain rule splits the KL at every position,

    KL(q || p) = C KL(q|S || p|S) + [ kl(C, p(S)) + (1 - C) KL(q|not S || p|not S) ],

into what can be learned by moving mass among the candidates, and what concerns mass outside them. Neither is negative.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from teachdiag.artefacts import POSITIONS
from teachdiag.markdown import markdown_table
from teachdiag.scores import norm
from teachdiag.tables import rows_where

SUPPORTS = (1, 2, 4, 8, 16, 32)  # values of K: any up to the length of the stored lists
OUTSIDE = (0.01, 0.1, 0.5)  # teacher mass outside the support, from which a position is counted
_LISTS = ("student_topk_logp", "teacher_logp_at_student_topk")

Reals = npt.NDArray[np.float64]


def split_kl(student: Reals, teacher: Reals, forward_kl: Reals) -> tuple[Reals, Reals]:
    """Split every position's KL at the student's top K.

    Args:
        student: log p at the student's top K ids, nats, shape (positions, K).
        teacher: log q at the same ids, nats, shape (positions, K).
        forward_kl: KL(q || p) over the whole vocabulary, nats, shape (positions,).

    Returns:
        C, and the part of the KL in nats that moving mass among the K ids would remove, shape (positions,) both.
    """
    p, q = np.exp(student), np.exp(teacher)
    mass, held = np.minimum(q.sum(1), 1.0), p.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = (q * (teacher - student)).sum(1) - mass * (np.log(mass) - np.log(held))
    inside = np.where(mass > 0, inside, 0.0)
    return mass, np.clip(inside, 0.0, forward_kl)


def off_support_rows(positions: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield a row for every K: how C is spread over the bank, and how its KL is split at the support and by scores.

    `called incompatible` is the share of the KL at positions where D^I > D^L, which is where norm(C) < 1/2.
    """
    student, teacher = (np.array(positions[name].tolist(), dtype=float) for name in _LISTS)
    kl = positions["forward_kl"].to_numpy(float)
    for k in SUPPORTS:
        mass, inside = split_kl(student[:, :k], teacher[:, :k], kl)
        shares = {f"1 - C >= {least:g}": (1 - mass >= least).mean() for least in OUTSIDE} | {
            "KL off support": 1 - inside.sum() / kl.sum(),
            "KL called incompatible": kl[norm(mass, "C") < 0.5].sum() / kl.sum(),
        }
        ranks = pd.Series(1 - mass).corr(pd.Series(kl), method="spearman")
        yield {"K": k, "mean C": mass.mean(), **shares, "rank corr. of 1 - C and KL": ranks}


def off_support_table(runs: Sequence[Path]) -> pd.DataFrame:
    """Return the rows of several runs' banks as text, shares in percent.

    Raises:
        ArtefactError: a run has not been captured.
    """
    rows = []
    for run in runs:
        positions = POSITIONS.read(run / "positions", ["split", "forward_kl", *_LISTS])
        rows += [{"run": run.name} | row for row in off_support_rows(rows_where(positions, split="bank"))]
    table = pd.DataFrame(rows)
    for name in table.columns[2:]:
        digits = ".1%" if name.startswith(("1", "KL")) else ".4f" if name == "mean C" else ".2f"
        table[name] = [f"{value:{digits}}" for value in table[name]]
    return table


if __name__ == "__main__":
    print(markdown_table(off_support_table([Path(argument) for argument in sys.argv[1:]])))
