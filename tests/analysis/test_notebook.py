"""The review notebook, run by a kernel as in Jupyter, on a run of the tiny pair with the demo's probes.

The answer to its question is computed here by pandas, from the tables.
"""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

from tools.notebook import NOTEBOOK, TEXT, notebook


def test_the_notebook_is_made_from_its_text() -> None:
    made = notebook(TEXT.read_text())
    assert NOTEBOOK.read_text() == made, "run `make notebook`"
    nbformat.validate(json.loads(made))


@pytest.mark.slow
def test_a_kernel_shows_every_figure_and_answers_the_question_right(
    demo_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHDIAG_RUN", str(demo_once))
    opened = nbformat.read(NOTEBOOK, as_version=4)
    opened.cells += [nbformat.v4.new_code_cell(f"print({asked})") for asked in ("answer.to_json()", "len(dictionary)")]
    NotebookClient(opened, timeout=120).execute()
    outputs = {cell.source: cell.outputs for cell in opened.cells if cell.cell_type == "code"}
    shown = {source: [output.data for output in found if "data" in output] for source, found in outputs.items()}
    for source, drawn in shown.items():
        if "run.figure(" in source:
            assert ["image/png" in data for data in drawn] == [True]
    for last in ("run.primary[", "run.tokens(", "dictionary"):
        (drawn,) = (drawn for source, drawn in shown.items() if source.splitlines()[-1].startswith(last))
        assert "text/html" in drawn[0]
    assert "text/markdown" in shown["run.verdict"][0]
    assert "teachdiag run" in next(iter(shown.values()))[0]["text/html"]
    said = [found[0]["text"] for source, found in outputs.items() if source.startswith("print(")]
    assert int(said[1]) > 40

    positions, gains = pd.read_parquet(demo_once / "positions"), pd.read_parquet(demo_once / "gains")
    whole = gains.merge(positions, on=["context_id", "position"])
    agree = np.array([a[0] == b[0] for a, b in zip(whole["student_topk_ids"], whole["teacher_topk_ids"], strict=True)])
    mine = (whole["update"] == "one_step").to_numpy()
    expected = whole["gain"][mine & ~agree].mean() - whole["gain"][mine & agree].mean()
    answer = pd.DataFrame(json.loads(said[0])).set_index("update")["difference"]["one_step"]
    assert float(answer.split(" [")[0]) == pytest.approx(expected, rel=6e-3)
