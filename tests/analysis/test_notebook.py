"""The review notebook, run from top to bottom on a run of the tiny pair.

The answer to its question is computed here by pandas, from the tables.
"""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stages import ROOT

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "analysis/notebooks/review.py"


def test_every_cell_runs_and_its_own_question_is_answered_right(
    analysed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHDIAG_RUN", str(analysed))
    cells = runpy.run_path(str(NOTEBOOK))
    positions, gains = pd.read_parquet(analysed / "positions"), pd.read_parquet(analysed / "gains")
    whole = gains.merge(positions, on=["context_id", "position"])
    agree = np.array([a[0] == b[0] for a, b in zip(whole["student_topk_ids"], whole["teacher_topk_ids"], strict=True)])
    mine = (whole["update"] == "one_step").to_numpy()
    expected = whole["gain"][mine & ~agree].mean() - whole["gain"][mine & agree].mean()
    answer = cells["answer"].set_index("update")["difference"]["one_step"]
    assert float(answer.split(" [")[0]) == pytest.approx(expected, rel=6e-3)
    assert len(cells["dictionary"]) > 40
