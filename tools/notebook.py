"""Make the notebook that Jupyter opens from the text that people edit (`make notebook`)."""

from pathlib import Path

import jupytext
import nbformat

TEXT = Path(__file__).parents[1] / "analysis/notebooks/review.py"
NOTEBOOK = TEXT.with_suffix(".ipynb")


def notebook(text: str) -> str:
    """Return a notebook without outputs as JSON; the same text gives the same bytes.

    Args:
        text: the notebook in jupytext's percent format.
    """
    made = jupytext.reads(text, "py:percent")
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(made.cells):
        cell["id"], cell["metadata"] = f"cell-{number}", {}  # else ids are drawn at random
    return str(nbformat.writes(made)) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(TEXT.read_text(encoding="utf-8")), encoding="utf-8")
